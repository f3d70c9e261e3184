//! Combining attention over two parts of the keys, in device memory.

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use sage_spec::limits::MAX_GRID;
use sage_spec::merge::{CTA, MergeParams, SYMBOL, grid, row_threads};
use sage_spec::symbol::Arch;

use super::Gpu;
use super::args::{DeviceTensor, Range, check_disjoint};
use crate::error::{Error, Invalid, Operand, PlanError};
use crate::plan::{Entry, Kernel};

/// Everything [`Gpu::merge`] reads and writes. The tensors are `[B, Hq, M, D]` of one shape, of any strides and
/// each of its own type.
///
/// Example: [`LaunchArgs`](crate::device::LaunchArgs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeArgs {
    /// Attention over the first part of the keys.
    pub o1: DeviceTensor,
    /// f32 `[B, Hq, M]`, its natural-log log-sum-exp. Where it is −∞ the row has no key and `o1` is not read.
    pub lse1: CUdeviceptr,
    /// Attention over the second part.
    pub o2: DeviceTensor,
    /// f32 `[B, Hq, M]`.
    pub lse2: CUdeviceptr,
    /// Where the result goes; memory of its own.
    pub out: DeviceTensor,
    /// Where the log-sum-exp of both parts goes, f32 `[B, Hq, M]`; memory of its own. `None` if nobody needs it.
    pub lse: Option<CUdeviceptr>,
}

impl MergeArgs {
    /// Checks shapes and addresses; returns the number of rows.
    fn check(&self) -> Result<usize, Invalid> {
        let shape = self.o1.spec.shape;
        for other in [self.o2.spec.shape, self.out.spec.shape] {
            if other != shape {
                return Err(Invalid::PartsMismatch { first: shape, other });
            }
        }
        let (mut read, mut written) = (Vec::with_capacity(4), Vec::with_capacity(2));
        for (operand, tensor) in [(Operand::Tensor, &self.o1), (Operand::Tensor, &self.o2), (Operand::Out, &self.out)] {
            let is_out = operand == Operand::Out;
            tensor.spec.check(operand, is_out)?;
            let element = tensor.spec.dtype.bytes();
            let range = Range::new(operand, tensor.ptr, tensor.spec.span_elems(operand)? * element, element)?;
            if is_out { written.extend(range) } else { read.extend(range) }
        }
        let [batch, heads, tokens, head_dim] = shape;
        let rows = if head_dim == 0 { 0 } else { batch.saturating_mul(heads).saturating_mul(tokens) };
        let bytes = rows.saturating_mul(4);
        for lse in [self.lse1, self.lse2] {
            read.extend(Range::new(Operand::Lse, lse, bytes, 4)?);
        }
        if let Some(lse) = self.lse {
            written.extend(Range::new(Operand::Lse, lse, bytes, 4)?);
        }
        check_disjoint(&written, &read)?;
        Ok(rows)
    }
}

impl Gpu {
    /// Combines attention of the same queries over two disjoint sets of keys, as [`crate::merge`] does on the
    /// CPU; exponential and logarithm are the device's, good to about 2⁻²¹. Submits one kernel to `stream` and
    /// returns without waiting; may be captured into a graph once it has run (which loads the kernel).
    ///
    /// # Safety
    ///
    /// As [`Gpu::launch`]: the stream is live and of this context; every element that the tensors reach and the
    /// `4 B Hq M` bytes of each log-sum-exp are device memory of this GPU that stays allocated until the stream
    /// has run the kernel; until then nobody writes what is read or uses what is written.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if shapes differ or addresses are null, misaligned or overlapping;
    /// [`PlanError::GridTooLarge`]; [`crate::error::DeviceError`] if loading or launching fails.
    pub unsafe fn merge(&self, args: &MergeArgs, stream: CUstream) -> Result<(), Error> {
        let rows = args.check()?;
        let [_, heads, tokens, head_dim] = args.o1.spec.shape;
        if rows == 0 {
            return Ok(());
        }
        let ctas = grid(rows, head_dim);
        if ctas > MAX_GRID || u32::try_from(rows).is_err() {
            return Err(PlanError::GridTooLarge { symbol: SYMBOL.into(), ctas: ctas as u128, max: MAX_GRID }.into());
        }
        let capability = self.capability();
        if !Arch::Sm80.loads_on(capability.major, capability.minor) {
            let (major, minor) = (capability.major, capability.minor);
            return Err(PlanError::CapabilityTooLow { major, minor }.into());
        }
        let params = MergeParams {
            o1: args.o1.arg(),
            o2: args.o2.arg(),
            out: args.out.arg(),
            lse1: args.lse1,
            lse2: args.lse2,
            lse: args.lse.unwrap_or(0),
            // Every extent is at most the number of rows, which fits.
            rows: rows as u32,
            num_heads: heads as u32,
            seqlen: tokens as u32,
            head_dim: u32::try_from(head_dim)
                .map_err(|_| Invalid::ElementsOverflow { tensor: Operand::Out, shape: args.out.spec.shape })?,
            row_threads_log2: row_threads(head_dim).trailing_zeros(),
            dtype1: args.o1.spec.dtype.code(),
            dtype2: args.o2.spec.dtype.code(),
            out_dtype: args.out.spec.dtype.code(),
            vectorized: args.o1.vectorized() & args.o2.vectorized() & args.out.vectorized(),
        };
        let entry = Entry { kernel: Kernel::Attention, symbol: SYMBOL.into(), cta: CTA };
        self.bind()?;
        self.check_stream(stream)?;
        // SAFETY: the kernel of that name takes this struct; the addresses have been checked as far as they can
        // be, and the rest is the caller's promise.
        unsafe { self.launch_kernel(Arch::Sm80, &entry, [ctas as u32, 1], &params, stream) }
    }
}
