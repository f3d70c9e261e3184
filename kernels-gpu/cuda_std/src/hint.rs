//! Hints to the optimiser.

use core::arch::asm;

/// Returns `value` in a way that the optimiser cannot see through. A loop up to `opaque(n)` is not
/// unrolled: unrolling is otherwise complete, because arrays indexed in a loop must become registers.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let mut value = value;
    // SAFETY: a comment, no instruction.
    unsafe { asm!("// opaque {0}", inout(reg32) value, options(pure, nomem, nostack)) };
    value
}
