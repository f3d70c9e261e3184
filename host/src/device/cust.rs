//! Launches on the buffers and streams of [cust](https://docs.rs/cust), behind the feature `cust`.

use cust::memory::{DeviceCopy, DeviceSlice};
use cust::stream::Stream;

use super::Gpu;
use super::args::{DeviceMemory, DeviceTensor, LaunchArgs};
use crate::error::{Error, Invalid, Operand};
use crate::plan::Plan;
use crate::problem::TensorSpec;

/// Everything a launch reads and writes, as cust's memory (a `DeviceBuffer` is a `DeviceSlice`). Tensors have
/// the shapes and strides that the plan's problem gives them, from the first element of their slice.
///
/// Element types only need the size of the plan's: cust knows `half` 1 and this crate `half` 2, whose types are
/// laid out alike.
///
/// Example: [`SliceArgs`](crate::device::SliceArgs).
#[derive(Debug)]
pub struct CustArgs<'a, T: DeviceCopy, O: DeviceCopy> {
    /// Queries, `[B, Hq, M, D]`.
    pub q: &'a DeviceSlice<T>,
    /// Keys, `[B, Hkv, N, D]`.
    pub k: &'a DeviceSlice<T>,
    /// Values, `[B, Hkv, N, D]`.
    pub v: &'a DeviceSlice<T>,
    /// Output, `[B, Hq, M, D]`.
    pub out: &'a mut DeviceSlice<O>,
    /// f32 `[B, Hq, M]`, present exactly if the plan returns the log-sum-exp.
    pub lse: Option<&'a mut DeviceSlice<f32>>,
    /// Scratch memory of at least [`crate::plan::Workspace::total_bytes`].
    pub workspace: &'a mut DeviceSlice<u8>,
}

impl Gpu {
    /// Submits `plan` on `args` to `stream` and returns without waiting. `cust::quick_init` makes a context of its
    /// own unless told otherwise; hand that to [`Gpu::with_context`] (`CudaContext::from_raw_context` of cudarc),
    /// or retain the primary one, which [`Gpu::open`] uses.
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch`]: cust frees memory without waiting for streams, so the buffers must outlive the launch,
    /// and nobody may use what is written, or write what is read, before the stream has run it.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if a buffer is too short or its elements have another size than planned for; otherwise as
    /// [`Gpu::launch`].
    pub unsafe fn launch_cust<T: DeviceCopy, O: DeviceCopy>(
        &self,
        plan: &Plan,
        args: CustArgs<'_, T, O>,
        stream: &Stream,
    ) -> Result<(), Error> {
        let problem = plan.problem();
        if let Some(lse) = &args.lse {
            let (len, expected) = (lse.len(), problem.lse_elems());
            if len != expected {
                return Err(Invalid::LseLength { len, expected }.into());
            }
        }
        let launch = LaunchArgs {
            q: tensor(Operand::Q, args.q, problem.q())?,
            k: tensor(Operand::K, args.k, problem.k())?,
            v: tensor(Operand::V, args.v, problem.v())?,
            out: tensor(Operand::Out, args.out, problem.out())?,
            lse: args.lse.map(|lse| lse.as_device_ptr().as_raw()),
            workspace: DeviceMemory { ptr: args.workspace.as_device_ptr().as_raw(), bytes: args.workspace.len() },
        };
        // SAFETY: forwarded contract; both crates name the driver's own stream type.
        unsafe { self.launch(plan, &launch, stream.as_inner().cast()) }
    }
}

/// The tensor in `slice`, if it is long enough and has elements of the right size.
fn tensor<T: DeviceCopy>(operand: Operand, slice: &DeviceSlice<T>, spec: &TensorSpec) -> Result<DeviceTensor, Error> {
    if size_of::<T>() != spec.dtype.bytes() {
        let (got, planned) = (format!("elements of {} bytes", size_of::<T>()), spec.dtype.to_string());
        return Err(Invalid::LaunchMismatch { tensor: operand, got, planned }.into());
    }
    let needed = spec.span_elems(operand)?;
    if slice.len() < needed {
        return Err(Invalid::SpanBeyondBuffer { needed, len: slice.len() }.into());
    }
    Ok(DeviceTensor { ptr: slice.as_device_ptr().as_raw(), spec: *spec })
}
