//! Registers and barriers of warpgroups (sm_90a).

use core::arch::asm;

/// `setmaxnreg.dec.sync.aligned.u32`: gives registers back to the CTA until the warpgroup's threads own
/// `REGISTERS` each [setmaxnreg]. Needs a kernel with launch bounds.
///
/// # Safety
/// All warps of the warpgroup reach this call, own at least `REGISTERS` and need no more.
#[inline(always)]
pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    // SAFETY: the caller keeps the warpgroup converged.
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const REGISTERS, options(nostack)) }
}

/// `setmaxnreg.inc.sync.aligned.u32`: waits until `REGISTERS` a thread are free and takes them [setmaxnreg].
///
/// # Safety
/// All warps of the warpgroup reach this call; others of the CTA give enough back.
#[inline(always)]
pub unsafe fn increase_registers<const REGISTERS: u32>() {
    // SAFETY: the caller keeps the warpgroup converged.
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const REGISTERS, options(nostack)) }
}
