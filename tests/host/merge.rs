//! Merging attention over parts of the keys.

use half::{bf16, f16};
use proptest::prelude::*;
use sage_attn::error::{Error, Invalid};
use sage_attn::{
    Attention, DType, Device, Element, Layout, Merged, Precision, Tensor, TensorView, TensorViewMut, merge, merge_into,
};
use sage_tests::generate::Random;

/// `[1, heads, tokens, D]`.
fn view<T: Element>(x: &[T], [heads, tokens, head_dim]: [usize; 3]) -> TensorView<'_> {
    TensorView::new(x, &[1, heads, tokens, head_dim], Layout::Hnd).unwrap()
}

/// Attention of some queries over a range of the keys.
struct Inputs {
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Inputs {
    fn new([heads, queries, keys, head_dim]: [usize; 4], seed: u64) -> Inputs {
        let mut random = Random(seed);
        let q = random.normals(heads * queries * head_dim);
        let [k, v] = [(); 2].map(|()| random.normals(heads * keys * head_dim));
        Inputs { heads, queries, keys, head_dim, q, k, v }
    }

    fn part(&self, precision: Precision, keys: std::ops::Range<usize>) -> Merged {
        let d = self.head_dim;
        let cut = |x: &[f32]| -> Vec<f32> {
            x.chunks((self.keys * d).max(1)).flat_map(|head| head[keys.start * d..keys.end * d].to_vec()).collect()
        };
        let (k, v) = (cut(&self.k), cut(&self.v));
        let kv = [self.heads, keys.len(), d];
        let output = Attention::new()
            .precision(precision)
            .return_lse(true)
            .device(Device::Cpu)
            .forward(&view(&self.q, [self.heads, self.queries, d]), &view(&k, kv), &view(&v, kv))
            .unwrap();
        Merged { out: output.out, lse: output.lse.unwrap() }
    }
}

fn join(a: &Merged, b: &Merged) -> Merged {
    merge(&a.out.view().unwrap(), &a.lse, &b.out.view().unwrap(), &b.lse).unwrap()
}

/// The largest distance of two results; infinite values must be equal.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// A part of one row: its output of four features and its log-sum-exp.
fn row(out: [f32; 4], lse: f32) -> Merged {
    let mut tensor = Tensor::zeros(DType::F32, [1, 1, 1, 4]).unwrap();
    let zero = [0.0f32; 4];
    // Merging with nothing copies.
    merge_into(
        &view(&out, [1, 1, 4]),
        &[0.0],
        &view(&zero, [1, 1, 4]),
        &[f32::NEG_INFINITY],
        &mut tensor.view_mut().unwrap(),
    )
    .unwrap();
    assert_eq!(tensor.to_f32(), out);
    Merged { out: tensor, lse: vec![lse] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the keys are split, also into parts without a key, the merged parts are the whole.
    #[test]
    fn parts_merge_to_the_whole(
        (heads, queries, keys, head_dim) in (1usize..4, 1usize..9, 0usize..60, 1usize..40),
        cuts in prop::collection::vec(0.0f64..=1.0, 0..5),
        seed in any::<u64>(),
    ) {
        let inputs = Inputs::new([heads, queries, keys, head_dim], seed);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * keys as f64) as usize).collect();
        ends.sort_unstable();
        ends.push(keys);
        let mut begin = 0;
        let mut merged: Option<Merged> = None;
        for end in ends {
            let part = inputs.part(Precision::Exact, begin..end);
            merged = Some(merged.map_or(part.clone(), |so_far| join(&so_far, &part)));
            begin = end;
        }
        let (merged, whole) = (merged.unwrap(), inputs.part(Precision::Exact, 0..keys));
        let error = distance(&merged.out.to_f32(), &whole.out.to_f32());
        prop_assert!(error < 2e-5, "output off by {error}");
        let error = distance(&merged.lse, &whole.lse);
        prop_assert!(error < 2e-5, "lse off by {error}");
    }

    /// The order of two parts changes nothing, the grouping of three only the rounding.
    #[test]
    fn order_and_grouping_do_not_matter(
        lse in prop::array::uniform3(prop_oneof![4 => -90.0f32..90.0, 1 => Just(f32::NEG_INFINITY)]),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let parts = lse.map(|lse| {
            let empty = lse == f32::NEG_INFINITY;
            row([(); 4].map(|()| if empty { 0.0 } else { random.normal() }), lse)
        });
        let [a, b, c] = &parts;
        prop_assert_eq!(join(a, b), join(b, a));
        let (left, right) = (join(&join(a, b), c), join(a, &join(b, c)));
        let error = distance(&left.out.to_f32(), &right.out.to_f32());
        prop_assert!(error < 3e-5, "output off by {error}");
        let error = distance(&left.lse, &right.lse);
        prop_assert!(error < 3e-5, "lse off by {error}");
    }
}

#[test]
fn quantized_parts_merge_within_the_error_of_the_whole() {
    let inputs = Inputs::new([2, 70, 300, 64], 3);
    let exact = inputs.part(Precision::Exact, 0..300);
    let total: f32 = exact.out.to_f32().iter().map(|x| x.abs()).sum();
    let error = |merged: &Merged| {
        let pairs = merged.out.to_f32();
        pairs.iter().zip(exact.out.to_f32()).map(|(a, b)| (a - b).abs()).sum::<f32>() / total
    };
    let whole = inputs.part(Precision::Int8, 0..300);
    // Each part subtracts its own mean of K, so the log-sum-exp must hold that of the original scores.
    let parts = join(&inputs.part(Precision::Int8, 0..90), &inputs.part(Precision::Int8, 90..300));
    let (whole_error, parts_error) = (error(&whole), error(&parts));
    assert!(whole_error > 0.0 && parts_error < 1.2 * whole_error, "{parts_error} in parts, {whole_error} as a whole");
}

#[test]
fn a_part_without_keys_is_not_read() {
    let full = row([1.0, -2.0, 3.0, 0.5], 7.0);
    let nothing = row([0.0; 4], f32::NEG_INFINITY);
    let garbage = [f32::NAN; 4];
    for merged in [
        join(&full, &nothing),
        join(&nothing, &full),
        merge(&full.out.view().unwrap(), &[7.0], &view(&garbage, [1, 1, 4]), &[f32::NEG_INFINITY]).unwrap(),
    ] {
        assert_eq!(merged, full);
    }
    let both = view(&garbage, [1, 1, 4]);
    let merged = merge(&both, &[f32::NEG_INFINITY], &both, &[f32::NEG_INFINITY]).unwrap();
    assert_eq!((merged.out.to_f32(), merged.lse), (vec![0.0; 4], vec![f32::NEG_INFINITY]));
}

#[test]
fn what_is_not_finite_stays_so() {
    let full = row([1.0; 4], 7.0);
    for lse in [f32::NAN, f32::INFINITY] {
        for merged in [join(&full, &row([1.0; 4], lse)), join(&row([1.0; 4], lse), &full)] {
            assert!(merged.out.to_f32().iter().all(|x| x.is_nan()) && merged.lse[0].is_nan(), "{lse}: {merged:?}");
        }
    }
    let infinite = [1.0, f32::NAN, f32::INFINITY, 1.0];
    let merged = merge(&view(&infinite, [1, 1, 4]), &[0.0], &full.out.view().unwrap(), &[0.0]).unwrap().out.to_f32();
    assert!(merged[0] == 1.0 && merged[1].is_nan() && merged[2] == f32::INFINITY);
}

#[test]
fn extreme_weights_neither_overflow_nor_vanish() {
    for shift in [-1e30f32, -200.0, 0.0, 200.0, 1e30] {
        let merged = join(&row([1.0; 4], shift), &row([3.0; 4], shift));
        assert_eq!(merged.out.to_f32(), [2.0; 4], "{shift}");
        assert!((merged.lse[0] - (shift + 2f32.ln())).abs() <= shift.abs() * f32::EPSILON + 1e-6);
    }
    let merged = join(&row([1.0; 4], 1000.0), &row([3.0; 4], -1000.0));
    assert_eq!((merged.out.to_f32(), merged.lse), (vec![1.0; 4], vec![1000.0]));
}

#[test]
fn sixteen_bit_parts_round_once() {
    let mut random = Random(5);
    let (a, b): (Vec<f32>, Vec<f32>) = (random.normals(3 * 5 * 8), random.normals(3 * 5 * 8));
    let (lse1, lse2) = (random.normals(15), random.normals(15));
    macro_rules! check {
        ($type:ty, $dtype:expr) => {{
            let narrow = |x: &[f32]| -> Vec<$type> { x.iter().map(|&x| <$type>::from_f32(x)).collect() };
            let wide = |x: &[$type]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
            let (a, b) = (narrow(&a), narrow(&b));
            let shape = [3, 5, 8];
            let merged = merge(&view(&a, shape), &lse1, &view(&b, shape), &lse2).unwrap();
            assert_eq!(merged.out.dtype(), $dtype);
            let (a_wide, b_wide) = (wide(&a), wide(&b));
            let exact = merge(&view(&a_wide, shape), &lse1, &view(&b_wide, shape), &lse2).unwrap();
            assert_eq!(merged.lse, exact.lse);
            assert_eq!(merged.out.to_f32(), wide(&narrow(&exact.out.to_f32())));
            // A running sum in f32 takes parts of another type.
            let mixed = merge(&view(&a_wide, shape), &lse1, &view(&b, shape), &lse2).unwrap();
            assert_eq!(mixed, exact);
        }};
    }
    check!(f16, DType::F16);
    check!(bf16, DType::BF16);
}

#[test]
fn strides_are_followed() {
    // [1, 2, 3, 4], token-major in, head-major out.
    let nhd: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let part = TensorView::new(&nhd, &[1, 3, 2, 4], Layout::Nhd).unwrap();
    let mut out = vec![-1.0f32; 24];
    let mut target = TensorViewMut::new(&mut out, &[1, 2, 3, 4], Layout::Hnd).unwrap();
    merge_into(&part, &[0.0; 6], &part, &[0.0; 6], &mut target).unwrap();
    for (i, x) in out.iter().enumerate() {
        let (feature, token, head) = (i % 4, i / 4 % 3, i / 12);
        assert_eq!(*x, ((token * 2 + head) * 4 + feature) as f32);
    }
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let (a, b) = ([0.0f32; 24], [0.0f32; 32]);
    let (three, four) = (view(&a, [2, 3, 4]), view(&b, [2, 4, 4]));
    let error = merge(&three, &[0.0; 6], &four, &[0.0; 8]).unwrap_err();
    assert_eq!(error, Error::Invalid(Invalid::PartsMismatch { first: [1, 2, 3, 4], other: [1, 2, 4, 4] }));
    assert_eq!(error.to_string(), "parts of shapes [1, 2, 3, 4] and [1, 2, 4, 4] cannot be merged; they must be equal");
    let lse = merge(&three, &[0.0; 6], &three, &[0.0; 7]).unwrap_err();
    assert_eq!(lse, Error::Invalid(Invalid::LseLength { len: 7, expected: 6 }));
    let mut out = [0.0f32; 32];
    let mut target = TensorViewMut::new(&mut out, &[1, 2, 4, 4], Layout::Hnd).unwrap();
    let error = merge_into(&three, &[0.0; 6], &three, &[0.0; 6], &mut target).unwrap_err();
    assert!(matches!(error, Error::Invalid(Invalid::PartsMismatch { .. })), "{error}");
}

#[test]
fn nothing_merges_to_nothing() {
    for shape in [[0, 3, 4], [2, 0, 4], [0, 0, 4]] {
        let merged = merge(&view::<f32>(&[], shape), &[], &view::<f32>(&[], shape), &[]).unwrap();
        assert!(merged.out.to_f32().is_empty() && merged.lse.is_empty());
    }
}
