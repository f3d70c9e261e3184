//! Dynamic shared memory, addressed by 32-bit `.shared` addresses. Never through generic pointers:
//! a shared variable reached by a generic store has been seen to fault without a diagnostic.

use core::arch::asm;

/// Declares the CTA's dynamic shared memory; a kernel crate calls it once, at its root. (Module-level
/// assembly is emitted with the crate it stands in, and the PTX is that of the kernel crate.)
#[macro_export]
macro_rules! declare_dynamic_shared_memory {
    () => {
        ::core::arch::global_asm!(".extern .shared .align 1024 .b8 cuda_std_dynamic_smem[];");
    };
}

/// Address of the first byte of the CTA's dynamic shared memory; 1024-byte aligned.
#[inline(always)]
pub fn dynamic_shared_mem() -> u32 {
    let address: u32;
    // SAFETY: takes the address of a declared symbol.
    unsafe { asm!("mov.u32 {}, cuda_std_dynamic_smem;", out(reg32) address, options(pure, nomem, nostack)) };
    address
}

/// `ld.shared.b32` [ld].
///
/// # Safety
/// `address` is 4-byte aligned, inside the CTA's shared memory and not written concurrently.
#[inline(always)]
pub unsafe fn load_u32(address: u32) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("ld.shared.b32 {}, [{}];", out(reg32) value, in(reg32) address, options(nostack)) };
    value
}

/// `ld.shared.b32` [ld] of an `f32`.
///
/// # Safety
/// As for [`load_u32`].
#[inline(always)]
pub unsafe fn load_f32(address: u32) -> f32 {
    // SAFETY: forwarded contract.
    f32::from_bits(unsafe { load_u32(address) })
}

/// `ld.shared.v4.b32` [ld].
///
/// # Safety
/// As for [`load_u32`], 16-byte aligned.
#[inline(always)]
pub unsafe fn load_u32x4(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("ld.shared.v4.b32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(nostack));
    }
    [a, b, c, d]
}

/// `st.shared.b32` [st].
///
/// # Safety
/// `address` is 4-byte aligned, inside the CTA's shared memory and not accessed concurrently.
#[inline(always)]
pub unsafe fn store_u32(address: u32, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe { asm!("st.shared.b32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack)) };
}

/// `st.shared.b32` [st] of an `f32`.
///
/// # Safety
/// As for [`store_u32`].
#[inline(always)]
pub unsafe fn store_f32(address: u32, value: f32) {
    // SAFETY: forwarded contract.
    unsafe { store_u32(address, value.to_bits()) }
}

/// `st.shared.v4.b32` [st].
///
/// # Safety
/// As for [`store_u32`], 16-byte aligned.
#[inline(always)]
pub unsafe fn store_u32x4(address: u32, value: [u32; 4]) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg32) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    }
}

/// Generic address of the first parameter of kernel `$kernel`, from which tensor maps may be used: what CUDA C++
/// calls a `__grid_constant__` parameter [Kernel Function Parameter Attributes; cvta.param]. `$value` is that
/// parameter; off the GPU its own address is taken.
#[macro_export]
macro_rules! parameter_address {
    ($kernel:ident, $value:ident) => {{
        #[cfg(target_arch = "nvptx64")]
        {
            let address: u64;
            // SAFETY: takes the address of the parameter, which is constant while the kernel runs.
            unsafe {
                ::core::arch::asm!(concat!("mov.b64 {0}, ", stringify!($kernel), "_param_0; cvta.param.u64 {0}, {0};"),
                    out(reg64) address, options(pure, nomem, nostack));
            }
            address
        }
        #[cfg(not(target_arch = "nvptx64"))]
        {
            &raw const $value as u64
        }
    }};
}
