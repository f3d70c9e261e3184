//! Windows, alignments, soft-cap, ALiBi, bias, masks and sinks: relations, most of them bitwise, and
//! agreement with the definition in f64.

use proptest::prelude::*;
use sage_attn::metrics::Metrics;
use sage_attn::reference::{
    Data, HostMask, HostTensor, Modifiers, Options, Output, attention_f32_with, attention_f64_with,
    attention_quantized_with, attention_unrounded_p_with,
};
use sage_spec::{Alignment, Dims, Precision, Window};
use sage_tests::generate::config;

use crate::problem::{Problem, Random, Tensors, problems};

/// Which modifiers a case has, and which axes of bias and mask are broadcast.
#[derive(Clone, Debug)]
pub struct Case {
    pub problem: Problem,
    pub alignment: Alignment,
    pub window: Window,
    pub softcap: Option<f32>,
    pub alibi: bool,
    pub bias: Option<[bool; 3]>,
    pub mask: Option<[bool; 3]>,
    pub sinks: bool,
}

/// The data of a case.
pub struct Owned {
    pub tensors: Tensors,
    pub alibi: Vec<f32>,
    pub bias: Vec<f32>,
    pub mask: Vec<bool>,
    pub sinks: Vec<f32>,
}

/// Extents of a `[B, Hq, M, N]` view with some axes broadcast, and the strides to match.
pub fn broadcast(d: &Dims, shared: [bool; 3]) -> (usize, [i64; 3]) {
    let extents = [d.batch, d.num_heads_q, d.seqlen_q];
    let mut strides = [0; 3];
    let mut elems = d.seqlen_kv;
    for axis in (0..3).rev().filter(|&axis| !shared[axis]) {
        strides[axis] = elems as i64;
        elems *= extents[axis];
    }
    (elems, strides)
}

impl Case {
    pub fn owned(&self) -> Owned {
        let d = &self.problem.dims;
        let mut random = Random::new(self.problem.seed ^ 0x5eed);
        let bias = self.bias.map_or(0, |shared| broadcast(d, shared).0);
        let mask = self.mask.map_or(0, |shared| broadcast(d, shared).0);
        Owned {
            tensors: self.problem.tensors(),
            alibi: (0..d.num_heads_q).map(|head| 2f32.powi(-(head as i32 % 8) - 1)).collect(),
            bias: (0..bias).map(|_| random.normal()).map(|x| if x > 1.5 { f32::NEG_INFINITY } else { x }).collect(),
            mask: (0..mask).map(|_| random.normal() < 0.7).collect(),
            sinks: (0..d.num_heads_q).map(|_| 2.0 * random.normal()).collect(),
        }
    }

    pub fn modifiers<'a>(&self, owned: &'a Owned) -> Modifiers<'a> {
        let d = &self.problem.dims;
        Modifiers {
            alignment: self.alignment,
            window: self.window,
            softcap: self.softcap,
            alibi: self.alibi.then_some(&owned.alibi),
            bias: self.bias.map(|shared| host_bias(&owned.bias, broadcast(d, shared).1)),
            mask: self.mask.map(|shared| host_mask(&owned.mask, broadcast(d, shared).1)),
            sinks: self.sinks.then_some(&owned.sinks),
        }
    }
}

fn host_bias(bias: &[f32], [stride_batch, stride_head, stride_token]: [i64; 3]) -> HostTensor<'_> {
    HostTensor { data: Data::F32(bias), stride_batch, stride_head, stride_token }
}

fn host_mask(data: &[bool], [stride_batch, stride_head, stride_row]: [i64; 3]) -> HostMask<'_> {
    HostMask { data, stride_batch, stride_head, stride_row }
}

fn cases() -> impl Strategy<Value = Case> {
    let bound = || prop_oneof![Just(None), (0..100usize).prop_map(Some), Just(Some(usize::MAX))];
    let alignment = prop_oneof![Just(Alignment::BottomRight), Just(Alignment::TopLeft)];
    let softcap = prop_oneof![Just(None), (0.5f32..40.0).prop_map(Some)];
    let pairs = || prop::option::of(any::<[bool; 3]>());
    let positions = (alignment, bound(), bound());
    (problems(), positions, softcap, any::<bool>(), pairs(), pairs(), any::<bool>()).prop_map(
        |(problem, (alignment, left, right), softcap, alibi, bias, mask, sinks)| Case {
            problem,
            alignment,
            window: Window { left, right },
            softcap,
            alibi,
            bias,
            mask,
            sinks,
        },
    )
}

fn exact(problem: &Problem, t: &Tensors, modifiers: &Modifiers) -> Output {
    let (d, o) = (&problem.dims, &problem.options);
    attention_f32_with(d, &t.q(d), &t.k(d), &t.v(d), o.causal, o.sm_scale, modifiers)
}

fn quantized(problem: &Problem, t: &Tensors, modifiers: &Modifiers) -> Output {
    let d = &problem.dims;
    attention_quantized_with(d, &problem.quantize(t), &t.k(d), &problem.options, modifiers)
}

/// Both paths.
fn attend(problem: &Problem, t: &Tensors, modifiers: &Modifiers) -> [Output; 2] {
    [exact(problem, t, modifiers), quantized(problem, t, modifiers)]
}

fn bits(outputs: &[Output]) -> Vec<u32> {
    outputs.iter().flat_map(|output| output.out.iter().chain(&output.lse)).map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn f32_agrees_with_the_definition(case in cases()) {
        let (owned, problem) = (case.owned(), &case.problem);
        let (d, o, t) = (&problem.dims, &problem.options, &owned.tensors);
        let modifiers = case.modifiers(&owned);
        let actual = exact(problem, t, &modifiers);
        let oracle =
            attention_f64_with(d, &t.q(d), &t.k(d), &t.v(d), o.causal, o.sm_scale.into(), &modifiers);
        for (a, e) in actual.out.iter().zip(&oracle.out).chain(actual.lse.iter().zip(&oracle.lse)) {
            let equal = f64::from(*a) == *e || (f64::from(*a) - e).abs() <= 3e-5 * e.abs().max(1.0);
            prop_assert!(equal, "{a} {e}");
        }
    }

    #[test]
    fn quantized_agrees_with_its_own_codes(case in cases()) {
        let (owned, problem) = (case.owned(), &case.problem);
        let (d, o, t) = (&problem.dims, &problem.options, &owned.tensors);
        let modifiers = case.modifiers(&owned);
        let z = problem.quantize(t);
        let actual = attention_quantized_with(d, &z, &t.k(d), o, &modifiers);
        let ideal = attention_unrounded_p_with(d, &z, &t.k(d), o, &modifiers);
        let metrics = Metrics::compare(&actual.out, &ideal.out, d.head_dim_v);
        let delta_s = o.smooth_q && o.precision == Precision::Int4;
        prop_assert!(metrics.rel_l1 <= if delta_s { 0.15 } else { 0.05 }, "{metrics:?}");
        let lse = if delta_s { 0.2 } else { 0.05 };
        for (a, e) in actual.lse.iter().zip(&ideal.lse) {
            let (a, e) = (f64::from(*a), *e);
            prop_assert!(a == e || (a - e).abs() <= lse, "LSE {a} {e}");
        }
    }

    #[test]
    fn int8_agrees_with_the_definition(case in cases()) {
        let mut case = case;
        case.problem.options.precision = Precision::Int8;
        let (owned, problem) = (case.owned(), &case.problem);
        let (d, o, t) = (&problem.dims, &problem.options, &owned.tensors);
        let modifiers = case.modifiers(&owned);
        let actual = quantized(problem, t, &modifiers);
        let oracle =
            attention_f64_with(d, &t.q(d), &t.k(d), &t.v(d), o.causal, o.sm_scale.into(), &modifiers);
        let metrics = Metrics::compare(&actual.out, &oracle.out, d.head_dim_v);
        prop_assert!(metrics.rel_l1 <= 0.1, "{metrics:?}");
        for (a, e) in actual.lse.iter().zip(&oracle.lse) {
            let (a, e) = (f64::from(*a), *e);
            prop_assert!(a == e || (a - e).abs() <= 0.25, "LSE {a} {e}");
        }
    }

    #[test]
    fn a_window_that_excludes_nothing_is_none(case in cases()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        let modifiers = Modifiers { alignment: Alignment::BottomRight, ..case.modifiers(&owned) };
        let none = Modifiers { window: Window::UNBOUNDED, ..modifiers };
        let wide = Modifiers { window: Window { left: Some(d.seqlen_kv), right: Some(d.seqlen_q) }, ..modifiers };
        let attend = |modifiers| attend(&case.problem, &owned.tensors, modifiers);
        prop_assert_eq!(bits(&attend(&wide)), bits(&attend(&none)));
    }

    /// Each neutral modifier beside others. In exact arithmetic none of them changes a bit; in quantized
    /// arithmetic they may lead from plain tiles, which fold the score bias, to those that do not.
    #[test]
    fn neutral_modifiers_change_no_bit(case in cases(), shared in any::<[bool; 3]>()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        let (elems, strides) = broadcast(d, shared);
        let (zeros, all) = (vec![0.0; elems], vec![true; elems]);
        let (no_slopes, no_sinks) = (vec![0.0; d.num_heads_q], vec![f32::NEG_INFINITY; d.num_heads_q]);
        for base in [Modifiers::default(), case.modifiers(&owned)] {
            let attend = |modifiers| attend(&case.problem, &owned.tensors, modifiers);
            let plain = attend(&base);
            let variants = [
                Modifiers { bias: base.bias.or(Some(host_bias(&zeros, strides))), ..base },
                Modifiers { mask: base.mask.or(Some(host_mask(&all, strides))), ..base },
                Modifiers { alibi: base.alibi.or(Some(&no_slopes)), ..base },
                Modifiers { sinks: base.sinks.or(Some(&no_sinks)), ..base },
            ];
            let general = attend(&variants[0]);
            let Modifiers { softcap, alibi, bias, mask, sinks, .. } = base;
            let is_general =
                softcap.is_some() || alibi.is_some() || bias.is_some() || mask.is_some() || sinks.is_some();
            for variant in &variants {
                let output = attend(variant);
                prop_assert_eq!(bits(&output[..1]), bits(&plain[..1]));
                let same = if is_general { &plain } else { &general };
                prop_assert_eq!(bits(&output[1..]), bits(&same[1..]));
            }
        }
    }

    #[test]
    fn a_mask_is_a_bias_of_minus_infinity(case in cases(), shared in any::<[bool; 3]>()) {
        let case = Case { mask: Some(shared), bias: None, ..case };
        let owned = case.owned();
        let bias: Vec<f32> = owned.mask.iter().map(|&seen| if seen { 0.0 } else { f32::NEG_INFINITY }).collect();
        let masked = case.modifiers(&owned);
        let biased = Modifiers { mask: None, bias: Some(host_bias(&bias, broadcast(&case.problem.dims, shared).1)), ..masked };
        let attend = |modifiers| attend(&case.problem, &owned.tensors, modifiers);
        prop_assert_eq!(bits(&attend(&masked)), bits(&attend(&biased)));
    }

    /// Tiles outside the window are skipped, hidden keys inside weigh nothing: the same values.
    #[test]
    fn a_window_is_the_mask_of_its_band(case in cases()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        let offset = case.alignment.offset(d);
        let mask: Vec<bool> = (0..d.seqlen_q * d.seqlen_kv)
            .map(|i| {
                let distance = (i % d.seqlen_kv) as i64 - ((i / d.seqlen_kv) as i64 + offset);
                let within = |bound: Option<usize>, distance: i64| bound.is_none_or(|bound| distance as i128 <= bound as i128);
                within(case.window.left, -distance)
                    && within(case.window.right, distance)
                    && (!case.problem.options.causal || distance <= 0)
            })
            .collect();
        let options = Options { causal: false, ..case.problem.options };
        let free = Problem { options, ..case.problem.clone() };
        let windowed = Modifiers { mask: None, bias: Some(host_bias(&[0.0; 200], [0; 3])), ..case.modifiers(&owned) };
        let masked = Modifiers { window: Window::UNBOUNDED, mask: Some(host_mask(&mask, [0, 0, d.seqlen_kv as i64])), ..windowed };
        let (a, b) = (attend(&case.problem, &owned.tensors, &windowed), attend(&free, &owned.tensors, &masked));
        prop_assert_eq!(a, b);
    }

    /// Aligned top-left, causal attention of M rows over N ≥ M keys is that over the first M keys.
    #[test]
    fn top_left_sees_no_key_beyond_the_rows(case in cases(), more in 0..70usize) {
        let mut case = Case { bias: None, mask: None, alignment: Alignment::TopLeft, ..case };
        case.problem.options.causal = true;
        case.problem.dims.seqlen_kv = case.problem.dims.seqlen_q + more;
        let (owned, d) = (case.owned(), &case.problem.dims);
        let cut = |x: &[f32], width: usize| -> Vec<f32> {
            x.chunks(d.seqlen_kv * width).flat_map(|x| x[..d.seqlen_q * width].to_vec()).collect()
        };
        let t = &owned.tensors;
        let short = Tensors { q: t.q.clone(), k: cut(&t.k, d.head_dim), v: cut(&t.v, d.head_dim_v) };
        let square = Problem { dims: Dims { seqlen_kv: d.seqlen_q, ..*d }, ..case.problem.clone() };
        let modifiers = case.modifiers(&owned);
        let whole = exact(&case.problem, t, &modifiers);
        for alignment in [Alignment::TopLeft, Alignment::BottomRight] {
            let of_square = exact(&square, &short, &Modifiers { alignment, ..modifiers });
            prop_assert_eq!(bits(std::slice::from_ref(&whole)), bits(&[of_square]));
        }
    }

    #[test]
    fn grouped_heads_equal_repeated_heads(case in cases()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        let t = &owned.tensors;
        let repeat = |x: &[f32], width: usize| -> Vec<f32> {
            x.chunks(d.seqlen_kv * width).flat_map(|x| x.repeat(d.gqa_group())).collect()
        };
        let repeated = Tensors { q: t.q.clone(), k: repeat(&t.k, d.head_dim), v: repeat(&t.v, d.head_dim_v) };
        let wide = Problem { dims: Dims { num_heads_kv: d.num_heads_q, ..*d }, ..case.problem.clone() };
        let modifiers = case.modifiers(&owned);
        prop_assert_eq!(bits(&attend(&case.problem, t, &modifiers)), bits(&attend(&wide, &repeated, &modifiers)));
    }

    #[test]
    fn broadcast_axes_equal_copies(case in cases()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        let modifiers = case.modifiers(&owned);
        let (full, strides) = broadcast(d, [false; 3]);
        let at = |i: usize, strides: [i64; 3]| {
            let (key, row) = (i % d.seqlen_kv, i / d.seqlen_kv % d.seqlen_q);
            let (head, batch) = (i / d.seqlen_kv / d.seqlen_q % d.num_heads_q, i / (full / d.batch));
            (batch as i64 * strides[0] + head as i64 * strides[1] + row as i64 * strides[2]) as usize + key
        };
        let bias: Option<Vec<f32>> =
            case.bias.map(|shared| (0..full).map(|i| owned.bias[at(i, broadcast(d, shared).1)]).collect());
        let mask: Option<Vec<bool>> =
            case.mask.map(|shared| (0..full).map(|i| owned.mask[at(i, broadcast(d, shared).1)]).collect());
        let slopes = owned.alibi.repeat(d.batch);
        let copies = Modifiers {
            bias: bias.as_ref().map(|bias| host_bias(bias, strides)),
            mask: mask.as_ref().map(|mask| host_mask(mask, strides)),
            alibi: case.alibi.then_some(&slopes),
            ..modifiers
        };
        let attend = |modifiers| attend(&case.problem, &owned.tensors, modifiers);
        prop_assert_eq!(bits(&attend(&modifiers)), bits(&attend(&copies)));
    }

    /// `lse' = ln(e^lse + e^sink)` and `out' = out · e^(lse − lse')`.
    #[test]
    fn a_sink_only_takes_weight(case in cases()) {
        let (owned, d) = (case.owned(), &case.problem.dims);
        // A sink of no weight, so that neither side folds the bias.
        let none = vec![f32::NEG_INFINITY; d.num_heads_q];
        let without = Modifiers { sinks: Some(&none), ..case.modifiers(&owned) };
        let with = Modifiers { sinks: Some(&owned.sinks), ..without };
        for (plain, sunk) in attend(&case.problem, &owned.tensors, &without).iter().zip(&attend(&case.problem, &owned.tensors, &with)) {
            for row in 0..plain.lse.len() {
                let sink = f64::from(owned.sinks[row / d.seqlen_q % d.num_heads_q]);
                let lse = f64::from(plain.lse[row]);
                let max = lse.max(sink);
                let expected = max + ((lse - max).exp() + (sink - max).exp()).ln();
                // A large sink moves the scale at which P is rounded.
                let error = (f64::from(sunk.lse[row]) - expected).abs();
                prop_assert!(error <= 0.02 + 1e-5 * expected.abs(), "{} {expected}", sunk.lse[row]);
                for i in row * d.head_dim_v..(row + 1) * d.head_dim_v {
                    let expected = f64::from(plain.out[i]) * (lse - expected).exp();
                    prop_assert!((f64::from(sunk.out[i]) - expected).abs() <= 0.15, "{} {expected}", sunk.out[i]);
                    prop_assert!(lse != f64::NEG_INFINITY || sunk.out[i] == 0.0);
                }
            }
        }
    }
}

/// Every function takes every extent down to zero.
#[test]
fn empty_extents_are_rows_without_keys() {
    for empty in 0..64usize {
        let [batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim] =
            std::array::from_fn(|i| if empty >> i & 1 == 1 { 0 } else { [2, 2, 2, 3, 5, 8][i] });
        let dims = Dims { batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v: head_dim };
        let options = Options {
            causal: empty % 3 == 0,
            sm_scale: 0.5,
            precision: Precision::Int8,
            granularity: sage_spec::ScaleGranularity::PerThread,
            pv: sage_spec::PvFormat::Fp8,
            smooth_q: true,
            smooth_k: true,
            smooth_v: true,
        };
        let problem = Problem { dims, options, seed: 1 };
        let case = Case {
            problem,
            alignment: Alignment::TopLeft,
            window: Window { left: Some(1), right: Some(0) },
            softcap: Some(2.0),
            alibi: true,
            bias: Some([false; 3]),
            mask: Some([true; 3]),
            sinks: true,
        };
        let owned = case.owned();
        let modifiers = case.modifiers(&owned);
        let rows = batch * num_heads_q * seqlen_q;
        for output in attend(&case.problem, &owned.tensors, &modifiers) {
            assert_eq!((output.out.len(), output.lse.len()), (rows * head_dim, rows));
            if num_heads_kv == 0 || seqlen_kv == 0 {
                assert!(output.out.iter().all(|&x| x == 0.0));
                for (row, &lse) in output.lse.iter().enumerate() {
                    assert_eq!(lse, owned.sinks[row / seqlen_q % num_heads_q]);
                }
            }
        }
    }
}
