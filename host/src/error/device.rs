//! What the driver, the device and the embedded modules can fail at.

use std::sync::Arc;

use thiserror::Error;

/// A failure of the driver, the device or an embedded module.
///
/// Example: [`Error`](enum@crate::Error).
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// libcuda is not installed.
    #[error("no NVIDIA driver: the library libcuda (nvcuda on Windows) is not installed")]
    NoDriver,
    /// The driver is installed but does not start.
    #[error("the NVIDIA driver does not start: {name} ({code}): {message}")]
    DriverInit {
        /// `CUresult` as a number.
        code: u32,
        /// `CUresult` by name.
        name: String,
        /// The driver's own description.
        message: String,
    },
    /// The driver is older than the functions that are called.
    #[error("the NVIDIA driver supports CUDA {version}; {oldest} or later is needed")]
    DriverTooOld {
        /// CUDA version that the driver supports.
        version: String,
        /// Oldest that will do.
        oldest: String,
    },
    /// The device index does not exist.
    #[error("there is no device cuda:{ordinal}; the driver reports {count} device(s)")]
    NoDevice {
        /// Index asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// A driver call failed.
    #[error("{call} failed: {name} ({code}): {message}")]
    Driver {
        /// What was being done.
        call: &'static str,
        /// `CUresult` as a number.
        code: u32,
        /// `CUresult` by name.
        name: String,
        /// The driver's own description.
        message: String,
    },
    /// The device has too little free memory.
    #[error("out of device memory: {bytes} bytes were asked for, {free} of {total} are free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// The host has too little memory for the output.
    #[error("out of memory: {bytes} bytes are needed for the output")]
    HostMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// This build holds no PTX for a target.
    #[error("this build has no kernels for {target}; it has [{}]", .available.join(", "))]
    ModuleMissing {
        /// PTX target needed.
        target: &'static str,
        /// PTX targets embedded.
        available: Vec<&'static str>,
    },
    /// The embedded PTX is not the one that was recorded when it was built.
    #[error("the embedded PTX for {target} has SHA-256 {actual}, but its manifest records {recorded}")]
    ModuleHash {
        /// PTX target.
        target: &'static str,
        /// Hash in the manifest.
        recorded: String,
        /// Hash of the text.
        actual: String,
    },
    /// The driver cannot translate the module.
    #[error("driver {driver} cannot load the kernels for {target} ({name}); a newer driver is needed")]
    ModuleRejected {
        /// PTX target.
        target: &'static str,
        /// CUDA version the driver supports, e.g. `12.4`; an old one may not know the PTX version.
        driver: String,
        /// `CUresult` by name.
        name: String,
        /// What the driver's compiler said.
        log: String,
    },
    /// The module holds no such kernel.
    #[error("the module for {target} has no kernel {symbol}")]
    SymbolMissing {
        /// PTX target.
        target: &'static str,
        /// Kernel symbol.
        symbol: String,
    },
    /// The driver refused to give a kernel the shared memory it needs.
    #[error("{symbol} was refused {bytes} bytes of shared memory ({name})")]
    SharedMemoryRefused {
        /// Kernel symbol.
        symbol: String,
        /// Bytes asked for.
        bytes: usize,
        /// `CUresult` by name.
        name: String,
    },
    /// An earlier fault has made the context unusable.
    #[error("the CUDA context is unusable since an earlier failure ({cause}); restart the process")]
    Poisoned {
        /// First failure.
        cause: Arc<str>,
    },
}
