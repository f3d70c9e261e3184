//! Values and shapes at the edge of what a kernel allows, which random problems rarely meet.

use sage_attn::problem::{DType, Smoothing};
use sage_spec::symbol::{STEMS, Stem};
use sage_spec::{Dims, ScaleGranularity};
use sage_tests::case::Case;
use sage_tests::judge::Outcome;
use sage_tests::setup::{Setup, noisy_k, noisy_q, noisy_v};

use crate::device::judged;

const DIMS: Dims =
    Dims { batch: 1, num_heads_q: 2, num_heads_kv: 1, seqlen_q: 70, seqlen_kv: 75, head_dim: 64, head_dim_v: 64 };
const SMOOTH_ALL: Smoothing = Smoothing { q: true, k: true, v: true };

fn check(case: &Case) -> Outcome {
    judged(case, 9)
}

/// Every kernel, with each of some smoothings.
fn setups(dims: Dims) -> impl Iterator<Item = Setup> {
    let smoothings = [SMOOTH_ALL, Smoothing { q: false, k: false, v: false }];
    STEMS.into_iter().flat_map(move |stem: Stem| {
        smoothings.map(|smoothing| Setup { smoothing, ..Setup::new(stem, dims) }).into_iter()
    })
}

/// Tensors of `zero`, of either sign, give zeros.
fn check_zeros(setup: &Setup, zero: f32) {
    let zero = |_, _, _| zero;
    let outcome = check(&setup.case(&zero, &zero, &zero));
    assert!(outcome.out.iter().all(|x| x.to_bits() & 0x7fff_ffff == 0), "{}", setup.stem.name);
}

#[test]
fn zero_tensors_give_zeros() {
    for setup in setups(DIMS) {
        check_zeros(&setup, 0.0);
        // A channel of V and a token of K.
        let v = |h, n, d| if d == 5 { 0.0 } else { noisy_v(h, n, d) };
        let k = |h, n, d| if n == 3 { 0.0 } else { noisy_k(h, n, d) };
        check(&setup.case(&noisy_q, &k, &v));
    }
}

#[test]
fn minus_zeros_are_zeros() {
    for setup in setups(DIMS) {
        check_zeros(&setup, -0.0);
    }
}

/// Quantizers of 16-bit types leave tokens of padding out in another way than those of f32.
#[test]
fn tokens_of_16_bits_end_where_those_of_32_do() {
    for setup in setups(DIMS) {
        for dtype in [DType::F16, DType::BF16] {
            check(&Setup { dtype, ..setup }.noisy());
        }
    }
}

#[test]
fn a_large_last_query_changes_no_other_scale() {
    for setup in setups(DIMS) {
        let q = |h, m, d| if m + 1 == DIMS.seqlen_q { 30.0 } else { noisy_q(h, m, d) };
        check(&Setup { granularity: ScaleGranularity::PerThread, ..setup }.case(&q, &noisy_k, &noisy_v));
    }
}

#[test]
fn a_channel_of_one_low_value_keeps_its_range() {
    for setup in setups(DIMS) {
        check(&setup.case(&noisy_q, &noisy_k, &|h, n, d| if n == 3 { -50.0 } else { noisy_v(h, n, d) }));
    }
}

/// Means of the values that each row sees.
fn averages(causal: bool) -> Vec<f64> {
    let mut averages = Vec::new();
    for _ in 0..DIMS.num_heads_q {
        for row in 0..DIMS.seqlen_q {
            let visible = if causal { DIMS.causal_visible(row) } else { DIMS.seqlen_kv };
            for d in 0..DIMS.head_dim {
                let sum: f64 = (0..visible).map(|n| f64::from(noisy_v(0, n, d))).sum();
                averages.push(sum / visible as f64);
            }
        }
    }
    averages
}

fn without_scores(causal: bool) {
    for setup in setups(DIMS) {
        let outcome = check(&Setup { causal, sm_scale: 0.0, ..setup }.noisy());
        for (index, (x, average)) in outcome.out.iter().zip(averages(causal)).enumerate() {
            // FP8 rounds V by a sixteenth at most, of values below 5.
            assert!((f64::from(*x) - average).abs() < 0.1, "{}: element {index}: {x} {average}", setup.stem.name);
        }
    }
}

#[test]
fn a_scale_of_zero_averages_the_values() {
    without_scores(false);
}

#[test]
fn a_scale_of_zero_averages_the_visible_values() {
    without_scores(true);
}

#[test]
fn rows_without_keys_are_zero_though_v_has_a_mean() {
    for setup in setups(Dims { seqlen_q: 90, seqlen_kv: 20, ..DIMS }) {
        let causal = Setup { causal: true, ..setup };
        let outcome = check(&causal.case(&noisy_q, &noisy_k, &|h, n, d| 5.0 + noisy_v(h, n, d)));
        let empty = &outcome.out[..70 * DIMS.head_dim];
        assert!(empty.iter().all(|&x| x == 0.0), "{}", setup.stem.name);
        let lse = outcome.lse.expect("it is asked for");
        assert!(lse[..70].iter().all(|&x| x == f32::NEG_INFINITY), "{}", setup.stem.name);
    }
}

#[test]
fn coarse_steps_are_exact() {
    for setup in setups(Dims { seqlen_kv: 300, ..DIMS }) {
        for sharpness in [5.0, 40.0] {
            check(&setup.case(&|h, n, d| sharpness * noisy_q(h, n, d), &noisy_k, &noisy_v));
        }
    }
}

#[test]
fn one_row_has_a_mean_and_nothing_else() {
    for setup in setups(Dims { seqlen_q: 1, ..DIMS }) {
        check(&setup.case(&|h, n, d| 1000.0 * noisy_q(h, n, d), &noisy_k, &noisy_v));
    }
}

#[test]
fn odd_head_dimensions_write_nothing_else() {
    for head_dim in [5, 67] {
        for setup in setups(Dims { seqlen_q: 20, head_dim, ..DIMS }) {
            for (dtype, row_gap) in [(DType::F16, 0), (DType::BF16, 3), (DType::F32, 4)] {
                check(&Setup { row_gap, dtype, out_dtype: dtype, nhd: row_gap == 3, ..setup }.noisy());
            }
        }
    }
}
