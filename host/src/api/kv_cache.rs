//! Keys and values that are quantized once and attended to many times.

use sage_spec::Precision;
use sage_spec::cache::{CacheShape, PAGE_TOKENS, PageLayout};

use super::attention::Device;
use super::tensor::{Tensor, TensorView, zeros};
use crate::device::{CacheMemory, Gpu};
use crate::error::{CacheError, DeviceError, Error, Invalid, Operand, PlanError};
use crate::plan::{Capability, DecodePlan, DecodeRequest, cache_arch, check_cache, plan_decode};
use crate::problem::{Layout, TensorSpec};
use crate::reference::{self, DecodeOptions, HostCache};

/// Options of a [`KvCache`].
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Debug, PartialEq)]
pub struct KvCacheOptions {
    shape: CacheShape,
    pages: Option<usize>,
    smooth_k: bool,
    device: Device,
}

impl KvCacheOptions {
    /// A cache for `batch` sequences of up to `capacity` tokens with `num_heads_kv` heads of `head_dim` features (64 or
    /// 128): INT8 keys, smoothed, in memory for all sequences at full length, on [`Device::Auto`].
    pub fn new(batch: usize, num_heads_kv: usize, head_dim: usize, capacity: usize) -> KvCacheOptions {
        let layout = PageLayout { precision: Precision::Int8, head_dim };
        let shape = CacheShape { layout, batch, num_heads_kv, pages_per_sequence: capacity.div_ceil(PAGE_TOKENS) };
        KvCacheOptions { shape, pages: None, smooth_k: true, device: Device::Auto }
    }

    /// Type of K's codes. V is FP8 always.
    pub fn precision(mut self, precision: Precision) -> KvCacheOptions {
        self.shape.layout.precision = precision;
        self
    }

    /// Memory for `pages` pages of 64 tokens only, which sequences take as they grow.
    pub fn paged(mut self, pages: usize) -> KvCacheOptions {
        self.pages = Some(pages);
        self
    }

    /// Whether the token mean of the first keys is subtracted from all keys. Default: yes.
    pub fn smooth_k(mut self, smooth_k: bool) -> KvCacheOptions {
        self.smooth_k = smooth_k;
        self
    }

    /// Where the cache is. Default: [`Device::Auto`].
    pub fn device(mut self, device: Device) -> KvCacheOptions {
        self.device = device;
        self
    }

    /// The empty cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::HeadDim`], [`CacheError::TooLarge`]; [`PlanError`] and [`DeviceError`] if a GPU was asked for
    /// and cannot do it, or if there is not enough memory.
    pub fn build(self) -> Result<KvCache, Error> {
        let KvCacheOptions { shape, pages, smooth_k, device } = self;
        check_cache(&shape)?;
        let all = shape.batch * shape.pages_per_sequence;
        let count = pages.unwrap_or(all);
        if count > u32::MAX as usize / 64 {
            return Err(CacheError::TooLarge { what: "pages", value: count, max: u32::MAX as usize / 64 }.into());
        }
        let on_gpu = |ordinal| -> Result<Store, Error> {
            let gpu = Gpu::shared(ordinal)?;
            cache_arch(gpu.capability())?;
            Ok(Store::Gpu(Box::new(CacheMemory::new(gpu, shape, count, pages.is_some())?)))
        };
        let on_cpu = || -> Result<Store, Error> { Ok(Store::Cpu(zeros(shape.bytes(count), 0u8)?)) };
        let store = match device {
            Device::Cpu => on_cpu()?,
            Device::Cuda(ordinal) => on_gpu(ordinal)?,
            Device::Auto => match on_gpu(0) {
                // There is no GPU to use. Anything else is a fault that must not pass in silence.
                Err(Error::Device(
                    DeviceError::NoDriver
                    | DeviceError::DriverInit { .. }
                    | DeviceError::NoDevice { .. }
                    | DeviceError::ModuleMissing { .. },
                ))
                | Err(Error::Plan(PlanError::KernelNeeds { .. })) => on_cpu()?,
                store => store?,
            },
        };
        let paging = pages.map(|count| Paging { table: vec![0; all], free: (0..count as u32).rev().collect(), count });
        Ok(KvCache { shape, store, paging, smooth_k, mean: None, lengths: vec![0; shape.batch] })
    }
}

/// Which page holds what.
#[derive(Clone, Debug)]
struct Paging {
    table: Vec<u32>,
    free: Vec<u32>,
    count: usize,
}

/// Where the pages are.
#[derive(Debug)]
enum Store {
    Cpu(Vec<u8>),
    Gpu(Box<CacheMemory>),
}

/// How to attend to a cache.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Factor of the scores; `1 / √D` if `None`.
    pub sm_scale: Option<f32>,
    /// Whether query `i` of `M` sees tokens up to `i + N − M` only, `N` being its sequence's length. Default: yes.
    pub causal: bool,
    /// Whether the log-sum-exp is returned.
    pub return_lse: bool,
    /// Pages of 64 tokens that are summed together; chosen for speed if `None`. Results with the same number have the
    /// same bits.
    pub split_pages: Option<usize>,
}

impl Default for Attend {
    fn default() -> Attend {
        Attend { sm_scale: None, causal: true, return_lse: false, split_pages: None }
    }
}

/// What [`KvCache::attend`] returns.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// `[B, Hq, M, D]`, contiguous, of the type of `q`. Rows that see no key are 0.
    pub out: Tensor,
    /// `[B, Hq, M]` natural-log log-sum-exp, if asked for; −∞ for rows that see no key.
    pub lse: Option<Vec<f32>>,
    /// Bytes of the cache that had to be read.
    pub bytes: usize,
}

/// Keys in INT8 or INT4 and values in FP8 of a batch of sequences, on the CPU or a GPU.
///
/// Tokens are quantized when they are appended, each with scales of its own, and never again. For tensors that are on
/// the GPU already there is [`crate::device::Gpu::cache_append`] and [`crate::device::Gpu::decode`].
///
/// ```
/// use sage_attn::{Attend, KvCacheOptions, Layout, TensorView};
///
/// // Two sequences, 8 query heads on 2 key/value heads of 64 features.
/// let mut cache = KvCacheOptions::new(2, 2, 64, 1000).build()?;
/// let prompt: Vec<f32> = (0..2 * 2 * 100 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let prompt = TensorView::new(&prompt, &[2, 2, 100, 64], Layout::Hnd)?;
/// cache.append(&prompt, &prompt)?;
///
/// let token = vec![0.5f32; 2 * 2 * 64];
/// let token = TensorView::new(&token, &[2, 2, 1, 64], Layout::Hnd)?;
/// cache.append(&token, &token)?;
/// assert_eq!(cache.lengths(), [101, 101]);
///
/// let q = vec![0.1f32; 2 * 8 * 64];
/// let q = TensorView::new(&q, &[2, 8, 1, 64], Layout::Hnd)?;
/// let attended = cache.attend(&q, &Attend::default())?;
/// assert_eq!(attended.out.shape(), [2, 8, 1, 64]);
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    store: Store,
    paging: Option<Paging>,
    smooth_k: bool,
    mean: Option<Vec<f32>>,
    lengths: Vec<usize>,
}

impl KvCache {
    /// Tokens of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Extents.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// `cpu` or `cuda:N`.
    pub fn device(&self) -> String {
        match &self.store {
            Store::Cpu(_) => "cpu".into(),
            Store::Gpu(memory) => format!("cuda:{}", memory.gpu().ordinal()),
        }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        let all = self.shape.batch * self.shape.pages_per_sequence;
        self.shape.bytes(self.paging.as_ref().map_or(all, |paging| paging.count))
    }

    /// Pages that no sequence has; `None` if the cache is not paged.
    pub fn free_pages(&self) -> Option<usize> {
        self.paging.as_ref().map(|paging| paging.free.len())
    }

    /// What is subtracted from every key, `[B, Hkv, D]`.
    pub fn mean(&self) -> Option<&[f32]> {
        self.mean.as_deref()
    }

    /// Sets what is subtracted from every key, `[B, Hkv, D]`, in place of the mean of the first keys. Softmax does not
    /// notice; keys around zero have smaller codes' errors.
    ///
    /// # Errors
    ///
    /// [`CacheError::MeanLength`], [`CacheError::MeanTooLate`] if there are tokens already.
    pub fn set_mean(&mut self, mean: &[f32]) -> Result<(), Error> {
        let expected = self.shape.batch * self.shape.num_heads_kv * self.shape.layout.head_dim;
        if mean.len() != expected {
            return Err(CacheError::MeanLength { len: mean.len(), expected }.into());
        }
        if let Some((sequence, &length)) = self.lengths.iter().enumerate().find(|(_, length)| **length > 0) {
            return Err(CacheError::MeanTooLate { sequence, length }.into());
        }
        if let Store::Gpu(memory) = &mut self.store {
            memory.set_mean(mean)?;
        }
        self.mean = Some(mean.to_vec());
        Ok(())
    }

    /// Appends the tokens of `k` and `v`, `[B, Hkv, n, D]`, to every sequence. Prompts of different lengths are padded,
    /// appended and [truncated](KvCache::truncate).
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`], [`CacheError::CapacityExceeded`], [`CacheError::PagesExhausted`], [`Invalid`];
    /// [`DeviceError`]. The cache has then changed only if the device failed.
    pub fn append(&mut self, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<(), Error> {
        let shape = self.shape;
        for (tensor, spec) in [(Operand::K, k.spec()), (Operand::V, v.spec())] {
            let [batch, heads, _, head_dim] = spec.shape;
            if [batch, heads, head_dim] != [shape.batch, shape.num_heads_kv, shape.layout.head_dim] {
                let expected = format!("[{}, {}, n, {}]", shape.batch, shape.num_heads_kv, shape.layout.head_dim);
                return Err(CacheError::Shape { tensor, shape: spec.shape, expected }.into());
            }
        }
        let tokens = k.spec().shape[2];
        if v.spec().shape[2] != tokens {
            return Err(Invalid::SeqlenKvMismatch { seqlen: v.spec().shape[2], expected: tokens }.into());
        }
        if v.spec().dtype != k.spec().dtype {
            let (dtype, expected) = (v.spec().dtype, k.spec().dtype);
            return Err(Invalid::DTypeMismatch { tensor: Operand::V, dtype, expected }.into());
        }
        let capacity = shape.capacity();
        if let Some((sequence, &length)) = self.lengths.iter().enumerate().find(|(_, len)| tokens > capacity - **len) {
            return Err(CacheError::CapacityExceeded { sequence, length, tokens, capacity }.into());
        }
        if k.spec().is_empty() {
            return Ok(());
        }
        self.take_pages(tokens)?;
        if self.smooth_k && self.mean.is_none() {
            let head_dim = shape.layout.head_dim;
            let mean = reference::cache_mean(&k.host(), shape.batch, shape.num_heads_kv, tokens, head_dim);
            self.set_mean(&mean)?;
        }
        let table = self.paging.as_ref().map(|paging| &paging.table[..]);
        match &mut self.store {
            Store::Cpu(pages) => {
                let mean = self.mean.as_deref();
                reference::cache_append(&shape, pages, table, mean, &k.host(), &v.host(), tokens, &self.lengths);
            }
            Store::Gpu(memory) => {
                if let Some(table) = table {
                    memory.set_block_table(table)?;
                }
                let lengths = words(&self.lengths);
                memory.append(&lengths, [(k.span_bytes()?, k.spec()), (v.span_bytes()?, v.spec())])?;
            }
        }
        self.lengths.iter_mut().for_each(|length| *length += tokens);
        Ok(())
    }

    /// Gives every sequence the pages for `tokens` more tokens, or none to any.
    fn take_pages(&mut self, tokens: usize) -> Result<(), CacheError> {
        let Some(Paging { table, free, count }) = &mut self.paging else { return Ok(()) };
        let pages = |length: &usize| length.div_ceil(PAGE_TOKENS)..(length + tokens).div_ceil(PAGE_TOKENS);
        let needed: usize = self.lengths.iter().map(|length| pages(length).len()).sum();
        if needed > free.len() {
            return Err(CacheError::PagesExhausted { needed, free: free.len(), pages: *count });
        }
        for (sequence, length) in self.lengths.iter().enumerate() {
            let entries = pages(length).map(|page| self.shape.entry(sequence, page));
            entries.zip(std::iter::from_fn(|| free.pop())).for_each(|(entry, page)| table[entry] = page);
        }
        Ok(())
    }

    /// Forgets all tokens of a sequence but the first `length`, and frees their pages.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoSequence`]; [`CacheError::Length`] if there are fewer.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<(), Error> {
        let Some(&old) = self.lengths.get(sequence) else {
            return Err(CacheError::NoSequence { sequence, batch: self.shape.batch }.into());
        };
        if length > old {
            return Err(CacheError::Length { sequence, length, max: old }.into());
        }
        if let Some(Paging { table, free, .. }) = &mut self.paging {
            let pages = length.div_ceil(PAGE_TOKENS)..old.div_ceil(PAGE_TOKENS);
            free.extend(pages.map(|page| table[self.shape.entry(sequence, page)]));
        }
        self.lengths[sequence] = length;
        Ok(())
    }

    /// Attention of `q`, `[B, Hq, M, D]` with `M` from 1 to 16, over all tokens of each sequence; the queries are those
    /// of the last `M` of them.
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`], [`CacheError::SeqlenQ`], [`Invalid`] for bad input; [`DeviceError`].
    pub fn attend(&mut self, q: &TensorView<'_>, options: &Attend) -> Result<Attended, Error> {
        let spec = TensorSpec::new(Operand::Q, q.spec().dtype, &q.spec().shape, Layout::Hnd)?;
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let request = DecodeRequest {
            sm_scale: options.sm_scale,
            causal: options.causal,
            return_lse: options.return_lse,
            split_pages: options.split_pages,
            ..DecodeRequest::new(self.shape, spec, spec, longest)
        };
        let plan = plan_decode(&request, &self.capability())?;
        let bytes = plan.cache_bytes(self.lengths.iter().sum());
        let mut out = Tensor::zeros(spec.dtype, spec.shape)?;
        if plan.is_empty() {
            return Ok(Attended { out, lse: options.return_lse.then(Vec::new), bytes });
        }
        let lse = match &mut self.store {
            Store::Cpu(pages) => {
                let output =
                    on_cpu(&self.shape, pages, self.paging.as_ref(), self.mean.as_deref(), &plan, q, &self.lengths);
                out.view_mut()?.store_f32(&output.out);
                options.return_lse.then_some(output.lse)
            }
            Store::Gpu(memory) => {
                if let Some(paging) = &self.paging {
                    memory.set_block_table(&paging.table)?;
                }
                let dense = contiguous(q)?;
                let view = dense.view()?;
                let (result, lse) = memory.decode(&plan, &words(&self.lengths), (view.span_bytes()?, view.spec()))?;
                out.view_mut()?.store_bytes(&result);
                lse
            }
        };
        Ok(Attended { out, lse, bytes })
    }

    /// What plans need to know about the device. The CPU is planned for like a GPU with a multiprocessor for each thread:
    /// the plan's splits decide the order of its sums.
    fn capability(&self) -> Capability {
        match &self.store {
            Store::Gpu(memory) => *memory.gpu().capability(),
            Store::Cpu(_) => Capability { major: 9, minor: 0, sm_count: 1, smem_opt_in: 232_448 },
        }
    }
}

fn words(lengths: &[usize]) -> Vec<u32> {
    // A capacity fits 31 bits.
    lengths.iter().map(|&length| length as u32).collect()
}

/// The tensor without gaps.
fn contiguous(tensor: &TensorView<'_>) -> Result<Tensor, Error> {
    let [batch, heads, tokens, head_dim] = tensor.spec().shape;
    let mut values = zeros(batch * heads * tokens * head_dim, 0.0f32)?;
    for (row, values) in values.chunks_mut(head_dim.max(1)).enumerate() {
        tensor.host().row(row / tokens / heads, row / tokens % heads, row % tokens, values);
    }
    let mut dense = Tensor::zeros(tensor.spec().dtype, tensor.spec().shape)?;
    // Widening and rounding back is exact.
    dense.view_mut()?.store_f32(&values);
    Ok(dense)
}

fn on_cpu(
    shape: &CacheShape,
    pages: &[u8],
    paging: Option<&Paging>,
    k_mean: Option<&[f32]>,
    plan: &DecodePlan,
    q: &TensorView<'_>,
    lengths: &[usize],
) -> reference::Output {
    let [_, num_heads_q, seqlen_q, _] = q.spec().shape;
    let block_table = paging.map(|paging| &paging.table[..]);
    let cache = HostCache { shape: *shape, pages, block_table, k_mean };
    let (causal, sm_scale, split_pages) = (plan.request().causal, plan.sm_scale(), plan.split_pages());
    let options = DecodeOptions { num_heads_q, seqlen_q, sm_scale, causal, split_pages };
    reference::decode(&cache, &q.host(), lengths, &options)
}
