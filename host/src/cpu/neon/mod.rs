//! NEON, which every 64-bit Arm CPU has, with the dot product of 8-bit integers (Armv8.2 and later).

use std::arch::aarch64::*;
use std::arch::asm;

use crate::cpu::isa::{Codes, Isa, Task};

/// NEON; with `DOT` also the dot product.
#[derive(Clone, Copy, Debug)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// Whether the CPU has the instructions.
    pub fn is_available() -> bool {
        let dot = !DOT || std::arch::is_aarch64_feature_detected!("dotprod");
        dot && std::arch::is_aarch64_feature_detected!("neon")
    }

    /// The instruction set, if the CPU has it.
    pub fn new() -> Option<Self> {
        // SAFETY: the CPU has the instructions.
        Self::is_available().then(|| unsafe { Self::new_unchecked() })
    }

    /// The instruction set without a check.
    ///
    /// # Safety
    ///
    /// [`Self::is_available`] must be true.
    pub unsafe fn new_unchecked() -> Self {
        Neon(())
    }
}

#[target_feature(enable = "neon")]
fn run_neon<T: Task, const DOT: bool>(isa: Neon<DOT>, task: T) -> T::Output {
    task.run(isa)
}

#[target_feature(enable = "neon,dotprod")]
fn run_dot<T: Task, const DOT: bool>(isa: Neon<DOT>, task: T) -> T::Output {
    task.run(isa)
}

/// Lane numbers of a panel.
static LANE: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

// SAFETY of every block below that only says "has": `self` exists only on CPUs that have NEON, and with `DOT`
// the dot product.
impl<const DOT: bool> Isa for Neon<DOT> {
    type F = float32x4_t;
    type I = uint32x4_t;
    type Panel = [u32; 8];

    const NAME: &'static str = if DOT { "neon-dotprod" } else { "neon" };
    const REGISTERS: usize = 32;
    const CODES: Codes = if DOT { Codes::Quads } else { Codes::Pairs };
    const BF16: bool = false;

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the CPU has the features that the function is compiled for.
        unsafe { if DOT { run_dot(self, task) } else { run_neon(self, task) } }
    }

    #[inline(always)]
    fn load(self, panel: &Self::Panel) -> [Self::I; 2] {
        // SAFETY: has; the panel holds both vectors.
        unsafe { [vld1q_u32(panel.as_ptr()), vld1q_u32(panel.as_ptr().add(4))] }
    }

    #[inline(always)]
    fn store(self, panel: &mut Self::Panel, value: [Self::I; 2]) {
        // SAFETY: has; the panel holds both vectors.
        unsafe {
            vst1q_u32(panel.as_mut_ptr(), value[0]);
            vst1q_u32(panel.as_mut_ptr().add(4), value[1]);
        }
    }

    #[inline(always)]
    fn as_f(self, bits: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { vreinterpretq_f32_u32(bits) }
    }

    #[inline(always)]
    fn as_i(self, value: Self::F) -> Self::I {
        // SAFETY: has.
        unsafe { vreinterpretq_u32_f32(value) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: has.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::I {
        // SAFETY: has.
        unsafe { vdupq_n_u32(bits) }
    }

    #[inline(always)]
    fn to_f(self, x: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(x)) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has. `fmax` would return NaN; a comparison with NaN is false.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn first(self, value: [Self::F; 2], count: usize) -> [Self::F; 2] {
        let none = self.splat(f32::NEG_INFINITY);
        let lanes = self.load(&LANE);
        let count = self.splat_bits(count.min(8) as u32);
        // SAFETY: has.
        unsafe {
            [
                vbslq_f32(vcltq_u32(lanes[0], count), value[0], none),
                vbslq_f32(vcltq_u32(lanes[1], count), value[1], none),
            ]
        }
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe { vmaxvq_f32(x) }
    }

    #[inline(always)]
    fn sum_lanes(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe { vaddvq_f32(x) }
    }

    #[inline(always)]
    fn exp2(self, x: Self::F, polynomial: &'static [f32]) -> Self::F {
        // SAFETY: has.
        unsafe {
            let least = vdupq_n_f32(-126.0);
            let clamped = vmaxq_f32(least, x); // NaN stays NaN
            let whole = vrndnq_f32(clamped);
            let rest = vsubq_f32(clamped, whole);
            let mut y = vdupq_n_f32(polynomial[0]);
            for &c in &polynomial[1..] {
                y = vfmaq_f32(vdupq_n_f32(c), y, rest);
            }
            let power = vshlq_n_s32::<23>(vcvtq_s32_f32(whole));
            let y = vaddq_s32(vreinterpretq_s32_f32(y), power);
            // Clears what is at or below −126; a comparison with NaN is false.
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(y), vcleq_f32(x, least)))
        }
    }

    #[inline(always)]
    fn dot_codes(self, acc: Self::I, left: Self::I, right: Self::I) -> Self::I {
        if DOT {
            let mut acc = acc;
            // SAFETY: has the dot product, whose intrinsic is not stable; registers only.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    "sdot {acc:v}.4s, {left:v}.16b, {right:v}.16b",
                    acc = inout(vreg) acc,
                    left = in(vreg) left,
                    right = in(vreg) right,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            return acc;
        }
        // SAFETY: has.
        unsafe {
            let (left, right) = (vreinterpretq_s16_u32(left), vreinterpretq_s16_u32(right));
            let low = vmull_s16(vget_low_s16(left), vget_low_s16(right));
            let high = vmull_high_s16(left, right);
            vaddq_u32(acc, vreinterpretq_u32_s32(vpaddq_s32(low, high)))
        }
    }

    fn dot_bf16(self, _: Self::F, _: Self::I, _: Self::I) -> Self::F {
        unreachable!("BF16 is false")
    }

    fn narrow(self, _: [Self::F; 2]) -> Self::I {
        unreachable!("BF16 is false")
    }

    #[inline(always)]
    fn store_half(self, to: &mut [u32], value: Self::I) {
        let to = &mut to[..4];
        // SAFETY: has; `to` has four lanes.
        unsafe { vst1q_u32(to.as_mut_ptr(), value) }
    }
}
