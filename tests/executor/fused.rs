//! Q quantized by the attention kernel, instead of by the quantizer before it: the same bits. (Elsewhere every launch with
//! an odd seed does so, where the kernel can.)

use sage_attn::problem::{DType, Smoothing};
use sage_spec::symbol::{STEMS, Stem};
use sage_spec::{Dims, ScaleGranularity};
use sage_tests::case::Case;
use sage_tests::setup::{Setup, noisy_k, noisy_q, noisy_v};

use crate::device::run;

fn stem() -> Stem {
    STEMS.into_iter().find(|stem| stem.name == "sm90_int8_fp8_fwd").expect("the stem exists")
}

/// What such a kernel takes: 65 to 128 features, 16 bits, several scales a block, Q as it is, and no log-sum-exp that K's mean is missing from.
fn setup(dims: Dims, dtype: DType, granularity: ScaleGranularity) -> Setup {
    let smoothing = Smoothing { q: false, k: true, v: false };
    Setup { dtype, granularity, smoothing, return_lse: false, ..Setup::new(stem(), dims) }
}

/// Fails unless the kernels agree, in schedules of three.
fn check(case: &Case) {
    let of = |seed| run(case, seed).unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
    let before = of(2);
    assert!(!before.plan.quantizes_q());
    for seed in [3, 5, 7] {
        let within = of(seed);
        assert!(within.plan.quantizes_q(), "{}", case.describe());
        let same = before.out.iter().zip(&within.out).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{}: other bits", case.describe());
    }
}

/// Each block and each head has another magnitude, and so has every row of a block.
fn uneven(setup: Setup) -> Case {
    let size = |h: usize, n: usize| (1 + (h + n + n / 32) % 5) as f32;
    setup.case(&|h, n, d| size(h, n) * noisy_q(h, n, d), &noisy_k, &noisy_v)
}

#[test]
fn every_type_granularity_and_depth() {
    for (head_dim, row_gap) in [(128, 0), (72, 8), (80, 1), (100, 4), (67, 0), (128, 3)] {
        for dtype in [DType::F16, DType::BF16] {
            for granularity in [ScaleGranularity::PerWarp, ScaleGranularity::PerThread] {
                let dims = Dims {
                    batch: 1,
                    num_heads_q: 2,
                    num_heads_kv: 1,
                    seqlen_q: 217,
                    seqlen_kv: 150,
                    head_dim,
                    head_dim_v: head_dim,
                };
                let nhd = head_dim % 2 == 0;
                check(&uneven(Setup { row_gap, nhd, causal: row_gap == 0, ..setup(dims, dtype, granularity) }));
            }
        }
    }
}

/// Lengths at the edges of what a warp has in hand, of a block and of an item; and rows that see no key.
#[test]
fn every_edge_of_the_rows() {
    for seqlen_q in [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 191, 192, 193, 256, 257, 384] {
        for causal in [false, true] {
            let dims = Dims {
                batch: 1,
                num_heads_q: 1,
                num_heads_kv: 1,
                seqlen_q,
                seqlen_kv: 70,
                head_dim: 128,
                head_dim_v: 128,
            };
            check(&uneven(Setup { causal, ..setup(dims, DType::BF16, ScaleGranularity::PerThread) }));
        }
    }
}

/// A CTA keeps two items and their queries: here it has four and more, of several heads and batch entries.
#[test]
fn buffers_of_queries_go_round() {
    for head_dim in [96, 128] {
        let dims = Dims {
            batch: 2,
            num_heads_q: 9,
            num_heads_kv: 3,
            seqlen_q: 50,
            seqlen_kv: 140,
            head_dim,
            head_dim_v: head_dim,
        };
        check(&uneven(setup(dims, DType::F16, ScaleGranularity::PerWarp)));
    }
}
