//! Builds Rust kernels to PTX with rustc's own NVPTX backend, behind rust-cuda's `cuda_builder` API.
//!
//! In a build script:
//!
//! ```no_run
//! use cuda_builder::{CudaBuilder, NvvmArch};
//!
//! # fn main() -> Result<(), cuda_builder::CudaBuilderError> {
//! CudaBuilder::new("../kernels").arch(NvvmArch::Compute89).copy_to("kernels.ptx").build()?;
//! # Ok(())
//! # }
//! ```
//!
//! No nvcc, CUDA toolkit or libNVVM takes part: [`toolchain`] finds a rustc that has `core` for
//! `nvptx64-nvidia-cuda` (or its sources), [`builder`] runs it, [`ptx`] turns the output into a
//! module that is the same on every build. [`manifest`] tells whether checked-in PTX still belongs
//! to its source. [`inspect`] and [`ptxas`] are for tests: they read PTX and machine code.

pub mod arch;
pub mod builder;
mod cargo;
pub mod inspect;
pub mod manifest;
pub mod ptx;
pub mod ptxas;
pub mod toolchain;

pub use arch::{NvvmArch, PtxIsa};
pub use builder::{CudaBuilder, CudaBuilderError, DebugInfo, EmitOption};
pub use toolchain::{Toolchain, ToolchainError};

/// The target every kernel is compiled for.
pub const TARGET: &str = "nvptx64-nvidia-cuda";

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
