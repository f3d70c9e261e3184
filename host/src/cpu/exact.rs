//! Operands of attention without quantization.

use std::ops::Range;

use sage_spec::Dims;
use sage_spec::quant::LOG2_E;

use super::isa::{Codes, Isa};
use super::operands::{Operands, TILE};
use super::output::Segment;
use super::product::F32;
use super::softmax::Scale;
use crate::reference::HostTensor;

/// Q, K and V as they are, in f32.
pub struct Exact<'a> {
    pub dims: &'a Dims,
    pub q: &'a HostTensor<'a>,
    pub k: &'a HostTensor<'a>,
    pub v: &'a HostTensor<'a>,
    pub causal: bool,
    pub sm_scale: f32,
}

impl Exact<'_> {
    /// Batch entry and key/value head.
    fn head(&self, flat_kv: usize) -> (usize, usize) {
        (flat_kv / self.dims.num_heads_kv, flat_kv % self.dims.num_heads_kv)
    }
}

impl Operands for Exact<'_> {
    type Qk = F32;

    fn dims(&self) -> &Dims {
        self.dims
    }

    fn causal(&self) -> bool {
        self.causal
    }

    fn qk_lanes(&self, _: Codes) -> usize {
        self.dims.head_dim
    }

    fn v_fits_bf16(&self) -> bool {
        false
    }

    fn has_delta(&self) -> bool {
        false
    }

    #[inline(always)]
    fn load_q<I: Isa>(&self, _: I, segment: &Segment, _: &mut [u32], q: &mut [u32], _: &mut [u32], _: &mut [f32]) {
        let scale = self.sm_scale * LOG2_E;
        let q: &mut [f32] = bytemuck::cast_slice_mut(q);
        for (row, q) in q.chunks_exact_mut(self.dims.head_dim).take(segment.rows).enumerate() {
            self.q.row(segment.batch, segment.head_q, segment.first_row() + row, q);
            q.iter_mut().for_each(|x| *x *= scale);
        }
    }

    fn load_q_mean(&self, _: &Segment, _: &mut [f32]) {}

    #[inline(always)]
    fn load_k(&self, _: Codes, flat_kv: usize, tokens: Range<usize>, k: &mut [u32]) {
        let (batch, head) = self.head(flat_kv);
        let k: &mut [f32] = bytemuck::cast_slice_mut(k);
        for (k, token) in k.chunks_exact_mut(self.dims.head_dim).zip(tokens) {
            self.k.row(batch, head, token, k);
        }
    }

    fn load_k_smoothed(&self, _: usize, _: Range<usize>, _: &mut [f32]) {}

    fn k_factors(&self, _: usize, _: usize, _: &mut [f32; TILE]) {}

    #[inline(always)]
    fn load_v<I: Isa>(
        &self,
        _: I,
        flat_kv: usize,
        tokens: Range<usize>,
        _: bool,
        rows: &mut [u32],
        panels: &mut [I::Panel],
    ) {
        let (batch, head) = self.head(flat_kv);
        let row = &mut rows[..self.dims.head_dim_padded()];
        row.fill(0);
        for (index, token) in tokens.enumerate() {
            self.v.row(batch, head, token, bytemuck::cast_slice_mut(&mut row[..self.dims.head_dim_v]));
            for (panel, channels) in bytemuck::cast_slice::<_, I::Panel>(row).iter().enumerate() {
                panels[panel * TILE + index] = *channels;
            }
        }
    }

    fn scale<'s>(&self, _: &'s [f32], _: &'s [f32; TILE], _: &'s [f32]) -> Scale<'s> {
        Scale::Done
    }

    #[inline(always)]
    fn finish(&self, _: &Segment, inverse_sum: f32, row: &mut [f32]) {
        row.iter_mut().for_each(|x| *x *= inverse_sum);
    }

    fn lse_shift(&self, _: &Segment, _: usize) -> f32 {
        0.0
    }
}
