//! The Hopper kernels' launch: tensor maps and work items.

use cuda_std::executor::{self, Fault, Memory};
use sage_spec::launch::Cta;
use sage_spec::params::AttentionParams;
use sage_spec::sm90::{self, Exponential, Sm90AttentionParams, SmemPlan};
use sage_spec::tiling;
use sage_tests::case::Case;

use crate::{device, kernels};

/// Map of a tensor of bytes `[planes, rows, width]`, `box_rows` rows of `box_width` bytes to a box.
fn map(base: u64, [planes, rows, width]: [usize; 3], [box_rows, box_width]: [usize; 2]) -> sm90::TensorMap {
    let map = executor::TensorMap {
        base,
        element_bytes: 1,
        extents: [width, rows, planes].map(|extent| extent as u32),
        strides: [width, rows * width].map(|stride| stride as u64),
        box_extents: [box_width as u32, box_rows as u32, 1],
        swizzle_bytes: box_width as u32,
    };
    sm90::TensorMap(map.encode())
}

/// Runs the attention kernel on what `p`, the parameters of another kernel, describes.
///
/// # Errors
///
/// What the kernel did wrong.
pub fn attend(
    memory: &mut Memory,
    case: &Case,
    exponential: Exponential,
    p: &AttentionParams,
    seed: u64,
) -> Result<(), Fault> {
    let dims = case.problem.dims();
    let (depth, rows, keys) = (dims.head_dim_padded(), dims.seqlen_q_padded(), dims.seqlen_kv_padded());
    let (heads_q, heads_kv) = (dims.batch * dims.num_heads_q, dims.batch * dims.num_heads_kv);
    let chunk_rows = (p.chunk.block_count as usize * tiling::BLOCK_Q)
        .min(dims.seqlen_q - p.chunk.block_begin as usize * tiling::BLOCK_Q);
    let tiles_per_head = chunk_rows.div_ceil(sm90::BLOCK_Q) as u32;
    let params = Sm90AttentionParams {
        q_map: map(p.q_codes, [heads_q, rows, depth], [sm90::BLOCK_Q, depth]),
        k_map: map(p.k_codes, [heads_kv, keys, depth], [sm90::BLOCK_KV, depth]),
        v_map: map(p.v_codes, [heads_kv, depth, keys], [depth, sm90::BLOCK_KV]),
        q_scale: p.q_scale,
        k_scale: p.k_scale,
        v_scale: p.v_scale,
        v_mean: p.v_mean,
        delta_s: p.delta_s,
        qk_mean: p.qk_mean,
        lse: p.lse,
        out: p.out,
        num_heads_q: p.num_heads_q,
        num_heads_kv: p.num_heads_kv,
        gqa_group: p.gqa_group,
        seqlen_q: p.seqlen_q,
        seqlen_kv: p.seqlen_kv,
        head_dim: p.head_dim,
        chunk: p.chunk,
        tiles_per_head,
        work_items: tiles_per_head * p.chunk.head_count,
        heads_per_group: 2,
        q_scales_per_block: p.q_scales_per_block,
        k_scales_per_block: p.k_scales_per_block,
        causal: p.causal,
        out_dtype: p.out_dtype,
        sm_scale_log2: p.sm_scale_log2,
        sm_scale: p.sm_scale,
    };
    let exponential = match exponential {
        Exponential::Exact => "_exact",
        Exponential::Mixed => "",
    };
    let delta_s = if p.delta_s == 0 { "" } else { "_delta_s" };
    let symbol = format!("sm90_int8_fp8_fwd{exponential}{delta_s}_d{depth}");
    let thread = kernels::hopper(&symbol, params).expect("every variant is in the tables");
    let cta = Cta { threads: sm90::THREADS, smem_bytes: SmemPlan::new(depth).bytes };
    // Fewer CTAs than work items, so that they go round.
    let ctas = params.work_items.div_ceil(2).max(1);
    device::launch(memory, &symbol, cta, [ctas, 1], seed, thread)
}
