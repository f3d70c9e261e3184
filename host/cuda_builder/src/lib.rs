//! Builds Rust kernels to PTX with rustc's own NVPTX backend, behind rust-cuda's `cuda_builder` API.
pub mod arch;
pub mod ptx;
pub mod toolchain;

/// The target every kernel is compiled for.
pub const TARGET: &str = "nvptx64-nvidia-cuda";
