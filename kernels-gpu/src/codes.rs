//! Codes as they come out of arithmetic: the low bytes of f32 near 1.5 · 2²³, or of words like them.

use cuda_std::convert;

/// The low bytes of four words.
#[inline(always)]
pub fn low_bytes(x: [u32; 4]) -> u32 {
    let (a, b) = (convert::permute_bytes::<0x0040>(x[0], x[1]), convert::permute_bytes::<0x0040>(x[2], x[3]));
    convert::permute_bytes::<0x5410>(a, b)
}
