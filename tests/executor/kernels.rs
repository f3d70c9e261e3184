//! Every exported kernel by its name, and how it is called on the executor.

use sage_attn::device::KernelParams;
use sage_kernels_gpu::entry;
use sage_kernels_gpu::entry::hopper;
use sage_spec::cache::{AppendParams, MeanParams};
use sage_spec::decode::DecodeParams;
use sage_spec::merge::MergeParams;
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::{AttentionParams, DeltaSParams, QuantizeParams, ScoresParams};
use sage_spec::sm90::{Sm90AttentionParams, Sm90GeneralParams};

/// A kernel and its name.
type Named<P> = (&'static str, unsafe fn(P));

/// `[module; names]`: the kernels with their names.
macro_rules! kernels {
    ($($module:ident: $($name:ident),* $(,)?;)*) => { &[$($((stringify!($name), $module::$name)),*),*] };
}

const QUANTIZE: &[Named<QuantizeParams>] = kernels![
    entry: quantize_f16_f16_d64, quantize_f16_f16_d128,
    quantize_f16_bf16_d64, quantize_f16_bf16_d128,
    quantize_f16_f32_d64, quantize_f16_f32_d128,
    quantize_f16_f16_d256, quantize_f16_bf16_d256;
    entry: quantize_fp8_f16_d64, quantize_fp8_f16_d128,
    quantize_fp8_bf16_d64, quantize_fp8_bf16_d128,
    quantize_fp8_f32_d64, quantize_fp8_f32_d128,
    quantize_fp8_f16_d256, quantize_fp8_bf16_d256;
];
const DELTA_S: &[Named<DeltaSParams>] = kernels![
    entry: delta_s_f16_d64, delta_s_f16_d128,
    delta_s_bf16_d64, delta_s_bf16_d128,
    delta_s_f32_d64, delta_s_f32_d128,
    delta_s_f16_d256, delta_s_bf16_d256;
];
const ATTENTION: &[Named<AttentionParams>] = kernels![
    entry: sm80_int4_f16_fwd_d64, sm80_int4_f16_fwd_d128, sm80_int8_f16_fwd_d64, sm80_int8_f16_fwd_d128, sm89_int4_fp8_fwd_d64, sm89_int4_fp8_fwd_d128, sm89_int8_fp8_fwd_d64, sm89_int8_fp8_fwd_d128;
];
const GENERAL: &[Named<GeneralAttentionParams>] = kernels![
    entry: sm80_int4_f16_fwd_general_d64, sm80_int4_f16_fwd_general_d128,
    sm80_int8_f16_fwd_general_d64, sm80_int8_f16_fwd_general_d128,
    sm89_int4_fp8_fwd_general_d64, sm89_int4_fp8_fwd_general_d128,
    sm89_int8_fp8_fwd_general_d64, sm89_int8_fp8_fwd_general_d128,
    sm80_int4_f16_fwd_general_d256, sm80_int8_f16_fwd_general_d256,
    sm89_int4_fp8_fwd_general_d256, sm89_int8_fp8_fwd_general_d256;
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
const HOPPER_GENERAL: &[Named<Sm90GeneralParams>] = kernels![
    hopper: sm90_int8_fp8_general_d64, sm90_int8_fp8_general_d128;
];

const APPEND: &[Named<AppendParams>] = kernels![
    entry: cache_append_int8_d64, cache_append_int8_d128, cache_append_int4_d64, cache_append_int4_d128;
];
const DECODE: &[Named<DecodeParams>] = kernels![
    entry: decode_int8_d64, decode_int8_d128, decode_int4_d64, decode_int4_d128;
];
const MEAN: &[Named<MeanParams>] = kernels![entry: cache_mean;];

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
        KernelParams::Quantize(params) => find(QUANTIZE, symbol, params),
        KernelParams::DeltaS(params) => find(DELTA_S, symbol, params),
        KernelParams::Attention(params) => find(ATTENTION, symbol, params),
        KernelParams::General(params) => find(GENERAL, symbol, params),
        KernelParams::AttentionSm90(params) => find(HOPPER, symbol, params),
        KernelParams::GeneralSm90(params) => find(HOPPER_GENERAL, symbol, params),
    }
}

/// The kernel `symbol` that stores raw scores, with `params`.
pub fn scores(symbol: &str, params: ScoresParams) -> Option<Thread> {
    find(SCORES, symbol, params)
}

/// The kernel that merges two parts, with `params`.
pub fn merge(params: MergeParams) -> Thread {
    // SAFETY: what a kernel asks of its caller is what the executor checks.
    Box::new(move || unsafe { entry::merge_parts(params) })
}

/// The kernel `symbol` that fills a cache, with `params`.
pub fn cache_append(symbol: &str, params: AppendParams) -> Option<Thread> {
    find(APPEND, symbol, params)
}

/// The kernel `symbol` that attends to a cache, with `params`.
pub fn decode(symbol: &str, params: DecodeParams) -> Option<Thread> {
    find(DECODE, symbol, params)
}

/// The kernel that computes the mean of keys, with `params`.
pub fn cache_mean(params: MeanParams) -> Thread {
    // SAFETY: what a kernel asks of its caller is what the executor checks.
    Box::new(move || unsafe { entry::cache_mean(params) })
}

/// A kernel that is built into a PTX module can be run here too.
#[test]
fn every_exported_kernel_is_in_the_tables() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/ptx");
    let manifest = cuda_builder::manifest::Manifest::load(&folder).expect("the manifest is checked in");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root is above");
    let except = ["kernels-gpu/cuda_std/src/executor", "kernels-gpu/cuda_std/src/host"];
    let source = cuda_builder::manifest::source_hash(root, &["kernels-gpu", "host/spec"], &except).expect("sources");
    if manifest.source_sha256 != source {
        return println!("SKIPPED: the modules are older than the kernels");
    }
    let mut names: Vec<&str> = Vec::new();
    macro_rules! add {
        ($($table:ident)*) => { $(names.extend($table.iter().map(|(name, _)| *name));)* };
    }
    add!(QUANTIZE DELTA_S ATTENTION GENERAL SCORES HOPPER HOPPER_GENERAL APPEND DECODE MEAN);
    let missing: Vec<&String> = manifest
        .modules
        .values()
        .flat_map(|module| &module.entries)
        .filter(|entry| !names.contains(&entry.as_str()))
        .collect();
    let missing: Vec<_> = missing.into_iter().filter(|name| *name != sage_spec::merge::SYMBOL).collect();
    assert!(missing.is_empty(), "not in tests/executor/kernels.rs: {missing:?}");
}
