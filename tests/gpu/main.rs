//! Kernels against the CPU reference, on the GPU of this machine. Without one every test says that it was
//! skipped, and passes.
//!
//! `SAGE_GPU_CASES` sets the number of random problems (default 200), `SAGE_GPU_SEED` the first seed. With
//! `SAGE_RESULTS` naming a folder, each test leaves its figures there as JSON. `SAGE_GPU_SECONDS` is how long the
//! threads of `embedding` submit work (default 5).

mod cache;
mod embedding;
mod faults;
mod harness;
mod kernels;
mod merge;
mod modifiers;
mod real_data;
