//! Combining attention over parts of the keys.

use rayon::prelude::*;

use super::tensor::{Tensor, TensorView, TensorViewMut, zeros};
use crate::error::{Error, Invalid};

/// Attention over the keys of two parts together.
///
/// Example: [`merge`].
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// `[B, Hq, M, D]`, contiguous, of the type of the first part. Rows that saw no key in either part are 0.
    pub out: Tensor,
    /// `[B, Hq, M]` natural-log log-sum-exp; −∞ for rows that saw no key in either part.
    pub lse: Vec<f32>,
}

/// Combines attention of the same queries over two disjoint sets of keys: what
/// [`Attention::forward`](super::Attention::forward) would have returned for both sets at once, up to
/// rounding. `o1` and `o2` are `[B, Hq, M, D]`, `lse1` and `lse2` the `[B, Hq, M]` natural-log log-sum-exp
/// that came with them ([`Attention::return_lse`](super::Attention::return_lse)).
///
/// The order of the parts does not change a bit of the result. A part whose log-sum-exp is −∞ has no keys
/// for that row and is not read; if that is so in both, the row is 0 and −∞. NaN stays NaN, and +∞, the
/// log-sum-exp of a row with an infinite score, becomes NaN like the output that came with it.
///
/// ```
/// use sage_attn::{Attention, Layout, Precision, TensorView, merge};
///
/// let q = vec![0.1f32; 3 * 8];
/// let kv: Vec<f32> = (0..10 * 8).map(|i| (i % 13) as f32 / 13.0).collect();
/// let q = TensorView::new(&q, &[1, 1, 3, 8], Layout::Hnd)?;
/// let view = |tokens: std::ops::Range<usize>| {
///     TensorView::new(&kv[tokens.start * 8..tokens.end * 8], &[1, 1, tokens.len(), 8], Layout::Hnd)
/// };
/// let attention = Attention::new().precision(Precision::Exact).return_lse(true);
/// let part = |tokens| -> Result<_, sage_attn::Error> {
///     let keys = view(tokens)?;
///     let output = attention.forward(&q, &keys, &keys)?;
///     Ok((output.out, output.lse.unwrap_or_default()))
/// };
///
/// let ((o1, lse1), (o2, lse2)) = (part(0..4)?, part(4..10)?);
/// let merged = merge(&o1.view()?, &lse1, &o2.view()?, &lse2)?;
///
/// let (whole, lse) = part(0..10)?;
/// let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
/// assert!(close(&merged.out.to_f32(), &whole.to_f32()) && close(&merged.lse, &lse));
/// # Ok::<(), sage_attn::Error>(())
/// ```
///
/// # Errors
///
/// [`Invalid::PartsMismatch`] if the parts differ in shape, [`Invalid::LseLength`] if a log-sum-exp has not
/// one value for each row, [`DeviceError::HostMemory`](crate::error::DeviceError::HostMemory) if there is no
/// memory for the result.
pub fn merge(o1: &TensorView<'_>, lse1: &[f32], o2: &TensorView<'_>, lse2: &[f32]) -> Result<Merged, Error> {
    let mut out = Tensor::zeros(o1.spec().dtype, o1.spec().shape)?;
    let lse = merge_into(o1, lse1, o2, lse2, &mut out.view_mut()?)?;
    Ok(Merged { out, lse })
}

/// [`merge`] into memory of the caller, of any strides and element type; returns the log-sum-exp.
///
/// ```
/// use sage_attn::{Layout, TensorView, TensorViewMut, merge_into};
///
/// let (o1, o2, mut out) = ([1.0f32; 4], [3.0f32; 4], [0.0f32; 4]);
/// let view = |x| TensorView::new(x, &[1, 1, 1, 4], Layout::Hnd);
/// let mut target = TensorViewMut::new(&mut out, &[1, 1, 1, 4], Layout::Hnd)?;
/// // Parts of equal weight: their mean, with twice the sum of exponentials.
/// let lse = merge_into(&view(&o1)?, &[0.0], &view(&o2)?, &[0.0], &mut target)?;
/// assert_eq!((out, lse), ([2.0; 4], vec![2f32.ln()]));
/// # Ok::<(), sage_attn::Error>(())
/// ```
///
/// # Errors
///
/// As [`merge`]; [`Invalid::PartsMismatch`] also if `out` has another shape than the parts.
pub fn merge_into(
    o1: &TensorView<'_>,
    lse1: &[f32],
    o2: &TensorView<'_>,
    lse2: &[f32],
    out: &mut TensorViewMut<'_>,
) -> Result<Vec<f32>, Error> {
    let shape = o1.spec().shape;
    for other in [o2.spec().shape, out.spec().shape] {
        if other != shape {
            return Err(Invalid::PartsMismatch { first: shape, other }.into());
        }
    }
    let [batch, heads, tokens, head_dim] = shape;
    // A view's extents fit `i64` together, unless one of them is 0.
    let rows = batch.saturating_mul(heads).saturating_mul(tokens);
    for len in [lse1.len(), lse2.len()] {
        if len != rows {
            return Err(Invalid::LseLength { len, expected: rows }.into());
        }
    }
    let weights: Vec<Weights> = lse1.iter().zip(lse2).map(|(&a, &b)| Weights::new(a, b)).collect();
    let (part1, part2) = (o1.host(), o2.host());
    let mut values = zeros(rows * head_dim, 0.0f32)?;
    values.par_chunks_mut(head_dim.max(1)).zip(&weights).enumerate().for_each_init(
        || vec![0.0f32; head_dim],
        |row, (index, (to, weights))| {
            let (token, head, batch) = (index % tokens, index / tokens % heads, index / tokens / heads);
            for (part, weight) in [(&part1, weights.first), (&part2, weights.second)] {
                let Some(weight) = weight else { continue };
                part.row(batch, head, token, row);
                // The sum starts at zero, so two products are added and their order does not matter.
                for (to, &x) in to.iter_mut().zip(row.iter()) {
                    *to += weight * x;
                }
            }
        },
    );
    out.store_f32(&values);
    Ok(weights.iter().map(|weights| weights.lse).collect())
}

/// How much each part of a row counts; `None` for a part without keys.
struct Weights {
    first: Option<f32>,
    second: Option<f32>,
    lse: f32,
}

impl Weights {
    fn new(lse1: f32, lse2: f32) -> Weights {
        // `max` takes the number beside a NaN, whose own exponential then keeps it.
        let max = lse1.max(lse2);
        let exp = |lse: f32| (lse != f32::NEG_INFINITY).then(|| (lse - max).exp());
        let (e1, e2) = (exp(lse1), exp(lse2));
        if e1.is_none() && e2.is_none() {
            return Weights { first: None, second: None, lse: f32::NEG_INFINITY };
        }
        let sum = e1.unwrap_or(0.0) + e2.unwrap_or(0.0);
        Weights { first: e1.map(|e| e / sum), second: e2.map(|e| e / sum), lse: max + sum.ln() }
    }
}
