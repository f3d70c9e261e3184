//! What was run, and how long it took.

use sage_spec::{PvFormat, ScaleGranularity};

use crate::problem::{Problem, Smoothing};

/// What was run, and how long it took.
///
/// ```
/// use sage_attn::{Attention, Device, Layout, TensorView};
///
/// let x = vec![0.5f32; 3 * 64];
/// let x = TensorView::new(&x, &[1, 1, 3, 64], Layout::Hnd)?;
/// let report = Attention::new().device(Device::Cpu).forward(&x, &x, &x)?.report;
/// assert_eq!((report.kernel.as_str(), report.device.as_str()), ("cpu_int8_fp8_fwd", "cpu"));
/// println!("{:.3} ms, {:.6} TOPS", report.e2e_ms, report.e2e_tops());
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Kernel: a stem such as `sm89_int8_fp8_fwd`, or `cpu_int8_fp8_fwd`, `cpu_exact_fwd`. A stem on device
    /// `cpu` is the reference with that kernel's arithmetic.
    pub kernel: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// `int4`, `int8` or `exact`.
    pub precision: &'static str,
    /// Which elements of Q and of K share a scale; without effect if the precision is exact.
    pub granularity: ScaleGranularity,
    /// Which means were subtracted.
    pub smoothing: Smoothing,
    /// Number format of P V; `None` if the precision is exact.
    pub pv: Option<PvFormat>,
    /// Milliseconds of the attention kernel (with ΔS if Q is smoothed), without quantization.
    pub kernel_ms: f64,
    /// Milliseconds of smoothing, quantization and attention; without copies to and from the device.
    pub e2e_ms: f64,
    /// Floating-point operations of both matrix products, `4 B H M N D` without a mask.
    pub flops: f64,
    /// Why the CPU was used although any device was welcome.
    pub note: Option<String>,
}

impl Report {
    /// A report without times.
    pub(super) fn new(problem: &Problem, kernel: String, device: String, pv: Option<PvFormat>) -> Report {
        Report {
            kernel,
            device,
            precision: problem.codes().map_or("exact", |codes| codes.name()),
            granularity: problem.granularity(),
            smoothing: problem.smoothing(),
            pv,
            kernel_ms: 0.0,
            e2e_ms: 0.0,
            flops: problem.flops(),
            note: None,
        }
    }

    /// 10¹² operations per second of the attention kernel; 0 if nothing was computed.
    pub fn tops(&self) -> f64 {
        rate(self.flops, self.kernel_ms)
    }

    /// 10¹² operations per second of the whole computation; 0 if nothing was computed.
    pub fn e2e_tops(&self) -> f64 {
        rate(self.flops, self.e2e_ms)
    }
}

fn rate(flops: f64, ms: f64) -> f64 {
    if ms > 0.0 { flops / (ms * 1e9) } else { 0.0 }
}
