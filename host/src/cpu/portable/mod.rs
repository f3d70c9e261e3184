//! Any CPU: arrays of eight lanes, which compilers turn into whatever vectors there are.

use super::isa::{Codes, Isa, Task};

const LANES: usize = 8;

/// Plain Rust; always available.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

/// Lane by lane.
#[inline(always)]
fn map<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

/// The larger; `b` if `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Isa for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];
    type Panel = [u32; 2 * LANES];

    const NAME: &'static str = "portable";
    const REGISTERS: usize = 16;
    const FUSED: bool = false;
    const CODES: Codes = Codes::Pairs;
    const BF16: bool = false;

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }

    #[inline(always)]
    fn load(self, panel: &Self::Panel) -> [Self::I; 2] {
        let (halves, _) = panel.as_chunks::<LANES>();
        [halves[0], halves[1]]
    }

    #[inline(always)]
    fn store(self, panel: &mut Self::Panel, value: [Self::I; 2]) {
        panel.copy_from_slice(value.as_flattened());
    }

    #[inline(always)]
    fn as_f(self, bits: Self::I) -> Self::F {
        bits.map(f32::from_bits)
    }

    #[inline(always)]
    fn as_i(self, value: Self::F) -> Self::I {
        value.map(f32::to_bits)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::I {
        [bits; LANES]
    }

    #[inline(always)]
    fn to_f(self, x: Self::I) -> Self::F {
        x.map(|x| x as i32 as f32)
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not `f32::mul_add`, which is a slow library call on CPUs without the instruction.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, larger)
    }

    #[inline(always)]
    fn first(self, mut value: [Self::F; 2], count: usize) -> [Self::F; 2] {
        value.as_flattened_mut().iter_mut().skip(count).for_each(|x| *x = f32::NEG_INFINITY);
        value
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| larger(b, a))
    }

    #[inline(always)]
    fn sum_lanes(self, x: Self::F) -> f32 {
        x.into_iter().sum()
    }

    #[inline(always)]
    fn exp2(self, x: Self::F, polynomial: &'static [f32]) -> Self::F {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: f32 has spacing 1 there
        x.map(|x| {
            let clamped = if x < -126.0 { -126.0 } else { x };
            let shifted = clamped + ROUND;
            let rest = clamped - (shifted - ROUND);
            let y = polynomial.iter().fold(0.0, |y, c| y * rest + c);
            // The low bits of `shifted` are the integer; shifted into the exponent they scale by 2^integer.
            let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
            if x <= -126.0 { 0.0 } else { y * power }
        })
    }

    #[inline(always)]
    fn dot_codes(self, acc: Self::I, left: Self::I, right: Self::I) -> Self::I {
        std::array::from_fn(|lane| {
            let product = |shift: u32| {
                let code = |x: u32| i32::from((x >> shift) as i16);
                code(left[lane]) * code(right[lane])
            };
            acc[lane].wrapping_add((product(0) + product(16)) as u32)
        })
    }

    fn dot_bf16(self, _: Self::F, _: Self::I, _: Self::I) -> Self::F {
        unreachable!("BF16 is false")
    }

    fn narrow(self, _: [Self::F; 2]) -> Self::I {
        unreachable!("BF16 is false")
    }

    #[inline(always)]
    fn store_half(self, to: &mut [u32], value: Self::I) {
        to.copy_from_slice(&value);
    }
}
