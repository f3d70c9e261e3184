//! Attention on the CPU, fast: what runs where there is no GPU.
//!
//! The numerics are those of [`mod@crate::reference`]: the same codes, scales and means, the same integer
//! scores. What differs is rounding that the kernels need and a CPU does not: P is rounded to bf16 or not
//! at all instead of to E4M3 or FP16, ΔS not at all. `docs/cpu.md` describes the design and what it reaches.
//!
//! There is one algorithm, written against a trait of vector operations, and one folder for every instruction set; a value
//! of its type proves that the CPU has it ([`Path`] picks one at run time). Only those folders contain
//! `unsafe`.

mod attend;
mod buffer;
mod exact;
mod finish;
mod isa;
mod mask;
mod operands;
mod output;
mod portable;
mod product;
mod quantize;
mod quantize_v;
mod quantized;
mod queries;
mod scores;
mod select;
mod softmax;
mod split;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use output::OutputMut;
pub use quantize::{quantize, quantize_kv};
pub use scores::scores;
pub use select::Path;

use sage_spec::Dims;

use crate::reference::{HostTensor, Options, Quantized};

/// Attention in f32, `softmax(Q Kᵀ · sm_scale) V`.
///
/// `q` is `[B, Hq, M, D]`, `k` is `[B, Hkv, N, D]` and `v` `[B, Hkv, N, Dv]`, any dtype; `out` is contiguous
/// `[B, Hq, M, Dv]`.
/// Returns the natural-log LSE `[B, Hq, M]`; rows that see no key are 0 and −∞.
///
/// ```
/// use sage_attn::cpu::{OutputMut, Path, attention_exact};
/// use sage_attn::reference::{Data, HostTensor};
/// use sage_attn::spec::Dims;
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 2, seqlen_kv: 3, head_dim: 4, head_dim_v: 4 };
/// let (q, kv) = ([1.0f32; 2 * 4], [0.5f32; 3 * 4]);
/// let q = HostTensor::contiguous(Data::F32(&q), 1, 2, 4);
/// let kv = HostTensor::contiguous(Data::F32(&kv), 1, 3, 4);
/// let mut out = [0.0f32; 2 * 4];
/// let lse = attention_exact(Path::best(), &dims, [&q, &kv, &kv], false, 0.5, OutputMut::F32(&mut out));
/// assert!((out[0] - 0.5).abs() < 1e-6);
/// assert!((lse[0] - (1.0 + 3f32.ln())).abs() < 1e-5); // three keys of score 0.5 · 4 · 1 · 0.5
/// ```
pub fn attention_exact(
    path: Path,
    dims: &Dims,
    [q, k, v]: [&HostTensor; 3],
    causal: bool,
    sm_scale: f32,
    out: OutputMut,
) -> Vec<f32> {
    let mut lse = vec![f32::NEG_INFINITY; dims.batch * dims.num_heads_q * dims.seqlen_q];
    path.attend(&exact::Exact { dims, q, k, v, causal, sm_scale }, out, &mut lse);
    lse
}

/// Attention on quantized operands; `k` is the unquantized K that `quantized` was made of, read only if Q is
/// smoothed. The rest as for [`attention_exact`].
///
/// ```
/// use sage_attn::cpu::{OutputMut, Path, attention_quantized, quantize};
/// use sage_attn::reference::{Data, HostTensor, Options};
/// use sage_attn::spec::{Dims, Precision, PvFormat, ScaleGranularity};
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 70, seqlen_kv: 70, head_dim: 64, head_dim_v: 64 };
/// let x: Vec<f32> = (0..70 * 64).map(|i| (i as f32).sin()).collect();
/// let x = HostTensor::contiguous(Data::F32(&x), 1, 70, 64);
/// let options = Options {
///     causal: true,
///     sm_scale: 0.125,
///     precision: Precision::Int8,
///     granularity: ScaleGranularity::PerThread,
///     pv: PvFormat::Fp8,
///     smooth_q: false,
///     smooth_k: true,
///     smooth_v: false,
/// };
/// let quantized = quantize(Path::best(), &dims, [&x, &x, &x], &options);
/// let mut out = vec![0.0f32; 70 * 64];
/// let lse = attention_quantized(Path::best(), &dims, &quantized, &x, &options, OutputMut::F32(&mut out));
/// assert!((out[1] - 1f32.sin()).abs() < 0.05, "the first row sees the first key only");
/// assert_eq!(lse.len(), 70);
/// ```
pub fn attention_quantized(
    path: Path,
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    out: OutputMut,
) -> Vec<f32> {
    attend_codes(path, &quantized::Codings { dims, quantized, q: None, k, options }, out)
}

/// [`attention_quantized`] with queries that are quantized block by block; `quantized` may be without codes of Q
/// ([`quantize_kv`]). The same result, bit for bit, in less memory.
///
/// Example: [`attention_quantized`].
pub fn attention_with_queries(
    path: Path,
    dims: &Dims,
    quantized: &Quantized,
    [q, k]: [&HostTensor; 2],
    options: &Options,
    out: OutputMut,
) -> Vec<f32> {
    attend_codes(path, &quantized::Codings { dims, quantized, q: Some(q), k, options }, out)
}

fn attend_codes(path: Path, codings: &quantized::Codings, out: OutputMut) -> Vec<f32> {
    let dims = codings.dims;
    let mut lse = vec![f32::NEG_INFINITY; dims.batch * dims.num_heads_q * dims.seqlen_q];
    path.attend(codings, out, &mut lse);
    lse
}

/// Threads that attention on the CPU uses: those of the caller's rayon pool.
///
/// ```
/// assert!(sage_attn::cpu::threads() >= 1);
/// ```
pub fn threads() -> usize {
    rayon::current_num_threads()
}
