//! GPUs through the CUDA driver, which is opened at run time: the crate links nothing of CUDA and
//! works without it. All of the host's calls into it are in this module (`docs/safety.md`).
//!
//! [`Gpu`] owns a context and the loaded kernels; [`Gpu::launch`] submits a [`crate::plan::Plan`] to
//! a stream of the caller; [`Gpu::launch_slices`] is its safe form over cudarc's buffers; and
//! [`Gpu::run_host`] does everything for tensors in host memory.

mod args;
mod cache;
mod cache_memory;
#[cfg(feature = "cust")]
mod cust;
mod driver;
mod embedded;
mod gpu;
mod host;
mod launch;
mod memory;
mod merge;
mod module;
mod packed;
mod params;
mod side;
mod slices;
mod tensor_map;

pub use self::cache::{AppendArgs, DecodeArgs, DeviceCache};
#[cfg(feature = "cust")]
pub use self::cust::CustArgs;
pub use args::{DeviceMemory, DeviceTensor, LaunchArgs};
pub(crate) use cache_memory::CacheMemory;
pub use cudarc::driver::sys::{CUdeviceptr, CUstream};
pub use driver::{device_count, driver_version};
pub use embedded::{EmbeddedModule, MODULES};
pub use gpu::Gpu;
pub use host::HostResult;
pub use launch::StepTime;
pub use merge::MergeArgs;
pub use params::{EncodeMap, KernelParams, TiledBytes};
pub use side::{HostSide, SideArgs};
pub use slices::SliceArgs;
