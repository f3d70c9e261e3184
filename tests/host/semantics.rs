//! Windows, alignments, soft-cap, ALiBi, bias, masks, sinks and packed sequences through the public
//! interface, on the CPU: what reaches the computation, what is refused, and with which words.

use half::f16;
use proptest::prelude::*;
use sage_attn::error::{ModifierError, Operand, PlanError};
use sage_attn::plan::{Capability, Kernel, Slot, plan, plan_packed};
use sage_attn::problem::PairSpec;
use sage_attn::reference::{self, Data, HostMask, HostTensor};
use sage_attn::{
    Alignment, Attention, BiasView, Device, Error, Layout, MaskView, Output, Precision, Sequences, SideInputs,
    TensorView, Window,
};
use sage_spec::Dims;
use sage_spec::symbol::{Arch, STEMS};
use sage_tests::compare::{Bounds, compare_rows};
use sage_tests::generate::Random;

const DIMS: Dims =
    Dims { batch: 2, num_heads_q: 4, num_heads_kv: 2, seqlen_q: 70, seqlen_kv: 150, head_dim: 40, head_dim_v: 40 };

/// Elements for `[batch, heads, tokens, head_dim]`.
fn elements(heads: usize, tokens: usize, seed: u64) -> Vec<f32> {
    Random(seed).normals(DIMS.batch * heads * tokens * DIMS.head_dim)
}

fn error_of(side: &SideInputs<'_>, attention: &Attention) -> Error {
    let (q, k) = (elements(4, 70, 1), elements(2, 150, 2));
    let q = TensorView::new(&q, &[2, 4, 70, 40], Layout::Hnd).unwrap();
    let k = TensorView::new(&k, &[2, 2, 150, 40], Layout::Hnd).unwrap();
    attention.clone().device(Device::Cpu).forward_with(&q, &k, &k, side).unwrap_err()
}

/// Everything at once reaches the computation, exact and quantized.
#[test]
fn everything_agrees_with_the_definition() {
    let (q, k, v) = (elements(4, 70, 1), elements(2, 150, 2), elements(2, 150, 3));
    let mut random = Random(4);
    let bias: Vec<f16> = (0..4 * 70 * 150).map(|_| f16::from_f32(random.normal())).collect();
    let bias32: Vec<f32> = bias.iter().map(|x| x.to_f32()).collect();
    let mask: Vec<bool> = (0..2 * 150).map(|_| random.unit() < 0.8).collect();
    let (slopes, sinks) = (sage_attn::alibi_slopes(4), [0.5, f32::NEG_INFINITY, 1.0, -2.0]);
    let side = SideInputs::new()
        .alibi(&slopes)
        .bias(BiasView::new(&bias, [1, 4, 70, 150]).unwrap())
        .mask(MaskView::new(&mask, [2, 1, 1, 150]).unwrap())
        .sinks(&sinks);
    let window = Window { left: Some(90), right: Some(5) };
    let attention = Attention::new().alignment(Alignment::TopLeft).window(window).softcap(3.0).return_lse(true);
    let [hq, hk, hv] = [(&q, 4, 70), (&k, 2, 150), (&v, 2, 150)]
        .map(|(data, heads, tokens)| HostTensor::contiguous(Data::F32(data), heads, tokens, 40));
    let modifiers = reference::Modifiers {
        alignment: Alignment::TopLeft,
        window,
        softcap: Some(3.0),
        alibi: Some(&slopes),
        bias: Some(HostTensor { data: Data::F32(&bias32), stride_batch: 0, stride_head: 70 * 150, stride_token: 150 }),
        mask: Some(HostMask { data: &mask, stride_batch: 150, stride_head: 0, stride_row: 0 }),
        sinks: Some(&sinks),
    };
    let exact = reference::attention_f64_with(&DIMS, &hq, &hk, &hv, false, 40f64.sqrt().recip(), &modifiers);
    let q = TensorView::new(&q, &[2, 4, 70, 40], Layout::Hnd).unwrap();
    let k = TensorView::new(&k, &[2, 2, 150, 40], Layout::Hnd).unwrap();
    let v = TensorView::new(&v, &[2, 2, 150, 40], Layout::Hnd).unwrap();
    let bounds = [(Precision::Exact, 1e-4), (Precision::Int8, 0.12)];
    for (precision, element) in bounds {
        let attention = attention.clone().precision(precision).device(Device::Cpu);
        let output = attention.forward_with(&q, &k, &v, &side).unwrap();
        let bounds = Bounds { element, row_l1: element };
        compare_rows(&output.out.to_f32(), &exact.out, 40, bounds).unwrap_or_else(|e| panic!("{precision:?}: {e}"));
        for (a, e) in output.lse.unwrap().iter().zip(&exact.lse) {
            assert!((f64::from(*a) - e).abs() < element.max(1e-4), "{precision:?}: {a} {e}");
        }
    }
}

#[test]
fn wrong_modifiers_are_refused_in_words() {
    let said = |error: Error, words: &[&str]| {
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)) && !message.contains('\n'), "{message}");
        error
    };
    let none = SideInputs::new();
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = said(error_of(&none, &Attention::new().softcap(softcap)), &["softcap", "positive"]);
        assert!(matches!(error, Error::Modifier(ModifierError::Softcap { .. })));
    }
    let plain = Attention::new();
    let slopes = [0.5; 5];
    let error = said(error_of(&none.alibi(&slopes), &plain), &["alibi", "[1, 5]", "[1, 4]", "[2, 4]"]);
    assert_eq!(error, ModifierError::AlibiShape { shape: [1, 5], batch: 2, heads: 4 }.into());
    let slopes = [0.5, f32::NAN, 0.5, 0.5];
    said(error_of(&none.alibi(&slopes), &plain), &["slope 1", "NaN", "finite"]);
    said(error_of(&none.sinks(&[0.0; 3]), &plain), &["3 sinks", "4"]);
    said(error_of(&none.sinks(&[0.0, 0.0, f32::INFINITY, 0.0]), &plain), &["head 2", "inf"]);
    let bias = vec![0.0f32; 4 * 70 * 151];
    let view = BiasView::new(&bias, [1, 4, 70, 151]).unwrap();
    let error = said(error_of(&none.bias(view), &plain), &["bias", "[1, 4, 70, 151]", "[2, 4, 70, 150]"]);
    assert!(matches!(error, Error::Modifier(ModifierError::PairShape { operand: Operand::Bias, .. })));
    let mask = vec![true; 3 * 150];
    let view = MaskView::new(&mask, [3, 1, 1, 150]).unwrap();
    said(error_of(&none.mask(view), &plain), &["mask", "[3, 1, 1, 150]"]);
    let beyond = MaskView::new(&mask, [1, 1, 70, 150]).unwrap_err();
    assert_eq!(beyond, ModifierError::PairBeyondBuffer { operand: Operand::Mask, needed: 10_500, len: 450 });
    for strides in [[0, 0, -1, 1], [0, 0, 150, 2]] {
        let spec = PairSpec { shape: [1, 1, 2, 150], strides };
        assert_eq!(
            MaskView::strided(&mask, spec).unwrap_err(),
            ModifierError::PairStride { operand: Operand::Mask, strides }
        );
    }
    let wide = BiasView::new(&bias, [usize::MAX, 2, 2, 2]).unwrap_err();
    assert!(matches!(wide, ModifierError::PairOverflow { .. }));
    let packed = Sequences::new(&[0, 70], &[0, 150]).unwrap();
    said(error_of(&none.sequences(&packed), &plain), &["batch 2", "batch of 1"]);
}

#[test]
fn wrong_sequences_are_refused() {
    assert_eq!(Sequences::new(&[0, 1], &[0]), Err(ModifierError::SequenceCounts { q: 2, kv: 1 }));
    assert_eq!(Sequences::new(&[], &[]), Err(ModifierError::SequencesStart { first: None }));
    assert_eq!(Sequences::new(&[1, 2], &[0, 2]), Err(ModifierError::SequencesStart { first: Some(1) }));
    let falls = Sequences::new(&[0, 2, 4], &[0, 5, 3]);
    assert_eq!(falls, Err(ModifierError::SequencesFall { index: 2, from: 5, to: 3 }));
    let x = vec![0.0f32; 10 * 64];
    let x = TensorView::new(&x, &[1, 1, 10, 64], Layout::Hnd).unwrap();
    for (q, kv, tensor, end) in [([0, 9], [0, 10], Operand::Q, 9), ([0, 10], [0, 11], Operand::K, 11)] {
        let sequences = Sequences::new(&q, &kv).unwrap();
        let error = Attention::new().forward_with(&x, &x, &x, &SideInputs::new().sequences(&sequences)).unwrap_err();
        assert_eq!(error, ModifierError::SequencesEnd { tensor, end, tokens: 10 }.into());
    }
}

/// Modifiers go to the general kernels, also of a kernel asked for by name; what changes nothing stays where it was.
#[test]
fn modifiers_are_planned_onto_the_general_kernels() {
    let hopper = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
    let q = TensorView::new(&[0.0f32; 8 * 64], &[1, 1, 8, 64], Layout::Hnd).unwrap();
    let spec = *q.spec();
    let none = SideInputs::new();
    let problem =
        |attention: &Attention, side: &SideInputs<'_>| attention.problem_with(spec, spec, spec, spec, side).unwrap();
    let planned = |attention: &Attention, side: &SideInputs<'_>| plan(&problem(attention, side), &hopper);

    let plain = planned(&Attention::new().causal(true), &none).unwrap();
    let neutral = Attention::new().causal(true).alignment(Alignment::TopLeft);
    let neutral = neutral.window(Window { left: Some(7), right: Some(0) });
    assert_eq!(planned(&neutral, &none).unwrap().stem(), plain.stem());

    let window = Attention::new().window(Window { left: Some(6), right: None });
    let capped = Attention::new().softcap(5.0);
    for (attention, side) in [(&window, none), (&capped, none.sinks(&[0.0]))] {
        let plan = planned(attention, &side).unwrap();
        assert_eq!(plan.stem().name, "sm90_int8_fp8_fwd");
        let entry = plan.entries().last().unwrap();
        assert_eq!((entry.kernel, entry.symbol.as_str()), (Kernel::General, "sm90_int8_fp8_general_d64"));
        assert_eq!((entry.cta.threads, plan.steps().last().unwrap().grid), (384, [1, 1]));
        assert!(plan.explain().contains("lost: with modifiers both are one kernel"), "{}", plan.explain());
    }
    // A soft-cap and sinks need what smoothing K takes from scores, without an LSE being asked for.
    assert!(planned(&capped, &none).unwrap().workspace().get(Slot::QkMean).is_some());
    assert!(planned(&window, &none).unwrap().workspace().get(Slot::QkMean).is_none());

    for stem in STEMS {
        let plan = planned(&Attention::new().kernel(stem.name).softcap(5.0), &none).unwrap();
        let symbol = match stem.arch {
            Arch::Sm90a => "sm90_int8_fp8_general_d64".to_owned(),
            Arch::Sm80 | Arch::Sm89 => format!("{}_general_d64", stem.name),
        };
        assert_eq!((plan.stem().name, &plan.entries().last().unwrap().symbol), (stem.name, &symbol));
    }

    let sequences = Sequences::new(&[0, 3, 3, 8], &[0, 5, 8, 8]).unwrap();
    let side = none.sequences(&sequences);
    assert_eq!(planned(&Attention::new(), &side), Err(PlanError::PackedSequences.into()));
    let packed = plan_packed(&problem(&Attention::new(), &side), &hopper).unwrap();
    let parts: Vec<(usize, usize, usize)> = packed
        .parts()
        .iter()
        .map(|(index, plan)| (*index, plan.problem().dims().seqlen_q, plan.problem().dims().seqlen_kv))
        .collect();
    assert_eq!(parts, [(0, 3, 5), (2, 5, 0)]);
    assert!(packed.parts().iter().all(|(_, plan)| plan.workspace().total_bytes() <= packed.workspace_bytes()));
    assert_eq!(packed.launches(), 2 + 1, "no keys, nothing to quantize");
    // Neighbours of equal lengths are a batch, with the side inputs of their own.
    let sequences = Sequences::new(&[0, 2, 4, 6, 8], &[0, 2, 4, 5, 8]).unwrap();
    assert_eq!((0..4).map(|index| sequences.alike_from(index)).collect::<Vec<_>>(), [2, 1, 1, 1]);
    let slopes = [0.5; 4];
    let side = none.sequences(&sequences).alibi(&slopes);
    let packed = plan_packed(&problem(&Attention::new(), &side), &hopper).unwrap();
    let batches: Vec<_> = packed
        .parts()
        .iter()
        .map(|(first, plan)| (*first, plan.problem().dims().batch, plan.problem().modifiers().alibi))
        .collect();
    assert_eq!(batches, [(0, 2, Some([2, 1])), (2, 1, Some([1, 1])), (3, 1, Some([1, 1]))]);
    assert_eq!(packed.parts()[0].1.problem().q().strides[0], 2 * packed.problem().q().strides[2]);
    assert!(packed.explain().starts_with("sequences 0 to 1\n"), "{}", packed.explain());
    let error = plan_packed(&problem(&Attention::new(), &none), &hopper).unwrap_err();
    assert_eq!(error, ModifierError::NotPacked.into());
}

fn cut(x: &[f32], heads: usize, tokens: usize, range: std::ops::Range<usize>, width: usize) -> Vec<f32> {
    (0..heads)
        .flat_map(|head| x[(head * tokens + range.start) * width..(head * tokens + range.end) * width].to_vec())
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Packed sequences have the bits that each has alone, with every modifier.
    #[test]
    fn packed_sequences_are_sequences_alone(
        lens in prop::collection::vec((0..150usize, 0..150usize), 0..5),
        seed in any::<u64>(),
        flags in any::<[bool; 8]>(),
        precision in prop_oneof![Just(Precision::Int4), Just(Precision::Int8), Just(Precision::Exact)],
    ) {
        let [causal, windowed, capped, alibi, biased, masked, sunk, token_major] = flags;
        let (heads, kv_heads, width) = (4, 2, 24);
        let cumulative = |len: fn(&(usize, usize)) -> usize| -> Vec<usize> {
            let ends = lens.iter().scan(0, |sum, lens| { *sum += len(lens); Some(*sum) });
            std::iter::once(0).chain(ends).collect()
        };
        let sequences = Sequences::new(&cumulative(|lens| lens.0), &cumulative(|lens| lens.1)).unwrap();
        let count = sequences.len();
        let (m, n) = (lens.iter().map(|l| l.0).sum::<usize>(), lens.iter().map(|l| l.1).sum::<usize>());
        let (rows, keys) = (lens.iter().map(|l| l.0).max().unwrap_or(0), lens.iter().map(|l| l.1).max().unwrap_or(0));
        let mut random = Random(seed);
        let (q, k, v) = (random.normals(heads * m * width), random.normals(kv_heads * n * width), random.normals(kv_heads * n * width));
        let bias = random.normals(count * heads * rows * keys);
        let mask: Vec<bool> = (0..count * rows * keys).map(|_| random.unit() < 0.7).collect();
        let slopes: Vec<f32> = (0..count * heads).map(|_| random.unit()).collect();
        let sinks = random.normals(heads);

        let mut attention = Attention::new().causal(causal).precision(precision).return_lse(true).device(Device::Cpu);
        if windowed {
            attention = attention.window(Window { left: Some(40), right: Some(10) });
        }
        if capped {
            attention = attention.softcap(2.0);
        }
        let side = |entry: Option<usize>| {
            let mut side = SideInputs::new();
            if alibi {
                side = side.alibi(entry.map_or(&slopes, |i| &slopes[i * heads..(i + 1) * heads]));
            }
            if sunk {
                side = side.sinks(&sinks);
            }
            side
        };
        let alone = |i: usize| -> Output {
            let (m_i, n_i) = lens[i];
            let q = cut(&q, heads, m, sequences.q(i), width);
            let [k, v] = [&k, &v].map(|x| cut(x, kv_heads, n, sequences.kv(i), width));
            let q = TensorView::new(&q, &[1, heads, m_i, width], Layout::Hnd).unwrap();
            let [k, v] = [&k, &v].map(|x| TensorView::new(x, &[1, kv_heads, n_i, width], Layout::Hnd).unwrap());
            let strides = |heads: usize| [0, if heads == 1 { 0 } else { (rows * keys) as i64 }, keys as i64, 1];
            let mut side = side(Some(i));
            if biased {
                let spec = PairSpec { shape: [1, heads, m_i, n_i], strides: strides(heads) };
                side = side.bias(BiasView::strided(&bias[i * heads * rows * keys..], spec).unwrap());
            }
            if masked {
                let spec = PairSpec { shape: [1, 1, m_i, n_i], strides: strides(1) };
                side = side.mask(MaskView::strided(&mask[i * rows * keys..], spec).unwrap());
            }
            attention.forward_with(&q, &k, &v, &side).unwrap()
        };

        // The packed tensors, token-major or head-major.
        let arrange = |x: &[f32], heads: usize, tokens: usize| -> Vec<f32> {
            match token_major {
                false => x.to_vec(),
                true => (0..tokens).flat_map(|t| (0..heads).flat_map(move |h| (0..width).map(move |d| (h * tokens + t) * width + d))).map(|i| x[i]).collect(),
            }
        };
        let view = |x, heads, tokens| match token_major {
            false => TensorView::new(x, &[1, heads, tokens, width], Layout::Hnd).unwrap(),
            true => TensorView::new(x, &[1, tokens, heads, width], Layout::Nhd).unwrap(),
        };
        let (pq, pk, pv) = (arrange(&q, heads, m), arrange(&k, kv_heads, n), arrange(&v, kv_heads, n));
        let mut side = side(None).sequences(&sequences);
        if biased {
            side = side.bias(BiasView::new(&bias, [count, heads, rows, keys]).unwrap());
        }
        if masked {
            side = side.mask(MaskView::new(&mask, [count, 1, rows, keys]).unwrap());
        }
        let packed = attention.forward_with(&view(&pq, heads, m), &view(&pk, kv_heads, n), &view(&pv, kv_heads, n), &side).unwrap();
        let (out, lse) = (packed.out.to_f32(), packed.lse.unwrap());
        prop_assert_eq!(packed.out.shape(), [1, heads, m, width]);
        for i in 0..count {
            let one = alone(i);
            prop_assert_eq!(bits(&cut(&out, heads, m, sequences.q(i), width)), bits(&one.out.to_f32()));
            prop_assert_eq!(bits(&cut(&lse, heads, m, sequences.q(i), 1)), bits(&one.lse.unwrap()));
        }
    }
}
