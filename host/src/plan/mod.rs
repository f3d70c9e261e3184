//! From a [`Problem`] and a [`Capability`] to a [`Plan`]: which kernels run, in which order, with
//! which grids, and where their buffers lie in the workspace. Planning is a pure function; it needs no
//! GPU and no driver.

mod chunks;
mod decode;
mod explain;
mod packed;
mod select;
mod workspace;

pub use chunks::{Chunks, chunk_rows};
pub use decode::{DecodePlan, DecodeRequest, cache_arch, check_cache, plan_decode};
pub use packed::{PackedPlan, plan_packed};
pub(crate) use select::check_heads;
pub use select::{Candidate, Verdict};
pub use workspace::{Buffer, Slot, Workspace};

use sage_spec::launch::{self, Cta};
use sage_spec::limits::MAX_GRID;
use sage_spec::params::Chunk;
use sage_spec::schedule::{self, Schedule};
use sage_spec::sm90;
use sage_spec::symbol::{Arch, Stem};

use crate::error::{Error, PlanError};
use crate::problem::Problem;

/// Bytes of K and V that are to stay in the L2 cache: half of the H100's and H200's, so that other tensors pass through
/// the other half.
pub(crate) const L2_BUDGET_BYTES: usize = 25 << 20;

/// What a plan needs to know about a device.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capability {
    /// Major compute capability.
    pub major: u32,
    /// Minor compute capability.
    pub minor: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Shared memory a CTA may opt in to, in bytes.
    pub smem_opt_in: usize,
}

/// A kernel of a plan. The order is the order of launch.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Smoothing and quantization of Q, K and V. [`Workspace::cleared_bytes`] must be zero before it runs.
    Quantize,
    /// Scores of the query-block means, once per chunk.
    DeltaS,
    /// Attention, once per chunk.
    Attention,
    /// Attention with modifiers or of wide heads, once per chunk.
    General,
}

impl Kernel {
    /// Whether the kernel runs once per chunk instead of once.
    pub const fn per_chunk(self) -> bool {
        matches!(self, Kernel::DeltaS | Kernel::Attention | Kernel::General)
    }

    /// Whether [`Workspace::cleared_bytes`] must be zero before the kernel runs.
    pub const fn needs_clearing(self) -> bool {
        matches!(self, Kernel::Quantize)
    }
}

/// A kernel with everything about its launch that does not depend on the chunk.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which kernel.
    pub kernel: Kernel,
    /// Its exported name.
    pub symbol: String,
    /// Threads and dynamic shared memory of a CTA.
    pub cta: Cta,
}

/// One launch.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Position of the entry in [`Plan::entries`].
    pub index: usize,
    /// What is launched.
    pub entry: &'a Entry,
    /// CTAs along x and y, each at least 1.
    pub grid: [u32; 2],
    /// The part of the work it covers; everything for kernels that run once.
    pub chunk: Chunk,
}

/// The decision for one problem on one kind of device.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    problem: Problem,
    capability: Capability,
    stem: Stem,
    candidates: Vec<Candidate>,
    entries: Vec<Entry>,
    chunks: Chunks,
    workspace: Workspace,
}

/// Plans `problem` for a device of capability `capability`.
///
/// # Errors
///
/// [`PlanError`] if no kernel fits the device or a size leaves its limits;
/// [`crate::error::Unsupported::ExactOnGpu`] if the problem asks for exact arithmetic.
///
/// ```
/// use sage_attn::error::Operand;
/// use sage_attn::plan::{Capability, Kernel, Slot, plan};
/// use sage_attn::problem::TensorSpec;
/// use sage_attn::{Attention, DType, Layout};
///
/// let spec = TensorSpec::new(Operand::Q, DType::BF16, &[2, 8, 4096, 128], Layout::Hnd)?;
/// let problem = Attention::new().causal(true).problem(spec, spec, spec, spec)?;
/// let h200 = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
/// let plan = plan(&problem, &h200)?;
/// assert_eq!(plan.stem().name, "sm90_int8_fp8_fwd");
/// let kernels: Vec<Kernel> = plan.steps().map(|step| step.entry.kernel).collect();
/// assert_eq!(kernels, [Kernel::Quantize, Kernel::Attention]);
/// let codes = plan.workspace().get(Slot::KCodes).map(|buffer| buffer.bytes);
/// assert_eq!(codes, Some(2 * 8 * 4096 * 128));
/// assert_eq!(plan.chunks().count(), 1);
/// println!("{}", plan.explain());
/// # Ok::<(), sage_attn::Error>(())
/// ```
pub fn plan(problem: &Problem, capability: &Capability) -> Result<Plan, Error> {
    let (stem, candidates) = select::select(problem, capability)?;
    let entries = entries(problem, &stem);
    check_tiles(problem, &stem)?;
    for entry in &entries {
        if entry.cta.smem_bytes > capability.smem_opt_in {
            let (symbol, bytes) = (entry.symbol.clone(), entry.cta.smem_bytes);
            return Err(PlanError::SharedMemory { symbol, bytes, max: capability.smem_opt_in }.into());
        }
    }
    let chunks = Chunks::new(problem);
    let workspace = Workspace::new(problem, &stem, &chunks)?;
    let plan = Plan { problem: problem.clone(), capability: *capability, stem, candidates, entries, chunks, workspace };
    plan.check_grids()?;
    Ok(plan)
}

/// Fails if there are more tiles to quantize than a grid has CTAs, which also bounds the query blocks.
fn check_tiles(problem: &Problem, stem: &Stem) -> Result<(), PlanError> {
    let ctas = schedule::tickets(problem.dims(), problem.smoothing().k);
    if ctas > MAX_GRID as u128 && !problem.is_empty() {
        let symbol = stem.name.to_owned();
        return Err(PlanError::GridTooLarge { symbol, ctas, max: MAX_GRID });
    }
    Ok(())
}

/// The kernels of `problem` in launch order.
fn entries(problem: &Problem, stem: &Stem) -> Vec<Entry> {
    let (smoothing, dims) = (problem.smoothing(), problem.dims());
    let d = dims.head_dim_padded();
    let (pv, dtype) = (stem.pv.name(), problem.input_dtype());
    let mut entries = Vec::new();
    let mut add = |kernel, symbol, cta| entries.push(Entry { kernel, symbol, cta });
    if problem.is_empty() {
        return entries;
    }
    if dims.seqlen_kv > 0 {
        let element = dtype.bytes();
        add(Kernel::Quantize, format!("quantize_{pv}_{dtype}_d{d}"), launch::quantize(d, element));
        if smoothing.q {
            add(Kernel::DeltaS, format!("delta_s_{dtype}_d{d}"), launch::delta_s(d, element));
        }
    }
    match stem.arch {
        _ if problem.needs_general_kernel() => {
            let cta = match stem.arch {
                Arch::Sm80 | Arch::Sm89 => launch::attention(d, stem.qk, stem.pv),
                Arch::Sm90a => sm90_cta(sm90::GENERAL_WARPGROUPS, d, true),
            };
            add(Kernel::General, format!("{}_general_d{d}", stem.general_symbol()), cta);
        }
        Arch::Sm90a => {
            let delta_s = smoothing.q && dims.seqlen_kv > 0;
            let variant = if delta_s { "_delta_s" } else { "" };
            let warpgroups = sm90::warpgroups(d, stem.exponential, delta_s);
            add(Kernel::Attention, format!("{}{variant}_d{d}", stem.symbol), sm90_cta(warpgroups, d, delta_s));
        }
        Arch::Sm80 | Arch::Sm89 => {
            add(Kernel::Attention, format!("{}_d{d}", stem.symbol), launch::attention(d, stem.qk, stem.pv));
        }
    }
    entries
}

/// A CTA of a kernel for Hopper with `warpgroups` consumers.
fn sm90_cta(warpgroups: usize, head_dim_padded: usize, delta_s: bool) -> Cta {
    let smem_bytes = sm90::SmemPlan::new(head_dim_padded, sm90::block_q(warpgroups), delta_s).bytes;
    Cta { threads: sm90::threads(warpgroups), smem_bytes }
}

impl Plan {
    /// The problem planned for.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The capability planned for.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// The attention kernel.
    pub fn stem(&self) -> &Stem {
        &self.stem
    }

    /// The PTX module that holds every kernel of the plan.
    pub fn arch(&self) -> Arch {
        self.stem.arch
    }

    /// Every attention kernel there is, and why it was chosen or not.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The kernels, in launch order. Empty if there is no output to compute.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How the work of the attention kernel is divided into launches.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Scratch memory.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// The launches that prepare the quantized tensors, in order; each runs once.
    pub fn setup_steps(&self) -> impl Iterator<Item = Step<'_>> {
        let everything = self.chunks.everything();
        self.entries_where(false).map(move |(index, entry)| self.step(index, entry, everything))
    }

    /// The launches that attend, in order: for each chunk ΔS if Q is smoothed, then attention.
    pub fn chunk_steps(&self) -> impl Iterator<Item = Step<'_>> {
        self.chunks
            .iter()
            .flat_map(move |chunk| self.entries_where(true).map(move |(index, entry)| self.step(index, entry, chunk)))
    }

    /// All launches in order.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        self.setup_steps().chain(self.chunk_steps())
    }

    fn entries_where(&self, per_chunk: bool) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().enumerate().filter(move |(_, entry)| entry.kernel.per_chunk() == per_chunk)
    }

    fn step<'a>(&'a self, index: usize, entry: &'a Entry, chunk: Chunk) -> Step<'a> {
        // Planning checked that every grid is at most MAX_GRID.
        Step { index, entry, grid: self.grid(entry, chunk).map(|extent| extent as u32), chunk }
    }

    /// CTAs of one launch of `entry` on `chunk`. Products fit: workspace planning has bounded the
    /// padded element counts, which are larger.
    fn grid(&self, entry: &Entry, chunk: Chunk) -> [usize; 2] {
        let dims = self.problem.dims();
        let (heads, blocks) = (chunk.head_count as usize, chunk.block_count as usize);
        let ctas = match entry.kernel {
            Kernel::Attention | Kernel::General if self.stem.arch == Arch::Sm90a => {
                // Persistent: a CTA for every multiprocessor, or for every work item if those are fewer.
                let (rows, block_q) = (chunk_rows(dims, &chunk), sm90::block_q_of_threads(entry.cta.threads));
                sm90::work_items(heads, rows, block_q).min(self.capability.sm_count.max(1) as usize)
            }
            Kernel::Attention => return launch::attention_grid(heads, blocks),
            Kernel::General => return launch::general_attention_grid(dims, heads, blocks),
            Kernel::Quantize => self.quantize_grid(),
            Kernel::DeltaS => launch::delta_s_grid(dims, heads, blocks),
        };
        [ctas, 1]
    }

    /// CTAs of the quantizer that the device runs at a time.
    fn quantize_resident(&self) -> usize {
        let dims = self.problem.dims();
        let per_sm = launch::quantize_ctas_per_sm(dims.head_dim_padded());
        (self.capability.sm_count as usize).saturating_mul(per_sm).max(1)
    }

    /// CTAs of the quantizer: one for each tile, but no more than run at a time.
    fn quantize_grid(&self) -> usize {
        let tickets = schedule::tickets(self.problem.dims(), self.problem.smoothing().k);
        tickets.min(self.quantize_resident() as u128) as usize
    }

    /// Order of the quantizer's tiles; of none if there is no output element.
    pub fn schedule(&self) -> Schedule {
        if self.problem.is_empty() {
            return Schedule::default();
        }
        let dims = self.problem.dims();
        let token_bytes = 2 * dims.head_dim * self.problem.input_dtype().bytes();
        let kv_bytes = dims.seqlen_kv.saturating_mul(token_bytes);
        // Two thirds of it, as other tokens and codes pass through as well.
        let cached_heads = L2_BUDGET_BYTES / 3 * 2 / kv_bytes.max(1);
        Schedule::new(dims, self.problem.smoothing().k, self.quantize_resident(), cached_heads)
    }

    /// Fails if a grid is too large. The first chunk is the largest.
    fn check_grids(&self) -> Result<(), PlanError> {
        let Some(first) = self.chunks.iter().next() else {
            return Ok(());
        };
        for entry in &self.entries {
            let [ctas, _] = self.grid(entry, first);
            if ctas > MAX_GRID {
                let symbol = entry.symbol.clone();
                return Err(PlanError::GridTooLarge { symbol, ctas: ctas as u128, max: MAX_GRID });
            }
        }
        Ok(())
    }
}
