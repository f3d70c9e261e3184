//! Quantizing a query block when it is loaded: the codes of all queries are never in memory at once.

#![allow(clippy::needless_range_loop)] // iterator adapters take closures, which are compiled for the baseline CPU

use sage_spec::Dims;
use sage_spec::quant::{qk_scale, smooth_q_scale_floor};
use sage_spec::tiling::BLOCK_Q;

use super::isa::Isa;
use super::output::Segment;
use super::quantize::{add_magnitudes, feature_l1, int_codes, magnitude, max_or_nan, subtract};
use crate::reference::{HostTensor, Options};

/// A query block in f32, and what turns it into codes; bit for bit those of [`super::quantize()`].
pub struct QueryBlock<'a> {
    /// `[rows, depth]`, smoothed.
    rows: &'a [f32],
    depth: usize,
    /// Scales by group; there are never more groups than rows.
    scales: [f32; BLOCK_Q],
    max_code: f32,
}

impl<'a> QueryBlock<'a> {
    /// Loads a block into `rows`, `[rows, head_dim_padded]`; `mean` is its mean if Q is smoothed.
    #[inline(always)]
    pub fn load(
        dims: &Dims,
        options: &Options,
        q: &HostTensor,
        segment: &Segment,
        mean: Option<&[f32]>,
        rows: &'a mut [f32],
    ) -> QueryBlock<'a> {
        let depth = dims.head_dim_padded();
        let granularity = options.granularity;
        let (mut scales, mut largest) = ([0.0; BLOCK_Q], [[0; 16]; BLOCK_Q]);
        for index in 0..segment.rows {
            let row = &mut rows[index * depth..(index + 1) * depth];
            q.row(segment.batch, segment.head_q, segment.first_row() + index, &mut row[..dims.head_dim]);
            row[dims.head_dim..].fill(0.0);
            if let Some(mean) = mean {
                subtract(row, mean);
            }
            add_magnitudes(&mut largest[granularity.q_group(index)], row);
        }
        let precision = options.precision;
        let floor = match mean {
            Some(mean) => smooth_q_scale_floor(feature_l1(mean), precision),
            None => 0.0,
        };
        for (scale, largest) in scales.iter_mut().zip(&largest).take(granularity.q_scales_per_block()) {
            *scale = max_or_nan(qk_scale(magnitude(largest), precision.max_code()), floor);
        }
        QueryBlock { rows, depth, scales, max_code: precision.max_code() }
    }

    /// Codes of row `index`, whose scale is that of `group`.
    #[inline(always)]
    pub fn codes<I: Isa>(&self, index: usize, group: usize, codes: &mut [i8]) {
        let row = &self.rows[index * self.depth..(index + 1) * self.depth];
        int_codes::<I>(row, 1.0 / self.scales[group], self.max_code, bytemuck::cast_slice_mut(codes));
    }

    /// Scale of a group.
    #[inline(always)]
    pub fn scale(&self, group: usize) -> f32 {
        self.scales[group]
    }
}
