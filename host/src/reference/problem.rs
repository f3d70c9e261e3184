//! Finding one's way in [`Quantized`] buffers.

use sage_spec::Dims;
use sage_spec::tiling::BLOCK_Q;

use super::softmax::TileRow;
use super::{HostTensor, Options, Quantized};

/// A quantized problem; flat indices run over batch and heads (and query blocks).
pub struct Problem<'a> {
    pub dims: &'a Dims,
    pub quantized: &'a Quantized,
    pub k: &'a HostTensor<'a>,
    pub options: &'a Options,
}

impl Problem<'_> {
    /// Scales of Q of one query block, flattened over heads.
    pub fn q_scales(&self, flat_block: usize) -> &[f32] {
        let count = self.options.granularity.q_scales_per_block();
        self.part(&self.quantized.q_scale, flat_block, count)
    }

    /// Scale of each key of the tile that starts at key `first`.
    pub fn k_scales(&self, flat_kv: usize, first: usize) -> TileRow {
        let granularity = self.options.granularity;
        let head = flat_kv * self.dims.num_kv_blocks_padded() * granularity.k_scales_per_block();
        std::array::from_fn(|key| self.quantized.k_scale[head + granularity.k_group(first + key)])
    }

    /// Scales of the first `blocks` key blocks of a head.
    pub fn head_k_scales(&self, flat_kv: usize, blocks: usize) -> &[f32] {
        let count = self.options.granularity.k_scales_per_block();
        let head = flat_kv * self.dims.num_kv_blocks_padded() * count;
        &self.quantized.k_scale[head..head + blocks * count]
    }

    /// Mean of Q of one query block, if Q is smoothed.
    pub fn q_mean(&self, flat_block: usize) -> Option<&[f32]> {
        let mean = self.quantized.q_mean.as_ref()?;
        Some(self.part(mean, flat_block, self.dims.head_dim_padded()))
    }

    /// `q · k_mean · sm_scale` of a row, which the LSE of smoothed K lacks.
    pub fn lse_shift(&self, flat_q: usize, row: usize) -> f32 {
        let dots = self.quantized.qk_mean.as_ref();
        dots.map_or(0.0, |dots| dots[flat_q * self.dims.seqlen_q_padded() + row] * self.options.sm_scale)
    }

    /// Codes of Q of one query block, flattened over heads.
    pub fn q_codes(&self, flat_block: usize) -> &[u8] {
        self.part(&self.quantized.q_codes, flat_block, BLOCK_Q * self.row_bytes())
    }

    /// Codes of K of one head, `[Np, Dp]`.
    pub fn k_codes(&self, flat_kv: usize) -> &[u8] {
        let bytes = self.dims.seqlen_kv_padded() * self.row_bytes();
        self.part(&self.quantized.k_codes, flat_kv, bytes)
    }

    /// Codes of V of one head, as [`unpack_v`](super::tile::unpack_v) takes them.
    pub fn v_codes(&self, flat_kv: usize) -> &[u8] {
        let elems = self.dims.seqlen_kv_padded() * self.dims.head_dim_padded();
        self.part(&self.quantized.v_codes, flat_kv, elems * self.options.pv.bytes())
    }

    /// Bytes of a row of codes of Q or K.
    pub fn row_bytes(&self) -> usize {
        self.options.precision.bytes(self.dims.head_dim_padded())
    }

    fn part<'p, T>(&self, x: &'p [T], index: usize, len: usize) -> &'p [T] {
        &x[index * len..(index + 1) * len]
    }

    /// Token `key` of K less `k_mean`, zero beyond the head dimension.
    pub fn smoothed_key(&self, batch: usize, head_kv: usize, key: usize, out: &mut [f32]) {
        self.k.row(batch, head_kv, key, &mut out[..self.dims.head_dim]);
        if let Some(mean) = &self.quantized.k_mean {
            let head = batch * self.dims.num_heads_kv + head_kv;
            let mean = self.part(mean, head, self.dims.head_dim_padded());
            out.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
        }
    }
}
