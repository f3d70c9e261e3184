//! The contract between device kernels, host and CPU reference.
//!
//! Everything two of those parties must agree on is written here once: what each kernel parameter
//! means ([`params`], [`modifiers`]), which elements share a scale ([`quant`]), how tiles and buffers are laid
//! out ([`layout`], [`tiling`], [`launch`]), in which order tiles are quantized ([`schedule`]), how long sums
//! are associated ([`reduce`]), which sizes are legal
//! ([`limits`]), how keys and values are kept from call to call ([`cache`], [`decode`]) and what the exported symbols are called ([`symbol`]). The crate depends on nothing.
#![no_std]
#![forbid(unsafe_code)]

pub mod cache;
pub mod decode;
pub mod dims;
pub mod launch;
pub mod layout;
pub mod limits;
pub mod merge;
pub mod modifiers;
pub mod params;
pub mod quant;
pub mod reduce;
pub mod schedule;
pub mod sm90;
pub mod symbol;
pub mod tiling;

pub use dims::Dims;
pub use modifiers::{Alignment, Band, Window};
pub use quant::{CodeStorage, Precision, PvFormat, ScaleGranularity};
