//! Submitting packed sequences to a stream.

use cudarc::driver::sys::CUstream;

use super::Gpu;
use super::args::{DeviceTensor, LaunchArgs, check_planned};
use super::side::SideArgs;
use crate::error::{Error, Invalid, Operand};
use crate::plan::{PackedPlan, Plan};

impl LaunchArgs {
    /// The arguments of a part of `plan`, one of [`PackedPlan::parts`], for programs that launch the parts of a plan
    /// by their own means. `self` has the packed tensors.
    ///
    /// # Errors
    ///
    /// [`Invalid::LaunchMismatch`] if the tensors are not those planned for.
    pub fn of_part(
        &self,
        plan: &PackedPlan,
        side: &SideArgs,
        (first, part): &(usize, Plan),
    ) -> Result<(LaunchArgs, SideArgs), Invalid> {
        let (problem, count) = (plan.problem(), part.problem().dims().batch);
        for (operand, tensor, planned) in [
            (Operand::Q, &self.q, problem.q()),
            (Operand::K, &self.k, problem.k()),
            (Operand::V, &self.v, problem.v()),
            (Operand::Out, &self.out, problem.out()),
        ] {
            check_planned(operand, &tensor.spec, planned)?;
        }
        let (rows, keys) = (plan.sequences().q(*first), plan.sequences().kv(*first));
        let of = |tensor: &DeviceTensor, first: usize, tokens: usize| {
            let spec = tensor.spec.sequence_batch(tokens, count);
            let offset = (first as i64).wrapping_mul(spec.strides[2]).wrapping_mul(spec.dtype.bytes() as i64);
            DeviceTensor { ptr: tensor.ptr.wrapping_add(offset as u64), spec }
        };
        let args = LaunchArgs {
            q: of(&self.q, rows.start, rows.len()),
            k: of(&self.k, keys.start, keys.len()),
            v: of(&self.v, keys.start, keys.len()),
            out: of(&self.out, rows.start, rows.len()),
            lse: self.lse.map(|lse| lse.wrapping_add((problem.dims().num_heads_q * rows.start * 4) as u64)),
            workspace: self.workspace,
        };
        Ok((args, side.of_entry(problem, *first)))
    }
}

impl Gpu {
    /// Submits the parts of `plan` one after the other and returns without waiting; otherwise as
    /// [`Gpu::launch_with`].
    ///
    /// `args` has the packed tensors, whose batch is 1. The log-sum-exp is sequence after sequence,
    /// `[Hq, M of the sequence]` each. The workspace has [`PackedPlan::workspace_bytes`].
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch_with`].
    ///
    /// # Errors
    ///
    /// As [`Gpu::launch_with`]. Work already submitted stays so.
    pub unsafe fn launch_packed(
        &self,
        plan: &PackedPlan,
        args: &LaunchArgs,
        side: &SideArgs,
        stream: CUstream,
    ) -> Result<(), Error> {
        for part in plan.parts() {
            let (of_part, side) = args.of_part(plan, side, part)?;
            // SAFETY: its sequences are a part of the caller's tensors; the promise is the caller's.
            unsafe { self.launch_with(&part.1, &of_part, &side, stream) }?;
        }
        Ok(())
    }
}
