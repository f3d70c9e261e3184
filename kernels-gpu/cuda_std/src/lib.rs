//! Device-side standard library: rust-cuda's `cuda_std` names where they make sense, and beside them
//! the instructions that attention needs.
//!
//! One instruction is one function. Wrappers hold no policy and no loops; each documents its PTX form
//! (PTX ISA 8.4 chapter in brackets), the least architecture, who must call it and what it does to
//! memory. This is the only crate of the project that contains `asm!`.
//!
//! # Why some wrappers are intrinsics and others inline assembly
//!
//! LLVM does not know that inline assembly is convergent and may duplicate it into both arms of a
//! branch. Barriers, shuffles and votes therefore go through LLVM's intrinsics, which are convergent.
//! Instructions that only assembly reaches (`mma`, `ldmatrix`) must be called where the whole warp
//! passes; a census test counts them in the emitted PTX.
//!
//! Wrappers without `options(nomem)` clobber memory: nothing is moved across them.
//!
//! # Two back ends
//!
//! For nvptx64 a function is its instruction. For the host, with the feature `executor`, the same functions
//! are instructions of a machine that runs whole kernels on the CPU, thread by thread: the module `executor`,
//! for tests. Without the feature the host sees the attributes only.
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(asm_experimental_arch, core_intrinsics, link_llvm_intrinsics, stdarch_nvptx),
    allow(internal_features)
)]

pub use cuda_std_macros::*;

#[cfg(target_arch = "nvptx64")]
pub mod atomic;
#[cfg(target_arch = "nvptx64")]
pub mod convert;
#[cfg(target_arch = "nvptx64")]
pub mod cp_async;
#[cfg(target_arch = "nvptx64")]
pub mod global;
#[cfg(target_arch = "nvptx64")]
pub mod hint;
#[cfg(target_arch = "nvptx64")]
pub mod ldmatrix;
#[cfg(target_arch = "nvptx64")]
pub mod math;
#[cfg(all(target_arch = "nvptx64", feature = "sm_90a"))]
pub mod mbarrier;
#[cfg(target_arch = "nvptx64")]
pub mod mma;
#[cfg(target_arch = "nvptx64")]
pub mod shared;
#[cfg(target_arch = "nvptx64")]
pub mod thread;
#[cfg(all(target_arch = "nvptx64", feature = "sm_90a"))]
pub mod tma;
#[cfg(target_arch = "nvptx64")]
pub mod warp;
#[cfg(all(target_arch = "nvptx64", feature = "sm_90a"))]
pub mod warpgroup;
#[cfg(all(target_arch = "nvptx64", feature = "sm_90a"))]
pub mod wgmma;

#[cfg(all(not(target_arch = "nvptx64"), feature = "executor"))]
extern crate std;

#[cfg(all(not(target_arch = "nvptx64"), feature = "executor"))]
pub mod executor;
#[cfg(all(not(target_arch = "nvptx64"), feature = "executor"))]
mod host;
#[cfg(all(not(target_arch = "nvptx64"), feature = "executor"))]
pub use host::*;

/// What kernels import: `use cuda_std::prelude::*;`.
pub mod prelude {
    pub use crate::kernel;
    #[cfg(any(target_arch = "nvptx64", feature = "executor"))]
    pub use crate::{thread, warp};
}
