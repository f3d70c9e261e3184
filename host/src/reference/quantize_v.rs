//! Quantizing V: a scale per channel, E4M3 or FP16.

use rayon::prelude::*;
use sage_spec::PvFormat;
use sage_spec::layout::v_slot;
use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::quant::{v_offset, v_scale_f16, v_scale_fp8};
use sage_spec::reduce::{CHUNK_LANES, V_LANES, v_lane};
use sage_spec::tiling::{KV_PAD, REDUCE_CHUNK};

use super::convert::{e4m3_from_f32, f16_from_f32, round_e4m3};
use super::quantize::Tokens;
use super::reduce::{LaneSum, Row, max_or_nan, min_or_nan};

/// `[heads, depth]`: scales of the channels of V.
pub fn v_scales(v: &Tokens, v_mean: Option<&[f32]>, pv: PvFormat) -> Vec<f32> {
    let mut scales = vec![0.0; v.heads * v.depth];
    let (max_start, min_start) = match v.seqlen {
        0 => (0.0, 0.0),
        _ => (f32::NEG_INFINITY, f32::INFINITY),
    };
    let start = || ([max_start; MAX_HEAD_DIM], [min_start; MAX_HEAD_DIM]);
    scales.par_chunks_mut(v.depth).enumerate().for_each(|(head, scales)| {
        let extrema = (0..v.seqlen).into_par_iter().with_min_len(REDUCE_CHUNK);
        let (max, min) = extrema
            .fold(start, |extrema, token| {
                let row = v.row(head, token);
                widen(extrema, &(row, row))
            })
            .reduce(start, |a, b| widen(a, &b));
        for (channel, scale) in scales.iter_mut().enumerate() {
            let mean = v_mean.map_or(0.0, |mean| mean[head * v.depth + channel]);
            let amax = max_or_nan(max[channel] - mean, mean - min[channel]);
            *scale = match pv {
                PvFormat::Fp8 => v_scale_fp8(amax),
                PvFormat::F16 => v_scale_f16(amax),
            };
        }
    });
    scales
}

/// Channelwise (maxima, minima) of two such pairs.
fn widen((mut max, mut min): (Row, Row), (other_max, other_min): &(Row, Row)) -> (Row, Row) {
    max.iter_mut().zip(other_max).for_each(|(a, &b)| *a = max_or_nan(*a, b));
    min.iter_mut().zip(other_min).for_each(|(a, &b)| *a = min_or_nan(*a, b));
    (max, min)
}

/// V of one head, centred and divided by its scales.
struct Normalize<'a> {
    mean: Option<&'a [f32]>,
    inverse_scale: Vec<f32>,
}

impl<'a> Normalize<'a> {
    fn new(v: &Tokens, head: usize, mean: Option<&'a [f32]>, scale: &[f32]) -> Self {
        let range = head * v.depth..(head + 1) * v.depth;
        let inverse_scale = scale[range.clone()].iter().map(|scale| 1.0 / scale).collect();
        Normalize { mean: mean.map(|mean| &mean[range]), inverse_scale }
    }

    fn apply(&self, channel: usize, x: f32) -> f32 {
        let centred = self.mean.map_or(x, |mean| x - mean[channel]);
        centred * self.inverse_scale[channel]
    }
}

/// `[heads, depth, seqlen_padded]` in E4M3, tokens in the order of [`v_slot`].
pub fn quantize_v_fp8(v: &Tokens, v_mean: Option<&[f32]>, v_scale: &[f32]) -> Vec<u8> {
    /// Channels one task transposes together.
    const CHANNELS: usize = 16;
    let mut codes = vec![0; v.heads * v.depth * v.seqlen_padded];
    let groups_per_head = v.depth / CHANNELS;
    let groups = codes.par_chunks_mut((CHANNELS * v.seqlen_padded).max(1));
    groups.enumerate().for_each(|(group, codes)| {
        let (head, first) = (group / groups_per_head, group % groups_per_head * CHANNELS);
        let normalize = Normalize::new(v, head, v_mean, v_scale);
        let mut row = [0.0; CHANNELS];
        let row = &mut row[..v.head_dim.saturating_sub(first).min(CHANNELS)];
        for token in 0..v.seqlen {
            v.tensor.row_from(head / v.num_heads, head % v.num_heads, token, first, row);
            for (channel, &x) in row.iter().enumerate() {
                let code = e4m3_from_f32(normalize.apply(first + channel, x));
                codes[channel * v.seqlen_padded + v_slot(token)] = code;
            }
        }
    });
    codes
}

/// `[heads, depth]`: what the output lacks of the channels of V in FP8 ([`v_offset`]).
pub fn v_offsets(v: &Tokens, v_mean: Option<&[f32]>, v_scale: &[f32]) -> Vec<f32> {
    let mut offsets = vec![0.0; v.heads * v.depth];
    if v.seqlen == 0 {
        return offsets;
    }
    offsets.par_chunks_mut(v.depth).enumerate().for_each(|(head, offsets)| {
        let normalize = Normalize::new(v, head, v_mean, v_scale);
        let mut sum = LaneSum::<CHUNK_LANES>::new();
        for (chunk, first) in (0..v.seqlen).step_by(REDUCE_CHUNK).enumerate() {
            let mut part = LaneSum::<V_LANES>::new();
            for token in first..v.seqlen.min(first + REDUCE_CHUNK) {
                let mut row = v.row(head, token);
                for (channel, x) in row[..v.depth].iter_mut().enumerate() {
                    let normalized = normalize.apply(channel, *x);
                    *x = normalized - round_e4m3(normalized);
                }
                part.add_to(v_lane(token - first), &row);
            }
            sum.add(chunk, &part.finish());
        }
        for (channel, (offset, rounding)) in offsets.iter_mut().zip(sum.finish()).enumerate() {
            let at = head * v.depth + channel;
            *offset = v_offset(v_mean.map_or(0.0, |mean| mean[at]), v_scale[at], rounding, v.seqlen as u32);
        }
    });
    offsets
}

/// `[heads, seqlen_padded, depth]` in FP16, little-endian.
pub fn quantize_v_f16(v: &Tokens, v_mean: Option<&[f32]>, v_scale: &[f32]) -> Vec<u8> {
    let mut codes = vec![0; v.heads * v.seqlen_padded * v.depth * 2];
    codes.par_chunks_mut(KV_PAD * v.depth * 2).enumerate().for_each(|(block, codes)| {
        let (head, tokens) = v.block_tokens(block);
        let normalize = Normalize::new(v, head, v_mean, v_scale);
        for (codes, token) in codes.chunks_exact_mut(v.depth * 2).zip(tokens) {
            let row = v.row(head, token);
            for (channel, code) in codes.chunks_exact_mut(2).enumerate() {
                let x = normalize.apply(channel, row[channel]);
                code.copy_from_slice(&f16_from_f32(x).to_le_bytes());
            }
        }
    });
    codes
}
