//! Batches of sequences of different lengths, packed along the token axis.

use std::ops::Range;

use crate::error::ModifierError;

/// Where packed sequences begin and end: sequence `i` has the query tokens `q[i] .. q[i + 1]` and the
/// key tokens `kv[i] .. kv[i + 1]` of tensors whose batch is 1. Each attends to itself alone, and is
/// smoothed and quantized alone: its output has the bits that it has in a batch of its own.
///
/// ```
/// use sage_attn::problem::Sequences;
/// let sequences = Sequences::new(&[0, 3, 3, 10], &[0, 5, 9, 9])?;
/// assert_eq!(sequences.len(), 3);
/// assert_eq!((sequences.q(2), sequences.kv(1)), (3..10, 5..9));
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    q: Vec<usize>,
    kv: Vec<usize>,
}

impl Sequences {
    /// From cumulative lengths (`cu_seqlens`) of queries and keys: each begins with 0, never falls, and
    /// ends with the number of tokens.
    ///
    /// # Errors
    ///
    /// [`ModifierError`] if that is not so, or if the two have different lengths.
    pub fn new(q: &[usize], kv: &[usize]) -> Result<Sequences, ModifierError> {
        if q.len() != kv.len() {
            return Err(ModifierError::SequenceCounts { q: q.len(), kv: kv.len() });
        }
        for cumulative in [q, kv] {
            if cumulative.first() != Some(&0) {
                return Err(ModifierError::SequencesStart { first: cumulative.first().copied() });
            }
            if let Some(at) = cumulative.windows(2).position(|pair| pair[0] > pair[1]) {
                return Err(ModifierError::SequencesFall {
                    index: at + 1,
                    from: cumulative[at],
                    to: cumulative[at + 1],
                });
            }
        }
        Ok(Sequences { q: q.to_vec(), kv: kv.to_vec() })
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.q.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Query tokens of sequence `index`, which is less than [`Sequences::len`].
    pub fn q(&self, index: usize) -> Range<usize> {
        self.q[index]..self.q[index + 1]
    }

    /// Key tokens of sequence `index`, which is less than [`Sequences::len`].
    pub fn kv(&self, index: usize) -> Range<usize> {
        self.kv[index]..self.kv[index + 1]
    }

    /// How many sequences from `index` on, which is less than [`Sequences::len`], have as many tokens of q and of k
    /// as it has: together they are a batch. A sequence without rows or without keys is by itself.
    pub fn alike_from(&self, index: usize) -> usize {
        let lengths = |index: usize| [self.q(index).len(), self.kv(index).len()];
        let first = lengths(index);
        match first.contains(&0) {
            true => 1,
            false => (index..self.len()).take_while(|&index| lengths(index) == first).count(),
        }
    }

    /// Tokens of q and of k in all.
    pub(super) fn tokens(&self) -> [usize; 2] {
        [&self.q, &self.kv].map(|cumulative| cumulative[cumulative.len() - 1])
    }

    /// Tokens of the longest sequences of q and of k.
    pub(super) fn longest(&self) -> [usize; 2] {
        [&self.q, &self.kv].map(|cumulative| cumulative.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0))
    }
}
