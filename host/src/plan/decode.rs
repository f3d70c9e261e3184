//! Plans for attention over a quantized cache: which kernel, and how the keys are split among CTAs.

use sage_spec::cache::{CacheShape, HEAD_DIMS, PageLayout};
use sage_spec::decode::{self, CTAS_PER_SM, MAX_SEQLEN_Q, warp_groups};
use sage_spec::limits::{MAX_GRID, MAX_GRID_Y, MAX_SEQLEN};
use sage_spec::symbol::Arch;

use super::{Capability, Entry, Kernel};
use crate::error::{CacheError, Error, Invalid, Operand, PlanError};
use crate::problem::TensorSpec;

/// What attention over a cache is asked for.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeRequest {
    /// Extents of the cache.
    pub cache: CacheShape,
    /// Queries, `[B, Hq, M, D]` with `M` from 1 to 16.
    pub q: TensorSpec,
    /// Output, of the shape of `q`.
    pub out: TensorSpec,
    /// Tokens of the longest sequence that the plan is used for; lengths themselves are given at launch.
    pub max_length: usize,
    /// Factor of the scores; `1 / √D` if `None`.
    pub sm_scale: Option<f32>,
    /// Whether row `i` of `M` sees keys up to `i + N − M` only.
    pub causal: bool,
    /// Whether the log-sum-exp is returned.
    pub return_lse: bool,
    /// Pages whose keys a CTA sums; chosen to keep all multiprocessors busy if `None`. The result depends on it
    /// within rounding; the same number gives the same bits, whatever the batch.
    pub split_pages: Option<usize>,
}

impl DecodeRequest {
    /// Causal attention of `q` over sequences of up to `max_length` tokens.
    pub fn new(cache: CacheShape, q: TensorSpec, out: TensorSpec, max_length: usize) -> DecodeRequest {
        let (sm_scale, split_pages) = (None, None);
        DecodeRequest { cache, q, out, max_length, sm_scale, causal: true, return_lse: false, split_pages }
    }
}

/// How a [`DecodeRequest`] is computed: one launch.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Clone, Debug, PartialEq)]
pub struct DecodePlan {
    request: DecodeRequest,
    arch: Arch,
    entry: Entry,
    sm_scale: f32,
    row_tiles: usize,
    splits: usize,
    split_pages: usize,
}

/// Checks the extents of a cache.
///
/// # Errors
///
/// [`CacheError::HeadDim`], [`CacheError::TooLarge`].
///
/// Example: [`KvCache`](crate::KvCache).
pub fn check_cache(shape: &CacheShape) -> Result<(), CacheError> {
    if !HEAD_DIMS.contains(&shape.layout.head_dim) {
        return Err(CacheError::HeadDim { head_dim: shape.layout.head_dim });
    }
    let at_most = |what, value: Option<usize>, max: usize| match value {
        Some(value) if value <= max => Ok(()),
        value => Err(CacheError::TooLarge { what, value: value.unwrap_or(usize::MAX), max }),
    };
    at_most("batch * heads", shape.batch.checked_mul(shape.num_heads_kv), MAX_GRID_Y)?;
    at_most("tokens of a sequence", shape.pages_per_sequence.checked_mul(64), MAX_SEQLEN)?;
    // Pages are counted in 32 bits, bytes in 63.
    let pages = shape.batch.checked_mul(shape.pages_per_sequence);
    at_most("pages of all sequences", pages, u32::MAX as usize / 64)
}

/// The module whose kernels a device uses for caches.
///
/// # Errors
///
/// [`PlanError::KernelNeeds`] below compute capability 8.9.
///
/// Example: [`KvCache`](crate::KvCache).
pub fn cache_arch(capability: &Capability) -> Result<Arch, PlanError> {
    let (major, minor) = (capability.major, capability.minor);
    [Arch::Sm90a, Arch::Sm89].into_iter().find(|arch| arch.loads_on(major, minor)).ok_or_else(|| {
        PlanError::KernelNeeds {
            kernel: "attention over a cache".into(),
            needed: "compute capability 8.9 or later",
            major,
            minor,
        }
    })
}

/// Decides how `request` is computed on a device.
///
/// # Errors
///
/// [`CacheError`] if the cache or the query is not one that the kernels take, [`Invalid`] if tensors contradict each
/// other, [`PlanError`] if the device is too old.
///
/// Example: [`KvCache`](crate::KvCache).
pub fn plan_decode(request: &DecodeRequest, capability: &Capability) -> Result<DecodePlan, Error> {
    let shape = &request.cache;
    check_cache(shape)?;
    request.q.check(Operand::Q, false)?;
    request.out.check(Operand::Out, true)?;
    let [batch, heads_q, seqlen_q, head_dim] = request.q.shape;
    if batch != shape.batch || head_dim != shape.layout.head_dim {
        let expected = format!("[{}, Hq, M, {}]", shape.batch, shape.layout.head_dim);
        return Err(CacheError::Shape { tensor: Operand::Q, shape: request.q.shape, expected }.into());
    }
    if request.out.shape != request.q.shape {
        let expected = format!("the shape of q, {:?}", request.q.shape);
        return Err(CacheError::Shape { tensor: Operand::Out, shape: request.out.shape, expected }.into());
    }
    if heads_q > 0 && shape.num_heads_kv == 0 {
        return Err(Invalid::NoKvHeads { heads_q }.into());
    }
    if shape.num_heads_kv > 0 && !heads_q.is_multiple_of(shape.num_heads_kv) {
        return Err(Invalid::HeadsNotDivisible { heads_q, heads_kv: shape.num_heads_kv }.into());
    }
    if seqlen_q == 0 || seqlen_q > MAX_SEQLEN_Q {
        return Err(CacheError::SeqlenQ { seqlen_q, max: MAX_SEQLEN_Q }.into());
    }
    if request.max_length > shape.capacity() {
        let max = shape.capacity();
        return Err(CacheError::Length { sequence: 0, length: request.max_length, max }.into());
    }
    let sm_scale = request.sm_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
    if !sm_scale.is_finite() {
        return Err(Invalid::SmScaleNotFinite { sm_scale }.into());
    }
    if sm_scale < 0.0 {
        return Err(Invalid::SmScaleNegative { sm_scale }.into());
    }
    let arch = cache_arch(capability)?;
    let row_tiles = decode::row_tiles(heads_q / shape.num_heads_kv.max(1), seqlen_q);
    let pages = decode::pages(request.max_length).max(1);
    let tiles = batch * shape.num_heads_kv * row_tiles;
    let split_pages = match request.split_pages {
        Some(split_pages) => split_pages.clamp(1, pages),
        None => {
            let is_tall = heads_q / shape.num_heads_kv.max(1) * seqlen_q > 8;
            best_split(pages, tiles, capability.sm_count as usize, &shape.layout, is_tall)
        }
    };
    let splits = pages.div_ceil(split_pages);
    if splits.saturating_mul(row_tiles) > MAX_GRID {
        let what = "splits * row tiles";
        return Err(CacheError::TooLarge { what, value: splits.saturating_mul(row_tiles), max: MAX_GRID }.into());
    }
    let symbol = format!("decode_{}", shape.layout.suffix());
    let entry = Entry { kernel: Kernel::Attention, symbol, cta: decode::cta(&shape.layout) };
    Ok(DecodePlan { request: *request, arch, entry, sm_scale, row_tiles, splits, split_pages })
}

/// Pages of a split so that a kernel with `tiles` row tiles over `pages` pages takes least time.
///
/// In units of the time of a page at a multiprocessor's share of bandwidth; the constants are fitted to times of an
/// H200. One CTA for each multiprocessor reads fastest where a page is large: more CTAs have more copies under way than
/// memory serves in order. But a CTA takes a time for a page however small that is (`latency`; less if its warps add two
/// groups at a time), so that small pages need several CTAs. Counts just below a multiple of the multiprocessors' number leave none of them idle. More CTAs
/// than fit at once lose a part of the last wave, and each wave about seven pages at its ends.
fn best_split(pages: usize, tiles: usize, sm_count: usize, layout: &PageLayout, is_tall: bool) -> usize {
    let sm_count = sm_count.max(1);
    let slots = sm_count * CTAS_PER_SM;
    let tall = if is_tall { 1.17 } else { 1.0 };
    let at_once = warp_groups(layout);
    let paired = if at_once == 2 { 0.7 } else { 1.0 };
    let latency = tall * paired * (9_900 + 50 * layout.head_dim) as f64 / layout.page_bytes() as f64;
    let cost = |split_pages: usize| {
        let splits = pages.div_ceil(split_pages);
        // The warps of a CTA have this many pages at a time between them: of an odd number, half of them have none.
        let (ctas, split_pages) = (tiles * splits, split_pages.next_multiple_of(at_once) as f64);
        let work = if ctas <= slots {
            let per_sm = ctas.div_ceil(sm_count);
            let latency = latency * (1.0 + 0.15 * per_sm.saturating_sub(1) as f64);
            // How much of the bandwidth 1, 2 and 3 CTAs on each multiprocessor get.
            let share = [1.0, 0.95, 0.93][per_sm.saturating_sub(1).min(2)];
            split_pages * (per_sm as f64 / share).max(latency)
        } else {
            let rest = ctas % slots;
            let idle = if rest == 0 { 0.0 } else { 1.0 - rest as f64 / slots as f64 };
            (tiles * pages) as f64 / sm_count as f64 / 0.92 + 1.27 * idle * idle * split_pages
        };
        work + 7.0 * ctas as f64 / slots as f64 + 0.03 * splits as f64
    };
    // From long to short: ties go to fewer splits.
    (1..=pages).rev().min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
}

impl DecodePlan {
    /// What was asked for.
    pub fn request(&self) -> &DecodeRequest {
        &self.request
    }

    /// Which PTX module holds the kernel.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The kernel.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Factor of the scores.
    pub fn sm_scale(&self) -> f32 {
        self.sm_scale
    }

    /// Query heads of a key/value head.
    pub fn gqa_group(&self) -> usize {
        self.request.q.shape[1] / self.request.cache.num_heads_kv.max(1)
    }

    /// Tiles of up to 16 rows of a key/value head. Each reads the cache.
    pub fn row_tiles(&self) -> usize {
        self.row_tiles
    }

    /// Parts that the keys of the longest sequence are split into.
    pub fn splits(&self) -> usize {
        self.splits
    }

    /// Pages of a split.
    pub fn split_pages(&self) -> usize {
        self.split_pages
    }

    /// CTAs along x and y.
    pub fn grid(&self) -> [usize; 2] {
        [self.splits * self.row_tiles, self.request.cache.batch * self.request.cache.num_heads_kv]
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.request.q.is_empty()
    }

    fn tiles(&self) -> usize {
        self.grid()[1] * self.row_tiles
    }

    /// Bytes of scratch memory that a launch needs. What they hold matters neither before nor after.
    pub fn workspace_bytes(&self) -> usize {
        if self.splits <= 1 {
            return 0;
        }
        let rows = decode::partial_rows(self.gqa_group(), self.request.q.shape[2]);
        self.tiles() * self.splits * rows * (self.request.cache.layout.head_dim + 2) * 4
    }

    /// Bytes of counters that a launch needs. They must be zero before the first launch, and are zero after each.
    pub fn counter_bytes(&self) -> usize {
        self.tiles() * 4
    }

    /// Bytes of the cache that must be read to attend to `tokens` tokens in all, of every key/value head.
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        let cache = &self.request.cache;
        tokens * cache.num_heads_kv * cache.layout.group_bytes() / 16
    }
}

#[cfg(test)]
mod tests {
    use sage_spec::Precision;

    use super::*;

    #[test]
    fn splits_are_those_that_were_fastest_on_an_h200() {
        let best = |precision, head_dim, batch: usize, pages: usize| {
            let split = best_split(pages, batch * 8, 132, &PageLayout { precision, head_dim }, false);
            assert!((1..=pages).contains(&split));
            pages.div_ceil(split) * batch * 8
        };
        // Large pages: a CTA for each multiprocessor; more only where sequences do not divide evenly.
        for (batch, pages) in [(1, 512), (1, 2048), (4, 512), (16, 128), (16, 2048)] {
            assert_eq!(best(Precision::Int8, 128, batch, pages), 128);
        }
        assert!(best(Precision::Int8, 128, 64, 2048) >= 1024);
        // Small pages: several for each multiprocessor.
        assert_eq!(best(Precision::Int4, 128, 16, 2048), 256);
        assert!(best(Precision::Int4, 64, 16, 2048) >= 256);
        assert_eq!(best(Precision::Int8, 128, 1, 1), 8);
    }
}
