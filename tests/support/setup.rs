//! Problems spelled out, whose elements are functions of their place.

use sage_attn::error::Operand;
use sage_attn::problem::{DType, Layout, Precision, Problem, Request, Smoothing, TensorSpec};
use sage_attn::reference::Options;
use sage_spec::symbol::{STEMS, Stem};
use sage_spec::{Dims, ScaleGranularity};

use crate::case::{Case, Tensor};
use crate::generate::Random;

/// The stem `name`.
pub fn stem(name: &str) -> Stem {
    STEMS.into_iter().find(|stem| stem.name == name).expect("the stem exists")
}

/// Everything about a problem but its elements.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The attention kernel.
    pub stem: Stem,
    /// Extents.
    pub dims: Dims,
    /// Elements between the end of a row and the next row: 0 is contiguous.
    pub row_gap: usize,
    /// Tokens before heads in memory.
    pub nhd: bool,
    /// Type of q, k and v.
    pub dtype: DType,
    /// Type of the output.
    pub out_dtype: DType,
    /// Causal mask.
    pub causal: bool,
    /// Groups of Q and K that share a scale.
    pub granularity: ScaleGranularity,
    /// What is smoothed.
    pub smoothing: Smoothing,
    /// Factor of Q Kᵀ.
    pub sm_scale: f32,
    /// Whether the log-sum-exp is returned.
    pub return_lse: bool,
}

/// A tensor's element by flattened (batch, head), token and feature.
pub type Element<'a> = &'a dyn Fn(usize, usize, usize) -> f32;

/// A number near N(0, 1) that belongs to a place in tensor `tensor`, and to no other.
pub fn noise(tensor: u64, head: usize, token: usize, feature: usize) -> f32 {
    let place = (tensor << 48) ^ ((head as u64) << 32) ^ ((token as u64) << 8) ^ feature as u64;
    // Values of f16, so that every type holds them.
    half::f16::from_f32(Random(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)).normal()).to_f32()
}

impl Setup {
    /// f32 in and out, everything else plain.
    pub fn new(stem: Stem, dims: Dims) -> Setup {
        Setup {
            stem,
            dims,
            row_gap: 0,
            nhd: false,
            dtype: DType::F32,
            out_dtype: DType::F32,
            causal: false,
            granularity: ScaleGranularity::PerThread,
            smoothing: Smoothing { q: true, k: true, v: false },
            sm_scale: 0.125,
            return_lse: true,
        }
    }

    fn spec(&self, dtype: DType, heads: usize, tokens: usize, head_dim: usize) -> TensorSpec {
        let Dims { batch, .. } = self.dims;
        let row = head_dim + self.row_gap;
        let strides = match self.nhd {
            true => [heads * tokens * row, row, heads * row, 1],
            false => [heads * tokens * row, tokens * row, row, 1],
        };
        let layout = Layout::Strides(strides.map(|stride| stride.max(1) as i64));
        TensorSpec::new(Operand::Tensor, dtype, &[batch, heads, tokens, head_dim], layout).expect("valid strides")
    }

    /// The problem with these elements.
    pub fn case(&self, q: Element<'_>, k: Element<'_>, v: Element<'_>) -> Case {
        let Setup { stem, dims, smoothing, granularity, causal, sm_scale, .. } = *self;
        let q_spec = self.spec(self.dtype, dims.num_heads_q, dims.seqlen_q, dims.head_dim);
        let k_spec = self.spec(self.dtype, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim);
        let v_spec = self.spec(self.dtype, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim_v);
        let out = self.spec(self.out_dtype, dims.num_heads_q, dims.seqlen_q, dims.head_dim_v);
        let request = Request {
            causal,
            sm_scale: Some(sm_scale),
            precision: match stem.qk {
                sage_spec::Precision::Int4 => Precision::Int4,
                sage_spec::Precision::Int8 => Precision::Int8,
            },
            granularity,
            smoothing: Some(smoothing),
            pv: Some(stem.pv),
            kernel: Some(stem.name.into()),
            return_lse: self.return_lse,
            ..Request::new(q_spec, k_spec, v_spec, out)
        };
        let options = Options {
            causal,
            sm_scale,
            precision: stem.qk,
            granularity,
            pv: stem.pv,
            smooth_q: smoothing.q,
            smooth_k: smoothing.k,
            smooth_v: smoothing.v,
        };
        Case {
            seed: 0,
            stem,
            problem: Problem::new(request).expect("a valid request"),
            options,
            q: Tensor::fill(q_spec, q),
            k: Tensor::fill(k_spec, k),
            v: Tensor::fill(v_spec, v),
        }
    }

    /// The problem whose elements are [`noise`], around an offset for each channel.
    pub fn noisy(&self) -> Case {
        self.case(&noisy_q, &noisy_k, &noisy_v)
    }
}

/// Element of Q of [`Setup::noisy`].
pub fn noisy_q(head: usize, token: usize, feature: usize) -> f32 {
    noise(1, head, token, feature) + noise(4, 0, 0, feature)
}

/// Element of K of [`Setup::noisy`].
pub fn noisy_k(head: usize, token: usize, feature: usize) -> f32 {
    noise(2, head, token, feature) + 2.0 * noise(5, 0, 0, feature)
}

/// Element of V of [`Setup::noisy`].
pub fn noisy_v(head: usize, token: usize, feature: usize) -> f32 {
    noise(3, head, token, feature)
}
