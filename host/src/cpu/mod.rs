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
mod exact;
mod isa;
mod mask;
mod operands;
mod output;
mod portable;
mod product;
mod quantize;
mod quantized;
mod select;
mod softmax;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use output::OutputMut;
pub use quantize::quantize;
pub use select::Path;

use sage_spec::Dims;

use crate::reference::{HostTensor, Options, Quantized};

/// Attention in f32, `softmax(Q Kᵀ · sm_scale) V`.
///
/// `q` is `[B, Hq, M, D]`, `k` is `[B, Hkv, N, D]` and `v` `[B, Hkv, N, Dv]`, any dtype; `out` is contiguous
/// `[B, Hq, M, Dv]`.
/// Returns the natural-log LSE `[B, Hq, M]`; rows that see no key are 0 and −∞.
pub fn attention_exact(
    path: Path,
    dims: &Dims,
    [q, k, v]: [&HostTensor; 3],
    causal: bool,
    sm_scale: f32,
    mut out: OutputMut,
) -> Vec<f32> {
    let mut lse = vec![f32::NEG_INFINITY; dims.batch * dims.num_heads_q * dims.seqlen_q];
    out.clear();
    path.attend(&exact::Exact { dims, q, k, v, causal, sm_scale }, out, &mut lse);
    lse
}

/// Attention on quantized operands; `k` is the unquantized K that `quantized` was made of, read only if Q is
/// smoothed. The rest as for [`attention_exact`].
pub fn attention_quantized(
    path: Path,
    dims: &Dims,
    quantized: &Quantized,
    k: &HostTensor,
    options: &Options,
    mut out: OutputMut,
) -> Vec<f32> {
    let mut lse = vec![f32::NEG_INFINITY; dims.batch * dims.num_heads_q * dims.seqlen_q];
    out.clear();
    path.attend(&quantized::Codings { dims, quantized, k, options }, out, &mut lse);
    lse
}

/// Threads that attention on the CPU uses: those of the caller's rayon pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
