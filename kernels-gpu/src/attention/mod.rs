//! Forward attention kernels.
//!
//! [`mma_sync`] is the algorithm of all kernels built on `mma.sync`; [`sm80`] and [`sm89`] each add
//! their product with V. [`sm90`] is the algorithm for Hopper's own instructions. None imports another;
//! [`modifiers`] and [`store`] are what their general kernels and epilogues share.

#[cfg(any(feature = "sm_80", feature = "sm_89"))]
pub mod mma_sync;
mod modifiers;
#[cfg(feature = "sm_80")]
pub mod sm80;
#[cfg(feature = "sm_89")]
pub mod sm89;
#[cfg(feature = "sm_90a")]
pub mod sm90;
mod store;
