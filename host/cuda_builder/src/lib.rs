//! Builds Rust kernels to PTX.
