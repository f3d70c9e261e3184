//! SageAttention2 in pure Rust.
pub mod api;
pub mod device;
pub mod error;
pub mod metrics;
pub mod plan;
pub mod problem;
pub mod reference;

pub use api::{Attention, Device, Output, Report, Summary, Tensor, TensorView, TensorViewMut};
pub use cudarc;
pub use error::Error;
pub use half;
pub use problem::{DType, Element, Layout, Precision, Smoothing};
pub use sage_spec::{PvFormat, ScaleGranularity};
