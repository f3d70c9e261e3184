//! Device memory for the length of a call.

use cudarc::driver::CudaStream;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUdeviceptr, CUresult};

use super::Gpu;
use crate::error::DeviceError;

/// Device memory that one call uses on one stream, freed in the order of that stream.
///
/// It needs no events, as cudarc's buffers do, and every failure of its calls is returned by them.
pub(super) struct Memory<'a> {
    gpu: &'a Gpu,
    stream: &'a CudaStream,
    ptr: CUdeviceptr,
    bytes: usize,
}

impl<'a> Memory<'a> {
    /// `bytes` bytes, uninitialised; at least one. The context of `gpu` is current, and `stream` is of it.
    pub(super) fn new(gpu: &'a Gpu, stream: &'a CudaStream, bytes: usize) -> Result<Memory<'a>, DeviceError> {
        let allocated = if gpu.context().has_async_alloc() {
            // SAFETY: the stream is live; the memory is used on it only, and never read before it is written.
            unsafe { result::malloc_async(stream.cu_stream(), bytes.max(1)) }
        } else {
            // SAFETY: the memory is never read before it is written.
            unsafe { result::malloc_sync(bytes.max(1)) }
        };
        let ptr = gpu.check_allocation(bytes, allocated)?;
        Ok(Memory { gpu, stream, ptr, bytes })
    }

    /// A copy of `bytes`. Page-locked memory may still be read after this returns, until the stream is there.
    pub(super) fn upload(gpu: &'a Gpu, stream: &'a CudaStream, bytes: &[u8]) -> Result<Memory<'a>, DeviceError> {
        let memory = Memory::new(gpu, stream, bytes.len())?;
        if !bytes.is_empty() {
            // SAFETY: as many bytes are allocated there; `run_host` waits for the stream before it gives the
            // caller's memory back.
            let copied = unsafe { result::memcpy_htod_async(memory.ptr, bytes, stream.cu_stream()) };
            gpu.check("copying to the device", copied)?;
        }
        Ok(memory)
    }

    /// The bytes, copied to memory that the driver does not know, so that they are there when this returns.
    pub(super) fn download(&self) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes).map_err(|_| DeviceError::HostMemory { bytes: self.bytes })?;
        bytes.resize(self.bytes, 0u8);
        if self.bytes > 0 {
            // SAFETY: as many bytes are allocated there, and the stream is live.
            let copied = unsafe { result::memcpy_dtoh_async(&mut bytes, self.ptr, self.stream.cu_stream()) };
            self.gpu.check("copying from the device", copied)?;
        }
        Ok(bytes)
    }

    /// The address of the first byte.
    pub(super) fn ptr(&self) -> CUdeviceptr {
        self.ptr
    }

    /// The length.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let freed = if self.gpu.context().has_async_alloc() {
            // SAFETY: allocated by `new` and not freed; what uses it precedes on the stream.
            unsafe { result::free_async(self.ptr, self.stream.cu_stream()) }
        } else {
            // SAFETY: the stream is live. What it still does uses the memory; if waiting fails, it does nothing any
            // more.
            let waited = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
            // SAFETY: allocated by `new` and not freed; nothing uses it any more.
            waited.and(unsafe { result::free_sync(self.ptr) })
        };
        // Nobody is there to be told, but a fault of the device is remembered.
        let _ = self.gpu.check("freeing device memory", freed);
    }
}

impl Gpu {
    /// [`Gpu::check`] of an allocation of `bytes` bytes.
    pub(super) fn check_allocation<T>(&self, bytes: usize, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        match result {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = result::mem_get_info().unwrap_or((0, self.total_bytes()));
                Err(DeviceError::OutOfMemory { bytes, free, total })
            }
            result => self.check("allocating device memory", result),
        }
    }
}
