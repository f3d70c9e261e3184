//! The reference's quantizer of V to FP8, vectorized: bit for bit the same codes, scales and offsets.

#![allow(clippy::needless_range_loop)] // fixed bounds vectorize

use bytemuck::Zeroable;
use rayon::prelude::*;
use sage_spec::layout::v_slot;
use sage_spec::quant::{v_offset, v_scale_fp8};
use sage_spec::reduce::{CHUNK_LANES, V_LANES, v_lane};
use sage_spec::tiling::REDUCE_CHUNK;

use super::isa::{Isa, MOST_LANES, Task};
use super::quantize::{Row, Run, Source, add, max_or_nan, pairwise};
use super::quantized::e4m3_bits;
use crate::reference::convert::round_e4m3;

impl<const WIDTH: usize> Source<'_, WIDTH> {
    /// `[depth]`: scales of the channels of a head of V in FP8, which has tokens.
    pub(super) fn scales_fp8(&self, head: usize, mean: &[f32], scales: &mut [f32]) {
        let extrema: Vec<(Row<WIDTH>, Row<WIDTH>)> = (0..self.seqlen.div_ceil(REDUCE_CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let tokens = self.tokens(chunk, REDUCE_CHUNK);
                self.path.run(Run(
                    #[inline(always)]
                    || {
                        let (mut max, mut min) = ([f32::NEG_INFINITY; WIDTH], [f32::INFINITY; WIDTH]);
                        let mut row = [0.0; WIDTH];
                        for token in tokens.clone() {
                            self.row(head, token, &mut row);
                            for d in 0..WIDTH {
                                max[d] = max_or_nan(max[d], row[d]);
                                min[d] = -max_or_nan(-min[d], -row[d]);
                            }
                        }
                        (max, min)
                    },
                ))
            })
            .collect();
        for (channel, (scale, mean)) in scales.iter_mut().zip(mean).enumerate() {
            let start = (f32::NEG_INFINITY, f32::INFINITY);
            let (max, min) = extrema.iter().fold(start, |(max, min), (chunk_max, chunk_min)| {
                (max_or_nan(max, chunk_max[channel]), -max_or_nan(-min, -chunk_min[channel]))
            });
            *scale = v_scale_fp8(max_or_nan(max - mean, mean - min));
        }
    }

    /// `[depth, padded]`: a head in E4M3, tokens in the order of [`v_slot`]; and its offsets.
    pub(super) fn codes_fp8(
        &self,
        head: usize,
        padded: usize,
        mean: &[f32],
        scales: &[f32],
        codes: &mut [u8],
        offsets: &mut [f32],
    ) {
        let groups = codes.par_chunks_exact_mut(CHANNELS * padded).zip(offsets.par_chunks_exact_mut(CHANNELS));
        groups.enumerate().for_each(|(group, (codes, offsets))| {
            let first = group * CHANNELS;
            let mean: [f32; CHANNELS] = std::array::from_fn(|c| mean[first + c]);
            let inverse = std::array::from_fn(|c| 1.0 / scales[first + c]);
            let rounding = self.path.run(Channels { source: self, head, first, padded, mean, inverse, codes });
            for (c, offset) in offsets.iter_mut().enumerate() {
                *offset = v_offset(mean[c], scales[first + c], rounding[c], self.seqlen as u32);
            }
        });
    }
}

/// Channels of V that one task transposes together.
const CHANNELS: usize = 32;

/// Codes of some channels of V.
struct Channels<'a, const WIDTH: usize> {
    source: &'a Source<'a, WIDTH>,
    head: usize,
    /// The first channel.
    first: usize,
    padded: usize,
    mean: [f32; CHANNELS],
    inverse: [f32; CHANNELS],
    /// `[CHANNELS, padded]`, zeros.
    codes: &'a mut [u8],
}

impl<const WIDTH: usize> Task for Channels<'_, WIDTH> {
    /// Sums of what was rounded less what became of it.
    type Output = [f32; CHANNELS];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [f32; CHANNELS] {
        let Channels { source, head, first, padded, mean, inverse, codes } = self;
        let real = source.head_dim.saturating_sub(first).min(CHANNELS);
        let mut x = [0.0; CHANNELS];
        let mut panels = [I::Panel::zeroed(); CHANNELS];
        let (mut rounding, mut sums) = ([[0.0; CHANNELS]; V_LANES], [[0.0; CHANNELS]; CHUNK_LANES]);
        for begin in (0..source.seqlen).step_by(4 * I::PANEL) {
            // Four codes to a word, in the order of their slots; then a channel's words become neighbours.
            let mut words = [[0; CHANNELS]; MOST_LANES];
            for token in begin..source.seqlen.min(begin + 4 * I::PANEL) {
                let (batch, head) = (head / source.num_heads, head % source.num_heads);
                source.tensor.row_from(batch, head, token, first, &mut x[..real]);
                let slot = v_slot(token - begin);
                let word = &mut words[slot / 4];
                let lane = &mut rounding[v_lane(token % REDUCE_CHUNK)];
                for c in 0..CHANNELS {
                    let normalized = (x[c] - mean[c]) * inverse[c];
                    let code = e4m3_code(normalized);
                    word[c] |= code << (slot % 4 * 8);
                    lane[c] += normalized - f32::from_bits(e4m3_bits(code));
                }
            }
            let end = source.seqlen.min(begin + 4 * I::PANEL);
            if end % REDUCE_CHUNK == 0 || end == source.seqlen {
                add(&mut sums[begin / REDUCE_CHUNK % CHUNK_LANES], &pairwise(&mut rounding));
                rounding = [[0.0; CHANNELS]; V_LANES];
            }
            let mut rows = [&words[0][..]; MOST_LANES];
            for (row, word) in rows.iter_mut().zip(&words) {
                *row = word;
            }
            isa.transpose(&rows[..I::PANEL], &mut panels);
            for (codes, panel) in codes.chunks_exact_mut(padded).zip(&panels).take(real) {
                let to = &mut codes[begin..padded.min(begin + 4 * I::PANEL)];
                to.copy_from_slice(&bytemuck::bytes_of(panel)[..to.len()]);
            }
        }
        pairwise(&mut sums)
    }
}

/// [`e4m3_from_f32`](crate::reference::convert::e4m3_from_f32) without branches.
#[inline(always)]
fn e4m3_code(x: f32) -> u32 {
    const REBIAS: f32 = f32::from_bits((127 - 120) << 23);
    // As in the unpacking: 2⁻¹²⁰ puts exponent and mantissa where the code has them, 20 bits further up.
    let magnitude = (round_e4m3(x.abs()) * REBIAS).to_bits() >> 20;
    let sign = x.to_bits() >> 24 & 0x80;
    if x.is_nan() { 0x7f } else { sign | magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::convert::e4m3_from_f32;

    #[test]
    fn codes_are_those_of_the_reference() {
        for bits in (0..=u32::MAX).step_by(1021) {
            let x = f32::from_bits(bits);
            assert_eq!(e4m3_code(x) as u8, e4m3_from_f32(x), "{x:e}");
            let value = f32::from_bits(e4m3_bits(e4m3_code(x)));
            assert!(x.is_nan() || x.abs() > 448.0 || value == round_e4m3(x), "{x:e}");
        }
    }
}
