//! A cache that owns its memory on a GPU, for callers whose tensors are in host memory.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use sage_spec::cache::CacheShape;

use super::cache::{AppendArgs, DecodeArgs, DeviceCache};
use super::{DeviceMemory, DeviceTensor, Gpu};
use crate::error::{DeviceError, Error, Operand};
use crate::plan::DecodePlan;
use crate::problem::TensorSpec;

/// Pages, means, block table and lengths in device memory, and a stream on which all of them are used.
#[derive(Debug)]
pub(crate) struct CacheMemory {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    shape: CacheShape,
    pages: CudaSlice<u8>,
    page_bytes: usize,
    k_mean: Option<CudaSlice<u8>>,
    block_table: Option<CudaSlice<u8>>,
    lengths: CudaSlice<u8>,
    counters: CudaSlice<u8>,
}

impl CacheMemory {
    /// An empty cache of `pages` pages.
    pub(crate) fn new(gpu: Arc<Gpu>, shape: CacheShape, pages: usize, paged: bool) -> Result<CacheMemory, Error> {
        let stream = gpu.own_stream()?;
        let page_bytes = shape.bytes(pages);
        let zeros = |bytes: usize| -> Result<CudaSlice<u8>, DeviceError> {
            let mut memory = gpu.alloc(&stream, bytes)?;
            gpu.check("clearing device memory", stream.memset_zeros(&mut memory))?;
            Ok(memory)
        };
        let block_table = paged.then(|| zeros(shape.batch * shape.pages_per_sequence * 4)).transpose()?;
        let (pages, lengths, counters) = (zeros(page_bytes)?, zeros(shape.batch * 4)?, zeros(4)?);
        Ok(CacheMemory { gpu, stream, shape, pages, page_bytes, k_mean: None, block_table, lengths, counters })
    }

    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    fn put_words(&mut self, words: &[u32], to: fn(&mut CacheMemory) -> &mut CudaSlice<u8>) -> Result<(), Error> {
        if !words.is_empty() {
            let (stream, gpu) = (self.stream.clone(), self.gpu.clone());
            gpu.bind()?;
            let copied = stream.memcpy_htod(bytemuck::cast_slice(words), to(self));
            gpu.check("copying to the device", copied)?;
        }
        Ok(())
    }

    /// Sets the block table, of a cache that was made with one.
    pub(crate) fn set_block_table(&mut self, table: &[u32]) -> Result<(), Error> {
        if self.block_table.is_none() {
            return Ok(());
        }
        self.put_words(table, |cache| cache.block_table.as_mut().unwrap_or(&mut cache.lengths))
    }

    /// Sets the means of K.
    pub(crate) fn set_mean(&mut self, mean: &[f32]) -> Result<(), Error> {
        self.gpu.bind()?;
        let mut memory = self.gpu.alloc(&self.stream, mean.len() * 4)?;
        self.gpu.check(
            "copying to the device",
            self.stream.memcpy_htod(bytemuck::cast_slice(mean), &mut memory.slice_mut(..mean.len() * 4)),
        )?;
        self.k_mean = Some(memory);
        Ok(())
    }

    /// Appends tokens whose bytes and layout these are, behind `lengths` tokens of each sequence.
    pub(crate) fn append(&mut self, lengths: &[u32], [k, v]: [(&[u8], &TensorSpec); 2]) -> Result<(), Error> {
        self.put_words(lengths, |cache| &mut cache.lengths)?;
        let [k_memory, v_memory] = [k, v].map(|(bytes, _)| self.gpu.upload_bytes(&self.stream, bytes));
        let (k_memory, v_memory) = (k_memory?, v_memory?);
        let stream = self.stream.clone();
        {
            let (k_ptr, _k) = k_memory.device_ptr(&stream);
            let (v_ptr, _v) = v_memory.device_ptr(&stream);
            let (cache, lengths) = self.device_cache();
            let args = AppendArgs {
                cache,
                k: DeviceTensor { ptr: k_ptr, spec: *k.1 },
                v: DeviceTensor { ptr: v_ptr, spec: *v.1 },
                lengths,
            };
            // SAFETY: all memory was allocated on this stream in this context and is used on it only; the tensors'
            // spans are what was uploaded; the caller has checked lengths and block table.
            unsafe { self.gpu.cache_append(&args, stream.cu_stream()) }?;
        }
        Ok(self.gpu.check("running the kernels", stream.synchronize())?)
    }

    /// Attends; returns the bytes of the contiguous output and the log-sum-exp if the plan has one.
    pub(crate) fn decode(
        &mut self,
        plan: &DecodePlan,
        lengths: &[u32],
        q: (&[u8], &TensorSpec),
    ) -> Result<(Vec<u8>, Option<Vec<f32>>), Error> {
        self.put_words(lengths, |cache| &mut cache.lengths)?;
        let (gpu, stream) = (self.gpu.clone(), self.stream.clone());
        if self.counters.len() < plan.counter_bytes() {
            let mut counters = gpu.alloc(&stream, plan.counter_bytes())?;
            gpu.check("clearing device memory", stream.memset_zeros(&mut counters))?;
            self.counters = counters;
        }
        let request = plan.request();
        let out_bytes = request.out.span_elems(Operand::Out)? * request.out.dtype.bytes();
        let [batch, heads, tokens, _] = request.q.shape;
        let lse_bytes = batch * heads * tokens * 4;
        let q_memory = gpu.upload_bytes(&stream, q.0)?;
        let mut out = gpu.alloc(&stream, out_bytes)?;
        let mut lse = request.return_lse.then(|| gpu.alloc(&stream, lse_bytes)).transpose()?;
        let mut workspace = gpu.alloc(&stream, plan.workspace_bytes())?;
        {
            let (q_ptr, _q) = q_memory.device_ptr(&stream);
            let (out_ptr, _out) = out.device_ptr_mut(&stream);
            let lse = lse.as_mut().map(|lse| lse.device_ptr_mut(&stream));
            let (workspace_ptr, _workspace) = workspace.device_ptr_mut(&stream);
            let (cache, lengths) = self.device_cache();
            let args = DecodeArgs {
                cache,
                q: DeviceTensor { ptr: q_ptr, spec: *q.1 },
                out: DeviceTensor { ptr: out_ptr, spec: request.out },
                lse: lse.as_ref().map(|(ptr, _)| *ptr),
                lengths,
                workspace: DeviceMemory { ptr: workspace_ptr, bytes: plan.workspace_bytes() },
                counters: DeviceMemory { ptr: self.counters.device_ptr(&stream).0, bytes: plan.counter_bytes() },
            };
            // SAFETY: as in `append`; the counters are zero before and after each launch, which this waits for.
            unsafe { gpu.decode(plan, &args, stream.cu_stream()) }?;
        }
        let out = gpu.download(&stream, &out, out_bytes)?;
        let lse = lse.map(|lse| gpu.download(&stream, &lse, lse_bytes)).transpose()?;
        gpu.check("running the kernels", stream.synchronize())?;
        Ok((out, lse.map(|bytes| bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())))
    }

    /// Where everything is, and the lengths.
    fn device_cache(&self) -> (DeviceCache, u64) {
        let ptr = |memory: &CudaSlice<u8>| memory.device_ptr(&self.stream).0;
        let cache = DeviceCache {
            shape: self.shape,
            pages: DeviceMemory { ptr: ptr(&self.pages), bytes: self.page_bytes },
            k_mean: self.k_mean.as_ref().map(ptr),
            block_table: self.block_table.as_ref().map(ptr),
        };
        (cache, ptr(&self.lengths))
    }
}

impl Gpu {
    /// Copies bytes to the device.
    fn upload_bytes(&self, stream: &Arc<CudaStream>, bytes: &[u8]) -> Result<CudaSlice<u8>, Error> {
        let mut memory = self.alloc(stream, bytes.len())?;
        if !bytes.is_empty() {
            self.check("copying to the device", stream.memcpy_htod(bytes, &mut memory))?;
        }
        Ok(memory)
    }

    /// Copies the first `len` bytes of `memory` to the host.
    fn download(&self, stream: &Arc<CudaStream>, memory: &CudaSlice<u8>, len: usize) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| DeviceError::HostMemory { bytes: len })?;
        bytes.resize(len, 0);
        if len > 0 {
            let from = memory.slice(..len);
            self.check("copying from the device", stream.memcpy_dtoh(&from, bytes.as_mut_slice()))?;
        }
        Ok(bytes)
    }
}
