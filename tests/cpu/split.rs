//! Few queries and many keys: the keys are split among threads and merged.

use proptest::prelude::*;
use sage_attn::cpu::Path;
use sage_attn::reference::attention_unrounded_p;
use sage_spec::Dims;
use sage_tests::compare::{Bounds, compare_rows};
use sage_tests::generate::config;

use crate::problem::{Problem, problems};
use crate::{exact, quantized};

/// As in decoding: up to 16 queries, or a block and a half, of a few heads, and keys of several spans.
fn decoding() -> impl Strategy<Value = Problem> {
    let queries = prop_oneof![4 => 1..17usize, 1 => 100..200usize];
    (problems(), queries, 1025..6000usize, 1..6usize).prop_map(|(problem, seqlen_q, seqlen_kv, group)| {
        let num_heads_q = problem.dims.num_heads_kv * group;
        Problem { dims: Dims { seqlen_q, seqlen_kv, num_heads_q, ..problem.dims }, ..problem }
    })
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn exact_agrees_with_f64(problem in decoding()) {
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
    fn quantized_agrees_with_the_ideal(problem in decoding()) {
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

    /// One, two and five threads give the same bits, split or not.
    #[test]
    fn threads_do_not_change_a_bit(problem in prop_oneof![decoding(), problems()]) {
        let t = problem.tensors();
        for path in Path::available() {
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
                let outputs = pool.install(|| [exact(path, &problem, &t), quantized(path, &problem, &t)]);
                Ok::<_, String>(outputs.map(|output| [output.out, output.lse].map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())))
            };
            let one = on(1).map_err(TestCaseError::fail)?;
            for threads in [2, 5] {
                prop_assert!(on(threads).map_err(TestCaseError::fail)? == one, "{}, {threads} threads", path.name());
            }
        }
    }
}

/// NaN and infinity in the keys or values of one span reach every row that sees them, and no other.
#[test]
fn nan_reaches_the_rows_that_see_it() {
    let (seqlen_q, seqlen_kv, head_dim) = (16, 4096, 64);
    let dims = Dims { batch: 1, num_heads_q: 2, num_heads_kv: 1, seqlen_q, seqlen_kv, head_dim, head_dim_v: head_dim };
    let options = sage_attn::reference::Options {
        causal: true,
        sm_scale: 0.125,
        precision: sage_spec::Precision::Int8,
        granularity: sage_spec::ScaleGranularity::PerThread,
        pv: sage_spec::PvFormat::Fp8,
        smooth_q: false,
        smooth_k: true,
        smooth_v: false,
    };
    let problem = Problem { dims, options, seed: 7 };
    // Rows see keys up to `row + 4080`; a key in the first span and one that the last rows only see. A hidden value
    // that is NaN may reach rows nearby, because P V multiplies it by zero.
    for (key, first_row) in [(3, 0), (4090, 10)] {
        for of_v in [false, true] {
            let mut t = problem.tensors();
            let from = if of_v { &mut t.v } else { &mut t.k };
            from[key * head_dim] = f32::NAN;
            for path in Path::available() {
                let output = exact(path, &problem, &t);
                for (index, row) in output.out.chunks_exact(head_dim).enumerate() {
                    let (sees, is_nan) = (index % seqlen_q >= first_row, row[0].is_nan());
                    let name = path.name();
                    assert!(is_nan || !sees, "{name}: NaN of key {key} is missing in row {index}, of V: {of_v}");
                    assert!(sees || of_v || !is_nan, "{name}: NaN of key {key} in row {index}, which does not see it");
                }
            }
        }
    }
}
