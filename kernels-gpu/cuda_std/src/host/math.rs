//! Arithmetic that plain Rust operators do not reach. A NaN result is the canonical one, as on a GPU.

use std::panic::Location;

use crate::executor::numeric::{CANONICAL_NAN, canonical, f16_to_f32, f32_to_f16, flush};
use crate::executor::products::check_finished;

/// `fma.rn.f32` [fma]: `a · b + c`, rounded once.
#[inline]
#[track_caller]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    check_finished(Location::caller(), [a, b, c].map(f32::to_bits));
    canonical(a.mul_add(b, c))
}

/// `max.f32` [max]: the number if one operand is NaN; +0 is larger than −0.
#[inline]
#[track_caller]
pub fn max(a: f32, b: f32) -> f32 {
    check_finished(Location::caller(), [a, b].map(f32::to_bits));
    if a == b {
        return f32::from_bits(a.to_bits() & b.to_bits());
    }
    canonical(a.max(b))
}

/// `min.f32` [min]: the number if one operand is NaN; −0 is smaller than +0.
#[inline]
#[track_caller]
fn min(a: f32, b: f32) -> f32 {
    -max(-a, -b)
}

/// `max.NaN.f32` [max]: NaN if either operand is NaN.
#[inline]
#[track_caller]
pub fn max_propagate_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { CANONICAL_NAN } else { max(a, b) }
}

/// `min.NaN.f32`: NaN if either operand is NaN.
#[inline]
#[track_caller]
pub fn min_propagate_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { CANONICAL_NAN } else { min(a, b) }
}

/// Twice the larger of two 16-bit floats, which `widen` makes numbers; NaN if either is.
fn max_propagate_nan_x2(a: u32, b: u32, widen: impl Fn(u16) -> f32) -> u32 {
    let half = |shift: u32| {
        let (a, b) = ((a >> shift) as u16, (b >> shift) as u16);
        let (x, y) = (widen(a), widen(b));
        if x.is_nan() || y.is_nan() {
            0x7fff
        } else if max(x, y).to_bits() == x.to_bits() {
            u32::from(a)
        } else {
            u32::from(b)
        }
    };
    half(0) | half(16) << 16
}

/// `max.NaN.f16x2`: twice the larger of two f16; NaN, always 0x7fff, if either is.
#[inline]
#[track_caller]
pub fn max_propagate_nan_f16x2(a: u32, b: u32) -> u32 {
    check_finished(Location::caller(), [a, b]);
    max_propagate_nan_x2(a, b, f16_to_f32)
}

/// `max.NaN.bf16x2`: twice the larger of two bf16; NaN, always 0x7fff, if either is.
#[inline]
#[track_caller]
pub fn max_propagate_nan_bf16x2(a: u32, b: u32) -> u32 {
    check_finished(Location::caller(), [a, b]);
    max_propagate_nan_x2(a, b, |x| f32::from_bits(u32::from(x) << 16))
}

/// `abs.f32` [abs].
#[inline]
pub fn abs(a: f32) -> f32 {
    a.abs()
}

/// `ex2.approx.ftz.f32` [ex2], correctly rounded.
#[inline]
pub fn exp2(x: f32) -> f32 {
    canonical(flush(f64::from(flush(x)).exp2() as f32))
}

/// `lg2.approx.f32` [lg2], correctly rounded.
#[inline]
pub fn log2(x: f32) -> f32 {
    canonical(f64::from(x).log2() as f32)
}

/// Quotient of two `u32`.
///
/// # Safety
/// None is needed here: a division by zero is a fault.
#[inline]
#[track_caller]
pub unsafe fn div_u32(a: u32, b: u32) -> u32 {
    a / b
}

/// `1 / x` for normal `x`: `rcp.approx.ftz.f32` [rcp], here correctly rounded, and one Newton step.
#[inline]
#[track_caller]
pub fn reciprocal(x: f32) -> f32 {
    let estimate = canonical(flush(1.0 / flush(x)));
    fma(estimate, fma(-x, estimate, 1.0), estimate)
}

/// `rcp.approx.ftz.f32` [rcp], correctly rounded.
#[inline]
pub fn reciprocal_approx(x: f32) -> f32 {
    canonical(flush(1.0 / flush(x)))
}

/// `x`.
#[inline]
pub fn distinct_copy(x: f32) -> f32 {
    x
}

/// `fma.rn.sat.f32` [fma]: `a · b + c`, rounded once, then clamped to 0..=1; 0 for NaN.
#[inline]
#[track_caller]
pub fn fma_saturate(a: f32, b: f32, c: f32) -> f32 {
    let x = fma(a, b, c);
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 }
}

/// `fma.rn.f16x2` [fma]: two times `a · b + c` of f16, each rounded once.
#[inline]
#[track_caller]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    check_finished(Location::caller(), [a, b, c]);
    let half = |shift: u32| {
        let [a, b, c] = [a, b, c].map(|x| f64::from(f16_to_f32((x >> shift) as u16)));
        // A product of f16 has 22 bits. With c far away the sum has more than the 53 of f64: `odd` keeps a trace of them.
        u32::from(f32_to_f16(odd(a * b, c)))
    };
    half(0) | half(16) << 16
}

/// `a + b`, inexact only in an odd last digit, so that rounding it again, to f16, makes what rounding once would have made
/// (S. Boldo, G. Melquiond: Emulation of a FMA and Correctly Rounded Sums, 2008).
fn odd(a: f64, b: f64) -> f32 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum as f32;
    }
    let rest = {
        let b_rounded = sum - a;
        (a - (sum - b_rounded)) + (b - b_rounded)
    };
    let bits = sum.to_bits();
    let sum = match rest == 0.0 || bits & 1 == 1 {
        true => sum,
        false if (rest > 0.0) == (sum > 0.0) => f64::from_bits(bits + 1),
        false => f64::from_bits(bits - 1),
    };
    let near = sum as f32;
    if f64::from(near) == sum {
        return near;
    }
    let truncated = if f64::from(near.abs()) > sum.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(truncated | 1)
}

/// `max.s32` [max]: the larger of two integers given by their bits.
#[inline]
#[track_caller]
pub fn max_s32(a: u32, b: u32) -> u32 {
    check_finished(Location::caller(), [a, b]);
    (a as i32).max(b as i32) as u32
}
