//! Operands of quantized attention: codes and scales as the quantizers store them.

use std::ops::Range;

use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::quant::LOG2_E;
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};
use sage_spec::{Dims, Precision, PvFormat};

use super::isa::{Codes, Isa, MOST_LANES};
use super::operands::{Operands, TILE};
use super::output::Segment;
use super::product::Integer;
use super::queries::QueryBlock;
use super::softmax::Scale;
use crate::reference::convert::unpack_int4;
use crate::reference::{HostTensor, Options, Quantized};

/// Codes and scales, and K itself for ΔS.
pub struct Codings<'a> {
    pub dims: &'a Dims,
    pub quantized: &'a Quantized,
    /// Q itself, if `quantized` has no codes of it.
    pub q: Option<&'a HostTensor<'a>>,
    pub k: &'a HostTensor<'a>,
    pub options: &'a Options,
}

/// f32 bits of an E4M3 code. The exponent and mantissa of the code, put where those of f32 are, make a
/// number that is too small by 2¹²⁰; that of subnormal codes too. NaN becomes 480: its channel's scale is NaN.
#[inline(always)]
pub fn e4m3_bits(code: u32) -> u32 {
    const REBIAS: f32 = f32::from_bits((127 + 120) << 23);
    (f32::from_bits((code & 0x7f) << 20) * REBIAS).to_bits() | (code & 0x80) << 24
}

/// Two E4M3 codes, the earlier token in the low byte, as two bf16; exact, because bf16 has more bits of both kinds.
#[inline(always)]
fn e4m3_pair(codes: u16) -> u32 {
    let codes = u32::from(codes);
    e4m3_bits(codes & 0xff) >> 16 | e4m3_bits(codes >> 8)
}

/// The pairs of 16 slots of V in the order of their tokens: inverse of [`sage_spec::layout::v_slot`], which
/// keeps pairs of neighbouring tokens together.
#[inline(always)]
fn token_order(slots: &[u8; 16]) -> [u16; 8] {
    let pair = |i: usize| u16::from_le_bytes([slots[2 * i], slots[2 * i + 1]]);
    [pair(0), pair(2), pair(4), pair(6), pair(1), pair(3), pair(5), pair(7)]
}

/// Widens codes of one row to the lanes of the integer product; K's get the offset of [`Codes::QuadsOffset`].
#[inline(always)]
fn widen(codes: &[i8], form: Codes, offset: bool, lanes: &mut [u32]) {
    match form {
        Codes::QuadsOffset | Codes::Quads => {
            let flip = if offset && form == Codes::QuadsOffset { 0x8080_8080 } else { 0 };
            for (lane, codes) in lanes.iter_mut().zip(codes.as_chunks::<4>().0) {
                *lane = u32::from_le_bytes(codes.map(|code| code as u8)) ^ flip;
            }
        }
        Codes::Pairs => {
            for (lane, codes) in lanes.iter_mut().zip(codes.as_chunks::<2>().0) {
                let [low, high] = codes.map(|code| u32::from(i16::from(code) as u16));
                *lane = low | high << 16;
            }
        }
    }
}

impl Codings<'_> {
    fn row_bytes(&self) -> usize {
        self.options.precision.bytes(self.dims.head_dim_padded())
    }

    /// Codes of one row of Q or K as bytes.
    #[inline(always)]
    fn signed(&self, bytes: &[u8], codes: &mut [i8]) {
        match self.options.precision {
            Precision::Int8 => codes.iter_mut().zip(bytes).for_each(|(code, &byte)| *code = byte as i8),
            Precision::Int4 => {
                for (codes, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    let (even, odd) = unpack_int4(byte);
                    *codes = [even, odd];
                }
            }
        }
    }
}

impl Operands for Codings<'_> {
    type Qk = Integer;

    fn dims(&self) -> &Dims {
        self.dims
    }

    fn causal(&self) -> bool {
        self.options.causal
    }

    fn qk_lanes(&self, codes: Codes) -> usize {
        self.dims.head_dim_padded() / codes.per_lane()
    }

    fn v_fits_bf16(&self) -> bool {
        self.options.pv == PvFormat::Fp8
    }

    fn has_delta(&self) -> bool {
        self.quantized.q_mean.is_some()
    }

    #[inline(always)]
    fn load_q<I: Isa>(
        &self,
        _: I,
        segment: &Segment,
        rows: &mut [u32],
        q: &mut [u32],
        start: &mut [u32],
        factor: &mut [f32],
    ) {
        let (form, depth, row_bytes) = (I::CODES, self.dims.head_dim_padded(), self.row_bytes());
        let flat_block = segment.flat_block(self.dims);
        let granularity = self.options.granularity;
        let sm_scale_log2 = self.options.sm_scale * LOG2_E;
        let block = match self.q {
            Some(q) => {
                let mean = self.quantized.q_mean.as_ref().map(|mean| &mean[flat_block * depth..][..depth]);
                let rows = bytemuck::cast_slice_mut(rows);
                Some(QueryBlock::load(self.dims, self.options, q, segment, mean, rows))
            }
            None => None,
        };
        let mut codes = [0; MAX_HEAD_DIM];
        let codes = &mut codes[..depth];
        for (row, lanes) in q.chunks_exact_mut(self.qk_lanes(form)).take(segment.rows).enumerate() {
            let group = granularity.q_group(row);
            let scale = match &block {
                Some(block) => {
                    block.codes::<I>(row, group, codes);
                    block.scale(group)
                }
                None => {
                    let bytes = &self.quantized.q_codes[(flat_block * BLOCK_Q + row) * row_bytes..][..row_bytes];
                    self.signed(bytes, codes);
                    self.quantized.q_scale[flat_block * granularity.q_scales_per_block() + group]
                }
            };
            widen(codes, form, false, lanes);
            if form == Codes::QuadsOffset {
                // Takes back the 128 that was added to every code of K.
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                start[row] = (-128 * sum) as u32;
            }
            factor[row] = scale * sm_scale_log2;
        }
    }

    #[inline(always)]
    fn load_q_mean(&self, segment: &Segment, mean: &mut [f32]) {
        let Some(q_mean) = &self.quantized.q_mean else {
            return;
        };
        let sm_scale_log2 = self.options.sm_scale * LOG2_E;
        let from = &q_mean[segment.flat_block(self.dims) * self.dims.head_dim_padded()..];
        mean.iter_mut().zip(from).for_each(|(mean, x)| *mean = x * sm_scale_log2);
    }

    #[inline(always)]
    fn load_k(&self, form: Codes, flat_kv: usize, tokens: Range<usize>, k: &mut [u32]) {
        let row_bytes = self.row_bytes();
        let head = flat_kv * self.dims.seqlen_kv_padded();
        let bytes = &self.quantized.k_codes[(head + tokens.start) * row_bytes..(head + tokens.end) * row_bytes];
        let mut codes = [0; MAX_HEAD_DIM];
        let codes = &mut codes[..self.dims.head_dim_padded()];
        for (bytes, lanes) in bytes.chunks_exact(row_bytes).zip(k.chunks_exact_mut(self.qk_lanes(form))) {
            self.signed(bytes, codes);
            widen(codes, form, true, lanes);
        }
    }

    #[inline(always)]
    fn load_k_smoothed(&self, flat_kv: usize, tokens: Range<usize>, k: &mut [f32]) {
        let (depth, head_dim) = (self.dims.head_dim_padded(), self.dims.head_dim);
        let (batch, head) = (flat_kv / self.dims.num_heads_kv, flat_kv % self.dims.num_heads_kv);
        let mean = self.quantized.k_mean.as_ref().map(|mean| &mean[flat_kv * depth..][..head_dim]);
        for (token, row) in tokens.zip(k.chunks_exact_mut(depth)) {
            self.k.row(batch, head, token, &mut row[..head_dim]);
            if let Some(mean) = mean {
                row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
            }
            row[head_dim..].fill(0.0);
        }
    }

    #[inline(always)]
    fn k_factors(&self, flat_kv: usize, first: usize, factors: &mut [f32; TILE]) {
        let granularity = self.options.granularity;
        let blocks = self.dims.num_kv_blocks_padded();
        let head = flat_kv * blocks * granularity.k_scales_per_block();
        for (key, factor) in factors.iter_mut().enumerate() {
            if (first + key) / BLOCK_KV < blocks {
                *factor = self.quantized.k_scale[head + granularity.k_group(first + key)];
            }
        }
    }

    #[inline(always)]
    fn load_v<I: Isa>(
        &self,
        isa: I,
        flat_kv: usize,
        tokens: Range<usize>,
        pairs: bool,
        rows: &mut [u32],
        panels: &mut [I::Panel],
    ) {
        let (depth, padded) = (self.dims.head_dim_padded(), self.dims.seqlen_kv_padded());
        match self.options.pv {
            PvFormat::Fp8 => {
                let codes = &self.quantized.v_codes[flat_kv * depth * padded..][..depth * padded];
                let lanes = if pairs { TILE / 2 } else { TILE };
                for (panel, panels) in panels.chunks_exact_mut(lanes).enumerate() {
                    for (channel, row) in rows.chunks_exact_mut(lanes).take(I::PANEL).enumerate() {
                        let begin = (panel * I::PANEL + channel) * padded + tokens.start;
                        for (group, slots) in codes[begin..begin + TILE].as_chunks::<16>().0.iter().enumerate() {
                            let tokens = token_order(slots);
                            if pairs {
                                for i in 0..8 {
                                    row[group * 8 + i] = e4m3_pair(tokens[i]);
                                }
                            } else {
                                for i in 0..8 {
                                    let codes = u32::from(tokens[i]);
                                    row[group * 16 + 2 * i] = e4m3_bits(codes & 0xff);
                                    row[group * 16 + 2 * i + 1] = e4m3_bits(codes >> 8);
                                }
                            }
                        }
                    }
                    transpose(isa, rows, lanes, I::PANEL, panels);
                }
            }
            PvFormat::F16 => {
                let row = &mut rows[..depth];
                let bytes = &self.quantized.v_codes[(flat_kv * padded + tokens.start) * depth * 2..];
                for (index, bytes) in bytes.chunks_exact(depth * 2).take(TILE).enumerate() {
                    for (x, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *x = half::f16::from_le_bytes(*bytes).to_f32().to_bits();
                    }
                    for (panel, channels) in bytemuck::cast_slice::<_, I::Panel>(row).iter().enumerate() {
                        panels[panel * TILE + index] = *channels;
                    }
                }
            }
        }
    }

    fn scale<'s>(&self, q: &'s [f32], k: &'s [f32; TILE], delta: &'s [f32]) -> Scale<'s> {
        Scale::Integer { q, k, delta }
    }

    #[inline(always)]
    fn finish(&self, segment: &Segment, inverse_sum: f32, row: &mut [f32]) {
        let depth = self.dims.head_dim_padded();
        let begin = segment.flat_kv(self.dims) * depth;
        let scale = &self.quantized.v_scale[begin..begin + depth];
        row.iter_mut().zip(scale).for_each(|(x, scale)| *x = *x * inverse_sum * scale);
        if let Some(offset) = &self.quantized.v_offset {
            row.iter_mut().zip(&offset[begin..]).for_each(|(x, offset)| *x += offset);
        }
    }

    fn lse_shift(&self, segment: &Segment, row: usize) -> f32 {
        let rows = self.dims.seqlen_q_padded();
        let dots = self.quantized.qk_mean.as_ref();
        let at = segment.flat_q(self.dims) * rows + segment.first_row() + row;
        dots.map_or(0.0, |dots| dots[at] * self.options.sm_scale)
    }
}

/// Turns `count` rows of `lanes` into panels, one of each lane.
#[inline(always)]
pub fn transpose<I: Isa>(isa: I, rows: &[u32], lanes: usize, count: usize, panels: &mut [I::Panel]) {
    let mut slices = [&rows[..0]; MOST_LANES];
    for (slice, row) in slices.iter_mut().zip(rows.chunks_exact(lanes)).take(count) {
        *slice = row;
    }
    isa.transpose(&slices[..count], panels);
}

#[cfg(test)]
mod tests {
    use sage_spec::layout::v_slot;

    use super::*;
    use crate::reference::convert::e4m3_to_f32;

    #[test]
    fn every_code_but_nan_becomes_its_value() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            let bits = e4m3_to_f32(code).to_bits();
            assert_eq!(e4m3_bits(u32::from(code)), bits);
            assert_eq!(bits & 0xffff, 0);
            assert_eq!(e4m3_pair(u16::from(code) << 8), bits);
            assert_eq!(e4m3_pair(u16::from(code)), bits >> 16);
        }
    }

    #[test]
    fn tokens_come_in_order() {
        let mut slots = [0u8; 16];
        for token in 0..16 {
            slots[v_slot(token)] = token as u8;
        }
        let pairs = token_order(&slots).map(u16::to_le_bytes);
        assert_eq!(pairs.as_flattened(), (0..16).collect::<Vec<u8>>());
    }
}
