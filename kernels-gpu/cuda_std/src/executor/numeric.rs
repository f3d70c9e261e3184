//! Number formats as the hardware converts them [cvt].

/// The one NaN that arithmetic instructions produce.
pub const CANONICAL_NAN: f32 = f32::from_bits(0x7fff_ffff);

/// `x`, with NaN replaced by [`CANONICAL_NAN`].
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { CANONICAL_NAN } else { x }
}

/// `x` with subnormal values flushed to a zero of its sign (`.ftz`).
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Widens FP16.
pub fn f16_to_f32(bits: u16) -> f32 {
    small_to_f32(bits.into(), 5, 10, bits & 0x7c00 == 0x7c00)
}

/// Widens FP8 E4M3, which has no infinity and one NaN of each sign.
pub fn e4m3_to_f32(bits: u8) -> f32 {
    if bits & 0x7f == 0x7f { CANONICAL_NAN } else { small_to_f32(bits.into(), 4, 3, false) }
}

/// Value of a float of `exponent` and `mantissa` bits; `special` if it is infinite or NaN.
fn small_to_f32(bits: u32, exponent: u32, mantissa: u32, special: bool) -> f32 {
    let sign = (bits >> (exponent + mantissa) & 1) << 31;
    let fraction = bits & ((1 << mantissa) - 1);
    if special {
        return if fraction == 0 { f32::from_bits(sign | 0x7f80_0000) } else { CANONICAL_NAN };
    }
    let biased = bits >> mantissa & ((1 << exponent) - 1);
    let bias = (1 << (exponent - 1)) - 1;
    // A subnormal has the exponent of the smallest normal number and no leading one.
    let (leading, power) = if biased == 0 { (0, 1 - bias) } else { (1 << mantissa, biased as i32 - bias) };
    let magnitude = (leading | fraction) as f32 * power_of_two(power - mantissa as i32);
    f32::from_bits(magnitude.to_bits() | sign)
}

/// 2^n for normal results.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Rounds the magnitude of `x` to a multiple of the spacing of a format with `mantissa` bits and smallest
/// normal exponent `min_exponent`, ties to even; code without sign. `x` is finite and at most a few
/// spacings beyond the format's largest number.
fn magnitude_code(x: f32, mantissa: u32, min_exponent: i32) -> u32 {
    let x = f64::from(x.abs());
    let exponent = ((x.to_bits() >> 52) as i32 - 1023).max(min_exponent);
    let spacing = 2f64.powi(exponent - mantissa as i32);
    // At most 2^(mantissa + 1): exact.
    let units = (x / spacing).round_ties_even() as u32;
    // A subnormal counts units from zero; a normal number's leading unit is one step of the exponent field.
    let field = (exponent - min_exponent) as u32;
    units + (field << mantissa)
}

/// `cvt.rn.f16.f32`.
pub fn f32_to_f16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    // Half-way between the largest number and what would follow it rounds to the even one: infinity.
    if x.abs() >= 65_520.0 { sign | 0x7c00 } else { sign | magnitude_code(x, 10, -14) as u16 }
}

/// `cvt.rn.bf16.f32`.
pub fn f32_to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// `cvt.rn.satfinite.e4m3.f32`.
pub fn f32_to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    if x.abs() >= 448.0 { sign | 0x7e } else { sign | magnitude_code(x, 3, -6) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code converts to a value that converts back, and half-way values go to the even code.
    fn check(codes: u32, widen: impl Fn(u32) -> f32, narrow: impl Fn(f32) -> u32) {
        for code in 0..codes {
            let x = widen(code);
            assert_eq!(narrow(x), code, "{x:e}");
            let next = widen(code + 1);
            if next.is_finite() && code + 1 < codes {
                let middle = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
                assert_eq!(narrow(middle), code + (code & 1), "{middle:e}");
                assert_eq!(narrow(middle.next_down()), code, "{middle:e}");
                assert_eq!(narrow(middle.next_up()), code + 1, "{middle:e}");
            }
        }
    }

    #[test]
    fn formats_round_to_nearest_even() {
        check(0x7c00, |code| f16_to_f32(code as u16), |x| f32_to_f16(x).into());
        check(0x7f, |code| e4m3_to_f32(code as u8), |x| f32_to_e4m3(x).into());
        check(0x7f80, |code| f32::from_bits(code << 16), |x| f32_to_bf16(x).into());
    }

    #[test]
    fn special_values() {
        assert_eq!((f32_to_f16(65_519.0), f32_to_f16(65_520.0), f32_to_f16(-1e9)), (0x7bff, 0x7c00, 0xfc00));
        assert_eq!((f32_to_e4m3(464.1), f32_to_e4m3(f32::NEG_INFINITY), f32_to_e4m3(-0.0)), (0x7e, 0xfe, 0x80));
        assert_eq!((f32_to_f16(f32::NAN), f32_to_bf16(-f32::NAN), f32_to_e4m3(f32::NAN)), (0x7fff, 0x7fff, 0x7f));
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert_eq!((f16_to_f32(0x0001), f16_to_f32(0xc000)), (2f32.powi(-24), -2.0));
        assert_eq!((e4m3_to_f32(0x7e), e4m3_to_f32(0x01), e4m3_to_f32(0xb8)), (448.0, 2f32.powi(-9), -1.0));
        assert!(e4m3_to_f32(0xff).is_nan() && f16_to_f32(0x7c01).is_nan());
        assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
        assert_eq!(flush(-1e-40).to_bits(), 0x8000_0000);
    }
}
