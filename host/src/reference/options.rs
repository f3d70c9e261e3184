//! What to compute, and the results.

use sage_spec::{Precision, PvFormat, ScaleGranularity};

/// How to quantize and attend.
///
/// Example: [`quantize`](crate::reference::quantize()).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Row `i` sees keys up to `i + seqlen_kv - seqlen_q` (bottom-right aligned) instead of all keys.
    pub causal: bool,
    /// Factor of `Q Kᵀ`, not negative; usually `1 / sqrt(head_dim)`.
    pub sm_scale: f32,
    /// Integer type of Q and K.
    pub precision: Precision,
    /// Which elements of Q and K share a scale.
    pub granularity: ScaleGranularity,
    /// Type of P and V.
    pub pv: PvFormat,
    /// Subtract each query block's mean from Q and add its scores back (ΔS).
    pub smooth_q: bool,
    /// Subtract the token mean from K, which softmax does not notice.
    pub smooth_k: bool,
    /// Subtract the channel means from V and add them to the output.
    pub smooth_v: bool,
}

/// Attention in f32.
///
/// Example: [`quantize`](crate::reference::quantize()).
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `[batch, num_heads_q, seqlen_q, head_dim_v]`, contiguous. Rows that see no key are 0.
    pub out: Vec<f32>,
    /// `[batch, num_heads_q, seqlen_q]`: natural-log LSE; −inf for rows that see no key.
    pub lse: Vec<f32>,
}

/// Attention in f64; fields as in [`Output`].
///
/// Example: [`attention_f64`](crate::reference::attention_f64).
#[derive(Clone, Debug, PartialEq)]
pub struct OutputF64 {
    /// `[batch, num_heads_q, seqlen_q, head_dim_v]`, contiguous. Rows that see no key are 0.
    pub out: Vec<f64>,
    /// `[batch, num_heads_q, seqlen_q]`: natural-log LSE; −inf for rows that see no key.
    pub lse: Vec<f64>,
}
