//! Where an element lives: shared-memory swizzles and fragment maps. Pure functions.

pub mod fragment;
pub mod swizzle;
