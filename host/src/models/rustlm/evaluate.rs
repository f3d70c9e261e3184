//! Bits per byte of a text.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{Attend, CONTEXT, KvCache, RustLm, VOCABULARY};
use crate::models::ModelError;

/// Fewest bytes of a text: one to see and one to predict.
const MIN_BYTES: usize = 2;

/// A text cut into windows of `context` bytes, the last one shorter. Each is a sequence of its own;
/// its first byte, which has nothing before it, is seen but not scored.
///
/// ```
/// use sage_attn::models::rustlm::Windows;
/// let windows = Windows::new(b"abcdefg", 3)?;
/// assert_eq!(windows.iter().collect::<Vec<_>>(), [b"abc", b"def"]);
/// # Ok::<(), sage_attn::models::ModelError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    text: &'a [u8],
    context: usize,
}

impl<'a> Windows<'a> {
    /// Cuts `text`.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooShort`] if there is nothing to predict, [`ModelError::Context`] if a window is
    /// more than the model can see.
    pub fn new(text: &'a [u8], context: usize) -> Result<Windows<'a>, ModelError> {
        if text.len() < MIN_BYTES {
            return Err(ModelError::TooShort { what: "the text", bytes: text.len(), needed: MIN_BYTES });
        }
        if context < MIN_BYTES {
            return Err(ModelError::TooShort { what: "a window", bytes: context, needed: MIN_BYTES });
        }
        if context > CONTEXT {
            return Err(ModelError::Context { tokens: context, context: CONTEXT });
        }
        Ok(Windows { text, context })
    }

    /// The windows, in order. A last window of one byte has nothing to score and is left out.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let rest = self.text.len() % self.context;
        let end = if rest < MIN_BYTES { self.text.len() - rest } else { self.text.len() };
        self.text[..end].chunks(self.context)
    }
}

/// How well a text was predicted.
///
/// Example: [`RustLm`](crate::models::rustlm::RustLm).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Sum over scored bytes of −log2 of the probability given to the byte that came.
    pub bits: f64,
    /// Bytes scored.
    pub scored: usize,
    /// Bytes seen.
    pub tokens: usize,
    /// Time it took.
    pub time: Duration,
}

impl Evaluation {
    /// Bits per scored byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.scored as f64
    }
}

impl RustLm {
    /// Predicts every byte of every window from those before it. `each` is told the index of each
    /// window when it is done.
    ///
    /// # Errors
    ///
    /// What `attend` returns.
    pub fn evaluate(
        &self,
        windows: &Windows<'_>,
        attend: &mut Attend<'_>,
        each: &mut dyn FnMut(usize),
    ) -> Result<Evaluation, ModelError> {
        let mut total = Evaluation::default();
        let mut cache = KvCache::new(windows.context.min(windows.text.len()))?;
        for (index, window) in windows.iter().enumerate() {
            let start = Instant::now();
            cache.clear();
            let hidden = self.forward(window, &mut cache, attend)?;
            total.bits += bits(&self.logits(&hidden), &window[1..]);
            total.scored += window.len() - 1;
            total.tokens += window.len();
            total.time += start.elapsed();
            each(index);
        }
        Ok(total)
    }
}

/// Bits that `logits` `[tokens, VOCABULARY]` give to the byte that follows each token.
fn bits(logits: &[f32], next: &[u8]) -> f64 {
    let rows = logits.par_chunks(VOCABULARY).zip(next);
    let bits: Vec<f64> = rows.with_min_len(64).map(|(logits, &next)| surprise(logits, next)).collect();
    bits.iter().sum() // in order, so that the sum does not depend on the number of threads
}

/// −log2 of the probability of `next`.
fn surprise(logits: &[f32], next: u8) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    (sum.ln() - f64::from(logits[usize::from(next)] - max)) / std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_text_but_for_a_last_single_byte() {
        let text = [7u8; 11];
        let lengths = |context| Windows::new(&text, context).unwrap().iter().map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(4), [4, 4, 3]);
        assert_eq!(lengths(5), [5, 5]);
        assert_eq!(lengths(4096), [11]);
        assert!(matches!(Windows::new(&text, 1), Err(ModelError::TooShort { .. })));
        assert!(matches!(Windows::new(&text[..1], 4), Err(ModelError::TooShort { .. })));
        assert!(matches!(Windows::new(&text, 4097), Err(ModelError::Context { .. })));
    }

    #[test]
    fn surprise_is_in_bits() {
        let mut logits = vec![0.0; VOCABULARY];
        assert!((surprise(&logits, 9) - 8.0).abs() < 1e-12);
        logits[9] = 1000.0;
        assert_eq!(surprise(&logits, 9), 0.0);
        assert!((surprise(&logits, 8) - 1000.0 / std::f64::consts::LN_2).abs() < 1e-9);
    }
}
