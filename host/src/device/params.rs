//! Kernel parameters of every step, from a plan and the launch's arguments.

use sage_spec::params::{AttentionParams, Chunk, DeltaSParams, QuantizeParams};
use sage_spec::quant::{LOG2_E, smooth_q_scale_floor};
use sage_spec::{CodeStorage, Dims};

use super::args::LaunchArgs;
use crate::plan::{Plan, Slot};

/// Fills in parameter structs. Planning has checked that every count fits its `u32` field.
pub(super) struct ParamsBuilder<'a> {
    pub(super) plan: &'a Plan,
    pub(super) args: &'a LaunchArgs,
}

impl ParamsBuilder<'_> {
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

    pub(super) fn quantize(&self) -> QuantizeParams {
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
            k_sum: self.at(Slot::KSum),
            k_mean: self.at(Slot::KMean),
            v_codes: self.at(Slot::VCodes),
            v_scale: self.at(Slot::VScale),
            v_max: self.at(Slot::VMax),
            v_min: self.at(Slot::VMin),
            v_sum: self.at(Slot::VSum),
            v_mean: self.at(Slot::VMean),
            progress: self.at(Slot::Progress),
            schedule: self.plan.schedule(),
            num_heads_q: dims.num_heads_q as u32,
            num_heads_kv: dims.num_heads_kv as u32,
            seqlen_q: dims.seqlen_q as u32,
            seqlen_kv: dims.seqlen_kv as u32,
            head_dim: dims.head_dim as u32,
            granularity: self.granularity(),
            vectorized: args.q.vectorized() | args.k.vectorized() << 1 | args.v.vectorized() << 2,
            packed: u32::from(stem.storage() == CodeStorage::Packed),
            max_code: stem.qk.max_code(),
            smooth_q_floor: smooth_q_scale_floor(1.0, stem.qk),
        }
    }

    pub(super) fn delta_s(&self, chunk: Chunk) -> DeltaSParams {
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

    pub(super) fn attention(&self, chunk: Chunk) -> AttentionParams {
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
