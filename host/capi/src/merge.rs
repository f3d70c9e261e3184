//! Combining parts.

use crate::status::{Failure, guard};
use crate::tensor::{SageTensor, view, view_mut};

/// Combines attention of the same queries over two disjoint sets of keys, in host memory. `lse1` and `lse2`
/// are the natural-log log-sum-exp that came with `o1` and `o2`; `out` and `lse` get the result. A part
/// whose log-sum-exp is minus infinity is not read.
///
/// # Safety
///
/// Every pointer is null or points to what its type says: elements that the strides reach, and batch *
/// heads * tokens values of log-sum-exp. Nobody else writes what is read or uses what is written meanwhile;
/// `lse` may be `lse1` or `lse2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_merge(
    o1: *const SageTensor,
    lse1: *const f32,
    o2: *const SageTensor,
    lse2: *const f32,
    out: *const SageTensor,
    lse: *mut f32,
) -> i32 {
    guard(|| {
        // SAFETY: forwarded contract.
        let (o1, o2, mut out) = unsafe { (view(o1, "o1")?, view(o2, "o2")?, view_mut(out, "out")?) };
        let [batch, heads, tokens, _] = o1.spec().shape;
        let rows = batch.saturating_mul(heads).saturating_mul(tokens);
        // SAFETY: the caller vouches for a value of each row.
        let (lse1, lse2) = unsafe { (values(lse1, rows, "lse1")?, values(lse2, rows, "lse2")?) };
        let merged = sage_attn::merge_into(&o1, lse1, &o2, lse2, &mut out)?;
        if lse.is_null() && rows > 0 {
            return Err(Failure::invalid("lse is a null pointer"));
        }
        // SAFETY: as above; the borrows of lse1 and lse2 have ended.
        unsafe { std::ptr::copy_nonoverlapping(merged.as_ptr(), lse, merged.len()) };
        Ok(())
    })
}

/// # Safety
///
/// `pointer` is null or `len` readable values.
unsafe fn values<'a>(pointer: *const f32, len: usize, name: &str) -> Result<&'a [f32], Failure> {
    match (pointer.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::invalid(format!("{name} is a null pointer"))),
        // SAFETY: forwarded contract.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(pointer, len) }),
    }
}
