//! Kernel parameters of every step, from a plan and the launch's arguments.

use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::{AttentionParams, Chunk, DeltaSParams, QuantizeParams};
use sage_spec::quant::{LOG2_E, smooth_q_scale_floor};
use sage_spec::sm90::{Sm90AttentionParams, Sm90GeneralParams, TensorMap};
use sage_spec::symbol::Arch;
use sage_spec::{CodeStorage, Dims, PvFormat, sm90};

use super::args::LaunchArgs;
use super::side::SideArgs;
use crate::error::{DeviceError, Error};
use crate::plan::{Kernel, L2_BUDGET_BYTES, Plan, Slot, Step, chunk_rows};

/// The one argument of a kernel.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // lives for the length of a call
pub enum KernelParams {
    /// Of `quantize_*`.
    Quantize(QuantizeParams),
    /// Of `delta_s_*`.
    DeltaS(DeltaSParams),
    /// Of `sm80_*_d*` and `sm89_*_d*`.
    Attention(AttentionParams),
    /// Of `sm80_*_general_d*` and `sm89_*_general_d*`.
    General(GeneralAttentionParams),
    /// Of `sm90_*_fwd_*`.
    AttentionSm90(Sm90AttentionParams),
    /// Of `sm90_*_general_d*`.
    GeneralSm90(Sm90GeneralParams),
}

/// A contiguous tensor of bytes in boxes, as a tensor map describes it.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiledBytes {
    /// Device address of the first byte.
    pub address: u64,
    /// Bytes of a row, rows of a plane, planes.
    pub extents: [u64; 3],
    /// Bytes and rows of a box, which has one plane. Its rows, of 64 or 128 bytes, are swizzled by their
    /// width.
    pub box_extents: [u32; 2],
}

/// Makes a tensor map.
///
/// Example: [`plan`](crate::plan::plan()).
pub type EncodeMap<'a> = dyn Fn(&TiledBytes) -> Result<TensorMap, DeviceError> + 'a;

impl LaunchArgs {
    /// The argument of the kernel of `step`, a step of `plan`, for programs that launch kernels by their own
    /// means. `encode` makes the tensor maps.
    ///
    /// # Errors
    ///
    /// As [`super::Gpu::launch`] for bad arguments; what `encode` says.
    pub fn kernel_params(&self, plan: &Plan, step: &Step<'_>, encode: &EncodeMap<'_>) -> Result<KernelParams, Error> {
        self.kernel_params_with(plan, &SideArgs::default(), step, encode)
    }

    /// [`LaunchArgs::kernel_params`] with side inputs.
    ///
    /// # Errors
    ///
    /// As [`super::Gpu::launch_with`] for bad arguments; what `encode` says.
    pub fn kernel_params_with(
        &self,
        plan: &Plan,
        side: &SideArgs,
        step: &Step<'_>,
        encode: &EncodeMap<'_>,
    ) -> Result<KernelParams, Error> {
        self.check(plan, side)?;
        Ok(ParamsBuilder { plan, args: self, side, encode }.of(step)?)
    }
}

/// Fills in parameter structs. Planning has checked that every count fits its `u32` field.
pub(super) struct ParamsBuilder<'a> {
    pub(super) plan: &'a Plan,
    pub(super) args: &'a LaunchArgs,
    pub(super) side: &'a SideArgs,
    pub(super) encode: &'a EncodeMap<'a>,
}

impl ParamsBuilder<'_> {
    /// For the kernel of `step`.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a tensor map is refused.
    pub(super) fn of(&self, step: &Step<'_>) -> Result<KernelParams, DeviceError> {
        Ok(match step.entry.kernel {
            Kernel::Quantize => KernelParams::Quantize(self.quantize()),
            Kernel::DeltaS => KernelParams::DeltaS(self.delta_s(step.chunk)),
            Kernel::Attention if self.plan.arch() == Arch::Sm90a => {
                KernelParams::AttentionSm90(self.attention_sm90(step)?)
            }
            Kernel::General if self.plan.arch() == Arch::Sm90a => KernelParams::GeneralSm90(Sm90GeneralParams {
                attention: self.attention_sm90(step)?,
                modifiers: self.side.params(self.plan.problem()),
            }),
            Kernel::Attention => KernelParams::Attention(self.attention(step.chunk)),
            Kernel::General => KernelParams::General(GeneralAttentionParams {
                attention: self.attention(step.chunk),
                modifiers: self.side.params(self.plan.problem()),
            }),
        })
    }

    fn dims(&self) -> &Dims {
        self.plan.problem().dims()
    }

    fn granularity(&self) -> u32 {
        self.plan.problem().granularity().code()
    }

    /// Address of a workspace buffer, 0 if the plan does not use it.
    fn at(&self, slot: Slot) -> u64 {
        self.plan.workspace().address(self.args.workspace.ptr, slot)
    }

    fn quantize(&self) -> QuantizeParams {
        let (dims, args, stem) = (self.dims(), self.args, self.plan.stem());
        let qk_mean = self.at(Slot::QkMean);
        QuantizeParams {
            q: args.q.arg(),
            k: args.k.arg(),
            v: args.v.arg(),
            q_codes: self.at(Slot::QCodes),
            q_scale: self.at(Slot::QScale),
            q_mean: self.at(Slot::QMean),
            qk_mean,
            k_codes: self.at(Slot::KCodes),
            k_scale: self.at(Slot::KScale),
            statistics: self.at(Slot::Statistics),
            k_sum: self.at(Slot::KSum),
            k_mean: self.at(Slot::KMean),
            v_codes: self.at(Slot::VCodes),
            v_scale: self.at(Slot::VScale),
            v_max: self.at(Slot::VMax),
            v_min: self.at(Slot::VMin),
            v_sum: self.at(Slot::VSum),
            v_rounding: self.at(Slot::VRounding),
            v_mean: self.at(Slot::VMean),
            v_offset: self.at(Slot::VOffset),
            progress: self.at(Slot::Progress),
            schedule: self.plan.schedule(),
            num_heads_q: dims.num_heads_q as u32,
            num_heads_kv: dims.num_heads_kv as u32,
            gqa_group: dims.gqa_group() as u32,
            seqlen_q: dims.seqlen_q as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            head_dim_v: dims.head_dim_v as u32,
            granularity: self.granularity(),
            vectorized: args.q.vectorized() | args.k.vectorized() << 1 | args.v.vectorized() << 2,
            packed: u32::from(stem.storage() == CodeStorage::Packed),
            max_code: stem.qk.max_code(),
            smooth_q_floor: smooth_q_scale_floor(1.0, stem.qk),
        }
    }

    fn delta_s(&self, chunk: Chunk) -> DeltaSParams {
        let (dims, k) = (self.dims(), &self.args.k);
        DeltaSParams {
            k: k.arg(),
            k_mean: self.at(Slot::KMean),
            k_scale: self.at(Slot::KScale),
            q_mean: self.at(Slot::QMean),
            delta_s: self.at(Slot::DeltaS),
            num_heads_q: dims.num_heads_q as u32,
            num_heads_kv: dims.num_heads_kv as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            num_query_blocks: dims.num_query_blocks() as u32,
            chunk,
            granularity: self.granularity(),
            vectorized: k.vectorized(),
        }
    }

    /// Of the kernels for Hopper.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if the driver refuses a tensor map.
    fn attention_sm90(&self, step: &Step<'_>) -> Result<Sm90AttentionParams, DeviceError> {
        let (dims, chunk, block_q) = (self.dims(), step.chunk, sm90::block_q_of_threads(step.entry.cta.threads));
        let rows = chunk_rows(dims, &chunk);
        let (q_map, k_map, v_map) = self.tensor_maps(block_q)?;
        let heads = chunk.head_count as usize;
        let kv_bytes = 2 * dims.seqlen_kv_padded() * dims.head_dim_padded();
        // Modifiers may let the last rows see the most keys, as a causal mask does.
        let last_rows_first = self.plan.problem().causal() || matches!(step.entry.kernel, Kernel::General);
        let heads_per_group = if last_rows_first {
            // Interleaved heads keep their K and V within half of the L2 cache, so that other tensors pass through it.
            ((L2_BUDGET_BYTES / kv_bytes.max(1)) * dims.gqa_group()).clamp(1, heads)
        } else if heads / dims.gqa_group() * kv_bytes <= L2_BUDGET_BYTES * 3 / 2 {
            // The short items of all heads last: little is left to wait for at the end.
            heads
        } else {
            1
        };
        let shared = self.attention(chunk);
        Ok(Sm90AttentionParams {
            q_map,
            k_map,
            v_map,
            q_scale: shared.q_scale,
            k_scale: shared.k_scale,
            v_scale: shared.v_scale,
            v_offset: shared.v_offset,
            delta_s: shared.delta_s,
            qk_mean: shared.qk_mean,
            lse: shared.lse,
            progress: self.at(Slot::Progress),
            out: shared.out,
            num_heads_q: shared.num_heads_q,
            num_heads_kv: shared.num_heads_kv,
            gqa_group: shared.gqa_group,
            seqlen_q: shared.seqlen_q,
            seqlen_kv: shared.seqlen_kv,
            head_dim_v: shared.head_dim_v,
            chunk,
            tiles_per_head: rows.div_ceil(block_q) as u32,
            work_items: sm90::work_items(chunk.head_count as usize, rows, block_q) as u32,
            heads_per_group: heads_per_group as u32,
            last_rows_first: u32::from(last_rows_first),
            q_scales_per_block: shared.q_scales_per_block,
            k_scales_per_block: shared.k_scales_per_block,
            causal: shared.causal,
            out_dtype: shared.out_dtype,
            sm_scale_log2: shared.sm_scale_log2,
            sm_scale: shared.sm_scale,
        })
    }

    /// Maps of the codes of Q, in boxes of `block_q` rows, K and V; empty, and never used, if there are no keys.
    fn tensor_maps(&self, block_q: usize) -> Result<(TensorMap, TensorMap, TensorMap), DeviceError> {
        let dims = self.dims();
        if dims.seqlen_kv == 0 {
            return Ok(Default::default());
        }
        let depth = dims.head_dim_padded() as u64;
        let (heads_q, heads_kv) = ((dims.batch * dims.num_heads_q) as u64, (dims.batch * dims.num_heads_kv) as u64);
        let (rows, keys) = (dims.seqlen_q_padded() as u64, dims.seqlen_kv_padded() as u64);
        let map =
            |slot, extents, box_extents| (self.encode)(&TiledBytes { address: self.at(slot), extents, box_extents });
        Ok((
            map(Slot::QCodes, [depth, rows, heads_q], [depth as u32, block_q as u32])?,
            map(Slot::KCodes, [depth, keys, heads_kv], [depth as u32, sm90::BLOCK_KV as u32])?,
            map(Slot::VCodes, [keys, depth, heads_kv], [sm90::BLOCK_KV as u32, depth as u32])?,
        ))
    }

    fn attention(&self, chunk: Chunk) -> AttentionParams {
        let (dims, problem) = (self.dims(), self.plan.problem());
        let granularity = problem.granularity();
        AttentionParams {
            q_codes: self.at(Slot::QCodes),
            q_scale: self.at(Slot::QScale),
            k_codes: self.at(Slot::KCodes),
            k_scale: self.at(Slot::KScale),
            v_codes: self.at(Slot::VCodes),
            v_scale: self.at(Slot::VScale),
            v_offset: match self.plan.stem().pv {
                PvFormat::Fp8 => self.at(Slot::VOffset),
                PvFormat::F16 => self.at(Slot::VMean),
            },
            delta_s: self.at(Slot::DeltaS),
            qk_mean: self.at(Slot::QkMean),
            lse: self.args.lse.unwrap_or(0),
            out: self.args.out.arg(),
            num_heads_q: dims.num_heads_q as u32,
            num_heads_kv: dims.num_heads_kv as u32,
            gqa_group: dims.gqa_group() as u32,
            seqlen_q: dims.seqlen_q as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            seqlen_kv_padded: dims.seqlen_kv_padded() as u32,
            head_dim: dims.head_dim as u32,
            head_dim_v: dims.head_dim_v as u32,
            chunk,
            q_scales_per_block: granularity.q_scales_per_block() as u32,
            k_scales_per_block: granularity.k_scales_per_block() as u32,
            causal: u32::from(problem.causal()),
            out_dtype: problem.out().dtype.code(),
            sm_scale_log2: problem.sm_scale() * LOG2_E,
            sm_scale: problem.sm_scale(),
        }
    }
}
