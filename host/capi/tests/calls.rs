//! Calls as C makes them, with arguments that C programs get wrong.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

use sage_attn_capi::*;

fn last_error() -> String {
    // SAFETY: the string lives until the next failure on this thread.
    unsafe { CStr::from_ptr(sage_last_error()) }.to_str().unwrap().to_owned()
}

/// A contiguous f32 tensor.
fn tensor(data: &mut [f32], shape: [usize; 4]) -> SageTensor {
    let mut tensor = SageTensor { data: data.as_mut_ptr().cast::<c_void>(), dtype: SAGE_F32, shape, strides: [0; 4] };
    // SAFETY: type and shape are set.
    assert_eq!(unsafe { sage_tensor_contiguous(&mut tensor) }, SAGE_OK);
    tensor
}

/// Runs attention of `q` over itself.
fn forward(attention: *const SageAttention, q: *const SageTensor, out: *const SageTensor) -> i32 {
    // SAFETY: every test hands over live tensors or null.
    unsafe { sage_attention_forward(attention, q, q, q, out, null_mut(), null_mut()) }
}

#[test]
fn null_pointers_are_errors() {
    let (mut x, mut out) = ([1.0f32; 32], [0.0f32; 32]);
    let (q, to) = (tensor(&mut x, [1, 1, 4, 8]), tensor(&mut out, [1, 1, 4, 8]));
    let attention = sage_attention_new();
    assert_eq!(forward(null(), &q, &to), SAGE_INVALID);
    assert_eq!(last_error(), "attention is a null pointer");
    assert_eq!(forward(attention, null(), &to), SAGE_INVALID);
    assert_eq!(forward(attention, &q, null()), SAGE_INVALID);
    let nowhere = SageTensor { data: null_mut(), ..q };
    assert_eq!(forward(attention, &nowhere, &to), SAGE_INVALID);
    assert_eq!(last_error(), "q has 32 elements at a null pointer");
    // SAFETY: null is an error everywhere, and the options are freed last.
    unsafe {
        assert_eq!(sage_attention_set_causal(null_mut(), true), SAGE_INVALID);
        assert_eq!(sage_attention_set_kernel(attention, null()), SAGE_INVALID);
        assert_eq!(sage_merge(&q, null(), &q, null(), &to, null_mut()), SAGE_INVALID);
        assert_eq!(last_error(), "lse1 is a null pointer");
        assert_eq!(sage_gpu_open(0, null_mut()), SAGE_INVALID);
        assert_eq!(sage_gpu_prepare(null(), null()), SAGE_INVALID);
        assert_eq!(sage_plan_workspace_bytes(null()), 0);
        assert!(sage_plan_explain(null()).is_null());
        sage_attention_free(null_mut());
        sage_gpu_free(null_mut());
        sage_plan_free(null_mut());
        sage_attention_free(attention);
    }
}

#[test]
fn codes_outside_their_range_are_errors() {
    let (mut x, mut out) = ([1.0f32; 32], [0.0f32; 32]);
    let (q, to) = (tensor(&mut x, [1, 1, 4, 8]), tensor(&mut out, [1, 1, 4, 8]));
    let attention = sage_attention_new();
    // SAFETY: live options and literal strings.
    unsafe {
        assert_eq!(sage_attention_set_precision(attention, 4), SAGE_INVALID);
        assert_eq!(sage_attention_set_granularity(attention, -1), SAGE_INVALID);
        assert_eq!(sage_attention_set_pv(attention, 2), SAGE_INVALID);
        assert_eq!(sage_attention_set_device(attention, c"tpu".as_ptr()), SAGE_INVALID);
        assert!(last_error().contains("tpu"), "{}", last_error());
        assert_eq!(sage_attention_set_kernel(attention, c"\xff".as_ptr()), SAGE_INVALID);
    }
    assert_eq!(forward(attention, &SageTensor { dtype: 9, ..q }, &to), SAGE_INVALID);
    assert_eq!(last_error(), "dtype is 9; it must be 0 (f16), 1 (bf16) or 2 (f32)");
    assert_eq!(forward(attention, &SageTensor { strides: [0, 0, 0, 1], ..q }, &to), SAGE_INVALID);
    // SAFETY: the last use.
    unsafe { sage_attention_free(attention) };
}

#[test]
fn options_and_results_cross_the_border() {
    let mut x: Vec<f32> = (0..2 * 6 * 8).map(|i| (i % 11) as f32 / 11.0).collect();
    let (mut out, mut lse) = (vec![0.0f32; 96], vec![0.0f32; 12]);
    let (q, to) = (tensor(&mut x, [1, 2, 6, 8]), tensor(&mut out, [1, 2, 6, 8]));
    let attention = sage_attention_new();
    let mut report = SageReport { kernel: [0; 64], device: [0; 16], kernel_ms: -1.0, e2e_ms: -1.0 };
    // SAFETY: live options, tensors of the sizes they say, and a value of log-sum-exp for each row.
    let status = unsafe {
        assert_eq!(sage_attention_set_device(attention, c"cpu".as_ptr()), SAGE_OK);
        assert_eq!(sage_attention_set_causal(attention, true), SAGE_OK);
        assert_eq!(sage_attention_set_sm_scale(attention, 0.5), SAGE_OK);
        assert_eq!(sage_attention_set_precision(attention, SAGE_PRECISION_INT4), SAGE_OK);
        assert_eq!(sage_attention_set_granularity(attention, SAGE_GRANULARITY_WARP), SAGE_OK);
        assert_eq!(sage_attention_set_smoothing(attention, true, true, true), SAGE_OK);
        assert_eq!(sage_attention_set_pv(attention, SAGE_PV_F16), SAGE_OK);
        sage_attention_forward(attention, &q, &q, &q, &to, lse.as_mut_ptr(), &mut report)
    };
    assert_eq!(status, SAGE_OK, "{}", last_error());
    // SAFETY: an array that ends in zero.
    assert_eq!(unsafe { CStr::from_ptr(report.kernel.as_ptr()) }, c"cpu_int4_f16_fwd");
    assert!(report.kernel_ms >= 0.0 && report.e2e_ms >= report.kernel_ms);

    use sage_attn::{Attention, Device, Layout, Precision, PvFormat, ScaleGranularity, Smoothing, TensorView};
    let view = TensorView::new(&x, &[1, 2, 6, 8], Layout::Hnd).unwrap();
    let expected = Attention::new()
        .device(Device::Cpu)
        .causal(true)
        .sm_scale(0.5)
        .precision(Precision::Int4)
        .granularity(ScaleGranularity::PerWarp)
        .smoothing(Smoothing { q: true, k: true, v: true })
        .pv(PvFormat::F16)
        .return_lse(true)
        .forward(&view, &view, &view)
        .unwrap();
    assert_eq!((out, Some(lse)), (expected.out.to_f32(), expected.lse));
    // SAFETY: the last use.
    unsafe { sage_attention_free(attention) };
}

#[test]
fn a_gpu_that_is_not_there_is_a_device_error() {
    let mut gpu = null_mut();
    // SAFETY: a place for the pointer.
    let status = unsafe { sage_gpu_open(1000, &mut gpu) };
    assert_eq!(status, SAGE_DEVICE);
    assert!(gpu.is_null() && !last_error().is_empty());
}
