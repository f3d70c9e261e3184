//! Hints to the optimiser.

/// Returns `value`.
#[inline]
pub fn opaque(value: u32) -> u32 {
    std::hint::black_box(value)
}
