//! sage-attn's device kernels.
//!
//! Read in this order: [`tile`] (where an element lives), `quant` (smoothing and quantization),
//! `attention` (the forward kernels), `cache` (what is kept from call to call, and attention over it), `entry` (the exported symbols). Layers only point down:
//! `cuda_std` ← `tile` ← `attention`, `cuda_std` ← `tile` ← `quant`; `attention` and `quant` never
//! see each other and meet only in `sage_spec::params`.
//!
//! Exactly one feature `sm_80`, `sm_89` or `sm_90a` selects the module to build for nvptx64. On other
//! targets the pure layers are compiled, so that their algebra is tested on the CPU, and with the feature
//! `executor` the kernels too, unchanged, to be run by `cuda_std::executor`.
// Device code spells out what it computes: these would hide a branch, or a panic that never happens.
#![allow(clippy::manual_is_multiple_of, clippy::implicit_saturating_sub, clippy::manual_div_ceil)]
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

#[cfg(target_arch = "nvptx64")]
cuda_std::declare_dynamic_shared_memory!();

pub mod tile;

#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
mod attention;
#[cfg(all(any(target_arch = "nvptx64", feature = "executor"), any(feature = "sm_89", feature = "sm_90a")))]
mod cache;
#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
mod codes;
#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
pub mod entry;
#[cfg(all(any(target_arch = "nvptx64", feature = "executor"), feature = "sm_80"))]
mod merge;
#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
mod quant;
#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
mod rows;
#[cfg(any(target_arch = "nvptx64", feature = "executor"))]
mod words;

/// Nothing in a kernel may panic: a call to this function in the PTX fails the lint.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
