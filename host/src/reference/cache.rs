//! Filling and reading the quantized cache.

use sage_spec::Precision;
use sage_spec::cache::{CacheShape, MEAN_THREADS, PAGE_TOKENS, inverse_v_scale, k_scale, scale_word};

use super::convert::{E4M3, e4m3_from_f32, int_code, pack_int4, unpack_int4};
use super::tensor::HostTensor;

/// Token means of K, `[B, Hkv, D]`, added in the order of the kernel.
///
/// Example: [`KvCache`](crate::KvCache).
pub fn cache_mean(k: &HostTensor<'_>, batch: usize, num_heads_kv: usize, tokens: usize, head_dim: usize) -> Vec<f32> {
    let lanes = MEAN_THREADS / head_dim;
    let mut means = Vec::with_capacity(batch * num_heads_kv * head_dim);
    let mut row = vec![0.0f32; head_dim];
    for head in 0..batch * num_heads_kv {
        let mut sums = vec![0.0f32; lanes * head_dim];
        for token in 0..tokens {
            k.row(head / num_heads_kv, head % num_heads_kv, token, &mut row);
            let lane = &mut sums[token % lanes * head_dim..][..head_dim];
            lane.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
        }
        let total = |feature: usize| sums[feature..].iter().step_by(head_dim).fold(0.0f32, |sum, x| sum + x);
        means.extend((0..head_dim).map(|feature| total(feature) / tokens as f32));
    }
    means
}

/// Largest magnitude; NaN if there is one.
fn amax(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |largest, x| if largest.is_nan() || x.abs() <= largest { largest } else { x.abs() })
}

/// Quantizes `tokens` tokens of `k` and `v`, `[B, Hkv, tokens, D]`, into `pages`, from token `lengths[b]` of
/// sequence `b` on; `means` is subtracted from K. Slots of the same groups behind the last token become zero.
///
/// Example: [`KvCache`](crate::KvCache).
#[allow(clippy::too_many_arguments)]
pub fn cache_append(
    shape: &CacheShape,
    pages: &mut [u8],
    block_table: Option<&[u32]>,
    means: Option<&[f32]>,
    k: &HostTensor<'_>,
    v: &HostTensor<'_>,
    tokens: usize,
    lengths: &[usize],
) {
    let (layout, head_dim) = (shape.layout, shape.layout.head_dim);
    let mut row = vec![0.0f32; head_dim];
    for (batch, &length) in lengths.iter().enumerate() {
        for head in 0..shape.num_heads_kv {
            for token in length..length + tokens {
                let id = shape.page_id(block_table, batch, token / PAGE_TOKENS);
                let page = &mut pages[shape.page_offset(id, head)..][..layout.page_bytes()];
                k.row(batch, head, token - length, &mut row);
                if let Some(means) = means {
                    let mean = &means[(batch * shape.num_heads_kv + head) * head_dim..];
                    row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
                }
                let k_scale = k_scale(amax(&row), layout.precision.max_code());
                let code = |x: f32| int_code(x, 1.0 / k_scale, layout.precision.max_code());
                match layout.precision {
                    Precision::Int8 => (0..head_dim).for_each(|d| page[layout.k_byte(token, d)] = code(row[d]) as u8),
                    Precision::Int4 => (0..head_dim).step_by(2).for_each(|d| {
                        page[layout.k_byte(token, d)] = pack_int4(code(row[d]), code(row[d + 1]));
                    }),
                }
                v.row(batch, head, token - length, &mut row);
                let inverse = inverse_v_scale(amax(&row));
                // Slots of later tokens in the same words become zero.
                let rest = (token..).take_while(|&later| later == token || later % 16 != 0);
                for later in rest.filter(|&later| later == token || token + 1 == length + tokens) {
                    for d in 0..head_dim {
                        page[layout.v_byte(later, d)] =
                            if later == token { e4m3_from_f32(row[d] * inverse) } else { 0 };
                    }
                }
                let word = layout.scale_byte(token);
                page[word..word + 4].copy_from_slice(&scale_word(k_scale, inverse).to_le_bytes());
            }
        }
    }
}

/// What the cache holds of the first `tokens` tokens of a sequence's head: K and V, `[tokens, D]`, K without its
/// mean.
///
/// Example: [`KvCache`](crate::KvCache).
pub fn cache_read(
    shape: &CacheShape,
    pages: &[u8],
    block_table: Option<&[u32]>,
    (batch, head): (usize, usize),
    tokens: usize,
) -> [Vec<f32>; 2] {
    let layout = shape.layout;
    let [mut k, mut v] = [(); 2].map(|()| Vec::with_capacity(tokens * layout.head_dim));
    for token in 0..tokens {
        let id = shape.page_id(block_table, batch, token / PAGE_TOKENS);
        let page = &pages[shape.page_offset(id, head)..][..layout.page_bytes()];
        let word = layout.scale_byte(token);
        let word = u32::from_le_bytes([page[word], page[word + 1], page[word + 2], page[word + 3]]);
        let (k_scale, inverse) = (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000));
        for d in 0..layout.head_dim {
            let code = page[layout.k_byte(token, d)];
            let code = match layout.precision {
                Precision::Int8 => code as i8,
                Precision::Int4 => <[i8; 2]>::from(unpack_int4(code))[d % 2],
            };
            k.push(f32::from(code) * k_scale);
            v.push(E4M3[usize::from(page[layout.v_byte(token, d)])] / inverse);
        }
    }
    [k, v]
}
