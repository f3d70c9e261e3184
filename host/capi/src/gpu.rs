//! Attention on device memory and streams of the caller.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use sage_attn::device::{DeviceMemory, Gpu, LaunchArgs, MergeArgs};
use sage_attn::plan::{Plan, plan};

use crate::attention::SageAttention;
use crate::status::{Failure, free, guard, object, object_mut};
use crate::tensor::SageTensor;

/// A GPU with the kernels that have been loaded on it.
#[derive(Debug)]
pub struct SageGpu {
    gpu: Arc<Gpu>,
}

/// The kernels, grids and buffers for one problem.
#[derive(Debug)]
pub struct SagePlan {
    plan: Plan,
    /// `Plan::explain`.
    explanation: String,
}

/// Opens device `ordinal` in its primary context, which is also that of the CUDA runtime. All callers of a
/// process share it. Free the handle with `sage_gpu_free`.
///
/// # Safety
///
/// `gpu` is null or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_gpu_open(ordinal: usize, gpu: *mut *mut SageGpu) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let place = unsafe { object_mut(gpu, "gpu") }?;
        *place = Box::into_raw(Box::new(SageGpu { gpu: Gpu::shared(ordinal)? }));
        Ok(())
    })
}

/// Frees a handle; the kernels stay loaded.
///
/// # Safety
///
/// `gpu` is null or comes from `sage_gpu_open`, and this is its last use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_gpu_free(gpu: *mut SageGpu) {
    // SAFETY: forwarded contract.
    unsafe { free(gpu) }
}

/// Plans a problem: the options of `attention` on tensors of these types, shapes and strides, whose data is
/// not looked at. `return_lse` says whether launches return the log-sum-exp. Free the plan with
/// `sage_plan_free`.
///
/// # Safety
///
/// Every pointer is null or points to what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_plan_new(
    attention: *const SageAttention,
    gpu: *const SageGpu,
    q: *const SageTensor,
    k: *const SageTensor,
    v: *const SageTensor,
    out: *const SageTensor,
    return_lse: bool,
    result: *mut *mut SagePlan,
) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let (place, attention, gpu) =
            unsafe { (object_mut(result, "result")?, object(attention, "attention")?, object(gpu, "gpu")?) };
        // SAFETY: forwarded contract.
        let [q, k, v, out] = unsafe { specs(q, k, v, out) }?;
        let problem = attention.options.clone().return_lse(return_lse).problem(q, k, v, out)?;
        let plan = plan(&problem, gpu.gpu.capability())?;
        let explanation = format!("{}\0", plan.explain());
        *place = Box::into_raw(Box::new(SagePlan { plan, explanation }));
        Ok(())
    })
}

/// # Safety
///
/// Every pointer is null or a tensor.
unsafe fn specs(
    q: *const SageTensor,
    k: *const SageTensor,
    v: *const SageTensor,
    out: *const SageTensor,
) -> Result<[sage_attn::problem::TensorSpec; 4], Failure> {
    // SAFETY: forwarded contract.
    unsafe {
        Ok([object(q, "q")?.spec()?, object(k, "k")?.spec()?, object(v, "v")?.spec()?, object(out, "out")?.spec()?])
    }
}

/// Frees a plan.
///
/// # Safety
///
/// `plan` is null or comes from `sage_plan_new`, and this is its last use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_plan_free(plan: *mut SagePlan) {
    // SAFETY: forwarded contract.
    unsafe { free(plan) }
}

/// Bytes of scratch memory that a launch needs; 0 for a null pointer.
///
/// # Safety
///
/// `plan` is null or a live plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_plan_workspace_bytes(plan: *const SagePlan) -> usize {
    // SAFETY: forwarded contract.
    unsafe { plan.as_ref() }.map_or(0, |plan| plan.plan.workspace().total_bytes())
}

/// What the plan runs and why, as text that lives as long as the plan; null for a null pointer.
///
/// # Safety
///
/// `plan` is null or a live plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_plan_explain(plan: *const SagePlan) -> *const c_char {
    // SAFETY: forwarded contract.
    unsafe { plan.as_ref() }.map_or(std::ptr::null(), |plan| plan.explanation.as_ptr().cast())
}

/// Loads the kernels of a plan. A launch does it by itself; call this before capturing one into a graph.
///
/// # Safety
///
/// Every pointer is null or points to what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_gpu_prepare(gpu: *const SageGpu, plan: *const SagePlan) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let (gpu, plan) = unsafe { (object(gpu, "gpu")?, object(plan, "plan")?) };
        Ok(gpu.gpu.prepare(&plan.plan)?)
    })
}

/// Submits a plan to `stream` (a `CUstream` or `cudaStream_t`; null is the default stream) and returns
/// without waiting. Addresses are device memory; strides may differ from those planned for. `lse` is null
/// exactly if the plan does not return it. Nothing is allocated on the device and nothing synchronises, so
/// a launch can be captured into a graph.
///
/// # Safety
///
/// Every pointer to an object is null or points to what its type says. The stream is live and of the
/// device's primary context. Every element that a tensor's strides reach, the log-sum-exp and
/// `workspace_bytes` bytes at `workspace` (a multiple of 256) are memory of this device and stay allocated
/// until the stream has run the launch; until then nobody writes q, k or v, and nobody uses out, lse or the
/// workspace.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_gpu_launch(
    gpu: *const SageGpu,
    plan: *const SagePlan,
    q: *const SageTensor,
    k: *const SageTensor,
    v: *const SageTensor,
    out: *const SageTensor,
    lse: *mut c_void,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let (gpu, plan) = unsafe { (object(gpu, "gpu")?, object(plan, "plan")?) };
        // SAFETY: forwarded contract.
        let args = unsafe {
            LaunchArgs {
                q: object(q, "q")?.device_tensor()?,
                k: object(k, "k")?.device_tensor()?,
                v: object(v, "v")?.device_tensor()?,
                out: object(out, "out")?.device_tensor()?,
                lse: (!lse.is_null()).then(|| lse.addr() as u64),
                workspace: DeviceMemory { ptr: workspace.addr() as u64, bytes: workspace_bytes },
            }
        };
        // SAFETY: forwarded contract.
        Ok(unsafe { gpu.gpu.launch(&plan.plan, &args, stream.cast()) }?)
    })
}

/// Combines attention over two parts of the keys in device memory, as `sage_merge` does in host memory. Submits
/// one kernel to `stream` and returns without waiting. `lse` may be null if nobody needs it; what is written
/// has memory of its own.
///
/// # Safety
///
/// As `sage_gpu_launch`; each log-sum-exp is batch * heads * tokens values of memory of this device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_gpu_merge(
    gpu: *const SageGpu,
    o1: *const SageTensor,
    lse1: *const c_void,
    o2: *const SageTensor,
    lse2: *const c_void,
    out: *const SageTensor,
    lse: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let gpu = unsafe { object(gpu, "gpu") }?;
        // SAFETY: forwarded contract.
        let args = unsafe {
            MergeArgs {
                o1: object(o1, "o1")?.device_tensor()?,
                lse1: lse1.addr() as u64,
                o2: object(o2, "o2")?.device_tensor()?,
                lse2: lse2.addr() as u64,
                out: object(out, "out")?.device_tensor()?,
                lse: (!lse.is_null()).then(|| lse.addr() as u64),
            }
        };
        // SAFETY: forwarded contract.
        Ok(unsafe { gpu.gpu.merge(&args, stream.cast()) }?)
    })
}
