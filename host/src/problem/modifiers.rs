//! Modifiers of a request: windows, soft-cap, ALiBi, bias, masks, sinks and packed sequences, without
//! their data. What each does to a score is in [`sage_spec::modifiers`].

use sage_spec::{Alignment, Dims, Window};

use super::DType;
use crate::error::{ModifierError, Operand};

/// Shape and strides of a value for each pair of a row and a key.
///
/// ```
/// use sage_attn::error::Operand;
/// use sage_attn::problem::PairSpec;
/// // One row of 5 keys for each of 2 batch entries; heads and queries share it.
/// let spec = PairSpec::contiguous(Operand::Mask, [2, 1, 1, 5])?;
/// assert_eq!((spec.strides, spec.broadcast_strides()), ([5, 5, 5, 1], [5, 0, 0]));
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairSpec {
    /// Extents `[B|1, Hq|1, M|1, N]`; an extent of 1 serves every entry. In a batch of packed sequences
    /// B counts sequences, and M and N are the longest one's, each sequence using its first rows and
    /// keys.
    pub shape: [usize; 4],
    /// Elements from one entry to the next along each axis: not negative, and the last is 1.
    pub strides: [i64; 4],
}

impl PairSpec {
    /// A contiguous view.
    ///
    /// # Errors
    ///
    /// [`ModifierError::PairOverflow`] if its elements do not fit `i64`.
    pub fn contiguous(operand: Operand, shape: [usize; 4]) -> Result<PairSpec, ModifierError> {
        let mut strides = [1i64; 4];
        for axis in (0..3).rev() {
            let next = i64::try_from(shape[axis + 1].max(1)).ok();
            strides[axis] = next
                .and_then(|next| strides[axis + 1].checked_mul(next))
                .ok_or(ModifierError::PairOverflow { operand, shape })?;
        }
        Ok(PairSpec { shape, strides })
    }

    /// Strides of the batch, head and row axes, 0 where one entry serves all.
    pub fn broadcast_strides(&self) -> [i64; 3] {
        std::array::from_fn(|axis| if self.shape[axis] == 1 { 0 } else { self.strides[axis] })
    }

    /// Elements from the first to the last, inclusive; 0 if there are none.
    ///
    /// # Errors
    ///
    /// [`ModifierError::PairOverflow`] if they do not fit `i64`, [`ModifierError::PairStride`] if a stride
    /// is negative or the last is not 1.
    pub fn span_elems(&self, operand: Operand) -> Result<usize, ModifierError> {
        let bad = |axis: usize| self.shape[axis] > 1 && (self.strides[axis] < 0 || axis == 3 && self.strides[3] != 1);
        if (0..4).any(bad) {
            return Err(ModifierError::PairStride { operand, strides: self.strides });
        }
        if self.shape.contains(&0) {
            return Ok(0);
        }
        let last = self.shape.iter().zip(self.strides).try_fold(0i64, |sum, (&extent, stride)| match extent {
            1 => Some(sum), // the stride of a single entry is never used
            _ => sum.checked_add(i64::try_from(extent - 1).ok()?.checked_mul(stride)?),
        });
        // Four bytes to the widest element.
        last.and_then(|last| last.checked_add(1))
            .filter(|span| span.checked_mul(4).is_some())
            .and_then(|span| usize::try_from(span).ok())
            .ok_or(ModifierError::PairOverflow { operand, shape: self.shape })
    }

    /// Checks shape and strides against `[B, Hq, M, N]`.
    fn check(&self, operand: Operand, pairs: [usize; 4]) -> Result<(), ModifierError> {
        let fits = |axis: usize| self.shape[axis] == pairs[axis] || axis < 3 && self.shape[axis] == 1;
        if !(0..4).all(fits) {
            return Err(ModifierError::PairShape { operand, shape: self.shape, pairs });
        }
        self.span_elems(operand)?;
        Ok(())
    }

    /// The part of `count` packed sequences that have `rows` rows and `keys` keys each.
    fn of_sequences(&self, count: usize, rows: usize, keys: usize) -> PairSpec {
        let [batch, heads, m, _] = self.shape;
        let (batch, m) = (if batch == 1 { 1 } else { count }, if m == 1 { 1 } else { rows });
        PairSpec { shape: [batch, heads, m, keys], strides: self.strides }
    }
}

/// Type, shape and strides of an additive bias.
///
/// Example: [`BiasView::new`](crate::BiasView::new).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BiasSpec {
    /// Element type.
    pub dtype: DType,
    /// Shape and strides.
    pub pairs: PairSpec,
}

/// Modifiers of a request. The default changes nothing.
///
/// Example: [`SideInputs`](crate::SideInputs).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Modifiers {
    /// Where rows stand among the keys; the causal mask, the window and ALiBi count from there.
    pub alignment: Alignment,
    /// How far from its position a row sees.
    pub window: Window,
    /// Scores become `softcap · tanh(score / softcap)`; positive and finite.
    pub softcap: Option<f32>,
    /// Shape `[B|1, Hq]` of f32 ALiBi slopes; in a batch of packed sequences B counts sequences.
    pub alibi: Option<[usize; 2]>,
    /// An additive bias.
    pub bias: Option<BiasSpec>,
    /// A boolean mask, one byte for each pair; 0 hides the key.
    pub mask: Option<PairSpec>,
    /// Number of f32 sink logits, Hq.
    pub sinks: Option<usize>,
}

impl Modifiers {
    /// Checks everything against the extents; `batch` and the longest `rows` and `keys` are those of
    /// packed sequences if there are any.
    pub(super) fn check(&self, dims: &Dims, [batch, rows, keys]: [usize; 3]) -> Result<(), ModifierError> {
        if let Some(softcap) = self.softcap
            && !(softcap > 0.0 && softcap.is_finite())
        {
            return Err(ModifierError::Softcap { softcap });
        }
        let heads = dims.num_heads_q;
        if let Some(shape) = self.alibi
            && (shape[1] != heads || shape[0] != 1 && shape[0] != batch)
        {
            return Err(ModifierError::AlibiShape { shape, batch, heads });
        }
        let pairs = [batch, heads, rows, keys];
        if let Some(bias) = &self.bias {
            bias.pairs.check(Operand::Bias, pairs)?;
        }
        if let Some(mask) = &self.mask {
            mask.check(Operand::Mask, pairs)?;
        }
        match self.sinks {
            Some(len) if len != heads => Err(ModifierError::SinksLength { len, heads }),
            _ => Ok(()),
        }
    }

    /// The modifiers of `count` packed sequences of `rows` rows and `keys` keys each.
    pub(super) fn of_sequences(&self, count: usize, rows: usize, keys: usize) -> Modifiers {
        Modifiers {
            alibi: self.alibi.map(|[batch, heads]| [if batch == 1 { 1 } else { count }, heads]),
            bias: self.bias.map(|bias| BiasSpec { pairs: bias.pairs.of_sequences(count, rows, keys), ..bias }),
            mask: self.mask.map(|mask| mask.of_sequences(count, rows, keys)),
            ..*self
        }
    }

    /// Names of the modifiers that act on scores, as messages have them.
    pub fn names(&self) -> Vec<&'static str> {
        let names = [
            ("softcap", self.softcap.is_some()),
            ("alibi", self.alibi.is_some()),
            ("bias", self.bias.is_some()),
            ("mask", self.mask.is_some()),
            ("sinks", self.sinks.is_some()),
        ];
        names.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }
}
