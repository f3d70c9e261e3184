//! Forward attention kernels.
//!
//! [`mma_sync`] is the algorithm of all kernels built on `mma.sync`; [`sm80`] and [`sm89`] each add
//! their product with V. The two never import each other.

pub mod mma_sync;
#[cfg(feature = "sm_80")]
pub mod sm80;
#[cfg(feature = "sm_89")]
pub mod sm89;
