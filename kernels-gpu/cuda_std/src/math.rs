//! Arithmetic that plain Rust operators do not reach. rustc never contracts `a * b + c`.

use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.fmax.nan.f"]
    fn fmax_nan(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmin.nan.f"]
    fn fmin_nan(a: f32, b: f32) -> f32;
}

/// `fma.rn.f32` [fma]: `a · b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    core::intrinsics::fmaf32(a, b, c)
}

/// `max.f32` [max]: the number if one operand is NaN.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("max.f32 {}, {}, {};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack)) };
    value
}

/// `max.NaN.f32` [max] (sm_80): NaN if either operand is NaN.
#[inline(always)]
pub fn max_propagate_nan(a: f32, b: f32) -> f32 {
    // SAFETY: register arithmetic.
    unsafe { fmax_nan(a, b) }
}

/// `min.NaN.f32` [min] (sm_80): NaN if either operand is NaN.
#[inline(always)]
pub fn min_propagate_nan(a: f32, b: f32) -> f32 {
    // SAFETY: register arithmetic.
    unsafe { fmin_nan(a, b) }
}

/// `max.NaN.f16x2` [max] (sm_80): twice the larger of two f16; NaN, always 0x7fff, if either is.
#[inline(always)]
pub fn max_propagate_nan_f16x2(a: u32, b: u32) -> u32 {
    let value: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("max.NaN.f16x2 {}, {}, {};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
    };
    value
}

/// `max.NaN.bf16x2` [max] (sm_80): twice the larger of two bf16; NaN, always 0x7fff, if either is.
#[inline(always)]
pub fn max_propagate_nan_bf16x2(a: u32, b: u32) -> u32 {
    let value: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("max.NaN.bf16x2 {}, {}, {};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
    };
    value
}

/// `abs.f32` [abs].
#[inline(always)]
pub fn abs(a: f32) -> f32 {
    core::intrinsics::fabs(a)
}

/// `ex2.approx.ftz.f32` [ex2]: 2^x to 2 ulp; 0 for −inf.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("ex2.approx.ftz.f32 {}, {};", out(reg32) value, in(reg32) x, options(pure, nomem, nostack)) };
    value
}

/// `lg2.approx.f32` [lg2].
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("lg2.approx.f32 {}, {};", out(reg32) value, in(reg32) x, options(pure, nomem, nostack)) };
    value
}

/// Quotient of two `u32` whose divisor the caller knows to be non-zero (a checked division would
/// leave a call to a panic function in the PTX).
///
/// # Safety
/// `b` is not zero.
#[inline(always)]
pub unsafe fn div_u32(a: u32, b: u32) -> u32 {
    // SAFETY: the caller vouches for b.
    unsafe { core::intrinsics::unchecked_div(a, b) }
}

/// `1 / x` for normal `x`: `rcp.approx.ftz.f32` [rcp] and one Newton step. Unlike `1.0 / x` it needs no
/// slow path, whose call would cost a kernel full of live registers its spills.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let estimate: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("rcp.approx.ftz.f32 {}, {};", out(reg32) estimate, in(reg32) x, options(pure, nomem, nostack)) };
    fma(estimate, fma(-x, estimate, 1.0), estimate)
}

/// `rcp.approx.ftz.f32` [rcp]: `1 / x` to 1 ulp; 0 for infinity.
#[inline(always)]
pub fn reciprocal_approx(x: f32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe { asm!("rcp.approx.ftz.f32 {}, {};", out(reg32) value, in(reg32) x, options(pure, nomem, nostack)) };
    value
}

/// `x` in a register of its own, which no compiler can tell to be a copy: what is computed from both is
/// computed twice. `selp` [selp] on a condition that only the launch makes true.
#[inline(always)]
pub fn distinct_copy(x: f32) -> f32 {
    let copy: f32;
    // SAFETY: reads a special register.
    unsafe {
        asm!("{{ .reg .pred p; .reg .b32 n; mov.u32 n, %ntid.x; setp.ne.u32 p, n, 0; selp.f32 {0}, {1}, 0f00000000, p; }}",
            out(reg32) copy, in(reg32) x, options(pure, nomem, nostack));
    }
    copy
}

/// `fma.rn.sat.f32` [fma]: `a · b + c`, rounded once, then clamped to 0..=1; 0 for NaN.
#[inline(always)]
pub fn fma_saturate(a: f32, b: f32, c: f32) -> f32 {
    let value: f32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("fma.rn.sat.f32 {}, {}, {}, {};",
            out(reg32) value, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    value
}

/// `fma.rn.f16x2` [fma]: two times `a · b + c` of f16, each rounded once.
#[inline(always)]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    let value: u32;
    // SAFETY: register arithmetic.
    unsafe {
        asm!("fma.rn.f16x2 {}, {}, {}, {};",
            out(reg32) value, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    value
}

/// `max.s32` [max]: the larger of two integers given by their bits. On sm_90, `max(max(a, b), c)` is one
/// machine instruction.
#[inline(always)]
pub fn max_s32(a: u32, b: u32) -> u32 {
    let value: u32;
    // SAFETY: register arithmetic.
    unsafe { asm!("max.s32 {}, {}, {};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack)) };
    value
}
