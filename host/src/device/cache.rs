//! The quantized cache in device memory: filling it, and attention over it.

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use sage_spec::cache::{self, AppendParams, CacheArg, CacheShape, MEAN_CTA, MEAN_SYMBOL, MeanParams};
use sage_spec::decode::DecodeParams;
use sage_spec::limits::{MAX_SEQLEN, VECTOR_BYTES, WORKSPACE_ALIGN};
use sage_spec::quant::LOG2_E;

use super::Gpu;
use super::args::{DeviceMemory, DeviceTensor, Range, check_disjoint, check_planned};
use crate::error::{CacheError, Error, Invalid, Operand};
use crate::plan::{DecodePlan, Entry, Kernel, cache_arch, check_cache};
use crate::problem::TensorSpec;

/// A cache in device memory of the caller: pages of 64 tokens, `docs/kv_cache.md`.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCache {
    /// Extents.
    pub shape: CacheShape,
    /// Pages `[pages, Hkv, page_bytes]`, zeroed once when the cache is made, at a multiple of 16 bytes. Without a block
    /// table there are `B · pages_per_sequence`.
    pub pages: DeviceMemory,
    /// f32 `[B, Hkv, D]`: subtracted from every key that is appended. It may change for a sequence only while the
    /// sequence is empty. `None`: K is not smoothed.
    pub k_mean: Option<CUdeviceptr>,
    /// u32 `[B, pages_per_sequence]`: the page of each 64 tokens. Entries that a sequence's length reaches must be
    /// less than the number of pages; others are not looked at.
    pub block_table: Option<CUdeviceptr>,
}

impl DeviceCache {
    /// Checks a block table that the caller has on the host, before it goes to the device: that sequences of these
    /// lengths fit, and that each page they reach exists.
    ///
    /// # Errors
    ///
    /// [`CacheError::TooSmall`] if the table or the lengths are not all there, [`CacheError::Length`],
    /// [`CacheError::PageOutOfRange`].
    pub fn check_block_table(&self, table: &[u32], lengths: &[usize]) -> Result<(), CacheError> {
        let shape = &self.shape;
        let there = |what, entries: usize, needed: usize| match entries < needed {
            true => Err(CacheError::TooSmall { what, bytes: entries * 4, needed: needed * 4 }),
            false => Ok(()),
        };
        there("the block table", table.len(), shape.batch * shape.pages_per_sequence)?;
        there("the lengths", lengths.len(), shape.batch)?;
        let pages = self.pages.bytes / shape.bytes(1).max(1);
        for (sequence, &length) in lengths.iter().enumerate().take(shape.batch) {
            if length > shape.capacity() {
                return Err(CacheError::Length { sequence, length, max: shape.capacity() });
            }
            for entry in 0..length.div_ceil(cache::PAGE_TOKENS) {
                let page = table[shape.entry(sequence, entry)];
                if page as usize >= pages {
                    return Err(CacheError::PageOutOfRange { sequence, entry, page, pages });
                }
            }
        }
        Ok(())
    }

    /// The cache as kernels take it, after checking what extents and addresses tell; and its ranges of memory.
    fn arg(&self) -> Result<(CacheArg, Vec<Range>), Error> {
        let shape = &self.shape;
        check_cache(shape)?;
        let pages = shape.batch * shape.pages_per_sequence;
        if self.block_table.is_none() && self.pages.bytes < shape.bytes(pages) {
            let (bytes, needed) = (self.pages.bytes, shape.bytes(pages));
            return Err(CacheError::TooSmall { what: "the memory of the pages", bytes, needed }.into());
        }
        let mut ranges = Vec::with_capacity(3);
        ranges.extend(Range::new(Operand::Cache, self.pages.ptr, self.pages.bytes, VECTOR_BYTES)?);
        if let Some(mean) = self.k_mean {
            ranges.extend(Range::new(
                Operand::KMean,
                mean,
                shape.batch * shape.num_heads_kv * shape.layout.head_dim * 4,
                4,
            )?);
        }
        if let Some(table) = self.block_table {
            ranges.extend(Range::new(Operand::BlockTable, table, pages * 4, 4)?);
        }
        let arg = CacheArg {
            pages: self.pages.ptr,
            k_mean: self.k_mean.unwrap_or(0),
            block_table: self.block_table.unwrap_or(0),
            // `check_cache` has bounded both.
            pages_per_sequence: shape.pages_per_sequence as u32,
            num_heads_kv: shape.num_heads_kv as u32,
        };
        Ok((arg, ranges))
    }
}

/// Everything [`Gpu::cache_append`] reads and writes.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendArgs {
    /// Where the tokens go.
    pub cache: DeviceCache,
    /// New keys, `[B, Hkv, n, D]`, of any strides.
    pub k: DeviceTensor,
    /// New values, likewise.
    pub v: DeviceTensor,
    /// u32 `[B]`: tokens that each sequence has already. Tokens beyond the capacity are dropped.
    pub lengths: CUdeviceptr,
}

/// The range of a tensor that is read or written.
fn range_of(operand: Operand, tensor: &DeviceTensor) -> Result<Option<Range>, Invalid> {
    tensor.spec.check(operand, operand == Operand::Out)?;
    let element = tensor.spec.dtype.bytes();
    Range::new(operand, tensor.ptr, tensor.spec.span_elems(operand)? * element, element)
}

/// Checks that `spec` is `[B, Hkv, n, D]` of `shape`.
fn check_new(operand: Operand, spec: &TensorSpec, shape: &CacheShape) -> Result<(), CacheError> {
    let [batch, heads, tokens, head_dim] = spec.shape;
    if [batch, heads, head_dim] != [shape.batch, shape.num_heads_kv, shape.layout.head_dim] || tokens > MAX_SEQLEN {
        let expected = format!("[{}, {}, n, {}]", shape.batch, shape.num_heads_kv, shape.layout.head_dim);
        return Err(CacheError::Shape { tensor: operand, shape: spec.shape, expected });
    }
    Ok(())
}

impl AppendArgs {
    /// The kernel's parameters, after checking what extents and addresses tell.
    ///
    /// # Errors
    ///
    /// [`CacheError`], [`Invalid`].
    pub fn params(&self) -> Result<AppendParams, Error> {
        let (cache, written) = self.cache.arg()?;
        check_new(Operand::K, &self.k.spec, &self.cache.shape)?;
        check_new(Operand::V, &self.v.spec, &self.cache.shape)?;
        if self.v.spec.shape[2] != self.k.spec.shape[2] {
            let (seqlen, expected) = (self.v.spec.shape[2], self.k.spec.shape[2]);
            return Err(Invalid::SeqlenKvMismatch { seqlen, expected }.into());
        }
        if self.v.spec.dtype != self.k.spec.dtype {
            let (dtype, expected) = (self.v.spec.dtype, self.k.spec.dtype);
            return Err(Invalid::DTypeMismatch { tensor: Operand::V, dtype, expected }.into());
        }
        let mut read = Vec::with_capacity(3);
        read.extend(range_of(Operand::K, &self.k)?);
        read.extend(range_of(Operand::V, &self.v)?);
        read.extend(Range::new(Operand::Lengths, self.lengths, self.cache.shape.batch * 4, 4)?);
        // Pages are written, mean and table read.
        let mut written = written.into_iter();
        let pages: Vec<Range> = written.by_ref().take(1).collect();
        read.extend(written);
        check_disjoint(&pages, &read)?;
        Ok(AppendParams {
            k: self.k.arg(),
            v: self.v.arg(),
            cache,
            lengths: self.lengths,
            num_tokens: self.k.spec.shape[2] as u32,
            dtype: self.k.spec.dtype.code(),
            vectorized: self.k.vectorized() & self.v.vectorized(),
            reserved: 0,
        })
    }

    /// The kernel and its grid.
    pub fn launch(&self) -> (Entry, [usize; 2]) {
        let shape = &self.cache.shape;
        let symbol = format!("cache_append_{}", shape.layout.suffix());
        let entry = Entry { kernel: Kernel::Quantize, symbol, cta: cache::append(&shape.layout) };
        (entry, cache::append_grid(shape.batch, shape.num_heads_kv, self.k.spec.shape[2]))
    }
}

/// Everything [`Gpu::decode`] reads and writes.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeArgs {
    /// Keys and values.
    pub cache: DeviceCache,
    /// Queries, `[B, Hq, M, D]`; address and strides at multiples of 16 bytes.
    pub q: DeviceTensor,
    /// Output, of the same shape; likewise.
    pub out: DeviceTensor,
    /// f32 `[B, Hq, M]`, present exactly if the plan returns the log-sum-exp.
    pub lse: Option<CUdeviceptr>,
    /// u32 `[B]`: tokens of each sequence, those of the queries included. Tokens beyond the longest length of the plan
    /// are not seen.
    pub lengths: CUdeviceptr,
    /// Scratch memory of at least [`DecodePlan::workspace_bytes`], at a multiple of 256 bytes.
    pub workspace: DeviceMemory,
    /// At least [`DecodePlan::counter_bytes`], zeroed once; every launch leaves them zero. Launches that may overlap in
    /// time need counters and workspaces of their own.
    pub counters: DeviceMemory,
}

impl DecodeArgs {
    /// The kernel's parameters, after checking what extents and addresses tell.
    ///
    /// # Errors
    ///
    /// [`CacheError`], [`Invalid`].
    pub fn params(&self, plan: &DecodePlan) -> Result<DecodeParams, Error> {
        let request = plan.request();
        let (cache, mut read) = self.cache.arg()?;
        if self.cache.shape != request.cache {
            let words = |shape: &CacheShape| format!("{shape:?}");
            let (got, planned) = (words(&self.cache.shape), words(&request.cache));
            return Err(Invalid::LaunchMismatch { tensor: Operand::Cache, got, planned }.into());
        }
        check_planned(Operand::Q, &self.q.spec, &request.q)?;
        check_planned(Operand::Out, &self.out.spec, &request.out)?;
        for (operand, tensor) in [(Operand::Q, &self.q), (Operand::Out, &self.out)] {
            if tensor.vectorized() == 0 {
                let (address, strides) = (tensor.ptr, tensor.spec.strides);
                return Err(CacheError::Alignment { tensor: operand, address, strides }.into());
            }
        }
        if self.lse.is_some() != request.return_lse {
            return Err(Invalid::LsePresence { planned: request.return_lse }.into());
        }
        let (needed, counters) = (plan.workspace_bytes(), plan.counter_bytes());
        if self.workspace.bytes < needed {
            return Err(Invalid::WorkspaceTooSmall { bytes: self.workspace.bytes, needed }.into());
        }
        if self.counters.bytes < counters {
            let bytes = self.counters.bytes;
            return Err(CacheError::TooSmall { what: "the memory of the counters", bytes, needed: counters }.into());
        }
        let [batch, heads_q, seqlen_q, _] = request.q.shape;
        read.extend(range_of(Operand::Q, &self.q)?);
        read.extend(Range::new(Operand::Lengths, self.lengths, batch * 4, 4)?);
        let mut written = Vec::with_capacity(4);
        written.extend(range_of(Operand::Out, &self.out)?);
        written.extend(Range::new(Operand::Workspace, self.workspace.ptr, needed, WORKSPACE_ALIGN)?);
        written.extend(Range::new(Operand::Counters, self.counters.ptr, counters, 4)?);
        if let Some(lse) = self.lse {
            written.extend(Range::new(Operand::Lse, lse, batch * heads_q * seqlen_q * 4, 4)?);
        }
        check_disjoint(&written, &read)?;
        // The plan has bounded every count.
        Ok(DecodeParams {
            q: self.q.arg(),
            out: self.out.arg(),
            cache,
            lengths: self.lengths,
            lse: self.lse.unwrap_or(0),
            partials: self.workspace.ptr,
            counters: self.counters.ptr,
            scale_log2: plan.sm_scale() * LOG2_E,
            sm_scale: plan.sm_scale(),
            num_heads_q: heads_q as u32,
            gqa_group: plan.gqa_group() as u32,
            seqlen_q: seqlen_q as u32,
            row_tiles: plan.row_tiles() as u32,
            splits: plan.splits() as u32,
            split_pages: plan.split_pages() as u32,
            causal: request.causal.into(),
            dtype: request.q.dtype.code(),
            out_dtype: request.out.dtype.code(),
            reserved: 0,
        })
    }
}

impl Gpu {
    /// Quantizes new tokens into a cache. Submits one kernel to `stream` and returns without waiting; may be captured
    /// into a graph once it has run (which loads the kernel). The lengths are not changed.
    ///
    /// # Safety
    ///
    /// The stream is live and of this context. The memory of the cache, the elements that `k` and `v` reach and the
    /// lengths are device memory of this GPU that stays allocated until the stream has run the kernel; until then nobody
    /// writes what is read or uses the pages that are written. Entries of the block table that the new tokens reach
    /// are less than the number of pages, and no page is in two of them.
    ///
    /// # Errors
    ///
    /// [`CacheError`] or [`Invalid`] if extents or addresses are wrong; [`crate::error::PlanError`] below compute
    /// capability 8.9; [`crate::error::DeviceError`] if loading or launching fails.
    pub unsafe fn cache_append(&self, args: &AppendArgs, stream: CUstream) -> Result<(), Error> {
        let params = args.params()?;
        if args.k.spec.is_empty() {
            return Ok(());
        }
        let (entry, grid) = args.launch();
        // SAFETY: the kernel of that name takes this struct; addresses have been checked as far as they can be, and
        // the rest is the caller's promise.
        unsafe { self.launch_cache(&entry, grid, &params, stream) }
    }

    /// The token mean of `k`, `[B, Hkv, n, D]`, to f32 `[B, Hkv, D]` at `mean`: what [`DeviceCache::k_mean`] wants
    /// to be, from a first chunk of keys. Otherwise as [`Gpu::cache_append`].
    ///
    /// # Safety
    ///
    /// As [`Gpu::cache_append`], of `k` and the `4 B Hkv D` bytes at `mean`.
    ///
    /// # Errors
    ///
    /// As [`Gpu::cache_append`].
    pub unsafe fn cache_mean(&self, k: &DeviceTensor, mean: CUdeviceptr, stream: CUstream) -> Result<(), Error> {
        let params = mean_params(k, mean)?;
        let [batch, heads, ..] = k.spec.shape;
        if k.spec.is_empty() {
            return Ok(());
        }
        let entry = Entry { kernel: Kernel::Quantize, symbol: MEAN_SYMBOL.into(), cta: MEAN_CTA };
        // SAFETY: as in `cache_append`.
        unsafe { self.launch_cache(&entry, [batch * heads, 1], &params, stream) }
    }

    /// Attention over a cache. Submits one kernel to `stream` and returns without waiting; may be captured into a graph
    /// once it has run, and replayed while the sequences grow, because their lengths are read when it runs.
    ///
    /// # Safety
    ///
    /// As [`Gpu::cache_append`], of everything in `args`: until the stream has run the kernel nobody writes what is
    /// read, and nobody uses what is written. The counters are zero.
    ///
    /// # Errors
    ///
    /// As [`Gpu::cache_append`].
    pub unsafe fn decode(&self, plan: &DecodePlan, args: &DecodeArgs, stream: CUstream) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        let params = args.params(plan)?;
        // SAFETY: as in `cache_append`.
        unsafe { self.launch_cache(plan.entry(), plan.grid(), &params, stream) }
    }

    /// # Safety
    ///
    /// As [`Gpu::launch_kernel`].
    unsafe fn launch_cache<P: Copy>(
        &self,
        entry: &Entry,
        grid: [usize; 2],
        params: &P,
        stream: CUstream,
    ) -> Result<(), Error> {
        let arch = cache_arch(self.capability())?;
        self.bind()?;
        self.check_stream(stream)?;
        // SAFETY: forwarded; every grid was bounded when its extents were checked.
        unsafe { self.launch_kernel(arch, entry, grid.map(|ctas| ctas as u32), params, stream) }
    }
}

/// Parameters of `cache_mean`.
///
/// # Errors
///
/// [`CacheError`], [`Invalid`].
fn mean_params(k: &DeviceTensor, mean: CUdeviceptr) -> Result<MeanParams, Error> {
    let [batch, heads, tokens, head_dim] = k.spec.shape;
    if !cache::HEAD_DIMS.contains(&head_dim) {
        return Err(CacheError::HeadDim { head_dim }.into());
    }
    let grid = batch.saturating_mul(heads);
    if grid > sage_spec::limits::MAX_GRID_Y || tokens > MAX_SEQLEN {
        let (value, max) = (grid.max(tokens), MAX_SEQLEN);
        return Err(CacheError::TooLarge { what: "batch * heads, or tokens,", value, max }.into());
    }
    let read: Vec<Range> = range_of(Operand::K, k)?.into_iter().collect();
    let written: Vec<Range> = Range::new(Operand::KMean, mean, grid * head_dim * 4, 4)?.into_iter().collect();
    check_disjoint(&written, &read)?;
    Ok(MeanParams {
        k: k.arg(),
        mean,
        num_tokens: tokens as u32,
        num_heads_kv: heads as u32,
        head_dim: head_dim as u32,
        dtype: k.spec.dtype.code(),
    })
}
