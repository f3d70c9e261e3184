//! The options of an attention call.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sage_spec::{Alignment, PvFormat, ScaleGranularity, Window};

use super::report::Report;
use super::side::SideInputs;
use super::tensor::{Tensor, TensorView, TensorViewMut};
use super::{cpu, gpu};
use crate::device::Gpu;
use crate::error::{DeviceError, Error, Invalid, PlanError, Unsupported};
use crate::plan::{PackedPlan, Plan, plan, plan_packed};
use crate::problem::{DType, Layout, Modifiers, Precision, Problem, Request, Smoothing, TensorSpec};

/// Where to compute.
///
/// ```
/// use sage_attn::Device;
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// assert_eq!(Device::default().to_string(), "auto");
/// assert!("gpu".parse::<Device>().is_err());
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU if there is a driver, a device of capability 8.0 or later and kernels for it;
    /// otherwise the CPU. [`Report::note`] says why it was the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index, or an error.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu` or `cuda:N`.
    fn from_str(name: &str) -> Result<Device, Error> {
        let ordinal = name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
        match (name, ordinal) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(ordinal)) => Ok(Device::Cuda(ordinal)),
            _ => Err(Invalid::DeviceName { name: name.to_owned() }.into()),
        }
    }
}

/// Options of `softmax(Q Kᵀ · sm_scale) V`.
///
/// The defaults are what keeps the result closest at full speed: INT8 Q and K with a scale per
/// thread's elements, K smoothed, P and V in the best format of the device. See the crate's example.
///
/// ```
/// use sage_attn::{Attention, DType, Layout, Precision, Smoothing, TensorView, Window};
///
/// let x: Vec<f32> = (0..2 * 200 * 64).map(|i| (i as f32 * 0.3).sin()).collect();
/// let x = TensorView::new(&x, &[1, 2, 200, 64], Layout::Hnd)?;
/// let attention = Attention::new()
///     .causal(true)
///     .window(Window { left: Some(127), right: None })
///     .precision(Precision::Int4)
///     .smoothing(Smoothing { q: true, k: true, v: true })
///     .out_dtype(DType::BF16)
///     .return_lse(true);
/// let output = attention.forward(&x, &x, &x)?;
/// assert_eq!((output.out.shape(), output.out.dtype()), ([1, 2, 200, 64], DType::BF16));
/// assert_eq!(output.lse.map(|lse| lse.len()), Some(2 * 200));
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attention {
    causal: bool,
    alignment: Alignment,
    window: Window,
    softcap: Option<f32>,
    sm_scale: Option<f32>,
    precision: Precision,
    granularity: Option<ScaleGranularity>,
    smoothing: Option<Smoothing>,
    pv: Option<PvFormat>,
    kernel: Option<String>,
    out_dtype: Option<DType>,
    return_lse: bool,
    device: Device,
}

/// Output of [`Attention::forward`].
///
/// Example: [`Attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `[B, Hq, M, Dv]`, contiguous. Rows that see no key are 0.
    pub out: Tensor,
    /// `[B, Hq, M]` natural-log log-sum-exp, if asked for; −inf for rows that see no key.
    pub lse: Option<Vec<f32>>,
    /// What was run, and how long it took.
    pub report: Report,
}

/// What [`Attention::forward_into`] returns besides the output it writes.
///
/// ```
/// use sage_attn::{Attention, Layout, TensorView, TensorViewMut};
///
/// let x = vec![0.5f32; 3 * 64];
/// let x = TensorView::new(&x, &[1, 1, 3, 64], Layout::Hnd)?;
/// let mut out = vec![0.0f32; 3 * 64];
/// let mut view = TensorViewMut::new(&mut out, &[1, 1, 3, 64], Layout::Hnd)?;
/// let summary = Attention::new().forward_into(&x, &x, &x, &mut view)?;
/// assert!(summary.lse.is_none());
/// assert!(out.iter().all(|x| (x - 0.5).abs() < 0.05));
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// `[B, Hq, M]` natural-log log-sum-exp, if asked for; −inf for rows that see no key.
    pub lse: Option<Vec<f32>>,
    /// What was run, and how long it took.
    pub report: Report,
}

impl Attention {
    /// Every option at its default.
    pub fn new() -> Attention {
        Attention::default()
    }

    /// Whether a row sees only keys up to its position, which [`Attention::alignment`] says. Default:
    /// every key.
    pub fn causal(mut self, causal: bool) -> Attention {
        self.causal = causal;
        self
    }

    /// Where rows stand among the keys. Default: [`Alignment::BottomRight`], row `i` of M at key
    /// `i + N − M`. The causal mask, the window and ALiBi count from there.
    pub fn alignment(mut self, alignment: Alignment) -> Attention {
        self.alignment = alignment;
        self
    }

    /// How far from its position a row sees, on either side. Default: without bounds.
    pub fn window(mut self, window: Window) -> Attention {
        self.window = window;
        self
    }

    /// Caps scores smoothly: `softcap · tanh(score / softcap)`. Default: no cap.
    pub fn softcap(mut self, softcap: f32) -> Attention {
        self.softcap = Some(softcap);
        self
    }

    /// Factor of Q Kᵀ, finite and not negative. Default: `1 / sqrt(head_dim)`.
    pub fn sm_scale(mut self, sm_scale: f32) -> Attention {
        self.sm_scale = Some(sm_scale);
        self
    }

    /// Number format of Q Kᵀ. Default: [`Precision::Auto`], INT8.
    pub fn precision(mut self, precision: Precision) -> Attention {
        self.precision = precision;
        self
    }

    /// Which elements of Q and of K share a scale. Default: [`ScaleGranularity::PerThread`].
    pub fn granularity(mut self, granularity: ScaleGranularity) -> Attention {
        self.granularity = Some(granularity);
        self
    }

    /// Which means are subtracted before quantizing. Default: K; also Q for INT4.
    pub fn smoothing(mut self, smoothing: Smoothing) -> Attention {
        self.smoothing = Some(smoothing);
        self
    }

    /// Number format of P V. Default: FP8, or FP16 on GPUs before compute capability 8.9.
    pub fn pv(mut self, pv: PvFormat) -> Attention {
        self.pv = Some(pv);
        self
    }

    /// The attention kernel to use, e.g. `sm80_int8_f16_fwd`. On the CPU the reference does what that kernel
    /// does step for step: slower than the CPU's own back end, but with the figures of a GPU. Default: the
    /// planner chooses.
    pub fn kernel(mut self, stem: impl Into<String>) -> Attention {
        self.kernel = Some(stem.into());
        self
    }

    /// Element type of the output of [`Attention::forward`]. Default: that of q.
    pub fn out_dtype(mut self, dtype: DType) -> Attention {
        self.out_dtype = Some(dtype);
        self
    }

    /// Whether to return the log-sum-exp of every row. Default: no.
    pub fn return_lse(mut self, return_lse: bool) -> Attention {
        self.return_lse = return_lse;
        self
    }

    /// Where to compute. Default: [`Device::Auto`].
    pub fn device(mut self, device: Device) -> Attention {
        self.device = device;
        self
    }

    /// Whether the log-sum-exp is asked for.
    #[cfg(feature = "candle")]
    pub(crate) fn returns_lse(&self) -> bool {
        self.return_lse
    }

    /// Element type of the output if it was set.
    #[cfg(feature = "candle")]
    pub(crate) fn chosen_out_dtype(&self) -> Option<DType> {
        self.out_dtype
    }

    /// Whether the causal mask is on.
    pub fn is_causal(&self) -> bool {
        self.causal
    }

    /// Checks these options and tensors, as [`Attention::forward`] does before it computes.
    ///
    /// # Errors
    ///
    /// [`Invalid`] or [`Unsupported`].
    pub fn check(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<(), Error> {
        let dtype = self.out_dtype.unwrap_or(q.spec().dtype);
        let out = TensorSpec::new(crate::error::Operand::Out, dtype, &q.spec().output_shape(v.spec()), Layout::Hnd)?;
        self.problem(*q.spec(), *k.spec(), *v.spec(), out).map(drop)
    }

    /// The validated problem of these options and tensors; what [`crate::plan::plan`] takes.
    ///
    /// # Errors
    ///
    /// [`Invalid`] or [`Unsupported`].
    pub fn problem(&self, q: TensorSpec, k: TensorSpec, v: TensorSpec, out: TensorSpec) -> Result<Problem, Error> {
        self.problem_with(q, k, v, out, &SideInputs::new())
    }

    /// [`Attention::problem`] with side inputs.
    ///
    /// # Errors
    ///
    /// As [`Attention::problem`]; also [`crate::error::ModifierError`].
    pub fn problem_with(
        &self,
        q: TensorSpec,
        k: TensorSpec,
        v: TensorSpec,
        out: TensorSpec,
        side: &SideInputs<'_>,
    ) -> Result<Problem, Error> {
        let &Attention { alignment, window, softcap, .. } = self;
        let modifiers = Modifiers { alignment, window, softcap, ..Modifiers::default() };
        Problem::new(Request {
            causal: self.causal,
            modifiers: side.specs(modifiers, q.shape[1])?,
            sequences: side.packed().cloned(),
            sm_scale: self.sm_scale,
            precision: self.precision,
            granularity: self.granularity.unwrap_or(ScaleGranularity::PerThread),
            smoothing: self.smoothing,
            pv: self.pv,
            kernel: self.kernel.clone(),
            return_lse: self.return_lse,
            ..Request::new(q, k, v, out)
        })
    }

    /// Computes attention of `q` `[B, Hq, M, D]` over `k` `[B, Hkv, N, D]` and `v` `[B, Hkv, N, Dv]`.
    ///
    /// # Errors
    ///
    /// [`Invalid`] and [`Unsupported`] for bad input; [`PlanError`] and [`DeviceError`] if a GPU was
    /// asked for and cannot do it.
    pub fn forward(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<Output, Error> {
        self.forward_with(q, k, v, &SideInputs::new())
    }

    /// [`Attention::forward`] with ALiBi slopes, a bias, a mask, sinks or packed sequences.
    ///
    /// # Errors
    ///
    /// As [`Attention::forward`]; also [`crate::error::ModifierError`].
    pub fn forward_with(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        side: &SideInputs<'_>,
    ) -> Result<Output, Error> {
        let mut out = Tensor::zeros(self.out_dtype.unwrap_or(q.spec().dtype), q.spec().output_shape(v.spec()))?;
        let Summary { lse, report } = self.forward_into_with(q, k, v, side, &mut out.view_mut()?)?;
        Ok(Output { out, lse, report })
    }

    /// [`Attention::forward`] into memory of the caller, `[B, Hq, M, Dv]` of any element type.
    ///
    /// # Errors
    ///
    /// As [`Attention::forward`]; also [`Invalid::OutDTypeMismatch`] if [`Attention::out_dtype`] was
    /// set to another type than that of `out`.
    pub fn forward_into(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &mut TensorViewMut<'_>,
    ) -> Result<Summary, Error> {
        self.forward_into_with(q, k, v, &SideInputs::new(), out)
    }

    /// [`Attention::forward_with`] into memory of the caller.
    ///
    /// # Errors
    ///
    /// As [`Attention::forward_into`] and [`Attention::forward_with`].
    pub fn forward_into_with(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        side: &SideInputs<'_>,
        out: &mut TensorViewMut<'_>,
    ) -> Result<Summary, Error> {
        let dtype = out.spec().dtype;
        if let Some(expected) = self.out_dtype.filter(|&expected| expected != dtype) {
            return Err(Invalid::OutDTypeMismatch { dtype, expected }.into());
        }
        // Results arrive contiguous and are copied to where `out` wants them.
        let dense = TensorSpec::new(crate::error::Operand::Out, dtype, &out.spec().shape, Layout::Hnd)?;
        let problem = self.problem_with(*q.spec(), *k.spec(), *v.spec(), dense, side)?;
        match self.choose(&problem)? {
            Choice::Gpu(gpu, plan) => {
                let (lse, report) = gpu::run(&gpu, &plan, q, k, v, side, out)?;
                Ok(Summary { lse, report })
            }
            Choice::Packed(gpu, plan) => {
                let (lse, report) = gpu::run_packed(&gpu, &plan, q, k, v, side, out)?;
                Ok(Summary { lse, report })
            }
            Choice::Cpu(note) => {
                let (lse, report) = cpu::run(&problem, q, k, v, side, out)?;
                Ok(Summary { lse: self.return_lse.then_some(lse), report: Report { note, ..report } })
            }
        }
    }

    /// Picks the device for `problem`.
    fn choose(&self, problem: &Problem) -> Result<Choice, Error> {
        let on_gpu = |ordinal| -> Result<Choice, Error> {
            let gpu = Gpu::shared(ordinal)?;
            if problem.sequences().is_some() {
                let plan = plan_packed(problem, gpu.capability())?;
                return Ok(Choice::Packed(gpu, Box::new(plan)));
            }
            let plan = plan(problem, gpu.capability())?;
            gpu.prepare(&plan)?;
            Ok(Choice::Gpu(gpu, Box::new(plan)))
        };
        match (self.device, problem.codes()) {
            (Device::Cpu, _) => Ok(Choice::Cpu(None)),
            (Device::Cuda(_), None) => Err(Unsupported::ExactOnGpu { device: self.device.to_string() }.into()),
            (Device::Cuda(ordinal), Some(_)) => on_gpu(ordinal),
            (Device::Auto, None) => Ok(Choice::Cpu(Some("exact arithmetic runs on the CPU only".into()))),
            (Device::Auto, Some(_)) => on_gpu(0).or_else(|error| match error {
                // There is no GPU to use, or no kernel for it. Anything else is a fault that must not pass in silence.
                Error::Device(
                    DeviceError::NoDriver
                    | DeviceError::DriverInit { .. }
                    | DeviceError::DriverTooOld { .. }
                    | DeviceError::NoDevice { .. }
                    | DeviceError::ModuleMissing { .. },
                )
                | Error::Plan(PlanError::CapabilityTooLow { .. } | PlanError::HeadDimOfType { .. }) => {
                    Ok(Choice::Cpu(Some(error.to_string())))
                }
                error => Err(error),
            }),
        }
    }
}

/// Where a problem is computed.
enum Choice {
    /// On the CPU; why, if a GPU would have been welcome.
    Cpu(Option<String>),
    /// On a GPU.
    Gpu(Arc<Gpu>, Box<Plan>),
    /// Packed sequences on a GPU.
    Packed(Arc<Gpu>, Box<PackedPlan>),
}
