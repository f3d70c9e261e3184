//! Attention on the CPU through the public interface.

use half::{bf16, f16};
use proptest::prelude::*;
use sage_attn::reference::{self, attention_f64};
use sage_attn::{
    Attention, DType, Device, Layout, Output, Precision, PvFormat, ScaleGranularity, Sequences, SideInputs, Smoothing,
    TensorView, TensorViewMut,
};
use sage_spec::Dims;
use sage_spec::symbol::{Arch, STEMS};
use sage_tests::compare::{Bounds, compare_rows};
use sage_tests::generate::Random;

/// f32 inputs for `dims`, in `[B, H, tokens, D]` order.
struct Inputs {
    dims: Dims,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Inputs {
    fn new(dims: Dims, seed: u64) -> Inputs {
        let mut random = Random(seed);
        let keys = dims.batch * dims.num_heads_kv * dims.seqlen_kv;
        let q = random.normals(dims.batch * dims.num_heads_q * dims.seqlen_q * dims.head_dim);
        Inputs { dims, q, k: random.normals(keys * dims.head_dim), v: random.normals(keys * dims.head_dim_v) }
    }

    fn q_shape(&self) -> [usize; 4] {
        [self.dims.batch, self.dims.num_heads_q, self.dims.seqlen_q, self.dims.head_dim]
    }

    fn kv_shape(&self, head_dim: usize) -> [usize; 4] {
        [self.dims.batch, self.dims.num_heads_kv, self.dims.seqlen_kv, head_dim]
    }

    fn views(&self) -> [TensorView<'_>; 3] {
        [
            TensorView::new(&self.q, &self.q_shape(), Layout::Hnd).unwrap(),
            TensorView::new(&self.k, &self.kv_shape(self.dims.head_dim), Layout::Hnd).unwrap(),
            TensorView::new(&self.v, &self.kv_shape(self.dims.head_dim_v), Layout::Hnd).unwrap(),
        ]
    }

    fn run(&self, attention: &Attention) -> Output {
        let [q, k, v] = self.views();
        attention.clone().device(Device::Cpu).forward(&q, &k, &v).unwrap()
    }

    /// Exact output and log-sum-exp.
    fn exact(&self, causal: bool) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v] = self.views();
        let sm_scale = 1.0 / (self.dims.head_dim as f64).sqrt();
        let exact = attention_f64(&self.dims, &q.host(), &k.host(), &v.host(), causal, sm_scale);
        (exact.out, exact.lse)
    }
}

fn dims(batch: usize, heads: [usize; 2], tokens: [usize; 2], head_dim: usize) -> Dims {
    Dims {
        batch,
        num_heads_q: heads[0],
        num_heads_kv: heads[1],
        seqlen_q: tokens[0],
        seqlen_kv: tokens[1],
        head_dim,
        head_dim_v: head_dim,
    }
}

/// FP8 P and V round to 4 significant bits, and codes of Q and K add to that.
const INT8: Bounds = Bounds { element: 0.15, row_l1: 0.09 };
const INT4: Bounds = Bounds { element: 1.0, row_l1: 0.6 };
const EXACT: Bounds = Bounds { element: 1e-5, row_l1: 1e-5 };

#[test]
fn every_precision_is_as_close_as_it_should_be() {
    let inputs = Inputs::new(dims(2, [4, 2], [130, 200], 64), 1);
    for causal in [false, true] {
        let (exact, exact_lse) = inputs.exact(causal);
        for (precision, bounds, kernel) in [
            (Precision::Auto, INT8, "cpu_int8_fp8_fwd"),
            (Precision::Int8, INT8, "cpu_int8_fp8_fwd"),
            (Precision::Int4, INT4, "cpu_int4_fp8_fwd"),
            (Precision::Exact, EXACT, "cpu_exact_fwd"),
        ] {
            let output = inputs.run(&Attention::new().causal(causal).precision(precision).return_lse(true));
            assert_eq!((output.report.kernel.as_str(), output.report.device.as_str()), (kernel, "cpu"));
            compare_rows(&output.out.to_f32(), &exact, 64, bounds).unwrap();
            let lse = output.lse.unwrap();
            for (actual, exact) in lse.iter().zip(&exact_lse) {
                let allowed = if precision == Precision::Int4 { 0.5 } else { 0.02 };
                assert!((f64::from(*actual) - exact).abs() < allowed, "{actual} {exact}");
            }
        }
    }
}

/// Heads up to 256 wide, and values of another width than queries and keys.
#[test]
fn head_dimensions_of_all_kinds() {
    for (head_dim, head_dim_v) in [(64, 128), (128, 64), (192, 128), (160, 160), (256, 256), (3, 200)] {
        let dims = Dims { head_dim_v, ..dims(1, [2, 1], [70, 90], head_dim) };
        let inputs = Inputs::new(dims, 5);
        let (exact, _) = inputs.exact(true);
        let f32 = Bounds { element: 1e-4, row_l1: 1e-4 };
        for (precision, bounds) in [(Precision::Int8, INT8), (Precision::Int4, INT4), (Precision::Exact, f32)] {
            let [q, k, v] = inputs.views();
            let attention = Attention::new().causal(true).precision(precision).device(Device::Cpu);
            // With slopes of zero by the reference's path too.
            for side in [SideInputs::new(), SideInputs::new().alibi(&[0.0; 2])] {
                let output = attention.forward_with(&q, &k, &v, &side).unwrap();
                assert_eq!(output.out.shape(), [1, 2, 70, head_dim_v]);
                compare_rows(&output.out.to_f32(), &exact, head_dim_v, bounds)
                    .unwrap_or_else(|error| panic!("{head_dim}/{head_dim_v} {precision:?}: {error}"));
            }
        }
    }
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let inputs = Inputs::new(dims(1, [2, 1], [64, 64], 64), 2);
    let output = inputs.run(&Attention::new());
    assert_eq!(output.report.precision, "int8");
    assert_eq!(output.report.smoothing, Smoothing { q: false, k: true, v: false });
    assert_eq!(output.report.granularity, ScaleGranularity::PerThread);
    assert_eq!(output.out.dtype(), DType::F32);
    assert_eq!(output.lse, None);
    let int4 = inputs.run(&Attention::new().precision(Precision::Int4));
    assert_eq!(int4.report.smoothing, Smoothing { q: true, k: true, v: false });
    let scale = 1.0 / 64f32.sqrt();
    assert_eq!(inputs.run(&Attention::new().sm_scale(scale)).out, output.out);
}

#[test]
fn layouts_and_strides_do_not_change_the_result() {
    let inputs = Inputs::new(dims(2, [3, 3], [70, 70], 40), 3);
    let expected = inputs.run(&Attention::new()).out;
    let [b, h, n, d] = inputs.q_shape();
    // Token-major copies.
    let nhd = |x: &[f32]| -> Vec<f32> {
        let at = |i: usize| {
            let (feature, head, token, batch) = (i % d, i / d % h, i / d / h % n, i / d / h / n);
            x[((batch * h + head) * n + token) * d + feature]
        };
        (0..x.len()).map(at).collect()
    };
    let (q, k, v) = (nhd(&inputs.q), nhd(&inputs.k), nhd(&inputs.v));
    let view = |x| TensorView::new(x, &[b, n, h, d], Layout::Nhd).unwrap();
    let output = Attention::new().device(Device::Cpu).forward(&view(&q), &view(&k), &view(&v)).unwrap();
    assert_eq!(output.out, expected);

    // The same into rows of 50 elements, token-major, between elements that must not change.
    let strides = Layout::Strides([(n * h * 50) as i64, 50, (h * 50) as i64, 1]);
    let mut out = vec![-7.0f32; b * n * h * 50];
    let mut out_view = TensorViewMut::new(&mut out, &[b, h, n, d], strides).unwrap();
    Attention::new().device(Device::Cpu).forward_into(&view(&q), &view(&k), &view(&v), &mut out_view).unwrap();
    let expected = expected.to_f32();
    for (i, row) in out.chunks(50).enumerate() {
        let (head, token, batch) = (i % h, i / h % n, i / h / n);
        assert_eq!(row[..d], expected[((batch * h + head) * n + token) * d..][..d]);
        assert!(row[d..].iter().all(|&x| x == -7.0));
    }
}

#[test]
fn sixteen_bit_tensors_work_and_the_output_type_can_be_chosen() {
    let inputs = Inputs::new(dims(1, [2, 2], [50, 60], 32), 4);
    let (exact, _) = inputs.exact(false);
    let loose = Bounds { element: 0.2, row_l1: 0.12 };
    let attention = Attention::new().device(Device::Cpu);
    macro_rules! check {
        ($type:ty, $dtype:expr) => {{
            let convert = |x: &[f32]| -> Vec<$type> { x.iter().map(|&x| <$type>::from_f32(x)).collect() };
            let (q, k, v) = (convert(&inputs.q), convert(&inputs.k), convert(&inputs.v));
            let q = TensorView::new(&q, &inputs.q_shape(), Layout::Hnd).unwrap();
            let k = TensorView::new(&k, &inputs.kv_shape(32), Layout::Hnd).unwrap();
            let v = TensorView::new(&v, &inputs.kv_shape(32), Layout::Hnd).unwrap();
            let output = attention.forward(&q, &k, &v).unwrap();
            assert_eq!(output.out.dtype(), $dtype);
            compare_rows(&output.out.to_f32(), &exact, 32, loose).unwrap();
            let wide = attention.clone().out_dtype(DType::F32).forward(&q, &k, &v).unwrap();
            assert_eq!(wide.out.dtype(), DType::F32);
            let rounded: Vec<f32> = wide.out.to_f32().iter().map(|&x| <$type>::from_f32(x).to_f32()).collect();
            assert_eq!(rounded, output.out.to_f32());
        }};
    }
    check!(f16, DType::F16);
    check!(bf16, DType::BF16);
}

#[test]
fn empty_problems_are_fine() {
    for dims in [
        dims(0, [2, 1], [5, 5], 64),
        dims(1, [0, 0], [5, 5], 64),
        dims(1, [0, 2], [5, 5], 64),
        dims(1, [2, 1], [0, 5], 64),
    ] {
        let output = Inputs::new(dims, 5).run(&Attention::new().return_lse(true));
        assert!(output.out.to_f32().is_empty());
        assert_eq!(output.lse, Some(vec![]));
    }
}

#[test]
fn rows_that_see_no_key_are_zero_with_infinite_lse() {
    for precision in [Precision::Int8, Precision::Int4, Precision::Exact] {
        let attention = Attention::new().precision(precision).return_lse(true);
        let none = Inputs::new(dims(1, [2, 1], [5, 0], 64), 6).run(&attention);
        assert!(none.out.to_f32().iter().all(|&x| x == 0.0));
        assert!(none.lse.unwrap().iter().all(|&x| x == f32::NEG_INFINITY));
        // More queries than keys: bottom-right alignment leaves the first rows without a key.
        let inputs = Inputs::new(dims(1, [2, 1], [9, 4], 64), 7);
        let output = inputs.run(&attention.clone().causal(true));
        let lse = output.lse.unwrap();
        for (row, values) in output.out.to_f32().chunks(64).enumerate() {
            let sees_none = row % 9 < 5;
            assert_eq!(lse[row] == f32::NEG_INFINITY, sees_none, "row {row}");
            assert_eq!(values.iter().all(|&x| x == 0.0), sees_none, "row {row}");
        }
    }
}

#[test]
fn a_scale_of_zero_averages_the_values() {
    let inputs = Inputs::new(dims(1, [1, 1], [3, 40], 64), 8);
    let output = inputs.run(&Attention::new().sm_scale(0.0).precision(Precision::Exact));
    let mean = |feature: usize| inputs.v.iter().skip(feature).step_by(64).sum::<f32>() / 40.0;
    for (i, x) in output.out.to_f32().iter().enumerate() {
        assert!((x - mean(i % 64)).abs() < 1e-5);
    }
}

#[test]
fn without_a_driver_auto_says_why_it_used_the_cpu_and_cuda_fails() {
    if sage_attn::device::driver_version().is_ok() {
        return; // this machine has a GPU
    }
    let inputs = Inputs::new(dims(1, [1, 1], [3, 4], 64), 9);
    let [q, k, v] = inputs.views();
    let output = Attention::new().forward(&q, &k, &v).unwrap();
    assert_eq!(output.report.device, "cpu");
    assert!(output.report.note.is_some());
    let error = Attention::new().device(Device::Cuda(0)).forward(&q, &k, &v).unwrap_err();
    assert!(matches!(error, sage_attn::Error::Device(_)), "{error}");
}

#[test]
fn a_huge_output_of_overlapping_inputs_is_an_error_and_not_an_abort() {
    let row = [0.0f32; 64 * 100];
    let shape = [1, 1 << 22, 1 << 22, 64];
    let strides = Layout::Strides([64, 64, 64, 1]);
    let error = TensorView::new(&row, &shape, strides).unwrap_err();
    assert!(error.to_string().contains("6400"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// INT8 stays close for any shape and any choice of scales and smoothing. The output may be small
    /// where values cancel, so errors are measured against the attention of |V|, which cannot.
    #[test]
    fn int8_is_close_for_every_shape(
        (batch, heads_kv, group) in (1usize..3, 1usize..3, 1usize..4),
        (m, n, d) in (1usize..200, 1usize..300, 1usize..129),
        (causal, smooth, granularity) in (any::<bool>(), any::<[bool; 3]>(), 0usize..3),
        (pv, seed) in (any::<bool>(), any::<u64>()),
    ) {
        let mut inputs = Inputs::new(dims(batch, [heads_kv * group, heads_kv], [m, n], d), seed);
        let granularities =
            [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread];
        let [q, k, v] = smooth;
        let attention = Attention::new()
            .causal(causal)
            .granularity(granularities[granularity])
            .smoothing(Smoothing { q, k, v })
            .pv(if pv { PvFormat::Fp8 } else { PvFormat::F16 });
        let actual = inputs.run(&attention).out.to_f32();
        let exact = inputs.exact(causal).0;
        let largest = |channel: usize| {
            let values = inputs.v.iter().skip(channel).step_by(d);
            values.fold(0.0f64, |max, &x| max.max(f64::from(x).abs()))
        };
        // Smoothing V quantizes the distance to the channel's mean, which may be large where V is small.
        let offsets: Vec<f64> = (0..d).map(|channel| if v { largest(channel) } else { 0.0 }).collect();
        inputs.v.iter_mut().for_each(|x| *x = x.abs());
        let magnitude = inputs.exact(causal).0;
        // E4M3 rounds P and V by at most 2⁻⁴ each, and V below 2⁻¹⁴ of its channel's largest by more; the
        // rest is for the scores.
        // The mean of V's rounding over all tokens of a head is added to all of its rows.
        let heads = heads_kv * group;
        let mean = |i: usize| {
            let head = i / (m * d) / heads * heads_kv + i / (m * d) % heads / group;
            let v = inputs.v[head * n * d..][..n * d].iter().skip(i % d).step_by(d);
            if pv { v.map(|&x| f64::from(x)).sum::<f64>() / n as f64 } else { 0.0 }
        };
        for (i, (actual, exact)) in actual.iter().zip(&exact).enumerate() {
            let allowed = 0.25 * (magnitude[i] + offsets[i % d]) + mean(i) / 16.0 + 1e-4;
            let error = (f64::from(*actual) - exact).abs();
            prop_assert!(error <= allowed, "{actual} for {exact}, allowed {allowed}");
        }
    }
}

#[test]
fn a_kernel_named_on_the_cpu_is_the_reference_of_that_kernel() {
    let inputs = Inputs::new(dims(1, [4, 2], [70, 200], 64), 11);
    let [q, k, v] = inputs.views();
    for stem in STEMS {
        let attention = Attention::new().causal(true).kernel(stem.name).return_lse(true);
        let output = inputs.run(&attention);
        assert_eq!((output.report.kernel.as_str(), output.report.device.as_str()), (stem.name, "cpu"));
        assert_eq!((output.report.precision, output.report.pv), (stem.qk.name(), Some(stem.pv)));
        let options = reference::Options {
            causal: true,
            sm_scale: 0.125,
            precision: stem.qk,
            granularity: ScaleGranularity::PerThread,
            pv: stem.pv,
            smooth_q: stem.qk == sage_spec::Precision::Int4,
            smooth_k: true,
            smooth_v: false,
        };
        let quantized = reference::quantize(&inputs.dims, &q.host(), &k.host(), &v.host(), &options);
        let expected = match stem.arch {
            Arch::Sm90a => {
                let exponential = stem.exponential;
                reference::attention_quantized_sm90(&inputs.dims, &quantized, &k.host(), &options, exponential)
            }
            _ => reference::attention_quantized(&inputs.dims, &quantized, &k.host(), &options),
        };
        assert_eq!(output.out.to_f32(), expected.out, "{}", stem.name);
        assert_eq!(output.lse, Some(expected.lse), "{}", stem.name);
        // The CPU's own back end rounds P less.
        assert_ne!(expected.out, inputs.run(&Attention::new().causal(true).pv(stem.pv)).out.to_f32());
    }
}

#[test]
fn a_kernel_named_on_the_cpu_takes_packed_sequences_one_by_one() {
    let inputs = Inputs::new(dims(1, [2, 1], [50, 90], 32), 5);
    let [q, k, v] = inputs.views();
    let attention = Attention::new().causal(true).kernel("sm90_int4_fp8_fwd").device(Device::Cpu);
    let sequences = Sequences::new(&[0, 20, 50], &[0, 30, 90]).unwrap();
    let packed = SideInputs::new().sequences(&sequences);
    let whole = attention.forward_with(&q, &k, &v, &packed).unwrap().out.to_f32();
    // The second sequence by itself, as tensors that begin at its first token.
    let part = |x: &[f32], heads: usize, tokens: usize, from: usize| -> Vec<f32> {
        (0..heads).flat_map(|head| x[(head * tokens + from) * 32..(head + 1) * tokens * 32].to_vec()).collect()
    };
    let (q, k, v) = (part(&inputs.q, 2, 50, 20), part(&inputs.k, 1, 90, 30), part(&inputs.v, 1, 90, 30));
    let view = |x, heads, tokens| TensorView::new(x, &[1, heads, tokens, 32], Layout::Hnd).unwrap();
    let own = attention.forward(&view(&q, 2, 30), &view(&k, 1, 60), &view(&v, 1, 60)).unwrap().out.to_f32();
    assert_eq!(part(&whole, 2, 50, 20), own);
}
