//! The CPU back end against the reference, on every instruction set of the CPU at hand.

#[path = "../reference/problem.rs"]
#[allow(dead_code)] // shared with the tests of the reference
mod problem;
mod scores;
mod split;

use problem::{Problem, Tensors, problems};
use proptest::prelude::*;
use sage_attn::cpu::{self, OutputMut, Path};
use sage_attn::reference::{Options, Output, attention_unrounded_p};
use sage_spec::{Dims, Precision, PvFormat, ScaleGranularity};
use sage_tests::compare::{Bounds, compare_rows};
use sage_tests::generate::config;

fn quantized(path: Path, problem: &Problem, t: &Tensors) -> Output {
    let (d, o) = (&problem.dims, &problem.options);
    let mut out = vec![f32::NAN; d.batch * d.num_heads_q * d.seqlen_q * d.head_dim_v];
    let lse = cpu::attention_quantized(path, d, &problem.quantize(t), &t.k(d), o, OutputMut::F32(&mut out));
    Output { out, lse }
}

fn exact(path: Path, problem: &Problem, t: &Tensors) -> Output {
    let (d, o) = (&problem.dims, &problem.options);
    let mut out = vec![f32::NAN; d.batch * d.num_heads_q * d.seqlen_q * d.head_dim_v];
    let operands = [&t.q(d), &t.k(d), &t.v(d)];
    let lse = cpu::attention_exact(path, d, operands, o.causal, o.sm_scale, OutputMut::F32(&mut out));
    Output { out, lse }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn exact_agrees_with_f64(problem in problems()) {
        let t = problem.tensors();
        let truth = problem.f64(&t);
        for path in Path::available() {
            let actual = exact(path, &problem, &t);
            for (a, e) in actual.out.iter().zip(&truth.out).chain(actual.lse.iter().zip(&truth.lse)) {
                let equal = f64::from(*a) == *e || (f64::from(*a) - e).abs() <= 1e-5 * e.abs().max(1.0);
                prop_assert!(equal, "{}: {a} {e}", path.name());
            }
        }
    }

    #[test]
    fn codes_scales_and_means_are_those_of_the_reference(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let expected = problem.quantize(&t);
        for path in Path::available() {
            let actual = cpu::quantize(path, d, [&t.q(d), &t.k(d), &t.v(d)], &problem.options);
            prop_assert!(actual == expected, "{}", path.name());
        }
    }

    /// Queries quantized block by block make no difference.
    #[test]
    fn queries_need_not_be_quantized_before(problem in problems()) {
        let (d, o, t) = (&problem.dims, &problem.options, problem.tensors());
        for path in Path::available() {
            let expected = quantized(path, &problem, &t);
            let keys = cpu::quantize_kv(path, d, [&t.q(d), &t.k(d), &t.v(d)], o);
            let mut out = vec![f32::NAN; expected.out.len()];
            let lse = cpu::attention_with_queries(path, d, &keys, [&t.q(d), &t.k(d)], o, OutputMut::F32(&mut out));
            let same = |a: &[f32], b: &[f32]| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()));
            prop_assert!(same(&out, &expected.out) && same(&lse, &expected.lse), "{}", path.name());
        }
    }

    /// The ideal kernel makes the same of the same codes, but for the rounding of P to bf16.
    #[test]
    fn quantized_is_nearer_to_the_ideal_than_the_kernels(problem in problems()) {
        let (d, t) = (&problem.dims, problem.tensors());
        let ideal = attention_unrounded_p(d, &problem.quantize(&t), &t.k(d), &problem.options);
        for path in Path::available() {
            let actual = quantized(path, &problem, &t);
            let bounds = Bounds { element: 0.004, row_l1: 0.004 };
            compare_rows(&actual.out, &ideal.out, d.head_dim_v, bounds).map_err(|e| TestCaseError::fail(format!("{}: {e}", path.name())))?;
            for (a, e) in actual.lse.iter().zip(&ideal.lse) {
                let equal = f64::from(*a) == *e || (f64::from(*a) - e).abs() <= 2e-5 * e.abs().max(1.0);
                prop_assert!(equal, "{}: LSE {a} {e}", path.name());
            }
        }
    }
}

/// Every ratio of query to key/value heads up to 40: a head has the bits that it has with keys and values of its own.
#[test]
fn every_ratio_of_heads_is_repeated_heads() {
    for ratio in 1..=40 {
        let options = Options {
            causal: ratio % 2 == 0,
            sm_scale: 0.5,
            precision: Precision::Int8,
            granularity: ScaleGranularity::PerBlock,
            pv: PvFormat::F16,
            smooth_q: false,
            smooth_k: true,
            smooth_v: false,
        };
        let grouped = Problem::of_ratio(ratio, 1 + ratio % 2, options);
        let t = grouped.tensors();
        let (single, repeated) = grouped.with_repeated_heads(&t);
        for path in Path::available() {
            for attend in [quantized, exact] {
                let (grouped, single) = (attend(path, &grouped, &t), attend(path, &single, &repeated));
                let same = |a: &[f32], b: &[f32]| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()));
                assert!(same(&grouped.out, &single.out) && same(&grouped.lse, &single.lse), "{ratio} {}", path.name());
            }
        }
    }
}

/// Also of no tokens, and of no heads.
#[test]
fn codes_of_nothing_are_those_of_the_reference() {
    for (seqlen_q, seqlen_kv, num_heads_kv) in [(0, 5, 1), (5, 0, 2), (0, 0, 1), (5, 5, 0)] {
        for smooth in [false, true] {
            let num_heads_q = 2 * num_heads_kv;
            let dims = Dims { batch: 1, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim: 64, head_dim_v: 32 };
            let options = Options {
                causal: false,
                sm_scale: 0.125,
                precision: Precision::Int8,
                granularity: ScaleGranularity::PerThread,
                pv: PvFormat::Fp8,
                smooth_q: smooth,
                smooth_k: smooth,
                smooth_v: smooth,
            };
            let problem = Problem { dims, options, seed: 1 };
            let (d, t) = (&problem.dims, problem.tensors());
            for path in Path::available() {
                let actual = cpu::quantize(path, d, [&t.q(d), &t.k(d), &t.v(d)], &problem.options);
                assert!(actual == problem.quantize(&t), "{}: {problem:?}", path.name());
            }
        }
    }
}
