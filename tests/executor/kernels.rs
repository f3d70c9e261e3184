//! Every exported kernel by its name, and how it is called on the executor.

use sage_attn::device::KernelParams;
use sage_kernels_gpu::entry;
use sage_kernels_gpu::entry::{hopper, v_f16, v_fp8};
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::{
    AttentionParams, DeltaSParams, KMeanFinalParams, QuantizeKParams, QuantizeQParams, QuantizeVParams,
    ReducePartialParams, ScoresParams, VStatsFinalParams,
};
use sage_spec::sm90::Sm90AttentionParams;

/// A kernel and its name.
type Named<P> = (&'static str, unsafe fn(P));

/// `[module; names]`: the kernels with their names.
macro_rules! kernels {
    ($($module:ident: $($name:ident),* $(,)?;)*) => { &[$($((stringify!($name), $module::$name)),*),*] };
}

const REDUCE_PARTIAL: &[Named<ReducePartialParams>] = kernels![
    entry: k_mean_partial_f16_d64, k_mean_partial_f16_d128,
    k_mean_partial_bf16_d64, k_mean_partial_bf16_d128,
    k_mean_partial_f32_d64, k_mean_partial_f32_d128;
    entry: v_stats_partial_f16_d64, v_stats_partial_f16_d128,
    v_stats_partial_bf16_d64, v_stats_partial_bf16_d128,
    v_stats_partial_f32_d64, v_stats_partial_f32_d128;
];
const K_MEAN_FINAL: &[Named<KMeanFinalParams>] = kernels![
    entry: k_mean_final_d64, k_mean_final_d128;
];
const V_STATS_FINAL: &[Named<VStatsFinalParams>] = kernels![
    entry: v_stats_final_d64, v_stats_final_d128;
];
const QUANTIZE_Q: &[Named<QuantizeQParams>] = kernels![
    entry: quantize_q_int4_f16_d64, quantize_q_int4_f16_d128,
    quantize_q_int4_bf16_d64, quantize_q_int4_bf16_d128,
    quantize_q_int4_f32_d64, quantize_q_int4_f32_d128;
    entry: quantize_q_int8_f16_d64, quantize_q_int8_f16_d128,
    quantize_q_int8_bf16_d64, quantize_q_int8_bf16_d128,
    quantize_q_int8_f32_d64, quantize_q_int8_f32_d128;
];
const QUANTIZE_K: &[Named<QuantizeKParams>] = kernels![
    entry: quantize_k_int4_f16_d64, quantize_k_int4_f16_d128,
    quantize_k_int4_bf16_d64, quantize_k_int4_bf16_d128,
    quantize_k_int4_f32_d64, quantize_k_int4_f32_d128;
    entry: quantize_k_int8_f16_d64, quantize_k_int8_f16_d128,
    quantize_k_int8_bf16_d64, quantize_k_int8_bf16_d128,
    quantize_k_int8_f32_d64, quantize_k_int8_f32_d128;
];
const QUANTIZE_V: &[Named<QuantizeVParams>] = kernels![
    v_f16: quantize_v_f16_f16_d64, quantize_v_f16_f16_d128,
    quantize_v_f16_bf16_d64, quantize_v_f16_bf16_d128,
    quantize_v_f16_f32_d64, quantize_v_f16_f32_d128;
    v_fp8: quantize_v_fp8_f16_d64, quantize_v_fp8_f16_d128,
    quantize_v_fp8_bf16_d64, quantize_v_fp8_bf16_d128,
    quantize_v_fp8_f32_d64, quantize_v_fp8_f32_d128;
];
const DELTA_S: &[Named<DeltaSParams>] = kernels![
    entry: delta_s_f16_d64, delta_s_f16_d128,
    delta_s_bf16_d64, delta_s_bf16_d128,
    delta_s_f32_d64, delta_s_f32_d128;
];
const ATTENTION: &[Named<AttentionParams>] = kernels![
    entry: sm80_int4_f16_fwd_d64, sm80_int4_f16_fwd_d128, sm80_int8_f16_fwd_d64, sm80_int8_f16_fwd_d128, sm89_int4_fp8_fwd_d64, sm89_int4_fp8_fwd_d128, sm89_int8_fp8_fwd_d64, sm89_int8_fp8_fwd_d128;
];
const GENERAL: &[Named<GeneralAttentionParams>] = kernels![
    entry: sm80_int4_f16_fwd_general_d64, sm80_int4_f16_fwd_general_d128,
    sm80_int8_f16_fwd_general_d64, sm80_int8_f16_fwd_general_d128,
    sm89_int4_fp8_fwd_general_d64, sm89_int4_fp8_fwd_general_d128,
    sm89_int8_fp8_fwd_general_d64, sm89_int8_fp8_fwd_general_d128;
];
const SCORES: &[Named<ScoresParams>] = kernels![
    entry: sm80_int4_f16_fwd_scores_d64, sm80_int4_f16_fwd_scores_d128, sm80_int8_f16_fwd_scores_d64, sm80_int8_f16_fwd_scores_d128, sm89_int4_fp8_fwd_scores_d64, sm89_int4_fp8_fwd_scores_d128, sm89_int8_fp8_fwd_scores_d64, sm89_int8_fp8_fwd_scores_d128;
];
const HOPPER: &[Named<Sm90AttentionParams>] = kernels![
    hopper: sm90_int8_fp8_fwd_d64, sm90_int8_fp8_fwd_d128,
    sm90_int8_fp8_fwd_delta_s_d64, sm90_int8_fp8_fwd_delta_s_d128,
    sm90_int8_fp8_exp2_fwd_d64, sm90_int8_fp8_exp2_fwd_d128,
    sm90_int8_fp8_exp2_fwd_delta_s_d64, sm90_int8_fp8_exp2_fwd_delta_s_d128;
];

/// A thread of a kernel with its argument.
pub type Thread = Box<dyn Fn()>;

/// The kernel `symbol` of `table` with `params`.
fn find<P: Copy + 'static>(table: &[Named<P>], symbol: &str, params: P) -> Option<Thread> {
    let &(_, kernel) = table.iter().find(|(name, _)| *name == symbol)?;
    // SAFETY: what a kernel asks of its caller is what the executor checks.
    Some(Box::new(move || unsafe { kernel(params) }))
}

/// The kernel `symbol` with `params`.
pub fn kernel(symbol: &str, params: KernelParams) -> Option<Thread> {
    match params {
        KernelParams::ReducePartial(params) => find(REDUCE_PARTIAL, symbol, params),
        KernelParams::KMeanFinal(params) => find(K_MEAN_FINAL, symbol, params),
        KernelParams::VStatsFinal(params) => find(V_STATS_FINAL, symbol, params),
        KernelParams::QuantizeQ(params) => find(QUANTIZE_Q, symbol, params),
        KernelParams::QuantizeK(params) => find(QUANTIZE_K, symbol, params),
        KernelParams::QuantizeV(params) => find(QUANTIZE_V, symbol, params),
        KernelParams::DeltaS(params) => find(DELTA_S, symbol, params),
        KernelParams::Attention(params) => find(ATTENTION, symbol, params),
        KernelParams::General(params) => find(GENERAL, symbol, params),
        KernelParams::AttentionSm90(params) => find(HOPPER, symbol, params),
    }
}

/// The kernel `symbol` that stores raw scores, with `params`.
pub fn scores(symbol: &str, params: ScoresParams) -> Option<Thread> {
    find(SCORES, symbol, params)
}

/// A kernel that is built into a PTX module can be run here too.
#[test]
fn every_exported_kernel_is_in_the_tables() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/ptx");
    let manifest = cuda_builder::manifest::Manifest::load(&folder).expect("the manifest is checked in");
    let mut names: Vec<&str> = Vec::new();
    macro_rules! add {
        ($($table:ident)*) => { $(names.extend($table.iter().map(|(name, _)| *name));)* };
    }
    add!(REDUCE_PARTIAL K_MEAN_FINAL V_STATS_FINAL QUANTIZE_Q QUANTIZE_K QUANTIZE_V DELTA_S ATTENTION GENERAL SCORES HOPPER);
    let missing: Vec<&String> = manifest
        .modules
        .values()
        .flat_map(|module| &module.entries)
        .filter(|entry| !names.contains(&entry.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in tests/executor/kernels.rs: {missing:?}");
}
