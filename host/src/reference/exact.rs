//! Attention without quantization.

use rayon::prelude::*;
use sage_spec::Dims;
use sage_spec::quant::LOG2_E;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};

use super::blocks::{QueryBlock, output_lens, query_blocks};
use super::general::{add_sink, general_exact_row};
use super::softmax::{RowState, exact_row};
use super::tile::{accumulate_pv, multiply_qk, transpose};
use super::{HostTensor, Modifiers, Output, OutputF64};

/// The definition of attention, `softmax(Q Kᵀ · sm_scale) V`, in f64.
///
/// `q` is `[B, Hq, M, D]`, `k` is `[B, Hkv, N, D]`, `v` is `[B, Hkv, N, Dv]`, any dtype. With `causal`, row `i` sees
/// keys up to `i + N - M`. NaN in a visible score or value reaches the output.
///
/// ```
/// use sage_attn::reference::{Data, HostTensor, attention_f32, attention_f64};
/// use sage_attn::spec::Dims;
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 1, seqlen_kv: 2, head_dim: 1, head_dim_v: 1 };
/// let (q, k, v) = ([1.0f32], [0.0f32, 2f32.ln()], [0.0f32, 3.0]);
/// let tensor = |x, tokens| HostTensor::contiguous(Data::F32(x), 1, tokens, 1);
/// let (q, k, v) = (tensor(&q, 1), tensor(&k, 2), tensor(&v, 2));
/// // Weights 1/3 and 2/3.
/// let exact = attention_f64(&dims, &q, &k, &v, false, 1.0);
/// assert!((exact.out[0] - 2.0).abs() < 1e-7 && (exact.lse[0] - 3f64.ln()).abs() < 1e-7);
/// let blocked = attention_f32(&dims, &q, &k, &v, false, 1.0);
/// assert!((blocked.out[0] - 2.0).abs() < 1e-5);
/// ```
pub fn attention_f64(
    dims: &Dims,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    causal: bool,
    sm_scale: f64,
) -> OutputF64 {
    attention_f64_with(dims, q, k, v, causal, sm_scale, &Modifiers::default())
}

/// [`attention_f64`] with modifiers. The LSE is the logarithm of the denominator, sink included.
///
/// Example: [`Modifiers`].
pub fn attention_f64_with(
    dims: &Dims,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    causal: bool,
    sm_scale: f64,
    modifiers: &Modifiers,
) -> OutputF64 {
    let (out_len, _) = output_lens(dims);
    let mut output = OutputF64 { out: vec![0.0; out_len], lse: modifiers.empty_lse(dims) };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    blocks.into_par_iter().for_each(|block| {
        let modifiers = modifiers.head(dims, causal, block.batch, block.head_q);
        let (mut row, mut value) = (vec![0.0f32; dims.head_dim], vec![0.0f32; dims.head_dim_v]);
        for index in 0..block.rows() {
            let position = block.first_row() + index;
            q.row(block.batch, block.head_q, position, &mut row);
            let q: Vec<f64> = row.iter().copied().map(f64::from).collect();

            let (first, end) = modifiers.keys(position);
            let (keys, mut scores): (Vec<usize>, Vec<f64>) = (first..end)
                .filter_map(|key| {
                    k.row(block.batch, block.head_kv, key, &mut row);
                    Some((key, modifiers.modified(position, key, dot(&q, &row) * sm_scale)?))
                })
                .unzip();
            let out = &mut block.out[index * dims.head_dim_v..(index + 1) * dims.head_dim_v];
            block.lse[index] = softmax(&mut scores, modifiers.sink.into());
            for (key, p) in keys.into_iter().zip(scores) {
                v.row(block.batch, block.head_kv, key, &mut value);
                out.iter_mut().zip(&value).for_each(|(out, &v)| *out += p * f64::from(v));
            }
        }
    });
    output
}

/// Dot product in f64.
fn dot(q: &[f64], k: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    for (q, k) in q.chunks(8).zip(k.chunks(8)) {
        for ((lane, q), &k) in lanes.iter_mut().zip(q).zip(k) {
            *lane += q * f64::from(k);
        }
    }
    lanes.iter().sum()
}

/// Turns scores into probabilities that with the sink's sum to one and returns the log-sum-exp of both,
/// −inf for none.
pub(super) fn softmax(scores: &mut [f64], sink: f64) -> f64 {
    let max = scores.iter().copied().fold(sink, f64::max);
    scores.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum = scores.iter().sum::<f64>() + if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
    scores.iter_mut().for_each(|p| *p /= sum);
    max + sum.ln()
}

/// [`attention_f64`] in f32, blocked, with an online softmax: the CPU's `exact` precision.
///
/// Example: [`attention_f64`].
pub fn attention_f32(
    dims: &Dims,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    causal: bool,
    sm_scale: f32,
) -> Output {
    attention_f32_with(dims, q, k, v, causal, sm_scale, &Modifiers::default())
}

/// [`attention_f32`] with modifiers. The LSE is the logarithm of the denominator, sink included.
///
/// Example: [`Modifiers`].
pub fn attention_f32_with(
    dims: &Dims,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    causal: bool,
    sm_scale: f32,
    modifiers: &Modifiers,
) -> Output {
    let (out_len, _) = output_lens(dims);
    let mut output = Output { out: vec![0.0; out_len], lse: modifiers.empty_lse(dims) };
    let blocks = query_blocks(dims, &mut output.out, &mut output.lse);
    blocks.into_par_iter().for_each_init(
        || Scratch::new(dims),
        |scratch, block| scratch.attend(dims, block, [q, k, v], causal, sm_scale, modifiers),
    );
    output
}

/// Buffers of one worker.
struct Scratch {
    /// `head_dim_padded`; features beyond those that exist are zero.
    depth: usize,
    /// `[BLOCK_Q, depth]`.
    q: Vec<f32>,
    /// `[BLOCK_KV, depth]`: rows of K before transposing, then of V.
    kv: Vec<f32>,
    /// `[depth, BLOCK_KV]`.
    k: Vec<f32>,
    /// `[BLOCK_Q, BLOCK_KV]`: scores, then P.
    p: Vec<f32>,
    /// `[BLOCK_Q, depth]`.
    out: Vec<f32>,
}

impl Scratch {
    fn new(dims: &Dims) -> Self {
        let depth = dims.head_dim_padded();
        let zeros = |rows: usize, columns: usize| vec![0.0; rows * columns];
        Scratch {
            depth,
            q: zeros(BLOCK_Q, depth),
            kv: zeros(BLOCK_KV, depth),
            k: zeros(depth, BLOCK_KV),
            p: zeros(BLOCK_Q, BLOCK_KV),
            out: zeros(BLOCK_Q, depth),
        }
    }

    fn attend(
        &mut self,
        dims: &Dims,
        block: QueryBlock<f32>,
        [q, k, v]: [&HostTensor; 3],
        causal: bool,
        sm_scale: f32,
        modifiers: &Modifiers,
    ) {
        let Scratch { depth, q: q_rows, kv, k: k_columns, p, out } = self;
        let (depth, head_dim, head_dim_v) = (*depth, dims.head_dim, dims.head_dim_v);
        let rows = block.rows();
        let first_row = block.first_row();
        let plain = modifiers.is_plain(dims, causal);
        let modifiers = modifiers.head(dims, causal, block.batch, block.head_q);
        let keys = |row: usize| modifiers.keys(first_row + row);
        let mut seen = [false; BLOCK_Q];
        let q_tokens = block.first_row()..dims.seqlen_q;
        q.rows(block.batch, block.head_q, q_tokens, head_dim, depth, q_rows);
        out.fill(0.0);
        let mut states = [RowState::new(f32::MIN); BLOCK_Q];

        for first in (keys(0).0 / BLOCK_KV * BLOCK_KV..keys(rows - 1).1).step_by(BLOCK_KV) {
            let kv_tokens = first..dims.seqlen_kv;
            k.rows(block.batch, block.head_kv, kv_tokens.clone(), head_dim, depth, kv);
            transpose(kv, depth, k_columns);
            v.rows(block.batch, block.head_kv, kv_tokens, head_dim_v, depth, kv);
            multiply_qk(&q_rows[..rows * depth], k_columns, depth, p);
            let mut alpha = [1.0; BLOCK_Q];
            for (row, p) in p.chunks_exact_mut(BLOCK_KV).take(rows).enumerate() {
                if plain {
                    let visible = keys(row).1.saturating_sub(first).min(BLOCK_KV);
                    exact_row(p, visible, sm_scale * LOG2_E, &mut states[row]);
                    seen[row] |= visible > 0;
                } else {
                    let terms = modifiers.terms(first_row + row, first);
                    general_exact_row(p, sm_scale * LOG2_E, modifiers.softcap(), &terms, &mut states[row]);
                    seen[row] |= terms.iter().any(|&term| term != f32::NEG_INFINITY);
                }
                alpha[row] = states[row].alpha;
            }
            accumulate_pv(&p[..rows * BLOCK_KV], kv, depth, &alpha, out);
        }

        for row in 0..rows {
            let state = &mut states[row];
            let mut rescale = 1.0;
            if modifiers.sink != f32::NEG_INFINITY {
                add_sink(modifiers.sink * LOG2_E, 0.0, state);
                rescale = state.alpha;
            } else if !seen[row] {
                continue; // out and lse already say so
            }
            let to = &mut block.out[row * head_dim_v..(row + 1) * head_dim_v];
            to.iter_mut().zip(&out[row * depth..]).for_each(|(to, &x)| *to = x * rescale / state.sum);
            block.lse[row] = (state.max + state.sum.log2()) * std::f32::consts::LN_2;
        }
    }
}
