//! Submitting a plan to a stream.

use std::ffi::c_void;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUstream};

use super::Gpu;
use super::args::LaunchArgs;
use super::module::{Function, Module};
use super::params::ParamsBuilder;
use crate::error::{Error, Invalid};
use crate::plan::{Kernel, Plan, Step};

impl Gpu {
    /// Submits `plan` on `args` to `stream` and returns without waiting.
    ///
    /// Nothing is allocated on the device, nothing synchronises, and no other stream is touched, so the
    /// launch can be captured into a graph; load the kernels with [`Gpu::prepare`] before capturing. On
    /// return this GPU's context is current for the calling thread. If there is no output element,
    /// nothing is launched.
    ///
    /// # Safety
    ///
    /// * `stream` is a live stream of this GPU's context (or a null or per-thread default stream).
    /// * Every element that a tensor's address, shape and strides reach, the `4 B Hq M` bytes of the
    ///   log-sum-exp and the bytes of the workspace are device memory of this GPU that stays allocated
    ///   until the stream has run the launch.
    /// * Until then nobody writes q, k or v, and nobody reads or writes out, lse or the workspace.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the arguments are not those planned for, null, misaligned or overlapping;
    /// [`crate::error::DeviceError`] if loading or launching fails. Work already submitted stays so.
    pub unsafe fn launch(
        &self,
        plan: &Plan,
        args: &LaunchArgs,
        stream: CUstream,
    ) -> Result<(), Error> {
        args.check(plan)?;
        if plan.entries().is_empty() {
            return Ok(());
        }
        self.bind()?;
        self.check_stream(stream)?;
        // SAFETY: the caller's promise is handed on unchanged.
        unsafe { self.submit(plan.setup_steps(), plan, args, stream) }?;
        // SAFETY: as above.
        unsafe { self.submit(plan.chunk_steps(), plan, args, stream) }
    }

    /// Submits `steps` of `plan`, whose arguments have been checked. The context must be current.
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch`].
    pub(super) unsafe fn submit<'a>(
        &self,
        steps: impl Iterator<Item = Step<'a>>,
        plan: &Plan,
        args: &LaunchArgs,
        stream: CUstream,
    ) -> Result<(), Error> {
        let module = self.module(plan.arch())?;
        let params = ParamsBuilder { plan, args };
        for step in steps {
            let kernel = Launch {
                gpu: self,
                module: &module,
                step,
                stream,
            };
            // SAFETY: each kernel gets the struct that `sage_spec::params` declares for it, filled
            // with the caller's addresses and with workspace buffers of the sizes the plan gave them.
            unsafe {
                match step.entry.kernel {
                    Kernel::KMeanPartial => kernel.with(&params.k_mean_partial()),
                    Kernel::KMeanFinal => kernel.with(&params.k_mean_final()),
                    Kernel::QuantizeQ => kernel.with(&params.quantize_q()),
                    Kernel::QuantizeK => kernel.with(&params.quantize_k()),
                    Kernel::VStatsPartial => kernel.with(&params.v_stats_partial()),
                    Kernel::VStatsFinal => kernel.with(&params.v_stats_final()),
                    Kernel::QuantizeV => kernel.with(&params.quantize_v()),
                    Kernel::DeltaS => kernel.with(&params.delta_s(step.chunk)),
                    Kernel::Attention => kernel.with(&params.attention(step.chunk)),
                }?;
            }
        }
        Ok(())
    }

    /// Fails if `stream` belongs to another context. Default streams belong to whichever is current.
    fn check_stream(&self, stream: CUstream) -> Result<(), Error> {
        /// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` are the numbers 1 and 2 in place of a pointer.
        const PER_THREAD: usize = 2;
        if stream.addr() <= PER_THREAD {
            return Ok(());
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the caller of `launch` promised a live stream; `context` is a valid place.
        let result = unsafe { sys::cuStreamGetCtx(stream, &mut context) }.result();
        self.check("cuStreamGetCtx", result)?;
        if context != self.context().cu_ctx() {
            return Err(Invalid::ForeignContext {
                what: "the stream".into(),
            }
            .into());
        }
        Ok(())
    }
}

/// One launch, lacking only its parameters.
struct Launch<'a> {
    gpu: &'a Gpu,
    module: &'a Module,
    step: Step<'a>,
    stream: CUstream,
}

impl Launch<'_> {
    /// Launches the kernel with `params` as its one argument.
    ///
    /// # Safety
    ///
    /// `P` is the struct the kernel takes, its addresses are valid as [`Gpu::launch`] requires, and the
    /// context is current.
    unsafe fn with<P: Copy>(&self, params: &P) -> Result<(), Error> {
        let Step {
            entry,
            grid: [x, y],
            ..
        } = self.step;
        let Function(function) = self.module.function(self.gpu, entry)?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the function belongs to a module that `gpu` keeps loaded; the driver copies the
        // argument, whose size it knows from the kernel, before the call returns; the rest is the
        // caller's promise.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, 1),
                (entry.cta.threads as u32, 1, 1),
                entry.cta.smem_bytes as u32,
                self.stream,
                &mut arguments,
            )
        };
        Ok(self.gpu.check("launching a kernel", launched)?)
    }
}
