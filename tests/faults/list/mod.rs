//! The faults, by what they break.

pub mod cpu;
pub mod hopper;
pub mod host;
pub mod killers;
pub mod mma_sync;
pub mod quantizers;
