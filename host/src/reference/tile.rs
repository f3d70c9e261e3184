//! The two matrix products of a tile, and unpacking codes for them.

use half::f16;
use sage_spec::layout::v_token;
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{Precision, PvFormat};

use super::convert::{E4M3, unpack_int4};

/// Rows that the products handle together; row counts must be multiples of it.
pub const ROWS: usize = 4;
/// Columns that the products handle together: two AVX2 registers. Depths must be multiples of it.
pub const COLUMNS: usize = 16;

/// Adds to `acc[r][c]` the product of `left[r][i]` and `right[i][first + c]` for every `i` in order.
#[inline(always)]
fn product(left: [&[f32]; ROWS], right: &[f32], width: usize, first: usize) -> [[f32; COLUMNS]; ROWS] {
    let mut acc = [[0.0f32; COLUMNS]; ROWS];
    for (i, right) in right.chunks_exact(width).take(left[0].len()).enumerate() {
        let right: &[f32; COLUMNS] = right[first..first + COLUMNS].try_into().unwrap();
        for (acc, left) in acc.iter_mut().zip(left) {
            for (acc, right) in acc.iter_mut().zip(right) {
                *acc = left[i].mul_add(*right, *acc);
            }
        }
    }
    acc
}

/// The `ROWS` rows of `x`, which is `[ROWS, width]`.
#[inline(always)]
fn rows(x: &[f32], width: usize) -> [&[f32]; ROWS] {
    std::array::from_fn(|r| &x[r * width..(r + 1) * width])
}

vectorized! {
    /// `scores = q · k`: `q` is `[rows, depth]`, `k` is `[depth, BLOCK_KV]`, `scores` is
    /// `[rows, BLOCK_KV]`. Exact on integer codes: every partial sum is an integer below 2²⁴.
    pub fn multiply_qk(q: &[f32], k: &[f32], depth: usize, scores: &mut [f32]) {
        let groups = q.chunks_exact(ROWS * depth).zip(scores.chunks_exact_mut(ROWS * BLOCK_KV));
        for (q, scores) in groups {
            for first in (0..BLOCK_KV).step_by(COLUMNS) {
                let acc = product(rows(q, depth), k, BLOCK_KV, first);
                for (scores, acc) in scores.chunks_exact_mut(BLOCK_KV).zip(acc) {
                    scores[first..first + COLUMNS].copy_from_slice(&acc);
                }
            }
        }
    }

    /// `out = out · alpha + p · v`, the product summed from zero: `p` is `[rows, BLOCK_KV]`, `v` is
    /// `[BLOCK_KV, depth]`, `out` is `[rows, depth]`, `alpha` is `[rows]`.
    pub fn accumulate_pv(p: &[f32], v: &[f32], depth: usize, alpha: &[f32], out: &mut [f32]) {
        let groups = p.chunks_exact(ROWS * BLOCK_KV).zip(out.chunks_exact_mut(ROWS * depth));
        for ((p, out), alpha) in groups.zip(alpha.chunks_exact(ROWS)) {
            for first in (0..depth).step_by(COLUMNS) {
                let acc = product(rows(p, BLOCK_KV), v, depth, first);
                for ((out, acc), alpha) in out.chunks_exact_mut(depth).zip(acc).zip(alpha) {
                    for (out, acc) in out[first..first + COLUMNS].iter_mut().zip(acc) {
                        *out = *out * alpha + acc;
                    }
                }
            }
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
        let (row_count, depth) = (8, 128);
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
            let exact: i32 = (0..BLOCK_KV)
                .map(|n| p[row * BLOCK_KV + n] as i32 * k[n * depth + channel] as i32)
                .sum();
            assert_eq!(x, (exact + 2 * row as i32) as f32);
        }
    }
}
