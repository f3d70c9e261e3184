//! 64-bit numbers as two words, the low one first: what shared memory hands from thread to thread.

/// The words of `x`.
#[inline(always)]
pub fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The number of two words.
#[inline(always)]
pub fn join([low, high]: [u32; 2]) -> u64 {
    low as u64 | (high as u64) << 32
}
