//! What attention must do whatever the numbers: relations, most of them bitwise, and bounds.

use proptest::prelude::*;
use sage_attn::metrics::Metrics;
use sage_attn::reference::{
    HostTensor, Options, Output, Quantized, attention_f32, attention_f64, attention_quantized, attention_unrounded_p,
    delta_s, quantize, scores,
};
use sage_spec::{Dims, Precision, PvFormat, ScaleGranularity};
use sage_tests::generate::config;

use crate::problem::{Problem, Tensors, problems};

/// Bit patterns, so that equal means identical (NaN and −0 included).
fn bits(output: &Output) -> (Vec<u32>, Vec<u32>) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
    (bits(&output.out), bits(&output.lse))
}

fn attend_f32(problem: &Problem, t: &Tensors) -> Output {
    let (d, o) = (&problem.dims, &problem.options);
    attention_f32(d, &t.q(d), &t.k(d), &t.v(d), o.causal, o.sm_scale)
}

/// Bound of the recipe's error, computed from the data and the scales it chose.
struct Bound {
    /// Of every element of a row.
    out: f64,
    /// Of the row's LSE.
    lse: f64,
}

/// Row `row` of head `head`, both flattened over the batch.
///
/// With x̂ = x + δx and |δx| ≤ scale / 2, a score is off by at most `x·δk + δx·k + δx·δk` and half a step
/// of ΔS. An error `e` of every score changes P by at most `exp(2e) − 1` in all. P and V are then
/// rounded, by 2⁻⁴ or less of themselves or by half the smallest step of E4M3.
fn bound(problem: &Problem, t: &Tensors, z: &Quantized, head: usize, row: usize) -> Bound {
    let (d, o) = (&problem.dims, &problem.options);
    let (depth, head_dim) = (d.head_dim_padded(), d.head_dim);
    let head_kv = head / d.num_heads_q * d.num_heads_kv + d.head_kv(head % d.num_heads_q);
    let mean = |mean: &Option<Vec<f32>>, at: usize, i: usize| {
        f64::from(mean.as_ref().map_or(0.0, |mean| mean[at * depth + i]))
    };
    let l1 = |x: &[f32], means: &Option<Vec<f32>>, at: usize| -> f64 {
        x.iter().enumerate().map(|(i, &x)| (f64::from(x) - mean(means, at, i)).abs()).sum()
    };
    let row_of = |x: &[f32], index: usize, width: usize| x[index * width..(index + 1) * width].to_vec();
    let (blocks, groups) = (d.num_query_blocks(), o.granularity.q_scales_per_block());
    let q = row_of(&t.q, head * d.seqlen_q + row, head_dim);
    let q_scale = f64::from(z.q_scale[head * blocks * groups + o.granularity.q_group(row)]);
    let q_l1 = l1(&q, &z.q_mean, head * blocks + row / 128);
    let (mut score, mut v_max, mut v_error) = (0.0f64, 0.0f64, 0.0f64);
    for key in 0..d.seqlen_kv {
        let k = row_of(&t.k, head_kv * d.seqlen_kv + key, head_dim);
        let groups = d.num_kv_blocks_padded() * o.granularity.k_scales_per_block();
        let k_scale = f64::from(z.k_scale[head_kv * groups + o.granularity.k_group(key)]);
        let steps = q_scale * k_scale * (head_dim as f64 / 4.0 + 0.5);
        let error = q_l1 * k_scale / 2.0 + l1(&k, &z.k_mean, head_kv) * q_scale / 2.0 + steps;
        score = score.max(error * f64::from(o.sm_scale));
        for (i, &v) in row_of(&t.v, head_kv * d.seqlen_kv + key, d.head_dim_v).iter().enumerate() {
            let v = (f64::from(v) - mean(&z.v_mean, head_kv, i)).abs();
            v_max = v_max.max(v);
            v_error = v_error.max(v / 16.0 + f64::from(z.v_scale[head_kv * depth + i]) / 1024.0);
        }
    }
    let p_rounding = 1.0 / 16.0 + d.seqlen_kv as f64 / 1024.0 / 200.0;
    let p = ((2.0 * score).exp() - 1.0) * (1.0 + 2.0 * p_rounding) + 2.0 * p_rounding;
    Bound { out: p * (v_max + v_error) + v_error + 1e-5, lse: score + p_rounding + 1e-5 }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn f32_agrees_with_f64(problem in problems()) {
        let t = problem.tensors();
        let (actual, exact) = (attend_f32(&problem, &t), problem.f64(&t));
        for (a, e) in actual.out.iter().zip(&exact.out).chain(actual.lse.iter().zip(&exact.lse)) {
            let equal = f64::from(*a) == *e || (f64::from(*a) - e).abs() <= 1e-5 * e.abs().max(1.0);
            prop_assert!(equal, "{a} {e}");
        }
    }

    #[test]
    fn quantized_is_within_its_computed_bound(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let (z, exact) = (problem.quantize(&t), problem.f64(&t));
        let actual = attention_quantized(d, &z, &t.k(d), &problem.options);
        for row in (0..exact.lse.len()).step_by(7) {
            let bound = bound(&problem, &t, &z, row / d.seqlen_q, row % d.seqlen_q);
            let (a, e) = (f64::from(actual.lse[row]), exact.lse[row]);
            prop_assert!(a == e || (a - e).abs() <= bound.lse, "LSE {a} {e}, bound {}", bound.lse);
            for i in row * d.head_dim_v..(row + 1) * d.head_dim_v {
                let (a, e) = (f64::from(actual.out[i]), exact.out[i]);
                prop_assert!((a - e).abs() <= bound.out, "{a} {e}, bound {}", bound.out);
            }
        }
    }

    /// Rounding P and ΔS is all that lies between: 2⁻⁴ relative for P in FP8, less in sums.
    #[test]
    fn quantized_is_nearer_to_its_own_codes(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let actual = attention_quantized(d, &z, &t.k(d), &problem.options);
        let ideal = attention_unrounded_p(d, &z, &t.k(d), &problem.options);
        let metrics = Metrics::compare(&actual.out, &ideal.out, d.head_dim_v);
        let delta_s = problem.options.smooth_q && problem.options.precision == Precision::Int4;
        prop_assert!(metrics.rel_l1 <= if delta_s { 0.15 } else { 0.04 }, "{metrics:?}");
    }

    #[test]
    fn smoothing_k_changes_nothing_exactly(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let smooth = Problem { options: Options { smooth_k: true, ..problem.options }, ..problem.clone() };
        let z = smooth.quantize(&t);
        let (mean, dots) = (z.k_mean.as_ref().unwrap(), z.qk_mean.as_ref().unwrap());
        let mut shifted = t.clone();
        for (i, k) in shifted.k.iter_mut().enumerate() {
            let head = i / (d.seqlen_kv * d.head_dim);
            *k -= mean[head * d.head_dim_padded() + i % d.head_dim];
        }
        let (plain, smoothed) = (problem.f64(&t), problem.f64(&shifted));
        for (a, b) in plain.out.iter().zip(&smoothed.out) {
            prop_assert!((a - b).abs() <= 1e-5, "{a} {b}");
        }
        for (row, (a, b)) in plain.lse.iter().zip(&smoothed.lse).enumerate() {
            let dot = dots[row / d.seqlen_q * d.seqlen_q_padded() + row % d.seqlen_q];
            let shift = f64::from(problem.options.sm_scale * dot);
            prop_assert!(a == b || (a - b - shift).abs() <= 1e-4, "{a} {b} {shift}");
        }
    }

    #[test]
    fn grouped_heads_equal_repeated_heads(problem in problems()) {
        let t = problem.tensors();
        let (wide, repeated) = problem.with_repeated_heads(&t);
        prop_assert_eq!(bits(&problem.attend(&t)), bits(&wide.attend(&repeated)));
        prop_assert_eq!(bits(&attend_f32(&problem, &t)), bits(&attend_f32(&wide, &repeated)));
        prop_assert_eq!(problem.f64(&t), wide.f64(&repeated));
    }

    #[test]
    fn strides_do_not_matter(problem in problems(), gap in 0usize..7) {
        let (d, o, t) = (&problem.dims, &problem.options, problem.tensors());
        // [tokens, batch, heads, head_dim + gap], NaN in the gaps.
        let scatter = |x: &[f32], heads: usize, tokens: usize, head_dim: usize| {
            let width = head_dim + gap;
            let mut out = vec![f32::NAN; d.batch * heads * tokens * width];
            for (row, x) in x.chunks(head_dim).enumerate() {
                let at = (row % tokens * d.batch * heads + row / tokens) * width;
                out[at..at + head_dim].copy_from_slice(x);
            }
            out
        };
        let scattered = Tensors {
            q: scatter(&t.q, d.num_heads_q, d.seqlen_q, d.head_dim),
            k: scatter(&t.k, d.num_heads_kv, d.seqlen_kv, d.head_dim),
            v: scatter(&t.v, d.num_heads_kv, d.seqlen_kv, d.head_dim_v),
        };
        let strided = |tensor: &mut HostTensor, heads: usize, head_dim: usize| {
            let width = (head_dim + gap) as i64;
            tensor.stride_batch = heads as i64 * width;
            tensor.stride_head = width;
            tensor.stride_token = d.batch as i64 * heads as i64 * width;
        };
        let [mut q, mut k, mut v] = [scattered.q(d), scattered.k(d), scattered.v(d)];
        strided(&mut q, d.num_heads_q, d.head_dim);
        strided(&mut k, d.num_heads_kv, d.head_dim);
        strided(&mut v, d.num_heads_kv, d.head_dim_v);
        let z = quantize(d, &q, &k, &v, o);
        prop_assert_eq!(&z, &problem.quantize(&t));
        prop_assert_eq!(bits(&attention_quantized(d, &z, &k, o)), bits(&problem.attend(&t)));
        let exact = attention_f32(d, &q, &k, &v, o.causal, o.sm_scale);
        prop_assert_eq!(bits(&exact), bits(&attend_f32(&problem, &t)));
    }

    #[test]
    fn batch_entries_and_heads_are_independent(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let whole = problem.attend(&t);
        let single = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, ..*d };
        let alone = Problem { dims: single, ..problem.clone() };
        let part = |x: &[f32], index: usize, len: usize| x[index * len..(index + 1) * len].to_vec();
        for head in 0..d.batch * d.num_heads_q {
            let head_kv = head / d.num_heads_q * d.num_heads_kv + d.head_kv(head % d.num_heads_q);
            let one = alone.attend(&Tensors {
                q: part(&t.q, head, d.seqlen_q * d.head_dim),
                k: part(&t.k, head_kv, d.seqlen_kv * d.head_dim),
                v: part(&t.v, head_kv, d.seqlen_kv * d.head_dim_v),
            });
            let of_whole = Output {
                out: part(&whole.out, head, d.seqlen_q * d.head_dim_v),
                lse: part(&whole.lse, head, d.seqlen_q),
            };
            prop_assert_eq!(bits(&one), bits(&of_whole));
        }
    }

    #[test]
    fn one_visible_key_returns_its_value(problem in problems()) {
        let dims = Dims { seqlen_kv: 1, ..problem.dims };
        let problem = Problem { dims, ..problem };
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let actual = attention_quantized(d, &z, &t.k(d), &problem.options);
        let ideal = attention_unrounded_p(d, &z, &t.k(d), &problem.options);
        for (a, e) in actual.out.iter().zip(&ideal.out) {
            prop_assert!((f64::from(*a) - e).abs() <= 1e-6 * e.abs(), "{a} {e}");
        }
    }

    /// FP8 scales with V exactly. FP16 does as long as its scale stays 1 and nothing becomes subnormal.
    #[test]
    fn scaling_v_by_a_power_of_two_scales_the_output(problem in problems(), exponent in -6..6) {
        let mut problem = problem;
        let mut t = problem.tensors();
        if problem.options.pv == PvFormat::F16 {
            problem.options.smooth_v = false;
            t.v.iter_mut().filter(|v| v.abs() < 2f32.powi(-7)).for_each(|v| *v = 0.0);
        }
        let factor = 2f32.powi(exponent);
        let mut scaled = t.clone();
        scaled.v.iter_mut().for_each(|v| *v *= factor);
        let mut expected = problem.attend(&t);
        expected.out.iter_mut().for_each(|x| *x *= factor);
        prop_assert_eq!(bits(&problem.attend(&scaled)), bits(&expected));
    }

    #[test]
    fn rows_before_the_first_key_are_empty(problem in problems(), extra in 1usize..140) {
        let dims = Dims { seqlen_q: problem.dims.seqlen_kv + extra, ..problem.dims };
        let options = Options { causal: true, ..problem.options };
        let problem = Problem { dims, options, ..problem };
        let t = problem.tensors();
        let quantized = problem.attend(&t);
        for output in [&quantized, &attend_f32(&problem, &t)] {
            for (row, (out, lse)) in output.out.chunks(dims.head_dim_v).zip(&output.lse).enumerate() {
                let empty = row % dims.seqlen_q < extra;
                prop_assert_eq!(*lse == f32::NEG_INFINITY, empty);
                prop_assert!(!empty || out.iter().all(|x| x.to_bits() == 0));
            }
        }
    }

    /// A future key changes no earlier row, bit for bit, when nothing is shared between tokens.
    #[test]
    fn causal_rows_do_not_see_later_keys(problem in problems()) {
        let options = Options { causal: true, ..problem.options };
        let problem = Problem { options, ..problem };
        let (d, t) = (&problem.dims, problem.tensors());
        let mut changed = t.clone();
        let last = |width: usize| (d.seqlen_kv - 1) * width..d.seqlen_kv * width;
        changed.k[last(d.head_dim)].iter_mut().for_each(|x| *x += 3.0);
        changed.v[last(d.head_dim_v)].iter_mut().for_each(|x| *x += 3.0);
        let (before, after) = (attend_f32(&problem, &t), attend_f32(&problem, &changed));
        let unseen = (d.seqlen_q - 1) * d.head_dim_v;
        prop_assert_eq!(&before.out[..unseen], &after.out[..unseen]);
        prop_assert_eq!(&problem.f64(&t).out[..unseen], &problem.f64(&changed).out[..unseen]);
    }

    #[test]
    fn nan_stays_in_its_head(problem in problems(), place in any::<prop::sample::Index>(), which in 0..3) {
        let (d, t) = (&problem.dims, problem.tensors());
        let clean = problem.attend(&t);
        let mut bad = t.clone();
        let tensor = [&mut bad.q, &mut bad.k, &mut bad.v][which as usize].as_mut_slice();
        let index = place.index(tensor.len());
        tensor[index] = f32::NAN;
        let output = problem.attend(&bad);
        for head in 0..d.batch * d.num_heads_q {
            let head_kv = head / d.num_heads_q * d.num_heads_kv + d.head_kv(head % d.num_heads_q);
            let hit = match which {
                0 => index / (d.seqlen_q * d.head_dim) == head,
                1 => index / (d.seqlen_kv * d.head_dim) == head_kv,
                _ => index / (d.seqlen_kv * d.head_dim_v) == head_kv,
            };
            let range = head * d.seqlen_q * d.head_dim_v..(head + 1) * d.seqlen_q * d.head_dim_v;
            let (before, after) = (&clean.out[range.clone()], &output.out[range]);
            if !hit {
                prop_assert_eq!(before, after);
                continue;
            }
            // The last row of the head sees every key; Q's NaN must show in its own row.
            let row = if which == 0 { index / d.head_dim % d.seqlen_q } else { d.seqlen_q - 1 };
            let sees_a_key = clean.lse[head * d.seqlen_q + row] != f32::NEG_INFINITY;
            let row = &after[row * d.head_dim_v..(row + 1) * d.head_dim_v];
            prop_assert_eq!(row.iter().any(|x| x.is_nan()), sees_a_key);
        }
    }

    /// Large logits make large score steps: one key wins, and its P must neither vanish nor saturate.
    #[test]
    fn large_logits_pick_one_key(problem in problems(), exponent in 0..16) {
        let (d, t) = (&problem.dims, problem.tensors());
        let options = Options { sm_scale: 2f32.powi(exponent), ..problem.options };
        let z = problem.quantize(&t);
        let actual = attention_quantized(d, &z, &t.k(d), &options);
        let ideal = attention_unrounded_p(d, &z, &t.k(d), &options);
        for (a, e) in actual.lse.iter().zip(&ideal.lse) {
            prop_assert_eq!(*a == f32::NEG_INFINITY, *e == f64::NEG_INFINITY);
        }
        if !options.smooth_q {
            let metrics = Metrics::compare(&actual.out, &ideal.out, d.head_dim_v);
            prop_assert!(metrics.rel_l1 <= 0.05, "{metrics:?}");
        }
    }
}

/// Every function takes every extent down to zero.
#[test]
fn empty_extents_give_empty_or_zero_outputs() {
    let full = [2, 2, 2, 3, 5, 8];
    for empty in 0..64usize {
        let [batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim] =
            std::array::from_fn(|i| if empty >> i & 1 == 1 { 0 } else { full[i] });
        let d = &Dims { batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v: head_dim };
        for flags in 0..16 {
            let [causal, smooth_q, smooth_k, smooth_v] = std::array::from_fn(|i| flags >> i & 1 == 1);
            for pv in [PvFormat::Fp8, PvFormat::F16] {
                let (precision, granularity) = (Precision::Int4, ScaleGranularity::PerThread);
                let options =
                    Options { causal, sm_scale: 0.5, precision, granularity, pv, smooth_q, smooth_k, smooth_v };
                let problem = Problem { dims: *d, options, seed: 1 };
                let t = problem.tensors();
                let (q, k, v) = (t.q(d), t.k(d), t.v(d));
                let z = quantize(d, &q, &k, &v, &options);
                let output = attention_quantized(d, &z, &k, &options);
                let exact = attention_f32(d, &q, &k, &v, causal, 0.5);
                let oracle = attention_f64(d, &q, &k, &v, causal, 0.5);
                let ideal = attention_unrounded_p(d, &z, &k, &options);
                delta_s(d, &z, &k, &options);
                scores(d, &z, precision);
                let rows = batch * num_heads_q * seqlen_q;
                assert_eq!((output.out.len(), output.lse.len()), (rows * head_dim, rows));
                if num_heads_kv == 0 || seqlen_kv == 0 {
                    assert!(output.out.iter().chain(&exact.out).all(|&x| x == 0.0));
                    assert!(output.lse.iter().chain(&exact.lse).all(|&x| x == f32::NEG_INFINITY));
                    assert!(oracle.lse.iter().chain(&ideal.lse).all(|&x| x == f64::NEG_INFINITY));
                }
            }
        }
    }
}

/// Every ratio of query to key/value heads up to 40, all three ways to compute.
#[test]
fn every_ratio_of_heads_is_repeated_heads() {
    for ratio in 1..=40 {
        let options = Options {
            causal: ratio % 2 == 0,
            sm_scale: 0.5,
            precision: if ratio % 3 == 0 { Precision::Int4 } else { Precision::Int8 },
            granularity: ScaleGranularity::PerThread,
            pv: PvFormat::Fp8,
            smooth_q: ratio % 3 == 0,
            smooth_k: true,
            smooth_v: false,
        };
        let grouped = Problem::of_ratio(ratio, 1 + ratio % 3, options);
        let t = grouped.tensors();
        let (single, repeated) = grouped.with_repeated_heads(&t);
        assert_eq!(bits(&grouped.attend(&t)), bits(&single.attend(&repeated)), "{ratio}");
        assert_eq!(bits(&attend_f32(&grouped, &t)), bits(&attend_f32(&single, &repeated)), "{ratio}");
        assert_eq!(grouped.f64(&t), single.f64(&repeated), "{ratio}");
    }
}
