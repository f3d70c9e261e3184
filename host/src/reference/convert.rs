//! Rounding to the formats of the kernels.

use half::f16;
use sage_spec::quant::E4M3_MAX;

/// E4M3 code of `x`: nearest, ties to even, saturating to ±448 (also from ±inf); NaN becomes `0x7f`.
///
/// What `cvt.rn.satfinite.e4m3x2.f32` does (PTX ISA, "cvt").
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!((e4m3_from_f32(448.0), e4m3_from_f32(1e9), e4m3_from_f32(0.0)), (0x7e, 0x7e, 0));
/// ```
pub fn e4m3_from_f32(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = round_e4m3(x.abs());
    let bits = magnitude.to_bits();
    let code = if magnitude < MIN_NORMAL_E4M3 {
        (magnitude * 512.0) as u8 // subnormals are multiples of 2⁻⁹
    } else {
        (((bits >> 23) - (127 - 7)) << 3 | bits >> 20 & 7) as u8
    };
    sign | code
}

/// Value of an E4M3 code; `0x7f` and `0xff` are NaN.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!(e4m3_to_f32(e4m3_from_f32(1.1)), 1.125);
/// ```
pub const fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f32);
    let magnitude = if code & 0x7f == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        mantissa / 512.0
    } else {
        (1.0 + mantissa / 8.0) * f32::from_bits((exponent as u32 + 127 - 7) << 23)
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// [`e4m3_to_f32`] of every code.
pub static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3_to_f32(code as u8);
        code += 1;
    }
    table
};

const MIN_NORMAL_E4M3: f32 = 1.0 / 64.0;
const MIN_NORMAL_F16: f32 = 1.0 / 16384.0;

/// Rounds `x >= 0` to a multiple of the spacing of a format with `MANTISSA` stored bits at `x`;
/// `min_normal` is where its spacing stops shrinking. Ties go to even; NaN stays NaN.
///
/// 1.5 · 2²³ spacings are added and taken away again: at that size f32 itself has this spacing.
#[inline(always)]
fn round_to_spacing<const MANTISSA: u32>(x: f32, min_normal: f32) -> f32 {
    let power = f32::from_bits(x.to_bits() & 0x7f80_0000);
    let power = if power < min_normal { min_normal } else { power };
    let shift = power * (1.5 * (1u32 << (23 - MANTISSA)) as f32);
    (x + shift) - shift
}

/// The E4M3 value nearest to `x >= 0`, saturating to 448; NaN stays NaN.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!((round_e4m3(17.0), round_e4m3(500.0)), (16.0, 448.0));
/// ```
#[inline(always)]
pub fn round_e4m3(x: f32) -> f32 {
    round_to_spacing::<3>(if x > E4M3_MAX { E4M3_MAX } else { x }, MIN_NORMAL_E4M3)
}

/// The FP16 value nearest to `0 <= x < 65504`; NaN stays NaN.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!(round_f16(1.0 + 1e-5), 1.0);
/// ```
#[inline(always)]
pub fn round_f16(x: f32) -> f32 {
    round_to_spacing::<10>(x, MIN_NORMAL_F16)
}

/// Integer code of `x` whose scale has the reciprocal `inverse_scale`: the exact product (f64 holds it),
/// rounded to nearest, ties to even, within `±max_code`; NaN becomes 0.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!((int_code(0.5, 3.0, 7.0), int_code(9.0, 3.0, 7.0), int_code(f32::NAN, 1.0, 7.0)), (2, 7, 0));
/// ```
#[inline(always)]
pub fn int_code(x: f32, inverse_scale: f32, max_code: f32) -> i8 {
    let x = f64::from(x) * f64::from(inverse_scale);
    // Clamping first is the same, because `max_code` is an integer; `as` takes NaN to 0.
    let max_code = f64::from(max_code);
    let x = if x > max_code { max_code } else { x };
    let x = if x < -max_code { -max_code } else { x };
    x.round_ties_even() as i8
}

/// Packs INT4 codes two to a byte, the even feature in the low nibble.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!(pack_int4(3, -1), 0xf3);
/// ```
pub fn pack_int4(even: i8, odd: i8) -> u8 {
    even as u8 & 15 | (odd as u8) << 4
}

/// Inverse of [`pack_int4`].
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!(unpack_int4(pack_int4(-7, 5)), (-7, 5));
/// ```
#[inline(always)]
pub fn unpack_int4(byte: u8) -> (i8, i8) {
    ((byte << 4) as i8 >> 4, byte as i8 >> 4)
}

/// FP16 code of `x`: nearest, ties to even.
///
/// ```
/// use sage_attn::reference::convert::*;
/// assert_eq!(f16_from_f32(0.1).to_f32(), 0.099975586);
/// ```
pub fn f16_from_f32(x: f32) -> f16 {
    f16::from_f32(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nearest by search over all codes: the definition of rounding, ties to the even code.
    fn nearest_e4m3(x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |code: u8| (f64::from(e4m3_to_f32(code)) - f64::from(x.abs().min(1e6))).abs();
        let best = (0..0x7f).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        sign | best.unwrap()
    }

    fn around(x: f32) -> [f32; 3] {
        [x.next_down(), x, x.next_up()]
    }

    #[test]
    fn e4m3_codes_round_trip() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            assert_eq!(value.is_nan(), code & 0x7f == 0x7f);
            assert_eq!(e4m3_from_f32(value), if value.is_nan() { 0x7f } else { code });
        }
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0x08), 2f32.powi(-6));
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x38), 1.0);
    }

    #[test]
    fn e4m3_rounds_to_nearest_even_at_every_boundary() {
        for code in 0..0x7eu8 {
            let middle = (e4m3_to_f32(code) + e4m3_to_f32(code + 1)) / 2.0;
            for x in around(middle).into_iter().chain(around(e4m3_to_f32(code))) {
                assert_eq!(e4m3_from_f32(x), nearest_e4m3(x), "{x:e}");
                assert_eq!(e4m3_from_f32(-x), nearest_e4m3(-x), "{x:e}");
            }
        }
    }

    #[test]
    fn e4m3_special_values() {
        assert_eq!(e4m3_from_f32(f32::NAN), 0x7f);
        assert_eq!(e4m3_from_f32(-f32::NAN), 0x7f);
        assert_eq!(e4m3_from_f32(f32::INFINITY), 0x7e);
        assert_eq!(e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
        assert_eq!(e4m3_from_f32(464.0), 0x7e);
        assert_eq!(e4m3_from_f32(f32::MAX), 0x7e);
        assert_eq!(e4m3_from_f32(0.0), 0x00);
        assert_eq!(e4m3_from_f32(-0.0), 0x80);
        assert_eq!(e4m3_from_f32(-1e-30), 0x80);
        assert_eq!(e4m3_from_f32(2f32.powi(-10)), 0x00); // tie between 0 and 2⁻⁹
    }

    #[test]
    fn fast_rounding_agrees_with_the_codes() {
        for code in 0..=0x7eu8 {
            let value = e4m3_to_f32(code);
            let middle = (value + e4m3_to_f32((code + 1).min(0x7e))) / 2.0;
            for x in around(value).into_iter().chain(around(middle)).filter(|&x| x >= 0.0) {
                assert_eq!(round_e4m3(x), e4m3_to_f32(nearest_e4m3(x)), "{x:e}");
            }
        }
        assert_eq!(round_e4m3(1e30), 448.0);
        assert!(round_e4m3(f32::NAN).is_nan());
    }

    #[test]
    fn fast_f16_rounding_agrees_with_half() {
        for bits in 0..f16::from_f32(512.0).to_bits() {
            let value = f16::from_bits(bits).to_f32();
            let middle = (value + f16::from_bits(bits + 1).to_f32()) / 2.0;
            for x in around(value).into_iter().chain(around(middle)).filter(|&x| x >= 0.0) {
                assert_eq!(round_f16(x), f16::from_f32(x).to_f32(), "{x:e}");
            }
        }
        assert!(round_f16(f32::NAN).is_nan());
    }

    #[test]
    fn integer_codes_round_to_even_clamp_and_drop_nan() {
        let codes = [0.5, 1.5, 2.5, -0.5, -1.5, 6.6, 127.4, 127.6, 1e30, -1e30, f32::NAN];
        assert_eq!(codes.map(|x| int_code(x, 1.0, 127.0)), [0, 2, 2, 0, -2, 7, 127, 127, 127, -127, 0]);
        assert_eq!(codes.map(|x| int_code(x, 1.0, 7.0)), [0, 2, 2, 0, -2, 7, 7, 7, 7, -7, 0]);
    }

    #[test]
    fn int4_pairs_round_trip() {
        for even in -7..=7 {
            for odd in -7..=7 {
                assert_eq!(unpack_int4(pack_int4(even, odd)), (even, odd));
            }
        }
        assert_eq!(pack_int4(1, -1), 0xf1);
    }
}
