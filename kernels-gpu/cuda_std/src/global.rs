//! Global memory, addressed by 64-bit device addresses. `load_*` go through the read-only path
//! (`ld.global.nc`): the data must not be written while the kernel runs. `read_*` are for what other CTAs of the
//! same kernel have written.

use core::arch::asm;

/// `ld.global.nc.b8` [ld.global.nc], zero-extended.
///
/// # Safety
/// `address` is mapped and constant while the kernel runs.
#[inline(always)]
pub unsafe fn load_u8(address: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address; constant data may be read at any point.
    unsafe { asm!("ld.global.nc.u8 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, nomem, nostack)) };
    value
}

/// `ld.global.nc.b16` [ld.global.nc], zero-extended.
///
/// # Safety
/// `address` is 2-byte aligned, mapped, and constant while the kernel runs.
#[inline(always)]
pub unsafe fn load_u16(address: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address; constant data may be read at any point.
    unsafe { asm!("ld.global.nc.u16 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, nomem, nostack)) };
    value
}

/// `ld.global.nc.b32` [ld.global.nc].
///
/// # Safety
/// As for [`load_u16`], 4-byte aligned.
#[inline(always)]
pub unsafe fn load_u32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address; constant data may be read at any point.
    unsafe { asm!("ld.global.nc.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, nomem, nostack)) };
    value
}

/// `ld.global.nc.b32` [ld.global.nc] of an `f32`.
///
/// # Safety
/// As for [`load_u32`].
#[inline(always)]
pub unsafe fn load_f32(address: u64) -> f32 {
    // SAFETY: forwarded contract.
    f32::from_bits(unsafe { load_u32(address) })
}

/// `ld.global.nc.v4.b32` [ld.global.nc].
///
/// # Safety
/// As for [`load_u16`], 16-byte aligned.
#[inline(always)]
pub unsafe fn load_u32x4(address: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for the address; constant data may be read at any point.
    unsafe {
        asm!("ld.global.nc.v4.b32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address, options(pure, nomem, nostack));
    }
    [a, b, c, d]
}

/// `ld.global.b32` [ld] of an `f32`, ordered with the other memory accesses of the thread.
///
/// # Safety
/// `address` is 4-byte aligned, mapped, and not written concurrently: a barrier or an acquire orders this read
/// after the write.
#[inline(always)]
pub unsafe fn read_f32(address: u64) -> f32 {
    let value: f32;
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("ld.global.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack)) };
    value
}

/// `ld.global.v4.b32` [ld] of four `f32`.
///
/// # Safety
/// As for [`read_f32`], 16-byte aligned.
#[inline(always)]
pub unsafe fn read_f32x4(address: u64) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("ld.global.v4.b32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address, options(nostack));
    }
    [a, b, c, d]
}

/// `st.global.b16` [st].
///
/// # Safety
/// `address` is 2-byte aligned, mapped, and accessed by no other thread.
#[inline(always)]
pub unsafe fn store_u16(address: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.global.b16 [{}], {};", in(reg64) address, in(reg16) value as u16, options(nostack)) };
}

/// `st.global.b32` [st].
///
/// # Safety
/// As for [`store_u16`], 4-byte aligned.
#[inline(always)]
pub unsafe fn store_u32(address: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) };
}

/// `st.global.b32` [st] of an `f32`.
///
/// # Safety
/// As for [`store_u32`].
#[inline(always)]
pub unsafe fn store_f32(address: u64, value: f32) {
    // SAFETY: forwarded contract.
    unsafe { store_u32(address, value.to_bits()) }
}

/// `st.global.v2.b32` [st].
///
/// # Safety
/// As for [`store_u16`], 8-byte aligned.
#[inline(always)]
pub unsafe fn store_u32x2(address: u64, value: [u32; 2]) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.global.v2.b32 [{}], {{{}, {}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], options(nostack))
    };
}

/// `st.global.cs.b32` [st]: [`store_u32`] of what is read late, if at all: it leaves the cache before other lines.
///
/// # Safety
/// As for [`store_u16`], 4-byte aligned.
#[inline(always)]
pub unsafe fn stream_u32(address: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.global.cs.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) };
}

/// `st.global.cs.v2.b32` [st], as [`stream_u32`].
///
/// # Safety
/// As for [`store_u16`], 8-byte aligned.
#[inline(always)]
pub unsafe fn stream_u32x2(address: u64, value: [u32; 2]) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.global.cs.v2.b32 [{}], {{{}, {}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], options(nostack))
    };
}

/// `st.global.cs.v4.b32` [st], as [`stream_u32`].
///
/// # Safety
/// As for [`store_u16`], 16-byte aligned.
#[inline(always)]
pub unsafe fn stream_u32x4(address: u64, value: [u32; 4]) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.global.cs.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    }
}

/// `st.global.v4.b32` [st].
///
/// # Safety
/// As for [`store_u16`], 16-byte aligned.
#[inline(always)]
pub unsafe fn store_u32x4(address: u64, value: [u32; 4]) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.global.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    }
}
