//! A CUDA driver for tests of the host. As a shared library it takes the place of `libcuda.so`: device memory
//! is host memory, kernels are checked and not run, every object is counted, and the call of a chosen number
//! fails with a chosen error. It follows the driver where tests depend on it:
//!
//! * an error that leaves a context unusable (`CUresult`, "the process must be terminated") is what every later
//!   call in that context returns;
//! * a call that releases something does so even if it returns an error, which may be that of earlier work;
//! * handles are never used twice, so that a second release is seen.
//!
//! What no correct program does (a second release, memory out of bounds, a stream of nobody) is written down as
//! a *violation*, besides failing.

mod context;
mod control;
mod memory;
mod state;
mod work;

/// What the driver pretends to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Devices, all alike.
    pub devices: u32,
    /// Major compute capability.
    pub major: u32,
    /// Minor compute capability.
    pub minor: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Shared memory that a CTA may opt in to, in bytes.
    pub smem_opt_in: u32,
    /// Whether memory is allocated in the order of streams.
    pub pools: u32,
    /// CUDA version, 1000 · major + 10 · minor.
    pub version: u32,
    /// Whether errors have no names.
    pub nameless: u32,
    /// Bytes of memory of each device.
    pub memory_bytes: u64,
}

impl Config {
    /// An H200 with 1 GiB, a thousand times.
    pub const H200: Config = Config {
        devices: 1000,
        major: 9,
        minor: 0,
        sm_count: 132,
        smem_opt_in: 232_448,
        pools: 1,
        version: 13_000,
        nameless: 0,
        memory_bytes: 1 << 30,
    };
}

/// What is alive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Contexts; a primary one as often as it is retained.
    pub contexts: u64,
    /// Modules.
    pub modules: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
}
