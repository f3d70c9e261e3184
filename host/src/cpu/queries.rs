//! Quantizing a query block when it is loaded: the codes of all queries are never in memory at once.

#![allow(clippy::needless_range_loop)] // iterator adapters take closures, which are compiled for the baseline CPU

use sage_spec::Dims;
use sage_spec::quant::{qk_scale, smooth_q_scale_floor};
use sage_spec::tiling::BLOCK_Q;

use super::output::Segment;
use super::quantize::{feature_l1, int_code, max_or_nan};
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
        let mut scales = [0.0; BLOCK_Q];
        for index in 0..segment.rows {
            let row = &mut rows[index * depth..(index + 1) * depth];
            q.row(segment.batch, segment.head_q, segment.first_row() + index, &mut row[..dims.head_dim]);
            row[dims.head_dim..].fill(0.0);
            if let Some(mean) = mean {
                for d in 0..depth {
                    row[d] -= mean[d];
                }
            }
            let mut largest = [0.0; 16];
            for chunk in row.as_chunks::<16>().0 {
                for lane in 0..16 {
                    largest[lane] = max_or_nan(largest[lane], chunk[lane].abs());
                }
            }
            let amax = &mut scales[granularity.q_group(index)];
            for lane in 0..16 {
                *amax = max_or_nan(*amax, largest[lane]);
            }
        }
        let precision = options.precision;
        let floor = match mean {
            Some(mean) => smooth_q_scale_floor(feature_l1(mean), precision),
            None => 0.0,
        };
        for scale in &mut scales[..granularity.q_scales_per_block()] {
            *scale = max_or_nan(qk_scale(*scale, precision.max_code()), floor);
        }
        QueryBlock { rows, depth, scales, max_code: precision.max_code() }
    }

    /// Codes of row `index`, whose scale is that of `group`.
    #[inline(always)]
    pub fn codes(&self, index: usize, group: usize, codes: &mut [i8]) {
        let inverse_scale = 1.0 / self.scales[group];
        let row = &self.rows[index * self.depth..(index + 1) * self.depth];
        for d in 0..self.depth {
            codes[d] = int_code(row[d], inverse_scale, self.max_code) as i8;
        }
    }

    /// Scale of a group.
    #[inline(always)]
    pub fn scale(&self, group: usize) -> f32 {
        self.scales[group]
    }
}
