//! Conversions between number formats [cvt].

use crate::executor::numeric;

/// `cvt.f32.f16`: widens the low half of `bits`.
#[inline]
pub fn f16_to_f32(bits: u32) -> f32 {
    numeric::f16_to_f32(bits as u16)
}

/// Widens the low half of `bits`, read as bf16: bf16 is the upper half of f32.
#[inline]
pub fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// `cvt.rn.f16x2.f32`: `lo` to the low half, `hi` to the high half.
#[inline]
pub fn f32_to_f16x2(lo: f32, hi: f32) -> u32 {
    u32::from(numeric::f32_to_f16(lo)) | u32::from(numeric::f32_to_f16(hi)) << 16
}

/// `cvt.rn.bf16x2.f32`: `lo` to the low half, `hi` to the high half.
#[inline]
pub fn f32_to_bf16x2(lo: f32, hi: f32) -> u32 {
    u32::from(numeric::f32_to_bf16(lo)) | u32::from(numeric::f32_to_bf16(hi)) << 16
}

/// `cvt.rn.satfinite.e4m3x2.f32`, twice: `values[i]` to byte `i`.
#[cfg(feature = "sm_89")]
#[inline]
pub fn f32_to_e4m3x4(values: [f32; 4]) -> u32 {
    u32::from_le_bytes(values.map(numeric::f32_to_e4m3))
}

/// `cvt.rn.f16x2.e4m3x2`, twice: bytes 0 and 1 of `codes` to the halves of the first word, bytes 2 and 3 to those
/// of the second.
#[cfg(feature = "sm_89")]
#[inline]
pub fn e4m3x4_to_f16x4(codes: u32) -> [u32; 2] {
    let [a, b, c, d] = codes.to_le_bytes().map(|code| numeric::f32_to_f16(numeric::e4m3_to_f32(code)));
    [[a, b], [c, d]].map(|[low, high]| u32::from(low) | u32::from(high) << 16)
}

/// `prmt.b32` [prmt]: byte `i` of the result is byte `(selector >> 4i) & 7` of the pair `{b, a}`, or eight
/// copies of its sign bit if bit 3 of the selector's nibble is set.
#[inline]
pub fn permute_bytes<const SELECTOR: u32>(a: u32, b: u32) -> u32 {
    let pair = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    u32::from_le_bytes([0, 1, 2, 3].map(|i| {
        let nibble = SELECTOR >> (4 * i);
        let byte = pair[(nibble & 7) as usize];
        if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
    }))
}
