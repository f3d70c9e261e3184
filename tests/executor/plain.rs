//! Attention on Hopper without ΔS, which most tests here have: every type, granularity and depth, work items of three and
//! of four warpgroups, and rings of them that go round. In schedules of three.

use sage_attn::problem::{DType, Smoothing};
use sage_spec::{Dims, ScaleGranularity};
use sage_tests::case::Case;
use sage_tests::setup::{Setup, noisy_k, noisy_q, noisy_v, stem};

use crate::device::{attention_threads, judged};

fn setup(dims: Dims, dtype: DType, granularity: ScaleGranularity) -> Setup {
    let smoothing = Smoothing { q: false, k: true, v: false };
    Setup { dtype, granularity, smoothing, ..Setup::new(stem("sm90_int8_fp8_fwd"), dims) }
}

fn check(case: &Case) {
    let threads = if case.problem.dims().head_dim_padded() == 64 { 640 } else { 512 };
    for seed in [2, 3, 5] {
        let outcome = judged(case, seed);
        assert_eq!(attention_threads(&outcome.plan), Some(threads), "without ΔS");
    }
}

/// Each block and each head has another magnitude, and so has every row of a block.
fn uneven(setup: Setup) -> Case {
    let size = |h: usize, n: usize| (1 + (h + n + n / 32) % 5) as f32;
    setup.case(&|h, n, d| size(h, n) * noisy_q(h, n, d), &noisy_k, &noisy_v)
}

#[test]
fn every_type_granularity_and_depth() {
    for (head_dim, row_gap) in [(64, 0), (128, 0), (40, 1), (100, 4), (17, 0), (128, 3)] {
        for dtype in [DType::F16, DType::BF16] {
            for granularity in [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread] {
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

/// Lengths at the edges of a warpgroup, of a block and of an item; and rows that see no key.
#[test]
fn every_edge_of_the_rows() {
    for seqlen_q in [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 512] {
        for causal in [false, true] {
            let dims = Dims {
                batch: 1,
                num_heads_q: 1,
                num_heads_kv: 1,
                seqlen_q,
                seqlen_kv: 70,
                head_dim: 64,
                head_dim_v: 64,
            };
            check(&uneven(Setup { causal, ..setup(dims, DType::BF16, ScaleGranularity::PerThread) }));
        }
    }
}

/// A CTA keeps two items and their queries: here it has four and more, of several heads and batch entries.
#[test]
fn buffers_of_queries_and_tiles_go_round() {
    for head_dim in [64, 128] {
        let dims = Dims {
            batch: 2,
            num_heads_q: 6,
            num_heads_kv: 2,
            seqlen_q: 300,
            seqlen_kv: 140,
            head_dim,
            head_dim_v: head_dim,
        };
        check(&uneven(setup(dims, DType::F16, ScaleGranularity::PerWarp)));
    }
}
