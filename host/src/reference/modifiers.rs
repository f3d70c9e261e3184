//! What changes scores beside their scale: see [`sage_spec::modifiers`] for the order of the steps.

use sage_spec::quant::LOG2_E;
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{Alignment, Band, Dims, Window};

use super::HostTensor;
use super::softmax::TileRow;

/// A boolean mask `[B, Hq, M, N]` whose last stride is 1; true where a row may see a key.
///
/// Example: [`Modifiers`].
#[derive(Clone, Copy, Debug)]
pub struct HostMask<'a> {
    /// The elements, starting with `(0, 0, 0, 0)`.
    pub data: &'a [bool],
    /// Elements from one batch entry to the next, 0 if all share one.
    pub stride_batch: i64,
    /// Elements from one query head to the next, 0 if all share one.
    pub stride_head: i64,
    /// Elements from one row to the next, 0 if all share one.
    pub stride_row: i64,
}

impl<'a> HostMask<'a> {
    /// Keys `first .. first + len` of a row.
    fn row_from(&self, batch: usize, head: usize, row: usize, first: usize, len: usize) -> &'a [bool] {
        let offset = batch as i64 * self.stride_batch + head as i64 * self.stride_head + row as i64 * self.stride_row;
        let begin = offset as usize + first;
        &self.data[begin..begin + len]
    }
}

/// Modifiers of attention; the default changes nothing.
///
/// ```
/// use sage_attn::reference::{Data, HostMask, HostTensor, Modifiers, attention_f64_with};
/// use sage_attn::spec::Dims;
///
/// let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 1, seqlen_kv: 2, head_dim: 1, head_dim_v: 1 };
/// let x = [1.0f32, 5.0];
/// let x = HostTensor::contiguous(Data::F32(&x), 1, 2, 1);
/// // Only the second key is visible.
/// let mask = HostMask { data: &[false, true], stride_batch: 0, stride_head: 0, stride_row: 0 };
/// let modifiers = Modifiers { mask: Some(mask), ..Modifiers::default() };
/// assert_eq!(attention_f64_with(&dims, &x, &x, &x, false, 1.0, &modifiers).out, [5.0]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Modifiers<'a> {
    /// Where rows stand among the keys.
    pub alignment: Alignment,
    /// Keys near the row's position that it may see.
    pub window: Window,
    /// `s = softcap · tanh(s / softcap)`; positive.
    pub softcap: Option<f32>,
    /// ALiBi slopes, `[B, Hq]` or `[Hq]`.
    pub alibi: Option<&'a [f32]>,
    /// Added to the scaled scores: `[B, Hq, M, N]`, any stride but the last may be 0. −inf hides a key.
    pub bias: Option<HostTensor<'a>>,
    /// Which pairs may meet.
    pub mask: Option<HostMask<'a>>,
    /// Logit of each query head, `[Hq]`, that takes part in the denominator alone.
    pub sinks: Option<&'a [f32]>,
}

impl Modifiers<'_> {
    /// The keys rows see by position.
    pub(super) fn band(&self, dims: &Dims, causal: bool) -> Band {
        Band::new(dims, causal, self.alignment, self.window)
    }

    /// Whether the causal mask is all there is.
    pub(super) fn is_plain(&self, dims: &Dims, causal: bool) -> bool {
        let plain = Band::new(dims, causal, Alignment::BottomRight, Window::UNBOUNDED);
        let Modifiers { softcap, alibi, bias, mask, sinks, .. } = self;
        let none = softcap.is_none() && alibi.is_none() && bias.is_none() && mask.is_none() && sinks.is_none();
        none && self.band(dims, causal) == plain
    }

    /// LSE of rows that see no key, `[B, Hq, M]`: their sink's.
    pub(super) fn empty_lse<T: From<f32> + Clone>(&self, dims: &Dims) -> Vec<T> {
        let Dims { batch, num_heads_q, seqlen_q, .. } = *dims;
        let of_head = |head: usize| self.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head % num_heads_q]);
        (0..batch * num_heads_q).flat_map(|head| std::iter::repeat_n(T::from(of_head(head)), seqlen_q)).collect()
    }

    /// Modifiers of one query head.
    pub(super) fn head(&self, dims: &Dims, causal: bool, batch: usize, head: usize) -> HeadModifiers<'_> {
        let slopes = self.alibi.unwrap_or(&[]);
        let per_batch = slopes.len() > dims.num_heads_q;
        let slope = slopes.get(if per_batch { batch * dims.num_heads_q + head } else { head });
        HeadModifiers {
            modifiers: self,
            band: self.band(dims, causal),
            offset: self.alignment.offset(dims),
            slope: slope.copied(),
            sink: self.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]),
            batch,
            head,
        }
    }
}

/// [`Modifiers`] of one query head.
pub(super) struct HeadModifiers<'a> {
    modifiers: &'a Modifiers<'a>,
    band: Band,
    offset: i64,
    slope: Option<f32>,
    /// −inf if there is none.
    pub sink: f32,
    batch: usize,
    head: usize,
}

impl HeadModifiers<'_> {
    /// Keys that row `row` sees by position.
    pub fn keys(&self, row: usize) -> (usize, usize) {
        self.band.keys(row)
    }

    /// `softcap`, if there is one.
    pub fn softcap(&self) -> Option<f32> {
        self.modifiers.softcap
    }

    /// What is added to the scores of row `row` and the keys from `first` on, in log2 units: ALiBi and
    /// bias, −inf where a key is hidden or does not exist.
    pub fn terms(&self, row: usize, first: usize) -> TileRow {
        let mut terms = [f32::NEG_INFINITY; BLOCK_KV];
        let (begin, end) = self.band.keys(row);
        let (begin, end) = (begin.max(first), end.min(first + BLOCK_KV));
        if begin >= end {
            return terms;
        }
        let seen = &mut terms[begin - first..end - first];
        seen.fill(0.0);
        if let Some(slope) = self.slope {
            let position = row as i64 + self.offset;
            for (key, term) in (begin..).zip(seen.iter_mut()) {
                *term = -(slope * LOG2_E) * (position - key as i64).unsigned_abs() as f32;
            }
        }
        if let Some(bias) = &self.modifiers.bias {
            let mut values = [0.0; BLOCK_KV];
            let values = &mut values[..seen.len()];
            bias.row_from(self.batch, self.head, row, begin, values);
            for (term, value) in seen.iter_mut().zip(values) {
                *term = value.mul_add(LOG2_E, *term);
            }
        }
        if let Some(mask) = &self.modifiers.mask {
            let visible = mask.row_from(self.batch, self.head, row, begin, seen.len());
            for (term, _) in seen.iter_mut().zip(visible).filter(|(_, visible)| !**visible) {
                *term = f32::NEG_INFINITY;
            }
        }
        terms
    }

    /// The definition, in f64: turns the score of a row and a key into what enters softmax; `None` if
    /// the row does not see the key, which is within its band.
    pub fn modified(&self, row: usize, key: usize, score: f64) -> Option<f64> {
        if let Some(mask) = &self.modifiers.mask
            && !mask.row_from(self.batch, self.head, row, key, 1)[0]
        {
            return None;
        }
        let mut score = match self.softcap() {
            Some(softcap) => f64::from(softcap) * (score / f64::from(softcap)).tanh(),
            None => score,
        };
        if let Some(slope) = self.slope {
            score -= f64::from(slope) * (row as i64 + self.offset - key as i64).unsigned_abs() as f64;
        }
        if let Some(bias) = &self.modifiers.bias {
            let mut value = [0.0];
            bias.row_from(self.batch, self.head, row, key, &mut value);
            if value[0] == f32::NEG_INFINITY {
                return None;
            }
            score += f64::from(value[0]);
        }
        Some(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Data;

    #[test]
    fn terms_and_definition_agree() {
        let dims =
            Dims { batch: 2, num_heads_q: 3, num_heads_kv: 1, seqlen_q: 5, seqlen_kv: 70, head_dim: 8, head_dim_v: 8 };
        let slopes = [0.5, 0.25, 0.125, 0.0, 1.0, 2.0];
        let bias: Vec<f32> =
            (0..5 * 70).map(|i| if i % 11 == 3 { f32::NEG_INFINITY } else { i as f32 / 64.0 }).collect();
        let mask: Vec<bool> = (0..2 * 70).map(|i| i % 7 != 2).collect();
        let modifiers = Modifiers {
            window: Window { left: Some(40), right: Some(2) },
            alibi: Some(&slopes),
            bias: Some(HostTensor { data: Data::F32(&bias), stride_batch: 0, stride_head: 0, stride_token: 70 }),
            mask: Some(HostMask { data: &mask, stride_batch: 70, stride_head: 0, stride_row: 0 }),
            ..Modifiers::default()
        };
        for (batch, head, row, first) in [(0, 0, 0, 0), (1, 2, 3, 0), (1, 1, 4, 64), (0, 2, 1, 64)] {
            let of_head = modifiers.head(&dims, false, batch, head);
            let terms = of_head.terms(row, first);
            let (begin, end) = of_head.keys(row);
            for (key, &term) in (first..).zip(&terms) {
                let inside = (begin..end).contains(&key);
                match inside.then(|| of_head.modified(row, key, 0.0)).flatten() {
                    None => assert_eq!(term, f32::NEG_INFINITY),
                    Some(score) => assert!((f64::from(term) - score * std::f64::consts::LOG2_E).abs() < 1e-4),
                }
            }
        }
    }
}
