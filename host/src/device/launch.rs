//! Submitting a plan to a stream.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUstream};
use cudarc::driver::{CudaStream, result};
use sage_spec::symbol::Arch;

use super::args::LaunchArgs;
use super::module::{Function, Module};
use super::params::{KernelParams, ParamsBuilder};
use super::side::SideArgs;
use super::{Gpu, TiledBytes, tensor_map};
use crate::error::{Error, Invalid};
use crate::plan::{Entry, Plan, Step};

/// How long a step took.
///
/// Example: [`Gpu`](crate::device::Gpu).
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// Exported name of the kernel.
    pub symbol: String,
    /// Milliseconds between the events around it.
    pub ms: f64,
}

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
    pub unsafe fn launch(&self, plan: &Plan, args: &LaunchArgs, stream: CUstream) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on unchanged.
        unsafe { self.launch_with(plan, args, &SideArgs::default(), stream) }
    }

    /// [`Gpu::launch`] with slopes, a bias, a mask or sinks, as the plan was made for.
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch`]; the side inputs are device memory of this GPU too, of the extents planned for,
    /// and nobody writes them until the stream has run the launch.
    ///
    /// # Errors
    ///
    /// As [`Gpu::launch`]; also [`Invalid::SidePresence`].
    pub unsafe fn launch_with(
        &self,
        plan: &Plan,
        args: &LaunchArgs,
        side: &SideArgs,
        stream: CUstream,
    ) -> Result<(), Error> {
        args.check(plan, side)?;
        if plan.entries().is_empty() {
            return Ok(());
        }
        self.bind()?;
        self.check_stream(stream)?;
        // SAFETY: the caller's promise is handed on unchanged.
        unsafe { self.submit(plan.setup_steps(), plan, (args, side), stream) }?;
        // SAFETY: as above.
        unsafe { self.submit(plan.chunk_steps(), plan, (args, side), stream) }
    }

    /// Launches `plan` like [`Gpu::launch`], with an event before and after every step, and waits.
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch`].
    ///
    /// # Errors
    ///
    /// As [`Gpu::launch`].
    pub unsafe fn launch_timed_steps(
        &self,
        plan: &Plan,
        args: &LaunchArgs,
        stream: &Arc<CudaStream>,
    ) -> Result<Vec<StepTime>, Error> {
        let side = &SideArgs::default();
        args.check(plan, side)?;
        self.bind()?;
        let record = || {
            let event = stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            self.check("recording an event", event)
        };
        let mut events = vec![record()?];
        for step in plan.steps() {
            // SAFETY: the caller's promise is handed on unchanged.
            unsafe { self.submit(std::iter::once(step), plan, (args, side), stream.cu_stream()) }?;
            events.push(record()?);
        }
        self.check("running the kernels", stream.synchronize())?;
        let between = events.windows(2).zip(plan.steps());
        between
            .map(|(events, step)| {
                let ms = self.check("timing a kernel", events[0].elapsed_ms(&events[1]))?;
                Ok(StepTime { symbol: step.entry.symbol.clone(), ms: f64::from(ms) })
            })
            .collect()
    }

    /// Launches one exported kernel of module `arch` by itself, for tests and benchmarks.
    ///
    /// # Safety
    ///
    /// `P` is the struct that `sage_spec::params` declares for the kernel `entry.symbol`; its addresses
    /// are valid as [`Gpu::launch`] requires; `entry.cta` and `grid` are those of `sage_spec::launch`.
    ///
    /// # Errors
    ///
    /// [`crate::error::DeviceError`] if loading or launching fails.
    pub unsafe fn launch_kernel<P: Copy>(
        &self,
        arch: Arch,
        entry: &Entry,
        grid: [u32; 2],
        params: &P,
        stream: CUstream,
    ) -> Result<(), Error> {
        self.bind()?;
        let module = self.module(arch)?;
        // SAFETY: the caller's promise is handed on unchanged.
        unsafe { self.launch_one(&module, entry, grid, params, stream) }
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
        (args, side): (&LaunchArgs, &SideArgs),
        stream: CUstream,
    ) -> Result<(), Error> {
        let module = self.module(plan.arch())?;
        let encode = |tensor: &TiledBytes| tensor_map::encode(self, tensor);
        let params = ParamsBuilder { plan, args, side, encode: &encode };
        for step in steps {
            let Step { entry, grid, .. } = step;
            if entry.kernel.needs_clearing() {
                let bytes = plan.workspace().cleared_bytes();
                // SAFETY: the start of the workspace, which the caller promises to be ours.
                let cleared = unsafe { result::memset_d8_async(args.workspace.ptr, 0, bytes, stream) };
                self.check("clearing the workspace", cleared)?;
            }
            macro_rules! launch {
                ($($variant:ident)*) => {
                    match params.of(&step)? {
                        // SAFETY: each kernel gets the struct that `sage_spec::params` declares for it, filled
                        // with the caller's addresses and with workspace buffers of the sizes the plan gave them.
                        $(KernelParams::$variant(params) => unsafe {
                            self.launch_one(&module, entry, grid, &params, stream)
                        },)*
                    }
                };
            }
            launch!(Quantize DeltaS Attention General AttentionSm90 GeneralSm90)?;
        }
        Ok(())
    }

    /// Launches `entry` with `params` as its one argument.
    ///
    /// # Safety
    ///
    /// `P` is the struct the kernel takes, its addresses are valid as [`Gpu::launch`] requires, and the
    /// context is current.
    unsafe fn launch_one<P: Copy>(
        &self,
        module: &Module,
        entry: &Entry,
        grid: [u32; 2],
        params: &P,
        stream: CUstream,
    ) -> Result<(), Error> {
        let Function(function) = module.function(self, entry)?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the function belongs to a module that this GPU keeps loaded; the driver copies the
        // argument, whose size it knows from the kernel, before the call returns; the rest is the
        // caller's promise.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (grid[0], grid[1], 1),
                (entry.cta.threads as u32, 1, 1),
                entry.cta.smem_bytes as u32,
                stream,
                &mut arguments,
            )
        };
        Ok(self.check("launching a kernel", launched)?)
    }

    /// Fails if `stream` belongs to another context. Default streams belong to whichever is current.
    pub(super) fn check_stream(&self, stream: CUstream) -> Result<(), Error> {
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
            return Err(Invalid::ForeignContext { what: "the stream".into() }.into());
        }
        Ok(())
    }
}
