//! Kernel parameters of every step, from a plan and the launch's arguments.

use sage_spec::launch::num_chunks;
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::{
    AttentionParams, Chunk, DeltaSParams, KMeanFinalParams, QuantizeKParams, QuantizeQParams, QuantizeVParams,
    ReducePartialParams, VStatsFinalParams,
};
use sage_spec::quant::LOG2_E;
use sage_spec::sm90::{Sm90AttentionParams, TensorMap};
use sage_spec::symbol::Arch;
use sage_spec::{Dims, PvFormat, sm90, tiling};

use super::args::{DeviceTensor, LaunchArgs};
use super::side::SideArgs;
use crate::error::{DeviceError, Error};
use crate::plan::{Kernel, Plan, Slot, Step};

/// The one argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KernelParams {
    /// Of `k_mean_partial_*` and `v_stats_partial_*`.
    ReducePartial(ReducePartialParams),
    /// Of `k_mean_final_*`.
    KMeanFinal(KMeanFinalParams),
    /// Of `v_stats_final_*`.
    VStatsFinal(VStatsFinalParams),
    /// Of `quantize_q_*`.
    QuantizeQ(QuantizeQParams),
    /// Of `quantize_k_*`.
    QuantizeK(QuantizeKParams),
    /// Of `quantize_v_*`.
    QuantizeV(QuantizeVParams),
    /// Of `delta_s_*`.
    DeltaS(DeltaSParams),
    /// Of `sm80_*_d*` and `sm89_*_d*`.
    Attention(AttentionParams),
    /// Of `<stem>_general_d*`.
    General(GeneralAttentionParams),
    /// Of `sm90_*`.
    AttentionSm90(Sm90AttentionParams),
}

/// A contiguous tensor of bytes in boxes, as a tensor map describes it.
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

/// Bytes of K and V that interleaved heads may have together: half of the H100's and H200's L2 cache.
const L2_BUDGET_BYTES: usize = 25 << 20;

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
            Kernel::KMeanPartial => KernelParams::ReducePartial(self.k_mean_partial()),
            Kernel::KMeanFinal => KernelParams::KMeanFinal(self.k_mean_final()),
            Kernel::QuantizeQ => KernelParams::QuantizeQ(self.quantize_q()),
            Kernel::QuantizeK => KernelParams::QuantizeK(self.quantize_k()),
            Kernel::VStatsPartial => KernelParams::ReducePartial(self.v_stats_partial()),
            Kernel::VStatsFinal => KernelParams::VStatsFinal(self.v_stats_final()),
            Kernel::QuantizeV => KernelParams::QuantizeV(self.quantize_v()),
            Kernel::DeltaS => KernelParams::DeltaS(self.delta_s(step.chunk)),
            Kernel::Attention if self.plan.arch() == Arch::Sm90a => {
                KernelParams::AttentionSm90(self.attention_sm90(step.chunk)?)
            }
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

    fn reduce_partial(&self, x: &DeviceTensor, [sum, max, min]: [u64; 3]) -> ReducePartialParams {
        let dims = self.dims();
        ReducePartialParams {
            x: x.arg(),
            sum,
            max,
            min,
            num_heads: dims.num_heads_kv as u32,
            seqlen: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            num_chunks: num_chunks(dims) as u32,
            vectorized: x.vectorized(),
        }
    }

    fn k_mean_partial(&self) -> ReducePartialParams {
        self.reduce_partial(&self.args.k, [self.at(Slot::KSum), 0, 0])
    }

    fn v_stats_partial(&self) -> ReducePartialParams {
        self.reduce_partial(&self.args.v, [Slot::VSum, Slot::VMax, Slot::VMin].map(|slot| self.at(slot)))
    }

    fn k_mean_final(&self) -> KMeanFinalParams {
        let dims = self.dims();
        KMeanFinalParams {
            sum: self.at(Slot::KSum),
            mean: self.at(Slot::KMean),
            num_chunks: num_chunks(dims) as u32,
            seqlen: dims.seqlen_kv as u32,
        }
    }

    fn v_stats_final(&self) -> VStatsFinalParams {
        let dims = self.dims();
        VStatsFinalParams {
            sum: self.at(Slot::VSum),
            max: self.at(Slot::VMax),
            min: self.at(Slot::VMin),
            mean: self.at(Slot::VMean),
            scale: self.at(Slot::VScale),
            num_chunks: num_chunks(dims) as u32,
            seqlen: dims.seqlen_kv as u32,
            format: match self.plan.stem().pv {
                PvFormat::Fp8 => 0,
                PvFormat::F16 => 1,
            },
        }
    }

    fn quantize_q(&self) -> QuantizeQParams {
        let (dims, q) = (self.dims(), &self.args.q);
        let qk_mean = self.at(Slot::QkMean);
        QuantizeQParams {
            q: q.arg(),
            codes: self.at(Slot::QCodes),
            scale: self.at(Slot::QScale),
            mean: self.at(Slot::QMean),
            k_mean: if qk_mean == 0 { 0 } else { self.at(Slot::KMean) },
            qk_mean,
            num_heads_q: dims.num_heads_q as u32,
            num_heads_kv: dims.num_heads_kv as u32,
            seqlen_q: dims.seqlen_q as u32,
            head_dim: dims.head_dim as u32,
            granularity: self.granularity(),
            vectorized: q.vectorized(),
        }
    }

    fn quantize_k(&self) -> QuantizeKParams {
        let (dims, k) = (self.dims(), &self.args.k);
        QuantizeKParams {
            k: k.arg(),
            codes: self.at(Slot::KCodes),
            scale: self.at(Slot::KScale),
            mean: self.at(Slot::KMean),
            num_heads_kv: dims.num_heads_kv as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            granularity: self.granularity(),
            vectorized: k.vectorized(),
        }
    }

    fn quantize_v(&self) -> QuantizeVParams {
        let (dims, v) = (self.dims(), &self.args.v);
        QuantizeVParams {
            v: v.arg(),
            codes: self.at(Slot::VCodes),
            scale: self.at(Slot::VScale),
            mean: self.at(Slot::VMean),
            num_heads_kv: dims.num_heads_kv as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            vectorized: v.vectorized(),
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
    fn attention_sm90(&self, chunk: Chunk) -> Result<Sm90AttentionParams, DeviceError> {
        let dims = self.dims();
        let first_row = chunk.block_begin as usize * tiling::BLOCK_Q;
        let rows = (chunk.block_count as usize * tiling::BLOCK_Q).min(dims.seqlen_q - first_row);
        let (q_map, k_map, v_map) = self.tensor_maps()?;
        // Interleaved heads keep their K and V within half of the L2 cache, so that other tensors pass through it.
        let kv_bytes = 2 * dims.seqlen_kv_padded() * dims.head_dim_padded();
        let heads_per_group = if self.plan.problem().causal() {
            ((L2_BUDGET_BYTES / kv_bytes.max(1)) * dims.gqa_group()).clamp(1, chunk.head_count as usize)
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
            v_mean: shared.v_mean,
            delta_s: shared.delta_s,
            qk_mean: shared.qk_mean,
            lse: shared.lse,
            out: shared.out,
            num_heads_q: shared.num_heads_q,
            num_heads_kv: shared.num_heads_kv,
            gqa_group: shared.gqa_group,
            seqlen_q: shared.seqlen_q,
            seqlen_kv: shared.seqlen_kv,
            head_dim: shared.head_dim,
            chunk,
            tiles_per_head: rows.div_ceil(sm90::BLOCK_Q) as u32,
            work_items: sm90::work_items(chunk.head_count as usize, rows) as u32,
            heads_per_group: heads_per_group as u32,
            q_scales_per_block: shared.q_scales_per_block,
            k_scales_per_block: shared.k_scales_per_block,
            causal: shared.causal,
            out_dtype: shared.out_dtype,
            sm_scale_log2: shared.sm_scale_log2,
            sm_scale: shared.sm_scale,
        })
    }

    /// Maps of the codes of Q, K and V; empty, and never used, if there are no keys.
    fn tensor_maps(&self) -> Result<(TensorMap, TensorMap, TensorMap), DeviceError> {
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
            map(Slot::QCodes, [depth, rows, heads_q], [depth as u32, sm90::BLOCK_Q as u32])?,
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
            v_mean: self.at(Slot::VMean),
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
