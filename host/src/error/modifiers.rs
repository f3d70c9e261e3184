//! What can be wrong with the modifiers of a request.

use thiserror::Error;

use super::Operand;

/// A modifier that contradicts itself or the tensors.
///
/// Example: [`Error`](enum@crate::Error).
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ModifierError {
    /// The soft-cap is not a positive number.
    #[error("softcap is {softcap}; it must be positive and finite")]
    Softcap {
        /// Value given.
        softcap: f32,
    },
    /// The slopes are not one for each head.
    #[error("alibi slopes have shape {shape:?}; it must be [1, {heads}] or [{batch}, {heads}], the heads of q")]
    AlibiShape {
        /// Shape given.
        shape: [usize; 2],
        /// Batch entries, or packed sequences.
        batch: usize,
        /// Heads of q.
        heads: usize,
    },
    /// A slope is NaN or infinite.
    #[error("alibi slope {index} is {slope}; it must be finite")]
    AlibiNotFinite {
        /// Its position.
        index: usize,
        /// Its value.
        slope: f32,
    },
    /// The sinks are not one for each head.
    #[error("there are {len} sinks; there must be {heads}, one for each head of q")]
    SinksLength {
        /// Sinks given.
        len: usize,
        /// Heads of q.
        heads: usize,
    },
    /// A sink is NaN or plus infinity.
    #[error("the sink of head {head} is {sink}; it must be finite, or -inf for none")]
    SinkNotFinite {
        /// Head of q.
        head: usize,
        /// Its value.
        sink: f32,
    },
    /// A bias or a mask does not have one value for each pair of a row and a key.
    #[error("{operand} has shape {shape:?}; it must be {pairs:?}, where any extent but the last may be 1")]
    PairShape {
        /// Offending tensor.
        operand: Operand,
        /// Shape given.
        shape: [usize; 4],
        /// `[B, Hq, M, N]`, of the longest sequences if they are packed.
        pairs: [usize; 4],
    },
    /// A stride of a bias or a mask is negative, or its keys are not contiguous.
    #[error("{operand} has strides {strides:?}; they must not be negative, and the last must be 1")]
    PairStride {
        /// Offending tensor.
        operand: Operand,
        /// Strides in elements.
        strides: [i64; 4],
    },
    /// The elements of a bias or a mask do not fit `i64`.
    #[error("{operand} of shape {shape:?} spans more than {} bytes", i64::MAX)]
    PairOverflow {
        /// Offending tensor.
        operand: Operand,
        /// Shape given.
        shape: [usize; 4],
    },
    /// A bias or a mask reaches beyond its buffer.
    #[error("{operand} spans {needed} elements, but its buffer has {len}")]
    PairBeyondBuffer {
        /// Offending tensor.
        operand: Operand,
        /// Elements from the first to the last, inclusive.
        needed: usize,
        /// Elements of the buffer.
        len: usize,
    },
    /// The cumulative lengths of q and of k have different lengths.
    #[error("cumulative lengths have {q} entries for q but {kv} for k; both need one more than there are sequences")]
    SequenceCounts {
        /// Entries for q.
        q: usize,
        /// Entries for k.
        kv: usize,
    },
    /// Cumulative lengths do not begin with 0.
    #[error("cumulative lengths begin with {first:?}; the first entry must be 0")]
    SequencesStart {
        /// The first entry, if there is one.
        first: Option<usize>,
    },
    /// Cumulative lengths fall.
    #[error("cumulative length {index} is {to}, less than the {from} before it; they must not fall")]
    SequencesFall {
        /// Position of the smaller one.
        index: usize,
        /// The entry before it.
        from: usize,
        /// Its value.
        to: usize,
    },
    /// Cumulative lengths do not end with the number of tokens.
    #[error("cumulative lengths of {tensor} end with {end}, but it has {tokens} tokens; they must be equal")]
    SequencesEnd {
        /// Q or K.
        tensor: Operand,
        /// The last entry.
        end: usize,
        /// Tokens of the tensor.
        tokens: usize,
    },
    /// Packed sequences were expected.
    #[error("the problem has no packed sequences; plan makes its plan")]
    NotPacked,
    /// Packed tensors have a batch axis.
    #[error("the tensors have batch {batch}; sequences are packed along the token axis of a batch of 1")]
    PackedBatch {
        /// Batch of q.
        batch: usize,
    },
}
