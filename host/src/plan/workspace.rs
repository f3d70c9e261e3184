//! Layout of the scratch memory of a plan.

use sage_spec::PvFormat;
use sage_spec::launch::num_chunks;
use sage_spec::limits::WORKSPACE_ALIGN;
use sage_spec::schedule::{Progress, Statistic};
use sage_spec::symbol::Stem;

use super::Chunks;
use crate::error::PlanError;
use crate::problem::Problem;

/// A buffer of the workspace; contents and shapes are those of the fields of the same meaning in
/// [`sage_spec::params`].
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// What CTAs count together.
    Progress,
    /// Statistics of the heads of K and V, on their way from CTA to CTA.
    Statistics,
    /// Sums of K per reduction chunk, on their way likewise.
    KSum,
    /// Maxima, or largest magnitudes if V is not smoothed, of V per reduction chunk, likewise.
    VMax,
    /// Minima of V per reduction chunk, likewise.
    VMin,
    /// Sums of V per reduction chunk, likewise.
    VSum,
    /// Sums of what V was rounded by per reduction chunk, likewise.
    VRounding,
    /// Token mean of K.
    KMean,
    /// Codes of Q.
    QCodes,
    /// Scales of Q.
    QScale,
    /// Query-block means of Q.
    QMean,
    /// Product of every query row with the token mean of K.
    QkMean,
    /// Codes of K.
    KCodes,
    /// Scales of K.
    KScale,
    /// Channel means of V.
    VMean,
    /// What the output lacks of each channel without it, if V is FP8.
    VOffset,
    /// Channel scales of V.
    VScale,
    /// Codes of V.
    VCodes,
    /// Scores of the query-block means of one chunk.
    DeltaS,
}

impl Slot {
    /// Every slot, in the order of their offsets.
    pub const ALL: [Slot; 19] = [
        Slot::Progress,
        Slot::Statistics,
        Slot::KSum,
        Slot::VMax,
        Slot::VMin,
        Slot::VSum,
        Slot::VRounding,
        Slot::KMean,
        Slot::QCodes,
        Slot::QScale,
        Slot::QMean,
        Slot::QkMean,
        Slot::KCodes,
        Slot::KScale,
        Slot::VMean,
        Slot::VOffset,
        Slot::VScale,
        Slot::VCodes,
        Slot::DeltaS,
    ];

    /// Whether it must be zero before the quantizer runs: CTAs then see what has not come yet. These slots come first.
    pub const fn is_cleared(self) -> bool {
        matches!(
            self,
            Slot::Progress | Slot::Statistics | Slot::KSum | Slot::VMax | Slot::VMin | Slot::VSum | Slot::VRounding
        )
    }

    /// Name in explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Slot::Progress => "progress",
            Slot::Statistics => "statistics",
            Slot::KSum => "k_sum",
            Slot::KMean => "k_mean",
            Slot::QCodes => "q_codes",
            Slot::QScale => "q_scale",
            Slot::QMean => "q_mean",
            Slot::QkMean => "qk_mean",
            Slot::KCodes => "k_codes",
            Slot::KScale => "k_scale",
            Slot::VSum => "v_sum",
            Slot::VMax => "v_max",
            Slot::VMin => "v_min",
            Slot::VRounding => "v_rounding",
            Slot::VMean => "v_mean",
            Slot::VOffset => "v_offset",
            Slot::VScale => "v_scale",
            Slot::VCodes => "v_codes",
            Slot::DeltaS => "delta_s",
        }
    }
}

/// Where a buffer lies.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which buffer.
    pub slot: Slot,
    /// Bytes from the start of the workspace, a multiple of 256.
    pub offset_bytes: usize,
    /// Bytes used.
    pub bytes: usize,
}

/// The buffers of a plan.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    buffers: Vec<Buffer>,
    total_bytes: usize,
}

impl Workspace {
    /// Lays out what `problem` needs with kernel `stem`.
    pub(super) fn new(problem: &Problem, stem: &Stem, chunks: &Chunks) -> Result<Workspace, PlanError> {
        let mut buffers = Vec::new();
        let mut end: u128 = 0;
        if !problem.is_empty() && problem.dims().seqlen_kv > 0 {
            let sizes = Sizes::new(problem, stem, chunks);
            for slot in Slot::ALL {
                let Some(bytes) = sizes.bytes(slot) else {
                    continue;
                };
                let offset = end.next_multiple_of(WORKSPACE_ALIGN as u128);
                end = offset.saturating_add(bytes);
                if end > i64::MAX as u128 {
                    return Err(PlanError::WorkspaceOverflow { bytes: end });
                }
                buffers.push(Buffer { slot, offset_bytes: offset as usize, bytes: bytes as usize });
            }
        }
        Ok(Workspace { buffers, total_bytes: end as usize })
    }

    /// The buffers, by increasing offset.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The buffer of `slot`, if the plan uses it.
    pub fn get(&self, slot: Slot) -> Option<&Buffer> {
        self.buffers.iter().find(|buffer| buffer.slot == slot)
    }

    /// Bytes of the whole workspace; 0 if none is needed.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Bytes from the start on that must be zero before [`Kernel::Quantize`](super::Kernel::Quantize) runs.
    pub fn cleared_bytes(&self) -> usize {
        let cleared = self.buffers.iter().rfind(|buffer| buffer.slot.is_cleared());
        cleared.map_or(0, |buffer| buffer.offset_bytes + buffer.bytes)
    }

    /// Address of `slot` in a workspace at `base`; 0, which kernels read as "absent", if unused.
    pub fn address(&self, base: u64, slot: Slot) -> u64 {
        self.get(slot).map_or(0, |buffer| base + buffer.offset_bytes as u64)
    }
}

/// The counts that buffer sizes are made of. Factors are below 2⁶⁴ and products saturate, so a size
/// that does not fit is seen as too large instead of wrapping.
struct Sizes<'a> {
    problem: &'a Problem,
    stem: &'a Stem,
    /// B * Hq.
    heads_q: u128,
    /// B * Hkv.
    heads_kv: u128,
    /// (head, query block) pairs of the largest chunk.
    chunk: u128,
}

impl Sizes<'_> {
    fn new<'a>(problem: &'a Problem, stem: &'a Stem, chunks: &Chunks) -> Sizes<'a> {
        let dims = problem.dims();
        Sizes {
            problem,
            stem,
            heads_q: dims.batch as u128 * dims.num_heads_q as u128,
            heads_kv: dims.batch as u128 * dims.num_heads_kv as u128,
            chunk: chunks.largest() as u128,
        }
    }

    /// Bytes of `slot`; `None` if it is not used.
    fn bytes(&self, slot: Slot) -> Option<u128> {
        const F32: usize = 4;
        let dims = self.problem.dims();
        let smoothing = self.problem.smoothing();
        let granularity = self.problem.granularity();
        let d = dims.head_dim_padded();
        let (m, n) = (dims.seqlen_q_padded(), dims.seqlen_kv_padded());
        let is_fp8 = self.stem.pv == PvFormat::Fp8;
        let per_q = |factor: usize, bytes: usize| product(self.heads_q, factor, bytes);
        let per_kv = |factor: usize, bytes: usize| product(self.heads_kv, factor, bytes);
        match slot {
            Slot::Progress => {
                Some(Progress::bytes(0) as u128 + product(self.heads_kv, Progress::bytes(1) - Progress::bytes(0), 1))
            }
            Slot::Statistics => Some(per_kv(Statistic::ROWS, d * F32)),
            Slot::KSum => smoothing.k.then(|| per_kv(num_chunks(dims), d * F32)),
            Slot::KMean => smoothing.k.then(|| per_kv(1, d * F32)),
            Slot::QCodes => Some(per_q(m, self.stem.storage().bytes(d))),
            Slot::QScale => Some(per_q(dims.num_query_blocks(), granularity.q_scales_per_block() * F32)),
            Slot::QMean => smoothing.q.then(|| per_q(dims.num_query_blocks(), d * F32)),
            Slot::QkMean => (smoothing.k && self.problem.needs_whole_scores()).then(|| per_q(m, F32)),
            Slot::KCodes => Some(per_kv(n, self.stem.storage().bytes(d))),
            Slot::KScale => Some(per_kv(dims.num_kv_blocks_padded(), granularity.k_scales_per_block() * F32)),
            Slot::VMax => Some(per_kv(num_chunks(dims), d * F32)),
            Slot::VMin => smoothing.v.then(|| per_kv(num_chunks(dims), d * F32)),
            Slot::VSum => smoothing.v.then(|| per_kv(num_chunks(dims), d * F32)),
            Slot::VRounding => is_fp8.then(|| per_kv(num_chunks(dims), d * F32)),
            Slot::VOffset => is_fp8.then(|| per_kv(1, d * F32)),
            Slot::VMean => smoothing.v.then(|| per_kv(1, d * F32)),
            Slot::VScale => Some(per_kv(1, d * F32)),
            Slot::VCodes => Some(per_kv(n, d * self.stem.pv.bytes())),
            Slot::DeltaS => smoothing.q.then(|| product(self.chunk, n, F32)),
        }
    }
}

fn product(a: u128, b: usize, c: usize) -> u128 {
    a.saturating_mul(b as u128).saturating_mul(c as u128)
}
