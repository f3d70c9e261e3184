//! The safe launch, over cudarc's buffers.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice};

use super::Gpu;
use super::args::{DeviceMemory, DeviceTensor, LaunchArgs};
use crate::error::{Error, Invalid, Operand};
use crate::plan::Plan;
use crate::problem::{Element, TensorSpec};

/// Everything a launch reads and writes, as views of cudarc buffers (`CudaSlice::as_view`, `slice` and
/// their `mut` twins). Tensors have the shapes and strides that the plan's problem gives them, from the
/// first element of their view.
///
/// ```no_run
/// use sage_attn::device::{Gpu, SliceArgs};
/// use sage_attn::error::Operand;
/// use sage_attn::problem::TensorSpec;
/// use sage_attn::{Attention, DType, Layout, plan};
///
/// let gpu = Gpu::shared(0)?;
/// let stream = gpu.context().new_stream()?;
/// let spec = TensorSpec::new(Operand::Q, DType::F32, &[1, 8, 4096, 128], Layout::Hnd)?;
/// let plan = plan::plan(&Attention::new().problem(spec, spec, spec, spec)?, gpu.capability())?;
/// let x = stream.alloc_zeros::<f32>(8 * 4096 * 128)?;
/// let mut out = stream.alloc_zeros::<f32>(8 * 4096 * 128)?;
/// let mut workspace = gpu.alloc(&stream, plan.workspace().total_bytes())?;
/// let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
/// let args = SliceArgs { q, k, v, out: out.as_view_mut(), lse: None, workspace: workspace.as_view_mut() };
/// gpu.launch_slices(&plan, args, &stream)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SliceArgs<'a, T, O> {
    /// Queries, `[B, Hq, M, D]`.
    pub q: CudaView<'a, T>,
    /// Keys, `[B, Hkv, N, D]`.
    pub k: CudaView<'a, T>,
    /// Values, `[B, Hkv, N, D]`.
    pub v: CudaView<'a, T>,
    /// Output, `[B, Hq, M, D]`.
    pub out: CudaViewMut<'a, O>,
    /// f32 `[B, Hq, M]`, present exactly if the plan returns the log-sum-exp.
    pub lse: Option<CudaViewMut<'a, f32>>,
    /// Scratch memory of at least [`crate::plan::Workspace::total_bytes`], at a multiple of 256 bytes; see
    /// [`Gpu::alloc`].
    pub workspace: CudaViewMut<'a, u8>,
}

impl Gpu {
    /// Submits `plan` on `args` to `stream` and returns without waiting. Orders itself after earlier
    /// uses of the buffers on other streams, and later uses after itself, as cudarc's own calls do.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if a buffer is too short, of another type than planned for or of another context;
    /// otherwise as [`Gpu::launch`].
    pub fn launch_slices<T: Element, O: Element>(
        &self,
        plan: &Plan,
        args: SliceArgs<'_, T, O>,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let SliceArgs { q, k, v, mut out, mut lse, mut workspace } = args;
        let problem = plan.problem();
        self.check_slice(Operand::Q, &q, problem.q())?;
        self.check_slice(Operand::K, &k, problem.k())?;
        self.check_slice(Operand::V, &v, problem.v())?;
        self.check_slice(Operand::Out, &out, problem.out())?;
        self.check_context(Operand::Workspace, workspace.stream().context())?;
        if let Some(lse) = &lse {
            self.check_context(Operand::Lse, lse.stream().context())?;
            let expected = problem.lse_elems();
            if lse.len() != expected {
                return Err(Invalid::LseLength { len: lse.len(), expected }.into());
            }
        }
        if stream.context() != self.context() {
            return Err(Invalid::ForeignContext { what: "the stream".into() }.into());
        }
        self.bind()?;
        let bytes = workspace.num_bytes();
        // The guards record the uses when they are dropped, after the launch.
        let (q_ptr, q_use) = q.device_ptr(stream);
        let (k_ptr, k_use) = k.device_ptr(stream);
        let (v_ptr, v_use) = v.device_ptr(stream);
        let (out_ptr, out_use) = out.device_ptr_mut(stream);
        let (workspace_ptr, workspace_use) = workspace.device_ptr_mut(stream);
        let lse = lse.as_mut().map(|lse| lse.device_ptr_mut(stream));
        // Without that order the launch would race with the earlier uses.
        self.settle("ordering the buffers")?;
        let args = LaunchArgs {
            q: DeviceTensor { ptr: q_ptr, spec: *problem.q() },
            k: DeviceTensor { ptr: k_ptr, spec: *problem.k() },
            v: DeviceTensor { ptr: v_ptr, spec: *problem.v() },
            out: DeviceTensor { ptr: out_ptr, spec: *problem.out() },
            lse: lse.as_ref().map(|(ptr, _)| *ptr),
            workspace: DeviceMemory { ptr: workspace_ptr, bytes },
        };
        // SAFETY: the stream and all buffers belong to this context; every tensor's span, the lse and
        // the workspace lie within buffers of sufficient length; a CudaSlice is freed in stream order
        // after the uses its guard recorded; and what is written is borrowed mutably, so no other use
        // can be submitted that cudarc does not order against this one.
        unsafe { self.launch(plan, &args, stream.cu_stream()) }?;
        drop((q_use, k_use, v_use, out_use, lse, workspace_use));
        self.settle("recording the use of the buffers")?;
        Ok(())
    }

    /// Checks the type, length and context of a tensor's buffer.
    fn check_slice<T: Element>(
        &self,
        operand: Operand,
        slice: &impl DeviceSlice<T>,
        spec: &TensorSpec,
    ) -> Result<(), Error> {
        if T::DTYPE != spec.dtype {
            let (got, planned) = (T::DTYPE.to_string(), spec.dtype.to_string());
            return Err(Invalid::LaunchMismatch { tensor: operand, got, planned }.into());
        }
        let needed = spec.span_elems(operand)?;
        if slice.len() < needed {
            return Err(Invalid::SpanBeyondBuffer { needed, len: slice.len() }.into());
        }
        self.check_context(operand, slice.stream().context())
    }

    fn check_context(&self, operand: Operand, context: &Arc<CudaContext>) -> Result<(), Error> {
        if context != self.context() {
            return Err(Invalid::ForeignContext { what: operand.to_string() }.into());
        }
        Ok(())
    }
}
