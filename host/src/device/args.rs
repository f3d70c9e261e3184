//! What a launch works on, and the rules it must satisfy.

use cudarc::driver::sys::CUdeviceptr;
use sage_spec::limits::{VECTOR_BYTES, WORKSPACE_ALIGN};
use sage_spec::params::TensorArg;

use super::side::SideArgs;
use crate::error::{Invalid, Operand};
use crate::plan::Plan;
use crate::problem::TensorSpec;

/// A tensor in device memory.
///
/// Example: [`LaunchArgs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTensor {
    /// Address of element `[0, 0, 0, 0]`.
    pub ptr: CUdeviceptr,
    /// Type, shape `[B, H, tokens, D]` and strides.
    pub spec: TensorSpec,
}

impl DeviceTensor {
    /// The tensor as kernels take it.
    pub(super) fn arg(&self) -> TensorArg {
        let [stride_batch, stride_head, stride_token, _] = self.spec.strides;
        TensorArg { ptr: self.ptr, stride_batch, stride_head, stride_token }
    }

    /// Value of `vectorized` in kernel parameters: 1 if every group of eight features starts at a
    /// multiple of 16 bytes, so that kernels may load it with vector instructions.
    pub(super) fn vectorized(&self) -> u32 {
        let [batch, heads, tokens, head_dim] = self.spec.shape;
        let bytes = self.spec.dtype.bytes() as u64;
        let aligned = |elems: i64| (elems as u64).wrapping_mul(bytes).is_multiple_of(VECTOR_BYTES as u64);
        let extents = [batch, heads, tokens];
        // The stride of a single entry is never used, but it may be anything.
        let strides = extents.iter().zip(self.spec.strides).all(|(&extent, stride)| extent <= 1 || aligned(stride));
        let base = self.ptr.is_multiple_of(VECTOR_BYTES as u64);
        u32::from(base && strides && head_dim.is_multiple_of(8))
    }
}

/// A range of device memory.
///
/// Example: [`LaunchArgs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// First address; may be 0 if `bytes` is.
    pub ptr: CUdeviceptr,
    /// Length.
    pub bytes: usize,
}

/// Everything a launch reads and writes.
///
/// ```no_run
/// use sage_attn::device::{CUdeviceptr, CUstream, DeviceMemory, DeviceTensor, Gpu, LaunchArgs};
/// use sage_attn::plan::Plan;
///
/// /// # Safety
/// ///
/// /// As [`Gpu::launch`]: the addresses hold what the plan says and live until the stream is done.
/// unsafe fn attend(
///     gpu: &Gpu,
///     plan: &Plan,
///     [q, k, v, out, workspace]: [CUdeviceptr; 5],
///     stream: CUstream,
/// ) -> Result<(), sage_attn::Error> {
///     let problem = plan.problem();
///     let args = LaunchArgs {
///         q: DeviceTensor { ptr: q, spec: *problem.q() },
///         k: DeviceTensor { ptr: k, spec: *problem.k() },
///         v: DeviceTensor { ptr: v, spec: *problem.v() },
///         out: DeviceTensor { ptr: out, spec: *problem.out() },
///         lse: None,
///         workspace: DeviceMemory { ptr: workspace, bytes: plan.workspace().total_bytes() },
///     };
///     // SAFETY: handed on to the caller.
///     unsafe { gpu.launch(plan, &args, stream) }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchArgs {
    /// Queries, `[B, Hq, M, D]`.
    pub q: DeviceTensor,
    /// Keys, `[B, Hkv, N, D]`.
    pub k: DeviceTensor,
    /// Values, `[B, Hkv, N, Dv]`.
    pub v: DeviceTensor,
    /// Output, `[B, Hq, M, Dv]`.
    pub out: DeviceTensor,
    /// f32 `[B, Hq, M]`, present exactly if the plan returns the log-sum-exp.
    pub lse: Option<CUdeviceptr>,
    /// Scratch memory of at least [`crate::plan::Workspace::total_bytes`], at a multiple of 256 bytes.
    /// Its contents matter neither before nor after; two launches that may overlap in time need two.
    pub workspace: DeviceMemory,
}

/// A non-empty range of addresses, `begin..end`.
pub(super) struct Range {
    pub(super) operand: Operand,
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Range {
    /// Checks `bytes` bytes at `ptr`; `None` if `bytes` is 0.
    pub(super) fn new(operand: Operand, ptr: u64, bytes: usize, align: usize) -> Result<Option<Range>, Invalid> {
        if bytes == 0 {
            return Ok(None);
        }
        if ptr == 0 {
            return Err(Invalid::NullPointer { tensor: operand, bytes });
        }
        if !ptr.is_multiple_of(align as u64) {
            return Err(Invalid::Misaligned { tensor: operand, address: ptr, align });
        }
        let end = ptr.checked_add(bytes as u64);
        let end = end.ok_or(Invalid::AddressOverflow { tensor: operand, address: ptr, bytes })?;
        Ok(Some(Range { operand, begin: ptr, end }))
    }
}

impl LaunchArgs {
    /// Checks everything about the arguments that addresses and shapes tell: that they are those the
    /// plan was made for, and that nothing written overlaps anything else. Ranges are compared from
    /// first to last element, so interleaving the output with an input is refused too.
    pub(super) fn check(&self, plan: &Plan, side: &SideArgs) -> Result<(), Invalid> {
        let problem = plan.problem();
        let tensors = [
            (Operand::Q, &self.q, problem.q()),
            (Operand::K, &self.k, problem.k()),
            (Operand::V, &self.v, problem.v()),
            (Operand::Out, &self.out, problem.out()),
        ];
        let mut read = side.ranges(problem)?;
        let mut written = Vec::with_capacity(3);
        for (operand, tensor, planned) in tensors {
            check_planned(operand, &tensor.spec, planned)?;
            let is_out = operand == Operand::Out;
            tensor.spec.check(operand, is_out)?;
            let element = tensor.spec.dtype.bytes();
            let bytes = tensor.spec.span_elems(operand)? * element;
            let range = Range::new(operand, tensor.ptr, bytes, element)?;
            if is_out { written.extend(range) } else { read.extend(range) }
        }
        if self.lse.is_some() != problem.return_lse() {
            return Err(Invalid::LsePresence { planned: problem.return_lse() });
        }
        if let Some(lse) = self.lse {
            written.extend(Range::new(Operand::Lse, lse, problem.lse_elems() * 4, 4)?);
        }
        let needed = plan.workspace().total_bytes();
        if self.workspace.bytes < needed {
            return Err(Invalid::WorkspaceTooSmall { bytes: self.workspace.bytes, needed });
        }
        written.extend(Range::new(Operand::Workspace, self.workspace.ptr, needed, WORKSPACE_ALIGN)?);
        check_disjoint(&written, &read)
    }
}

/// Checks that `spec` has the type and shape that were planned for. Strides may differ.
pub(super) fn check_planned(tensor: Operand, spec: &TensorSpec, planned: &TensorSpec) -> Result<(), Invalid> {
    let words = |spec: &TensorSpec| format!("{} {:?}", spec.dtype, spec.shape);
    if (spec.dtype, spec.shape) != (planned.dtype, planned.shape) {
        return Err(Invalid::LaunchMismatch { tensor, got: words(spec), planned: words(planned) });
    }
    Ok(())
}

/// Fails if something written overlaps anything else.
pub(super) fn check_disjoint(written: &[Range], read: &[Range]) -> Result<(), Invalid> {
    for (index, a) in written.iter().enumerate() {
        for b in written[index + 1..].iter().chain(read) {
            if a.begin < b.end && b.begin < a.end {
                return Err(Invalid::Aliasing { written: a.operand, other: b.operand });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::plan::{Capability, plan};
    use crate::problem::{DType, Layout, Problem, Request};

    const H200: Capability = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };

    fn spec(tokens: usize) -> TensorSpec {
        TensorSpec::new(Operand::Q, DType::F16, &[1, 2, tokens, 64], Layout::Hnd).unwrap()
    }

    /// A plan, and arguments for it at made-up addresses.
    fn example(return_lse: bool) -> (Plan, LaunchArgs) {
        let request = Request { return_lse, ..Request::new(spec(128), spec(256), spec(256), spec(128)) };
        let plan = plan(&Problem::new(request).unwrap(), &H200).unwrap();
        let at = |ptr, tokens| DeviceTensor { ptr, spec: spec(tokens) };
        let args = LaunchArgs {
            q: at(0x10_0000, 128),
            k: at(0x20_0000, 256),
            v: at(0x30_0000, 256),
            out: at(0x40_0000, 128),
            lse: return_lse.then_some(0x50_0000),
            workspace: DeviceMemory { ptr: 0x60_0000, bytes: plan.workspace().total_bytes() },
        };
        (plan, args)
    }

    #[test]
    fn good_arguments_pass() {
        for return_lse in [false, true] {
            let (plan, args) = example(return_lse);
            assert_eq!(args.check(&plan, &SideArgs::default()), Ok(()));
        }
    }

    #[test]
    fn every_bad_argument_has_its_error() {
        let (plan, good) = example(true);
        let check = |change: &dyn Fn(&mut LaunchArgs)| {
            let mut args = good;
            change(&mut args);
            args.check(&plan, &SideArgs::default()).unwrap_err()
        };
        let null = check(&|args| args.k.ptr = 0);
        assert_eq!(null, Invalid::NullPointer { tensor: Operand::K, bytes: 2 * 256 * 64 * 2 });
        let misaligned = check(&|args| args.q.ptr += 1);
        assert_eq!(misaligned, Invalid::Misaligned { tensor: Operand::Q, address: 0x10_0001, align: 2 });
        let workspace = check(&|args| args.workspace.ptr += 16);
        assert!(matches!(workspace, Invalid::Misaligned { tensor: Operand::Workspace, align: 256, .. }));
        let small = check(&|args| args.workspace.bytes -= 1);
        assert!(matches!(small, Invalid::WorkspaceTooSmall { bytes, needed } if bytes + 1 == needed));
        let absent = check(&|args| args.lse = None);
        assert_eq!(absent, Invalid::LsePresence { planned: true });
        let wraps = check(&|args| args.v.ptr = u64::MAX - 15);
        assert!(matches!(wraps, Invalid::AddressOverflow { tensor: Operand::V, .. }));
        let dtype = check(&|args| args.v.spec.dtype = DType::F32);
        assert!(matches!(dtype, Invalid::LaunchMismatch { tensor: Operand::V, .. }));
        let strides = check(&|args| args.out.spec.strides[1] = 64);
        assert!(matches!(strides, Invalid::OutputOverlap { .. }));
    }

    #[test]
    fn whatever_is_written_must_not_overlap() {
        let (plan, good) = example(true);
        let aliasing = |change: &dyn Fn(&mut LaunchArgs)| {
            let mut args = good;
            change(&mut args);
            args.check(&plan, &SideArgs::default())
        };
        let overlap = |written, other| Err(Invalid::Aliasing { written, other });
        assert_eq!(aliasing(&|args| args.out.ptr = args.q.ptr), overlap(Operand::Out, Operand::Q));
        assert_eq!(aliasing(&|args| args.lse = Some(args.out.ptr + 4)), overlap(Operand::Out, Operand::Lse));
        assert_eq!(aliasing(&|args| args.workspace.ptr = args.v.ptr), overlap(Operand::Workspace, Operand::V));
        // Inputs may share memory, and neighbours may touch.
        assert_eq!(aliasing(&|args| args.v.ptr = args.k.ptr), Ok(()));
        assert_eq!(aliasing(&|args| args.out.ptr = args.q.ptr + 2 * 128 * 64 * 2), Ok(()));
    }

    #[test]
    fn vector_loads_need_aligned_rows() {
        let tensor = |ptr, shape: [usize; 4], strides| DeviceTensor {
            ptr,
            spec: TensorSpec { dtype: DType::F16, shape, strides },
        };
        let shape = [1, 2, 4, 64];
        assert_eq!(tensor(256, shape, [512, 256, 64, 1]).vectorized(), 1);
        assert_eq!(tensor(264, shape, [512, 256, 64, 1]).vectorized(), 0);
        assert_eq!(tensor(256, shape, [512, 260, 64, 1]).vectorized(), 0);
        assert_eq!(tensor(256, [1, 2, 4, 60], [512, 256, 64, 1]).vectorized(), 0);
        // The batch has one entry: its stride does not matter.
        assert_eq!(tensor(256, shape, [7, 256, 64, 1]).vectorized(), 1);
    }

    #[test]
    fn an_empty_problem_accepts_null_pointers() -> Result<(), Error> {
        let request = Request::new(spec(0), spec(256), spec(256), spec(0));
        let plan = plan(&Problem::new(request)?, &H200)?;
        let (_, mut args) = example(false);
        args.q = DeviceTensor { ptr: 0, spec: spec(0) };
        args.out = DeviceTensor { ptr: 0, spec: spec(0) };
        args.workspace = DeviceMemory::default();
        Ok(args.check(&plan, &SideArgs::default())?)
    }
}
