//! The general kernels: windows, alignments, soft-cap, ALiBi, bias, masks and sinks.

use proptest::prelude::*;
use sage_attn::problem::Smoothing;
use sage_attn::problem::{BiasSpec, DType, Modifiers, PairSpec, Problem, Request, TensorSpec};
use sage_attn::{Alignment, Window};
use sage_spec::Dims;
use sage_spec::symbol::{STEMS, Stem};
use sage_tests::case::{Case, Limits, Tensor};
use sage_tests::generate::config;
use sage_tests::judge::judge_with;
use sage_tests::setup::{Setup, noise, noisy_k, noisy_q, noisy_v};
use sage_tests::side::Side;

use crate::device::run_with;

/// A stem of each general kernel: those for Hopper run one whatever their exponential.
fn general() -> Vec<Stem> {
    STEMS.into_iter().filter(|stem| !stem.name.contains("exp2")).collect()
}

/// The problem of `seed` with its modifiers; what is wrong comes with the command that repeats it.
fn check(stem: Stem, seed: u64) -> Result<(), String> {
    let mut case = Case::random_for(stem, seed, Limits::EXECUTOR);
    let side = Side::random(&mut case, seed);
    let repeat = case.repeat("one_general_case");
    let fail = |what: String| format!("{} {:?}: {what}\nrepeat: {repeat}", case.describe(), side.modifiers);
    let outcome = run_with(&case, Some(&side), seed).map_err(|fault| fail(fault.to_string()))?;
    judge_with(&case, &side.reference(), &outcome).map(drop).map_err(fail)
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn general_kernels_agree_with_the_reference(seed: u64, stem in prop::sample::select(general())) {
        check(stem, seed).map_err(TestCaseError::fail)?;
    }
}

/// The problem that `SAGE_CASE` names, or a first one.
#[test]
fn one_general_case() {
    let (stem, seed) = Case::of_environment().unwrap_or((general()[0], 1));
    check(stem, seed).unwrap_or_else(|what| panic!("{what}"));
}

/// Neutral modifiers of all kinds make the same bits, in every stem.
#[test]
fn neutral_modifiers_change_no_bit() {
    for (seed, stem) in general().into_iter().enumerate() {
        let base = || Case::random_for(stem, 11 + seed as u64, Limits::EXECUTOR);
        let dims = *base().problem.dims();
        let heads = dims.num_heads_q;
        let pairs = PairSpec { shape: [1, 1, 1, dims.seqlen_kv], strides: [0, 0, 0, 1] };
        let spec = TensorSpec { dtype: DType::F32, shape: pairs.shape, strides: pairs.strides };
        let variants: [fn(&mut Modifiers, usize, PairSpec); 4] = [
            |modifiers, heads, _| modifiers.alibi = Some([1, heads]),
            |modifiers, _, pairs| modifiers.bias = Some(BiasSpec { dtype: DType::F32, pairs }),
            |modifiers, _, pairs| modifiers.mask = Some(pairs),
            |modifiers, heads, _| modifiers.sinks = Some(heads),
        ];
        let outputs: Vec<Vec<u32>> = variants
            .iter()
            .map(|variant| {
                let mut case = base();
                let mut modifiers = Modifiers::default();
                variant(&mut modifiers, heads, pairs);
                case.problem = Problem::new(Request { modifiers, ..case.problem.request().clone() }).unwrap();
                let side = Side {
                    modifiers,
                    alibi: modifiers.alibi.map(|_| vec![0.0; heads]),
                    bias: modifiers.bias.map(|_| Tensor::fill(spec, |_, _, _| 0.0)),
                    mask: modifiers.mask.map(|_| vec![true; dims.seqlen_kv]),
                    sinks: modifiers.sinks.map(|_| vec![f32::NEG_INFINITY; heads]),
                };
                let outcome = run_with(&case, Some(&side), 3).unwrap_or_else(|fault| panic!("{fault}"));
                outcome.out.iter().chain(outcome.lse.iter().flatten()).map(|x| x.to_bits()).collect()
            })
            .collect();
        for output in &outputs[1..] {
            assert!(*output == outputs[0], "{}", base().describe());
        }
    }
}

/// Bands that leave out whole tiles, before and after, other ones for each warpgroup of a work item, over several work
/// items of a CTA and longer than the ring of tiles.
#[test]
fn windows_leave_out_tiles() {
    let dims =
        Dims { batch: 1, num_heads_q: 3, num_heads_kv: 1, seqlen_q: 300, seqlen_kv: 900, head_dim: 64, head_dim_v: 64 };
    let window =
        |alignment, left, right| Modifiers { alignment, window: Window { left, right }, ..Modifiers::default() };
    let variants = [
        window(Alignment::BottomRight, Some(50), Some(0)),
        window(Alignment::BottomRight, Some(200), Some(60)),
        window(Alignment::TopLeft, Some(0), Some(0)),
        window(Alignment::TopLeft, None, Some(10)),
        window(Alignment::TopLeft, Some(700), None),
    ];
    for stem in general() {
        for modifiers in variants {
            // Rows that stand before the first key see none, those behind the last one few.
            for seqlen_kv in [dims.seqlen_kv, 130] {
                let setup = Setup::new(stem, Dims { seqlen_kv, ..dims });
                let mut case = setup.noisy();
                case.problem = Problem::new(Request { modifiers, ..case.problem.request().clone() }).unwrap();
                let side = Side { modifiers, alibi: None, bias: None, mask: None, sinks: None };
                let outcome = run_with(&case, Some(&side), 8).unwrap_or_else(|fault| panic!("{modifiers:?}: {fault}"));
                judge_with(&case, &side.reference(), &outcome)
                    .unwrap_or_else(|what| panic!("{} {modifiers:?}: {what}", case.describe()));
            }
        }
    }
}

/// Modifiers that decide the result, one at a time: narrow windows, steep slopes, tight caps, sinks above every
/// score, a bias that ends where memory does.
#[test]
fn modifiers_at_their_edges() {
    let dims =
        Dims { batch: 1, num_heads_q: 2, num_heads_kv: 1, seqlen_q: 100, seqlen_kv: 90, head_dim: 64, head_dim_v: 64 };
    let heads = dims.num_heads_q;
    let pairs = PairSpec { shape: [1, 1, 100, 90], strides: [0, 0, 90, 1] };
    let spec = TensorSpec { dtype: DType::F16, shape: pairs.shape, strides: [9000, 9000, 90, 1] };
    let plain = Modifiers::default();
    let window = |left, right| Modifiers { window: Window { left: Some(left), right: Some(right) }, ..plain };
    let variants = [
        window(5, 3),
        Modifiers { alignment: Alignment::TopLeft, ..window(0, 40) },
        Modifiers { softcap: Some(2.0), ..plain },
        Modifiers { alibi: Some([1, heads]), ..plain },
        Modifiers { bias: Some(BiasSpec { dtype: DType::F16, pairs }), ..plain },
        Modifiers { mask: Some(pairs), ..plain },
        Modifiers { sinks: Some(heads), ..plain },
        Modifiers { sinks: Some(heads), ..window(9, 0) },
    ];
    for stem in general() {
        for modifiers in variants {
            let smoothing = Smoothing { q: true, k: true, v: true };
            let setup = Setup { smoothing, ..Setup::new(stem, dims) };
            let mut case = setup.case(&noisy_q, &noisy_k, &|h, n, d| 2.0 + noisy_v(h, n, d));
            case.problem = Problem::new(Request { modifiers, ..case.problem.request().clone() }).unwrap();
            let side = Side {
                modifiers,
                alibi: modifiers.alibi.map(|_| vec![0.5, 0.05]),
                bias: modifiers.bias.map(|_| Tensor::fill(spec, |_, n, d| 3.0 * noise(7, 0, n, d))),
                mask: modifiers.mask.map(|_| (0..9000).map(|i| i % 7 == 0).collect()),
                sinks: modifiers.sinks.map(|_| vec![30.0, 1.0]),
            };
            let outcome = run_with(&case, Some(&side), 6).unwrap_or_else(|fault| panic!("{modifiers:?}: {fault}"));
            judge_with(&case, &side.reference(), &outcome)
                .unwrap_or_else(|what| panic!("{} {modifiers:?}: {what}", case.describe()));
        }
    }
}
