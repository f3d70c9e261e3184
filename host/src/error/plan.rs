//! Why a sound request cannot be run on a device.

use thiserror::Error;

use crate::problem::DType;

/// A request this device cannot run as asked.
///
/// Example: [`Error`](enum@crate::Error).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No kernel runs on this device at all.
    #[error("the device has compute capability {major}.{minor}; the kernels need 8.0 or later")]
    CapabilityTooLow {
        /// Major compute capability.
        major: u32,
        /// Minor compute capability.
        minor: u32,
    },
    /// The kernel asked for does not run on this device.
    #[error("{kernel} needs {needed}; the device has compute capability {major}.{minor}")]
    KernelNeeds {
        /// Stem asked for, or the option that implies it.
        kernel: String,
        /// What it runs on.
        needed: &'static str,
        /// Major compute capability.
        major: u32,
        /// Minor compute capability.
        minor: u32,
    },
    /// The kernel asked for does not compute what was asked for.
    #[error("{kernel} does not compute {}; GPU kernels support {supported}, device cpu supports all of them", .wanted.join(", "))]
    Modifiers {
        /// Stem asked for.
        kernel: &'static str,
        /// What it lacks.
        wanted: Vec<&'static str>,
        /// What there is.
        supported: &'static str,
    },
    /// No kernel takes tensors of this type at this head dimension.
    #[error(
        "no GPU kernel takes {dtype} tensors of head_dim {head_dim}; supported are {supported}, device cpu takes all types"
    )]
    HeadDimOfType {
        /// Type of q, k and v.
        dtype: DType,
        /// Head dimension of q or v, the larger.
        head_dim: usize,
        /// What there is.
        supported: &'static str,
    },
    /// Packed sequences are planned together, by another function.
    #[error("a plan is for sequences of equal lengths; use plan_packed for packed sequences")]
    PackedSequences,
    /// A launch would need more CTAs than a grid may have.
    #[error("{symbol} would need {ctas} CTAs; a grid has at most {max}")]
    GridTooLarge {
        /// Kernel symbol.
        symbol: String,
        /// CTAs needed.
        ctas: u128,
        /// Largest grid.
        max: usize,
    },
    /// A kernel needs more shared memory than a CTA may have.
    #[error("{symbol} needs {bytes} bytes of shared memory; the device offers {max} to a CTA")]
    SharedMemory {
        /// Kernel symbol.
        symbol: String,
        /// Bytes needed.
        bytes: usize,
        /// Bytes the device offers.
        max: usize,
    },
    /// The workspace does not fit the address space.
    #[error("the workspace would need {bytes} bytes; at most {} are addressable", i64::MAX)]
    WorkspaceOverflow {
        /// Bytes needed.
        bytes: u128,
    },
}
