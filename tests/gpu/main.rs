//! Kernels against the CPU reference, on the GPU of this machine. Without one every test says that it was
//! skipped, and passes.
//!
//! `SAGE_GPU_CASES` sets the number of random problems (default 200), `SAGE_GPU_SEED` the first seed. With
//! `SAGE_RESULTS` naming a folder, each test leaves its figures there as JSON.

mod harness;
mod kernels;
mod modifiers;
mod real_data;
