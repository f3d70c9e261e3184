//! Conversions between number formats [cvt]. Rust's `as` from float to integer is never used in
//! device code.

use core::arch::asm;

/// `cvt.f32.f16`: widens the low half of `bits`.
#[inline(always)]
pub fn f16_to_f32(bits: u32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("cvt.f32.f16 {}, {};", out(reg32) value, in(reg16) bits as u16, options(pure, nomem, nostack)) };
    value
}

/// Widens the low half of `bits`, read as bf16: bf16 is the upper half of f32.
#[inline(always)]
pub fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// `cvt.rn.f16x2.f32` (sm_80): `lo` to the low half, `hi` to the high half.
#[inline(always)]
pub fn f32_to_f16x2(lo: f32, hi: f32) -> u32 {
    let bits: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) bits, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack))
    };
    bits
}

/// `cvt.rn.bf16x2.f32` (sm_80): `lo` to the low half, `hi` to the high half.
#[inline(always)]
pub fn f32_to_bf16x2(lo: f32, hi: f32) -> u32 {
    let bits: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) bits, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack))
    };
    bits
}

/// `cvt.rn.satfinite.e4m3x2.f32` (sm_89), twice: `values[i]` to byte `i`. Half-even, saturating to
/// ±448; NaN becomes 0x7F.
#[cfg(feature = "sm_89")]
#[inline(always)]
pub fn f32_to_e4m3x4(values: [f32; 4]) -> u32 {
    let bits: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("{{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, {2}, {1}; cvt.rn.satfinite.e4m3x2.f32 h, {4}, {3}; mov.b32 {0}, {{l, h}}; }}",
            out(reg32) bits, in(reg32) values[0], in(reg32) values[1], in(reg32) values[2], in(reg32) values[3], options(pure, nomem, nostack));
    }
    bits
}

/// `cvt.rn.f16x2.e4m3x2` (sm_89), twice: bytes 0 and 1 of `codes` to the halves of the first word, bytes 2 and 3
/// to those of the second. Exact; NaN stays NaN.
#[cfg(feature = "sm_89")]
#[inline(always)]
pub fn e4m3x4_to_f16x4(codes: u32) -> [u32; 2] {
    let (first, second): (u32, u32);
    // SAFETY: register arithmetic.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2}; cvt.rn.f16x2.e4m3x2 {0}, l; cvt.rn.f16x2.e4m3x2 {1}, h; }}",
            out(reg32) first, out(reg32) second, in(reg32) codes, options(pure, nomem, nostack));
    }
    [first, second]
}

/// `prmt.b32` [prmt]: byte `i` of the result is byte `(selector >> 4i) & 7` of the pair `{b, a}`.
#[inline(always)]
pub fn permute_bytes<const SELECTOR: u32>(a: u32, b: u32) -> u32 {
    let bits: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("prmt.b32 {}, {}, {}, {};", out(reg32) bits, in(reg32) a, in(reg32) b, const SELECTOR, options(pure, nomem, nostack))
    };
    bits
}
