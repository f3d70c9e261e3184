//! Overlap of a kernel's end with the next one's start [griddepcontrol] (sm_90). Without the launch attribute for
//! it both are without effect.

use core::arch::asm;

/// `griddepcontrol.wait`: waits until the kernels before this one have finished and their writes are visible.
#[inline(always)]
pub fn wait_for_prerequisites() {
    // SAFETY: waits; the memory clobber keeps later accesses behind it.
    unsafe { asm!("griddepcontrol.wait;", options(nostack)) };
}

/// `griddepcontrol.launch_dependents`: the next kernel may start once every CTA has said so or ended.
#[inline(always)]
pub fn launch_dependents() {
    // SAFETY: a hint to the scheduler.
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack)) };
}
