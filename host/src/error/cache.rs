//! What can be wrong with a cache of keys and values, and with attention over it.

use thiserror::Error;

use super::Operand;

/// A cache, or a call on one, that cannot be.
///
/// Example: [`KvCache`](crate::KvCache).
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There are no kernels for the head dimension.
    #[error("a cache of head_dim {head_dim} is not supported; it must be 64 or 128")]
    HeadDim {
        /// Value given.
        head_dim: usize,
    },
    /// A tensor does not belong to the cache.
    #[error("{tensor} has shape {shape:?}; this cache takes {expected}")]
    Shape {
        /// Offending tensor.
        tensor: Operand,
        /// Its shape `[B, H, tokens, D]`.
        shape: [usize; 4],
        /// What would be right, in words.
        expected: String,
    },
    /// There are more query tokens than the kernels take.
    #[error("q has {seqlen_q} tokens; attention over a cache takes 1 to {max}")]
    SeqlenQ {
        /// Tokens of q.
        seqlen_q: usize,
        /// Most there may be.
        max: usize,
    },
    /// A sequence would become longer than the cache allows.
    #[error("sequence {sequence} has {length} tokens and gets {tokens} more; there is room for {capacity} in all")]
    CapacityExceeded {
        /// The sequence.
        sequence: usize,
        /// Tokens it has.
        length: usize,
        /// Tokens to be appended.
        tokens: usize,
        /// Tokens it may have.
        capacity: usize,
    },
    /// A paged cache has too few free pages.
    #[error("{needed} more pages of 64 tokens are needed, but {free} of {pages} are free")]
    PagesExhausted {
        /// Pages that the call needs.
        needed: usize,
        /// Pages that no sequence has.
        free: usize,
        /// Pages of the cache.
        pages: usize,
    },
    /// An entry of a block table names a page that does not exist.
    #[error("block table entry {entry} of sequence {sequence} is page {page}; there are {pages} pages")]
    PageOutOfRange {
        /// The sequence.
        sequence: usize,
        /// Index within its row of the table.
        entry: usize,
        /// The entry.
        page: u32,
        /// Pages of the cache.
        pages: usize,
    },
    /// A sequence's length does not fit.
    #[error("sequence {sequence} was to have {length} tokens; it may have {max}")]
    Length {
        /// The sequence.
        sequence: usize,
        /// Tokens asked for.
        length: usize,
        /// Most there may be.
        max: usize,
    },
    /// There is no such sequence.
    #[error("sequence {sequence} does not exist; the cache has {batch}")]
    NoSequence {
        /// Index given.
        sequence: usize,
        /// Sequences of the cache.
        batch: usize,
    },
    /// The mean of K has the wrong number of values.
    #[error("the mean of k has {len} values; it must have batch * heads * head_dim = {expected}")]
    MeanLength {
        /// Values given.
        len: usize,
        /// Values needed.
        expected: usize,
    },
    /// The mean of K cannot change once keys have been stored without it.
    #[error("the mean of k must be set before the first token is appended; sequence {sequence} has {length}")]
    MeanTooLate {
        /// A sequence with tokens.
        sequence: usize,
        /// Its length.
        length: usize,
    },
    /// Rows of Q or of the output are not aligned for vector accesses.
    #[error(
        "{tensor} must have its address and strides at multiples of 16 bytes; its address is {address:#x}, its strides are {strides:?} elements"
    )]
    Alignment {
        /// Offending tensor.
        tensor: Operand,
        /// Its address.
        address: u64,
        /// Its strides.
        strides: [i64; 4],
    },
    /// Memory handed over for a purpose is too small.
    #[error("{what} has {bytes} bytes; it needs {needed}")]
    TooSmall {
        /// What the memory is for.
        what: &'static str,
        /// Bytes it has.
        bytes: usize,
        /// Bytes it needs.
        needed: usize,
    },
    /// The product of two extents exceeds what a kernel counts.
    #[error("{what} is {value}; at most {max} is supported")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: usize,
        /// Most there may be.
        max: usize,
    },
}
