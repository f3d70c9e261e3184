//! Attention on host memory.

use std::ffi::{CStr, c_char};

use sage_attn::{Attention, Precision, PvFormat, ScaleGranularity, Smoothing};

use crate::status::{Failure, free, guard, object, object_mut};
use crate::tensor::{SageTensor, view, view_mut};

/// INT8, or what the chosen kernel computes with.
pub const SAGE_PRECISION_AUTO: i32 = 0;
/// Q and K in 4 bits.
pub const SAGE_PRECISION_INT4: i32 = 1;
/// Q and K in 8 bits.
pub const SAGE_PRECISION_INT8: i32 = 2;
/// No quantization; on the CPU only.
pub const SAGE_PRECISION_EXACT: i32 = 3;

/// A scale for 128 queries and for 64 keys.
pub const SAGE_GRANULARITY_BLOCK: i32 = 0;
/// A scale for 32 queries and for 64 keys.
pub const SAGE_GRANULARITY_WARP: i32 = 1;
/// A scale for 4 queries and for 16 keys; the default.
pub const SAGE_GRANULARITY_THREAD: i32 = 2;

/// P and V in FP8.
pub const SAGE_PV_FP8: i32 = 0;
/// P and V in FP16.
pub const SAGE_PV_F16: i32 = 1;

/// Options of an attention call.
#[derive(Debug)]
pub struct SageAttention {
    pub(crate) options: Attention,
}

/// What was run, and how long it took.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SageReport {
    /// Kernel, such as `sm89_int8_fp8_fwd` or `cpu_int8_fp8_fwd`, ending in zero.
    pub kernel: [c_char; 64],
    /// `cpu` or `cuda:N`, ending in zero.
    pub device: [c_char; 16],
    /// Milliseconds of the attention kernel.
    pub kernel_ms: f64,
    /// Milliseconds of smoothing, quantization and attention, without copies.
    pub e2e_ms: f64,
}

/// Options at their defaults. Free them with `sage_attention_free`.
#[unsafe(no_mangle)]
pub extern "C" fn sage_attention_new() -> *mut SageAttention {
    Box::into_raw(Box::new(SageAttention { options: Attention::new() }))
}

/// Frees options.
///
/// # Safety
///
/// `attention` is null or comes from `sage_attention_new`, and this is its last use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_free(attention: *mut SageAttention) {
    // SAFETY: forwarded contract.
    unsafe { free(attention) }
}

/// Replaces options by what `change` makes of them.
///
/// # Safety
///
/// `attention` is null or live options that nobody else uses meanwhile.
unsafe fn set(attention: *mut SageAttention, change: impl FnOnce(Attention) -> Result<Attention, Failure>) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let attention = unsafe { object_mut(attention, "attention") }?;
        attention.options = change(attention.options.clone())?;
        Ok(())
    })
}

/// Whether row `i` of `M` sees only keys up to `i + N - M`. Default: every key.
///
/// # Safety
///
/// `attention` is null or live options that no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_causal(attention: *mut SageAttention, causal: bool) -> i32 {
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.causal(causal))) }
}

/// Factor of Q K^T, finite and not negative. Default: 1 / sqrt(features).
///
/// # Safety
///
/// As `sage_attention_set_causal`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_sm_scale(attention: *mut SageAttention, sm_scale: f32) -> i32 {
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.sm_scale(sm_scale))) }
}

/// Number format of Q K^T: one of `SAGE_PRECISION_*`.
///
/// # Safety
///
/// As `sage_attention_set_causal`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_precision(attention: *mut SageAttention, precision: i32) -> i32 {
    let precision = match precision {
        SAGE_PRECISION_AUTO => Ok(Precision::Auto),
        SAGE_PRECISION_INT4 => Ok(Precision::Int4),
        SAGE_PRECISION_INT8 => Ok(Precision::Int8),
        SAGE_PRECISION_EXACT => Ok(Precision::Exact),
        _ => Err(Failure::invalid(format!("precision is {precision}; it must be 0 to 3"))),
    };
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.precision(precision?))) }
}

/// Which elements of Q and of K share a scale: one of `SAGE_GRANULARITY_*`.
///
/// # Safety
///
/// As `sage_attention_set_causal`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_granularity(attention: *mut SageAttention, granularity: i32) -> i32 {
    let granularity = match granularity {
        SAGE_GRANULARITY_BLOCK => Ok(ScaleGranularity::PerBlock),
        SAGE_GRANULARITY_WARP => Ok(ScaleGranularity::PerWarp),
        SAGE_GRANULARITY_THREAD => Ok(ScaleGranularity::PerThread),
        _ => Err(Failure::invalid(format!("granularity is {granularity}; it must be 0 to 2"))),
    };
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.granularity(granularity?))) }
}

/// Which means are subtracted before quantizing. Default: that of K, and for INT4 that of Q.
///
/// # Safety
///
/// As `sage_attention_set_causal`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_smoothing(attention: *mut SageAttention, q: bool, k: bool, v: bool) -> i32 {
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.smoothing(Smoothing { q, k, v }))) }
}

/// Number format of P V: `SAGE_PV_FP8` or `SAGE_PV_F16`. Default: the best of the device.
///
/// # Safety
///
/// As `sage_attention_set_causal`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_pv(attention: *mut SageAttention, pv: i32) -> i32 {
    let pv = match pv {
        SAGE_PV_FP8 => Ok(PvFormat::Fp8),
        SAGE_PV_F16 => Ok(PvFormat::F16),
        _ => Err(Failure::invalid(format!("pv is {pv}; it must be 0 (FP8) or 1 (FP16)"))),
    };
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.pv(pv?))) }
}

/// The attention kernel to use, such as `sm80_int8_f16_fwd`; on the CPU, whose arithmetic the reference follows.
/// Default: the planner chooses.
///
/// # Safety
///
/// As `sage_attention_set_causal`; `kernel` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_kernel(attention: *mut SageAttention, kernel: *const c_char) -> i32 {
    // SAFETY: forwarded contract.
    let kernel = unsafe { text(kernel, "kernel") };
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.kernel(kernel?))) }
}

/// Where `sage_attention_forward` computes: `auto`, `cpu` or `cuda:N`. Default: `auto`.
///
/// # Safety
///
/// As `sage_attention_set_causal`; `device` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_set_device(attention: *mut SageAttention, device: *const c_char) -> i32 {
    // SAFETY: forwarded contract.
    let device = unsafe { text(device, "device") };
    // SAFETY: forwarded contract.
    unsafe { set(attention, |options| Ok(options.device(device?.parse()?))) }
}

/// # Safety
///
/// `pointer` is null or a string that ends in zero.
unsafe fn text(pointer: *const c_char, name: &str) -> Result<String, Failure> {
    if pointer.is_null() {
        return Err(Failure::invalid(format!("{name} is a null pointer")));
    }
    // SAFETY: forwarded contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(str::to_owned).map_err(|_| Failure::invalid(format!("{name} is not UTF-8")))
}

/// Computes attention of `q` (batch, query heads, queries, features) over `k` and `v` (batch, heads, keys,
/// features) into `out`, all in host memory, and waits for the result. `lse`, if not null, gets the
/// natural-log log-sum-exp of every row, batch * query heads * queries values; `report`, if not null, what
/// was run.
///
/// # Safety
///
/// Every pointer is null or points to what its type says. Every element that a tensor's strides reach is
/// readable, those of `out` and `lse` writable, and nobody else writes the first or uses the second
/// meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_attention_forward(
    attention: *const SageAttention,
    q: *const SageTensor,
    k: *const SageTensor,
    v: *const SageTensor,
    out: *const SageTensor,
    lse: *mut f32,
    report: *mut SageReport,
) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let (attention, q, k, v, mut out) = unsafe {
            (object(attention, "attention")?, view(q, "q")?, view(k, "k")?, view(v, "v")?, view_mut(out, "out")?)
        };
        let options = attention.options.clone().return_lse(!lse.is_null());
        let summary = options.forward_into(&q, &k, &v, &mut out)?;
        if let Some(values) = &summary.lse {
            // SAFETY: the caller vouches for a value of each row.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), lse, values.len()) };
        }
        if !report.is_null() {
            let made = SageReport {
                kernel: fixed(&summary.report.kernel),
                device: fixed(&summary.report.device),
                kernel_ms: summary.report.kernel_ms,
                e2e_ms: summary.report.e2e_ms,
            };
            // SAFETY: forwarded contract.
            unsafe { report.write(made) };
        }
        Ok(())
    })
}

/// `text` as an array that ends in zero, cut off if it is too long.
fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (to, byte) in array[..N - 1].iter_mut().zip(text.bytes()) {
        *to = byte as c_char;
    }
    array
}
