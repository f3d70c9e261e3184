//! Kernels asked for by name.

use sage_spec::Precision as Codes;
use sage_spec::symbol::{STEMS, Stem};

use super::{Precision, Request};
use crate::error::Invalid;

/// The kernel called `name`.
pub fn find(name: &str) -> Result<Stem, Invalid> {
    STEMS.iter().find(|stem| stem.name == name).copied().ok_or_else(|| Invalid::UnknownKernel {
        name: name.to_owned(),
        known: STEMS.iter().map(|stem| stem.name).collect(),
    })
}

/// Fails if an explicit option of `request` contradicts `stem`.
pub fn check_conflict(stem: &Stem, request: &Request) -> Result<(), Invalid> {
    let conflict = |has, option, asked| Err(Invalid::KernelConflict { kernel: stem.name, has, option, asked });
    match (request.precision, stem.qk) {
        (Precision::Int4, Codes::Int8) => return conflict("int8", "precision", "int4"),
        (Precision::Int8, Codes::Int4) => return conflict("int4", "precision", "int8"),
        (Precision::Exact, codes) => return conflict(codes.name(), "precision", "exact"),
        _ => {}
    }
    match request.pv {
        Some(pv) if pv != stem.pv => conflict(stem.pv.name(), "pv", pv.name()),
        _ => Ok(()),
    }
}
