//! Strided tensors in host memory.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Elements of a [`HostTensor`].
///
/// Example: [`attention_f64`](crate::reference::attention_f64).
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// IEEE 754 binary16.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// IEEE 754 binary32.
    F32(&'a [f32]),
}

impl<'a> Data<'a> {
    /// The elements from `begin` on; none if there are fewer.
    pub fn from(self, begin: usize) -> Data<'a> {
        match self {
            Data::F16(data) => Data::F16(data.get(begin..).unwrap_or(&[])),
            Data::BF16(data) => Data::BF16(data.get(begin..).unwrap_or(&[])),
            Data::F32(data) => Data::F32(data.get(begin..).unwrap_or(&[])),
        }
    }
}

/// A tensor `[batch, heads, tokens, head_dim]` whose last stride is 1.
///
/// Element `(b, h, n, d)` is at offset `b * stride_batch + h * stride_head + n * stride_token + d` of
/// `data`. Strides count elements and are not negative.
///
/// Example: [`attention_f64`](crate::reference::attention_f64).
#[derive(Clone, Copy, Debug)]
pub struct HostTensor<'a> {
    /// The elements, starting with `(0, 0, 0, 0)`.
    pub data: Data<'a>,
    /// Elements from one batch entry to the next.
    pub stride_batch: i64,
    /// Elements from one head to the next.
    pub stride_head: i64,
    /// Elements from one token to the next.
    pub stride_token: i64,
}

impl<'a> HostTensor<'a> {
    /// A tensor without gaps.
    pub fn contiguous(data: Data<'a>, heads: usize, tokens: usize, head_dim: usize) -> Self {
        HostTensor {
            data,
            stride_batch: (heads * tokens * head_dim) as i64,
            stride_head: (tokens * head_dim) as i64,
            stride_token: head_dim as i64,
        }
    }

    /// The tensor without its first `tokens` tokens.
    pub fn from_token(&self, tokens: usize) -> Self {
        HostTensor { data: self.data.from(tokens * self.stride_token as usize), ..*self }
    }

    /// Copies the first `out.len()` features of token `token` to `out`, widened exactly to f32.
    pub fn row(&self, batch: usize, head: usize, token: usize, out: &mut [f32]) {
        self.row_from(batch, head, token, 0, out);
    }

    /// Copies `tokens` of a head to rows of `depth` in `out`, as many as fit; further rows, and features from
    /// `head_dim` on, become zero.
    pub(super) fn rows(
        &self,
        batch: usize,
        head: usize,
        mut tokens: Range<usize>,
        head_dim: usize,
        depth: usize,
        out: &mut [f32],
    ) {
        for row in out.chunks_exact_mut(depth) {
            match tokens.next() {
                Some(token) => {
                    let (existing, padding) = row.split_at_mut(head_dim);
                    self.row(batch, head, token, existing);
                    padding.fill(0.0);
                }
                None => row.fill(0.0),
            }
        }
    }

    /// [`HostTensor::row`] starting at feature `first`.
    pub(crate) fn row_from(&self, batch: usize, head: usize, token: usize, first: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let offset =
            batch as i64 * self.stride_batch + head as i64 * self.stride_head + token as i64 * self.stride_token;
        let begin = offset as usize + first;
        let range = begin..begin + out.len();
        match self.data {
            Data::F16(data) => data[range].convert_to_f32_slice(out),
            Data::BF16(data) => data[range].convert_to_f32_slice(out),
            Data::F32(data) => out.copy_from_slice(&data[range]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_follows_the_strides_and_widens_exactly() {
        let values: Vec<f32> = (0..60).map(|i| i as f32 * 0.5).collect();
        let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        let brains: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        for data in [Data::F32(&values), Data::F16(&halves), Data::BF16(&brains)] {
            // [2, 2, 3, 4] out of rows of 5: token-major, heads inside.
            let tensor = HostTensor { data, stride_batch: 30, stride_head: 5, stride_token: 10 };
            let mut row = [0.0; 4];
            tensor.row(1, 1, 2, &mut row);
            assert_eq!(row, [27.5, 28.0, 28.5, 29.0]);
        }
    }
}
