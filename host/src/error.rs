//! Errors, one enum per phase: a request that contradicts itself ([`Invalid`]), one that is sound but
//! that this library does not do ([`Unsupported`]), one that this device cannot run ([`PlanError`]),
//! and what the driver reports ([`DeviceError`]). Each variant carries the offending value and what
//! would be right.

mod cache;
mod device;
mod modifiers;
mod plan;

use std::fmt;

use thiserror::Error;

pub use cache::CacheError;
pub use device::DeviceError;
pub use modifiers::ModifierError;
pub use plan::PlanError;

use crate::adaptive::AdaptiveError;
use crate::problem::DType;

/// Anything that can go wrong. Nothing in this crate panics on bad input.
///
/// ```
/// use sage_attn::error::{Error, Invalid};
/// use sage_attn::{Attention, Layout, TensorView};
///
/// let (q, kv) = ([0.0f32; 3 * 64], [0.0f32; 2 * 64]);
/// let q = TensorView::new(&q, &[1, 3, 1, 64], Layout::Hnd)?;
/// let kv = TensorView::new(&kv, &[1, 2, 1, 64], Layout::Hnd)?;
/// let error = Attention::new().forward(&q, &kv, &kv).unwrap_err();
/// assert!(matches!(error, Error::Invalid(Invalid::HeadsNotDivisible { .. })));
/// println!("{error}"); // q has 3 heads, which is not a multiple of the 2 heads of k
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The request contradicts itself.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A modifier of the request contradicts itself or the tensors.
    #[error(transparent)]
    Modifier(#[from] ModifierError),
    /// A cache, or a call on one, that cannot be.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The request is sound but outside what this library does.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The request is sound but this device cannot run it as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The driver, the device or an embedded module failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A calibration or a precision plan cannot be used.
    #[error(transparent)]
    Adaptive(#[from] AdaptiveError),
}

/// The tensor or buffer an error is about.
///
/// Example: [`Error`](enum@Error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output.
    Out,
    /// Log-sum-exp.
    Lse,
    /// Scratch memory of a plan.
    Workspace,
    /// Additive bias.
    Bias,
    /// Boolean mask.
    Mask,
    /// ALiBi slopes.
    Alibi,
    /// Logits of attention sinks.
    Sinks,
    /// Pages of a cache.
    Cache,
    /// Block table of a cache.
    BlockTable,
    /// Mean of the keys in a cache.
    KMean,
    /// Tokens of each sequence of a cache.
    Lengths,
    /// Counters of finished splits.
    Counters,
    /// A tensor whose role is not known yet.
    Tensor,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operand::Q => "q",
            Operand::K => "k",
            Operand::V => "v",
            Operand::Out => "out",
            Operand::Lse => "lse",
            Operand::Workspace => "workspace",
            Operand::Bias => "bias",
            Operand::Mask => "mask",
            Operand::Alibi => "alibi",
            Operand::Sinks => "sinks",
            Operand::Cache => "the cache",
            Operand::BlockTable => "the block table",
            Operand::KMean => "the mean of k",
            Operand::Lengths => "the lengths",
            Operand::Counters => "the counters",
            Operand::Tensor => "the tensor",
        })
    }
}

/// Axis of a `[B, H, tokens, D]` tensor.
///
/// Example: [`Error`](enum@Error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Batch.
    Batch,
    /// Heads.
    Head,
    /// Tokens.
    Token,
    /// Features.
    Feature,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Axis::Batch => "batch",
            Axis::Head => "head",
            Axis::Token => "token",
            Axis::Feature => "feature",
        })
    }
}

/// A request that contradicts itself.
///
/// Example: [`Error`](enum@Error).
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Invalid {
    /// A tensor does not have four axes.
    #[error("{tensor} has {rank} axes; it must have 4: batch, heads, tokens and features")]
    Rank {
        /// Offending tensor.
        tensor: Operand,
        /// Its number of axes.
        rank: usize,
    },
    /// Two tensors disagree about the batch.
    #[error("{tensor} has batch {batch}, but q has batch {expected}; they must be equal")]
    BatchMismatch {
        /// Offending tensor.
        tensor: Operand,
        /// Its batch.
        batch: usize,
        /// Batch of q.
        expected: usize,
    },
    /// K and V have different head counts.
    #[error("v has {heads} heads, but k has {expected}; they must be equal")]
    KvHeadsMismatch {
        /// Heads of v.
        heads: usize,
        /// Heads of k.
        expected: usize,
    },
    /// The output has another number of heads than Q.
    #[error("out has {heads} heads, but q has {expected}; they must be equal")]
    OutHeadsMismatch {
        /// Heads of out.
        heads: usize,
        /// Heads of q.
        expected: usize,
    },
    /// There are query heads but no key/value heads.
    #[error("k has 0 heads, but q has {heads_q}; k needs between 1 and {heads_q}")]
    NoKvHeads {
        /// Heads of q.
        heads_q: usize,
    },
    /// Query heads do not divide evenly among key/value heads.
    #[error("q has {heads_q} heads, which is not a multiple of the {heads_kv} heads of k")]
    HeadsNotDivisible {
        /// Heads of q.
        heads_q: usize,
        /// Heads of k.
        heads_kv: usize,
    },
    /// K and V have different lengths.
    #[error("v has {seqlen} tokens, but k has {expected}; they must be equal")]
    SeqlenKvMismatch {
        /// Tokens of v.
        seqlen: usize,
        /// Tokens of k.
        expected: usize,
    },
    /// The output has another number of tokens than Q.
    #[error("out has {seqlen} tokens, but q has {expected}; they must be equal")]
    OutSeqlenMismatch {
        /// Tokens of out.
        seqlen: usize,
        /// Tokens of q.
        expected: usize,
    },
    /// K's head dimension differs from Q's, or the output's from V's.
    #[error("{tensor} has head_dim {head_dim}, but {of} has {expected}; they must be equal")]
    HeadDimMismatch {
        /// Offending tensor.
        tensor: Operand,
        /// Its head dimension.
        head_dim: usize,
        /// The tensor it must agree with.
        of: Operand,
        /// Head dimension of that.
        expected: usize,
    },
    /// Features per head is zero.
    #[error("head_dim of {tensor} is 0; it must be 1 to {max}")]
    HeadDimZero {
        /// Offending tensor.
        tensor: Operand,
        /// Largest supported head dimension.
        max: usize,
    },
    /// A tensor's element type differs from Q's.
    #[error("{tensor} is {dtype}, but q is {expected}; q, k and v must have one type")]
    DTypeMismatch {
        /// Offending tensor.
        tensor: Operand,
        /// Its type.
        dtype: DType,
        /// Type of q.
        expected: DType,
    },
    /// The data handed over for the output has another type than the output should have.
    #[error("out is a buffer of {dtype}, but the requested output type is {expected}")]
    OutDTypeMismatch {
        /// Type of the buffer.
        dtype: DType,
        /// Type requested.
        expected: DType,
    },
    /// The number of elements does not fit `i64`.
    #[error("{tensor} of shape {shape:?} has more than {} elements", i64::MAX)]
    ElementsOverflow {
        /// Offending tensor.
        tensor: Operand,
        /// Its shape `[B, H, tokens, D]`.
        shape: [usize; 4],
    },
    /// The features of a row are not contiguous.
    #[error("{tensor} has stride {stride} between features; it must be 1")]
    FeatureStride {
        /// Offending tensor.
        tensor: Operand,
        /// Stride in elements.
        stride: i64,
    },
    /// A stride is zero, so that entries share memory.
    #[error("{tensor} has stride 0 along {axis}; it must be positive")]
    ZeroStride {
        /// Offending tensor.
        tensor: Operand,
        /// Axis of the stride.
        axis: Axis,
    },
    /// A stride is negative.
    #[error("{tensor} has stride {stride} along {axis}; it must be positive")]
    NegativeStride {
        /// Offending tensor.
        tensor: Operand,
        /// Axis of the stride.
        axis: Axis,
        /// Stride in elements.
        stride: i64,
    },
    /// Rows overlap because a stride is smaller than a row.
    #[error("{tensor} has stride {stride} along {axis}; it must be at least head_dim, {head_dim}")]
    StrideBelowRow {
        /// Offending tensor.
        tensor: Operand,
        /// Axis of the stride.
        axis: Axis,
        /// Stride in elements.
        stride: i64,
        /// Elements of a row.
        head_dim: usize,
    },
    /// Two entries of the output may share memory.
    #[error("out has stride {stride} along {axis}, which overlaps inner axes; it must be at least {needed}")]
    OutputOverlap {
        /// Axis of the stride.
        axis: Axis,
        /// Stride in elements.
        stride: i64,
        /// Elements the inner axes span.
        needed: i64,
    },
    /// Offsets inside the tensor do not fit `i64` bytes.
    #[error("{tensor} with strides {strides:?} spans more than {} bytes", i64::MAX)]
    SpanOverflow {
        /// Offending tensor.
        tensor: Operand,
        /// Strides `[B, H, tokens, D]` in elements.
        strides: [i64; 4],
    },
    /// A tensor reaches beyond its buffer.
    #[error("the tensor spans {needed} elements, but its buffer has {len}")]
    SpanBeyondBuffer {
        /// Elements from the first to the last, inclusive.
        needed: usize,
        /// Elements of the buffer.
        len: usize,
    },
    /// A part of a tensor was asked for that is not there.
    #[error("{axis} entries {begin} to {end} were asked for, but there are {extent}")]
    NarrowRange {
        /// Axis that is narrowed.
        axis: Axis,
        /// First entry.
        begin: usize,
        /// Entry after the last.
        end: usize,
        /// Entries there are.
        extent: usize,
    },
    /// The log-sum-exp buffer has the wrong length.
    #[error("lse has {len} elements; it must have batch * heads * tokens of q = {expected}")]
    LseLength {
        /// Elements of the buffer.
        len: usize,
        /// Elements needed.
        expected: usize,
    },
    /// Parts to be merged, or the output they are merged into, differ in shape.
    #[error("parts of shapes {first:?} and {other:?} cannot be merged; they must be equal")]
    PartsMismatch {
        /// Shape `[B, Hq, M, D]` of the first part.
        first: [usize; 4],
        /// Shape of the other part, or of the output.
        other: [usize; 4],
    },
    /// The plan and the launch disagree about returning the log-sum-exp.
    #[error("the plan was made with return_lse = {planned}, but the launch {}", if *.planned { "has no lse buffer" } else { "has an lse buffer" })]
    LsePresence {
        /// Whether the plan computes the log-sum-exp.
        planned: bool,
    },
    /// A launch lacks a side input that was planned for, or has one that was not.
    #[error("the plan was made {} {operand}, but the launch has {}", if *.planned { "with" } else { "without" }, if *.planned { "none" } else { "it" })]
    SidePresence {
        /// The side input.
        operand: Operand,
        /// Whether the plan has it.
        planned: bool,
    },
    /// A side input is shorter than its shape says.
    #[error("{operand} has {bytes} bytes; its shape and strides need {needed}")]
    SideTooShort {
        /// The side input.
        operand: Operand,
        /// Bytes given.
        bytes: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The softmax scale is not a number or infinite.
    #[error("sm_scale is {sm_scale}; it must be finite")]
    SmScaleNotFinite {
        /// Value given.
        sm_scale: f32,
    },
    /// The softmax scale is negative.
    #[error("sm_scale is {sm_scale}; it must be 0 or positive")]
    SmScaleNegative {
        /// Value given.
        sm_scale: f32,
    },
    /// A tensor handed to a launch differs from the one planned for.
    #[error("{tensor} is {got} at launch, but the plan was made for {planned}")]
    LaunchMismatch {
        /// Offending tensor.
        tensor: Operand,
        /// What the launch has.
        got: String,
        /// What the plan was made for.
        planned: String,
    },
    /// A null pointer where data is needed.
    #[error("{tensor} is a null pointer, but {bytes} bytes are needed")]
    NullPointer {
        /// Offending tensor.
        tensor: Operand,
        /// Bytes needed.
        bytes: usize,
    },
    /// A device address is not a multiple of the element size (256 bytes for the workspace).
    #[error("{tensor} starts at address {address:#x}; it must be a multiple of {align} bytes")]
    Misaligned {
        /// Offending tensor.
        tensor: Operand,
        /// Device address.
        address: u64,
        /// Required alignment in bytes.
        align: usize,
    },
    /// The address range of a device tensor wraps around.
    #[error("{tensor} starts at address {address:#x} and spans {bytes} bytes, beyond the address space")]
    AddressOverflow {
        /// Offending tensor.
        tensor: Operand,
        /// Device address.
        address: u64,
        /// Bytes spanned.
        bytes: usize,
    },
    /// Something written overlaps something else.
    #[error("{written} and {other} overlap in memory; everything written needs memory of its own")]
    Aliasing {
        /// Buffer that is written.
        written: Operand,
        /// Buffer it overlaps.
        other: Operand,
    },
    /// The workspace is smaller than the plan needs.
    #[error("the workspace has {bytes} bytes; the plan needs {needed}")]
    WorkspaceTooSmall {
        /// Bytes given.
        bytes: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A buffer or stream belongs to another context than the [`crate::device::Gpu`].
    #[error("{what} belongs to another CUDA context than the one the kernels are loaded in")]
    ForeignContext {
        /// Buffer or stream.
        what: String,
    },
    /// No such kernel.
    #[error("kernel \"{name}\" is not known; known are {}", .known.join(", "))]
    UnknownKernel {
        /// Name given.
        name: String,
        /// Every stem there is.
        known: Vec<&'static str>,
    },
    /// The kernel asked for contradicts another option.
    #[error("kernel {kernel} computes with {has}, but {option} {asked} was asked for")]
    KernelConflict {
        /// Stem asked for.
        kernel: &'static str,
        /// What it computes with.
        has: &'static str,
        /// Name of the contradicting option.
        option: &'static str,
        /// Its value.
        asked: &'static str,
    },
    /// A DLPack tensor cannot be taken.
    #[error(transparent)]
    DlPack(#[from] crate::dlpack::DlPackError),
    /// A CUDA device index that is not one.
    #[error("device \"{name}\" is not known; use auto, cpu or cuda:N")]
    DeviceName {
        /// Text given.
        name: String,
    },
}

/// A sound request outside what this library does.
///
/// Example: [`Error`](enum@Error).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The head dimension is too large.
    #[error("head_dim of {tensor} is {head_dim}; supported are 1 to {max}")]
    HeadDim {
        /// Offending tensor.
        tensor: Operand,
        /// Value given.
        head_dim: usize,
        /// Largest supported.
        max: usize,
    },
    /// A sequence is too long for 31-bit token indices.
    #[error("{tensor} has {seqlen} tokens; supported are up to {max}")]
    Seqlen {
        /// Offending tensor.
        tensor: Operand,
        /// Tokens.
        seqlen: usize,
        /// Largest supported.
        max: usize,
    },
    /// Exact attention was asked of a GPU.
    #[error("precision exact runs on the CPU only; choose int4 or int8 for {device}, or device cpu")]
    ExactOnGpu {
        /// Device asked for.
        device: String,
    },
}
