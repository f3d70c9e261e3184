//! What quantizing keeps: error bounds, zeros, layouts.

use proptest::prelude::*;
use sage_attn::reference::convert::{e4m3_to_f32, unpack_int4};
use sage_attn::reference::{Options, delta_s, scores};
use sage_spec::layout::{delta_s_slot, v_slot};
use sage_spec::quant::SCALE_FLOOR;
use sage_spec::{Precision, PvFormat};
use sage_tests::generate::config;

use crate::problem::{Problem, problems};

/// Code `feature` of row `row` of codes `[rows, head_dim_padded]`.
fn int_code(problem: &Problem, codes: &[u8], row: usize, feature: usize) -> f32 {
    let at = row * problem.dims.head_dim_padded() + feature;
    match problem.options.precision {
        Precision::Int8 => f32::from(codes[at] as i8),
        Precision::Int4 => {
            let (even, odd) = unpack_int4(codes[at / 2]);
            f32::from(if at.is_multiple_of(2) { even } else { odd })
        }
    }
}

/// Mean or 0: `[rows, head_dim_padded]`.
fn mean_at(mean: &Option<Vec<f32>>, problem: &Problem, row: usize, feature: usize) -> f32 {
    mean.as_ref().map_or(0.0, |mean| mean[row * problem.dims.head_dim_padded() + feature])
}

/// A strided-lane sum as [`sage_spec::reduce`] words it.
fn lane_sum(values: &[f32], lanes: usize) -> f32 {
    let mut sums: Vec<f32> =
        (0..lanes).map(|lane| values.iter().skip(lane).step_by(lanes).fold(0.0, |a, b| a + b)).collect();
    while sums.len() > 1 {
        let high = sums.split_off(sums.len() / 2);
        sums.iter_mut().zip(high).for_each(|(low, high)| *low += high);
    }
    sums[0]
}

/// The mean over the tokens of K or V as [`sage_spec::reduce`] words it.
fn token_mean(values: &[f32]) -> f32 {
    let chunks: Vec<f32> = values.chunks(128).map(|chunk| lane_sum(chunk, 16)).collect();
    lane_sum(&chunks, 8) / values.len() as f32
}

/// The sum over the tokens of what V was rounded by as [`sage_spec::reduce`] words it.
fn rounding_sum(rounding: &[f32]) -> f32 {
    let chunks: Vec<f32> = rounding
        .chunks(128)
        .map(|chunk| {
            // Four tokens of each of 32 lanes: of 16 tokens lane t has 2t, 2t + 1, 2t + 8 and 2t + 9.
            let strided: Vec<f32> = (0..128)
                .map(|i| {
                    let (lane, token) = (i % 32, [0, 1, 8, 9][i / 32]);
                    chunk.get(lane / 4 * 16 + lane % 4 * 2 + token).copied().unwrap_or(0.0)
                })
                .collect();
            lane_sum(&strided, 32)
        })
        .collect();
    lane_sum(&chunks, 8)
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn v_offset_is_what_the_mean_of_v_lacks(problem in problems(), longer in 0usize..2000, smooth_v in any::<bool>()) {
        let mut problem = problem;
        problem.dims.seqlen_kv += longer;
        prop_assume!(problem.dims.seqlen_kv > 0);
        problem.options = Options { pv: PvFormat::Fp8, smooth_v, ..problem.options };
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let padded = d.seqlen_kv_padded();
        for head in 0..d.batch * d.num_heads_kv {
            for channel in 0..d.head_dim_v {
                let row = head * d.head_dim_padded() + channel;
                let (mean, scale) = (mean_at(&z.v_mean, &problem, head, channel), z.v_scale[row]);
                let v: Vec<f32> =
                    (0..d.seqlen_kv).map(|token| t.v[(head * d.seqlen_kv + token) * d.head_dim_v + channel]).collect();
                let code = |token| e4m3_to_f32(z.v_codes[row * padded + v_slot(token)]);
                let rounding: Vec<f32> =
                    v.iter().enumerate().map(|(token, x)| (x - mean) * (1.0 / scale) - code(token)).collect();
                let offset = mean_at(&z.v_offset, &problem, head, channel);
                prop_assert_eq!(offset, mean + scale * (rounding_sum(&rounding) / d.seqlen_kv as f32));

                // Attention that weighs all keys alike makes the mean of V then.
                let n = d.seqlen_kv as f64;
                let kept = (0..d.seqlen_kv).map(|token| f64::from(code(token) * scale)).sum::<f64>() / n;
                let expected = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                prop_assert!((kept + f64::from(offset) - expected).abs() <= 1e-6 * f64::from(448.0 * scale + mean.abs()));
            }
        }
    }

    #[test]
    fn q_and_k_are_within_half_a_step(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let granularity = problem.options.granularity;
        let per_block = granularity.q_scales_per_block();
        for row in 0..d.batch * d.num_heads_q * d.seqlen_q_padded() {
            let (head, row_in_head) = (row / d.seqlen_q_padded(), row % d.seqlen_q_padded());
            let block = head * d.num_query_blocks() + row_in_head / 128;
            let scale = z.q_scale[head * d.num_query_blocks() * per_block + granularity.q_group(row_in_head)];
            prop_assert!(scale >= SCALE_FLOOR);
            for feature in 0..d.head_dim_padded() {
                let code = int_code(&problem, &z.q_codes, row, feature);
                if row_in_head < d.seqlen_q && feature < d.head_dim {
                    let q = t.q[(head * d.seqlen_q + row_in_head) * d.head_dim + feature];
                    let x = q - mean_at(&z.q_mean, &problem, block, feature);
                    prop_assert!((x - code * scale).abs() <= 0.5001 * scale, "{x} {code} {scale}");
                } else {
                    prop_assert_eq!(code, 0.0);
                }
            }
        }
        let per_head = d.num_kv_blocks_padded() * granularity.k_scales_per_block();
        for row in 0..d.batch * d.num_heads_kv * d.seqlen_kv_padded() {
            let (head, key) = (row / d.seqlen_kv_padded(), row % d.seqlen_kv_padded());
            let scale = z.k_scale[head * per_head + granularity.k_group(key)];
            prop_assert!(scale >= SCALE_FLOOR);
            for feature in 0..d.head_dim_padded() {
                let code = int_code(&problem, &z.k_codes, row, feature);
                if key < d.seqlen_kv && feature < d.head_dim {
                    let k = t.k[(head * d.seqlen_kv + key) * d.head_dim + feature];
                    let x = k - mean_at(&z.k_mean, &problem, head, feature);
                    prop_assert!((x - code * scale).abs() <= 0.5001 * scale, "{x} {code} {scale}");
                } else {
                    prop_assert_eq!(code, 0.0);
                }
            }
        }
    }

    #[test]
    fn v_is_within_half_a_step(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let (tokens, depth) = (d.seqlen_kv_padded(), d.head_dim_padded());
        for head in 0..d.batch * d.num_heads_kv {
            for token in 0..tokens {
                for channel in 0..depth {
                    let scale = z.v_scale[head * depth + channel];
                    let (code, relative, absolute) = match problem.options.pv {
                        PvFormat::Fp8 => {
                            let at = (head * depth + channel) * tokens + v_slot(token);
                            (e4m3_to_f32(z.v_codes[at]), 1.0 / 16.0, 1.0 / 1024.0)
                        }
                        PvFormat::F16 => {
                            let at = ((head * tokens + token) * depth + channel) * 2;
                            let code = half::f16::from_le_bytes([z.v_codes[at], z.v_codes[at + 1]]);
                            (code.to_f32(), 1.0 / 2048.0, 3e-8)
                        }
                    };
                    if token < d.seqlen_kv && channel < d.head_dim_v {
                        let v = t.v[(head * d.seqlen_kv + token) * d.head_dim_v + channel];
                        let x = (v - mean_at(&z.v_mean, &problem, head, channel)) / scale;
                        let bound = (x.abs() * relative).max(absolute) * 1.0001;
                        prop_assert!((x - code).abs() <= bound, "{x} {code}");
                    } else {
                        prop_assert_eq!(code, 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn zero_tensors_quantize_to_zeros_without_nan(problem in problems()) {
        let mut t = problem.tensors();
        t.q.fill(0.0);
        t.k.fill(0.0);
        t.v.fill(0.0);
        let z = problem.quantize(&t);
        prop_assert!(z.q_codes.iter().chain(&z.k_codes).chain(&z.v_codes).all(|&code| code == 0));
        prop_assert!(z.q_scale.iter().chain(&z.k_scale).all(|&scale| scale == SCALE_FLOOR));
        let output = problem.attend(&t);
        prop_assert!(output.out.iter().all(|&x| x == 0.0));
        prop_assert!(output.lse.iter().all(|x| !x.is_nan()));
    }

    #[test]
    fn scores_are_the_dot_products_of_the_codes(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let all = scores(d, &z, problem.options.precision);
        let (rows, keys) = (d.seqlen_q_padded(), d.seqlen_kv_padded());
        prop_assert_eq!(all.len(), d.batch * d.num_heads_q * rows * keys);
        for (index, &score) in all.iter().enumerate().step_by(61) {
            let (row, key) = (index / keys, index % keys);
            let (batch, head_q) = (row / rows / d.num_heads_q, row / rows % d.num_heads_q);
            let key = (batch * d.num_heads_kv + d.head_kv(head_q)) * keys + key;
            let exact: f32 = (0..d.head_dim)
                .map(|i| int_code(&problem, &z.q_codes, row, i) * int_code(&problem, &z.k_codes, key, i))
                .sum();
            prop_assert_eq!(score, exact as i32);
        }
    }

    #[test]
    fn delta_s_is_the_mean_times_the_smoothed_keys(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let delta = delta_s(d, &z, &t.k(d), &problem.options);
        let (blocks, keys) = (d.num_query_blocks(), d.seqlen_kv_padded());
        let per_head = d.num_kv_blocks_padded() * problem.options.granularity.k_scales_per_block();
        for row in 0..d.batch * d.num_heads_q * blocks {
            let (batch, head_q) = (row / blocks / d.num_heads_q, row / blocks % d.num_heads_q);
            let head = batch * d.num_heads_kv + d.head_kv(head_q);
            for key in 0..keys {
                let actual = f64::from(delta[row * keys + delta_s_slot(key)]);
                if key >= d.seqlen_kv {
                    prop_assert_eq!(actual, 0.0);
                    continue;
                }
                let scale = f64::from(z.k_scale[head * per_head + problem.options.granularity.k_group(key)]);
                let (mut exact, mut magnitude) = (0.0, 0.0);
                for i in 0..d.head_dim {
                    let k = t.k[(head * d.seqlen_kv + key) * d.head_dim + i];
                    let k = f64::from(k - mean_at(&z.k_mean, &problem, head, i));
                    let term = f64::from(mean_at(&z.q_mean, &problem, row, i)) * k / scale;
                    exact += term;
                    magnitude += term.abs();
                }
                prop_assert!((actual - exact).abs() <= 1e-5 * magnitude, "{actual} {exact}");
            }
        }
    }

    /// The sums of the contract, restated value by value.
    #[test]
    fn means_and_dots_are_the_contract_bit_for_bit(problem in problems(), longer in 0usize..2000) {
        let mut problem = problem;
        problem.dims.seqlen_kv += longer;
        problem.options = Options { smooth_q: true, smooth_k: true, smooth_v: true, ..problem.options };
        let (d, t) = (&problem.dims, problem.tensors());
        let z = problem.quantize(&t);
        let column = |x: &[f32], width: usize, first: usize, tokens: usize, i: usize| {
            (first..first + tokens).map(|row| x[row * width + i]).collect::<Vec<f32>>()
        };
        for head in 0..d.batch * d.num_heads_kv {
            for (x, width, mean) in [(&t.k, d.head_dim, &z.k_mean), (&t.v, d.head_dim_v, &z.v_mean)] {
                for i in 0..width {
                    let expected = token_mean(&column(x, width, head * d.seqlen_kv, d.seqlen_kv, i));
                    prop_assert_eq!(mean_at(mean, &problem, head, i), expected);
                }
            }
        }
        for i in 0..d.head_dim {
            for block in 0..d.batch * d.num_heads_q * d.num_query_blocks() {
                let (head, first) = (block / d.num_query_blocks(), block % d.num_query_blocks() * 128);
                let q = column(&t.q, d.head_dim, head * d.seqlen_q + first, (d.seqlen_q - first).min(128), i);
                prop_assert_eq!(mean_at(&z.q_mean, &problem, block, i), lane_sum(&q, 16) / q.len() as f32);
            }
        }
        for row in 0..d.batch * d.num_heads_q * d.seqlen_q {
            let (head, token) = (row / d.seqlen_q, row % d.seqlen_q);
            let head_kv = head / d.num_heads_q * d.num_heads_kv + d.head_kv(head % d.num_heads_q);
            let mut parts: Vec<f32> = (0..d.head_dim_padded() / 8).map(|thread| {
                (thread * 8..d.head_dim.min(thread * 8 + 8)).fold(0.0, |sum, i| {
                    sum + t.q[row * d.head_dim + i] * mean_at(&z.k_mean, &problem, head_kv, i)
                })
            }).collect();
            // In lane 0 a butterfly adds the upper half to the lower half, again and again.
            while parts.len() > 1 {
                let high = parts.split_off(parts.len() / 2);
                parts.iter_mut().zip(high).for_each(|(low, high)| *low += high);
            }
            let dots = z.qk_mean.as_ref().unwrap();
            prop_assert_eq!(dots[head * d.seqlen_q_padded() + token], parts[0]);
        }
    }
}
