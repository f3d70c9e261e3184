//! The two matrix products of a tile, and unpacking codes for them.

use half::f16;
use sage_spec::layout::v_token;
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{Precision, PvFormat};

use super::convert::{E4M3, unpack_int4};

/// Terms of a sum that are added in one pass over it; inner dimensions are multiples of it.
const UNROLL: usize = 8;

/// `left · right`: `left` is `[inner]` and `right` is `[inner, WIDTH]`; fused multiply-adds in the order
/// of the inner dimension.
///
/// The innermost loop is over the width, so that it vectorizes without reordering any sum.
#[inline(always)]
fn product<const WIDTH: usize>(left: &[f32], right: &[f32]) -> [f32; WIDTH] {
    let mut acc = [0.0; WIDTH];
    let terms = left.as_chunks::<UNROLL>().0.iter();
    let rows = right.as_chunks::<WIDTH>().0.as_chunks::<UNROLL>().0.iter();
    for ([l0, l1, l2, l3, l4, l5, l6, l7], [r0, r1, r2, r3, r4, r5, r6, r7]) in terms.zip(rows) {
        for i in 0..WIDTH {
            let x = l1.mul_add(r1[i], l0.mul_add(r0[i], acc[i]));
            let x = l3.mul_add(r3[i], l2.mul_add(r2[i], x));
            let x = l5.mul_add(r5[i], l4.mul_add(r4[i], x));
            acc[i] = l7.mul_add(r7[i], l6.mul_add(r6[i], x));
        }
    }
    acc
}

/// [`accumulate_pv`] for `WIDTH` = depth.
#[inline(always)]
fn accumulate<const WIDTH: usize>(p: &[f32], v: &[f32], alpha: &[f32], out: &mut [f32]) {
    let rows = p.chunks_exact(BLOCK_KV).zip(out.chunks_exact_mut(WIDTH)).zip(alpha);
    for ((p, out), alpha) in rows {
        let product = product::<WIDTH>(p, v);
        for (out, x) in out.iter_mut().zip(product) {
            *out = *out * alpha + x;
        }
    }
}

vectorized! {
    /// `scores = q · k`: `q` is `[rows, depth]`, `k` is `[depth, BLOCK_KV]`, `scores` is
    /// `[rows, BLOCK_KV]`. Exact on integer codes: every partial sum is an integer below 2²⁴.
    pub fn multiply_qk(q: &[f32], k: &[f32], depth: usize, scores: &mut [f32]) {
        for (q, scores) in q.chunks_exact(depth).zip(scores.chunks_exact_mut(BLOCK_KV)) {
            scores.copy_from_slice(&product::<BLOCK_KV>(q, k));
        }
    }

    /// `out = out · alpha + p · v`, the product summed from zero: `p` is `[rows, BLOCK_KV]`, `v` is
    /// `[BLOCK_KV, depth]`, `out` is `[rows, depth]`, `alpha` is `[rows]`; depth is 64, 128 or 256.
    pub fn accumulate_pv(p: &[f32], v: &[f32], depth: usize, alpha: &[f32], out: &mut [f32]) {
        match depth {
            64 => accumulate::<64>(p, v, alpha, out),
            128 => accumulate::<128>(p, v, alpha, out),
            256 => accumulate::<256>(p, v, alpha, out),
            _ => unreachable!("head_dim_padded is 64, 128 or 256"),
        }
    }

    /// `out[c][r] = rows[r][c]`: `[BLOCK_KV, depth]` to `[depth, BLOCK_KV]`.
    pub fn transpose(rows: &[f32], depth: usize, out: &mut [f32]) {
        for (column, out) in out.chunks_exact_mut(BLOCK_KV).enumerate() {
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(depth)) {
                *out = row[column];
            }
        }
    }
}

/// Integer codes of whole rows as numbers.
pub fn unpack_int(codes: &[u8], precision: Precision, out: &mut [f32]) {
    match precision {
        Precision::Int8 => {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code as i8);
            }
        }
        Precision::Int4 => {
            for (out, &byte) in out.chunks_exact_mut(2).zip(codes) {
                let (even, odd) = unpack_int4(byte);
                out.copy_from_slice(&[f32::from(even), f32::from(odd)]);
            }
        }
    }
}

/// Codes of V of the tokens `first_token .. first_token + BLOCK_KV` of one head as `[BLOCK_KV, depth]`.
///
/// FP8: `codes` is `[depth, tokens]` in the order of [`v_token`]; FP16: `[tokens, depth]`.
pub fn unpack_v(codes: &[u8], pv: PvFormat, depth: usize, first_token: usize, out: &mut [f32]) {
    match pv {
        PvFormat::Fp8 => {
            let tokens = codes.len() / depth;
            for (channel, codes) in codes.chunks_exact(tokens).enumerate() {
                let codes = &codes[first_token..first_token + BLOCK_KV];
                for (slot, &code) in codes.iter().enumerate() {
                    out[v_token(slot) * depth + channel] = E4M3[usize::from(code)];
                }
            }
        }
        PvFormat::F16 => {
            let codes = codes[first_token * depth * 2..].chunks_exact(2);
            for (out, code) in out.iter_mut().zip(codes) {
                *out = f16::from_le_bytes([code[0], code[1]]).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 255) as f32 - 127.0).collect()
    }

    #[test]
    fn products_are_exact_on_integers() {
        let (row_count, depth) = (5, 128);
        let (q, k) = (pattern(row_count * depth, 1), pattern(BLOCK_KV * depth, 2));
        let mut transposed = vec![0.0; k.len()];
        transpose(&k, depth, &mut transposed);
        let mut scores = vec![f32::NAN; row_count * BLOCK_KV];
        multiply_qk(&q, &transposed, depth, &mut scores);
        for (i, &score) in scores.iter().enumerate() {
            let (q, k) = (&q[i / BLOCK_KV * depth..], &k[i % BLOCK_KV * depth..]);
            let exact: i32 = (0..depth).map(|d| q[d] as i32 * k[d] as i32).sum();
            assert_eq!(score, exact as f32);
        }

        let p = pattern(row_count * BLOCK_KV, 3);
        let alpha: Vec<f32> = (0..row_count).map(|r| r as f32).collect();
        let mut out = vec![2.0; row_count * depth];
        accumulate_pv(&p, &k, depth, &alpha, &mut out);
        for (i, &x) in out.iter().enumerate() {
            let (row, channel) = (i / depth, i % depth);
            let exact: i32 = (0..BLOCK_KV).map(|n| p[row * BLOCK_KV + n] as i32 * k[n * depth + channel] as i32).sum();
            assert_eq!(x, (exact + 2 * row as i32) as f32);
        }
    }
}
