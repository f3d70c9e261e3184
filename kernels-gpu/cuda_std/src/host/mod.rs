//! The host back end: the functions of the PTX back end, name for name, as instructions of the
//! [executor](crate::executor). What each does is documented there, and checked against a GPU by the
//! conformance tests; `#[track_caller]` carries the kernel's line to a fault.
// Words in brackets are chapters of the PTX ISA.
#![allow(rustdoc::broken_intra_doc_links)]

pub mod atomic;
pub mod convert;
pub mod cp_async;
pub mod global;
pub mod hint;
pub mod ldmatrix;
pub mod math;
#[cfg(feature = "sm_90a")]
pub mod mbarrier;
pub mod mma;
pub mod shared;
pub mod thread;
#[cfg(feature = "sm_90a")]
pub mod tma;
pub mod warp;
#[cfg(feature = "sm_90a")]
pub mod warpgroup;
#[cfg(feature = "sm_90a")]
pub mod wgmma;
