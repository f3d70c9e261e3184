//! Kernels against the CPU reference, on the GPU of this machine. Without one every test says that it was
//! skipped, and passes.
//!
//! `SAGE_GPU_CASES` sets the number of random problems (default 200), `SAGE_GPU_SEED` the first seed. With
//! `SAGE_RESULTS` naming a folder, each test leaves its figures there as JSON. `SAGE_GPU_SECONDS` is how long the
//! threads of `embedding` submit work, and how long `residues` and `conversions` go on (default 5); `SAGE_GPU_REPEATS`
//! is how often `repeats` launches each kernel (default 100), `SAGE_GPU_REPLAYS` how often a graph of `embedding` is
//! replayed (default 3). `SAGE_GPU_WATCHDOG` is after how many seconds without a result a run is a hang (default 30).

mod cache;
mod conformance;
mod conversions;
mod embedding;
mod far;
mod faults;
mod harness;
mod kernels;
mod merge;
mod modifiers;
mod pollution;
mod real_data;
mod repeats;
mod residues;
mod sanitize;
mod watchdog;
