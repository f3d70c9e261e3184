//! Words of global memory through which the CTAs of a grid talk to each other [atom, ld, st].

use core::arch::asm;

/// `atom.relaxed.gpu.global.add.u32` [atom]: adds, returns what was there, orders nothing.
///
/// # Safety
/// `address` is 4-byte aligned, mapped, and accessed by atomic operations only.
#[inline(always)]
pub unsafe fn add_relaxed(address: u64, value: u32) -> u32 {
    let old: u32;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("atom.relaxed.gpu.global.add.u32 {}, [{}], {};", out(reg32) old, in(reg64) address, in(reg32) value, options(nostack))
    };
    old
}

/// `atom.acq_rel.gpu.global.add.u32` [atom]: adds and returns what was there. What this thread has written or
/// seen before is visible to whoever reads the sum with acquire semantics, and the other way round; with a
/// CTA barrier before or after, that holds for the whole CTA.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline(always)]
pub unsafe fn add_acq_rel(address: u64, value: u32) -> u32 {
    let old: u32;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};", out(reg32) old, in(reg64) address, in(reg32) value, options(nostack))
    };
    old
}

/// `atom.relaxed.gpu.global.add.f32` [atom]: adds, rounded to nearest even, and returns what was there. In global
/// memory subnormal operands and sums become zeros of their sign. Sums depend on the order in which threads come.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline(always)]
pub unsafe fn add_f32(address: u64, value: f32) -> f32 {
    let old: f32;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("atom.relaxed.gpu.global.add.f32 {}, [{}], {};", out(reg32) old, in(reg64) address, in(reg32) value, options(nostack))
    };
    old
}

/// `ld.relaxed.gpu.global.v4.u32` [ld]: four words, each as somebody has written it; orders nothing.
///
/// # Safety
/// `address` is 16-byte aligned; for the rest as for [`add_relaxed`].
#[inline(always)]
pub unsafe fn load_relaxed_x4(address: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("ld.relaxed.gpu.global.v4.u32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address, options(nostack))
    };
    [a, b, c, d]
}

/// `st.relaxed.gpu.global.u32` [st]: others see it some time; orders nothing.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline(always)]
pub unsafe fn store_relaxed(address: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.relaxed.gpu.global.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) };
}

/// `ld.acquire.gpu.global.u32` [ld]: what the writer of the value had written before is visible from here on.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline(always)]
pub unsafe fn load_acquire(address: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("ld.acquire.gpu.global.u32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack)) };
    value
}

/// `st.release.gpu.global.u32` [st]: whoever acquires the value sees what was written before.
///
/// # Safety
/// As for [`add_relaxed`].
#[inline(always)]
pub unsafe fn store_release(address: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.release.gpu.global.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) };
}
