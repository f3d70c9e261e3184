//! AVX2 with FMA (Haswell, Zen and later), and AVX-VNNI (Alder Lake, Zen 5 and later) on top of it.
//!
//! The AVX2 integer product is that of 16-bit pairs (`vpmaddwd`). The 8-bit form (`vpmaddubsw`) needs K's
//! signs moved to Q first, because it saturates, and then does no more products per instruction.

use std::arch::x86_64::*;

use crate::cpu::isa::{Codes, Isa, Task};

/// AVX2 and FMA; with `VNNI` also AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// Whether the CPU has the instructions.
    pub fn is_available() -> bool {
        let vnni = !VNNI || std::is_x86_feature_detected!("avxvnni");
        vnni && std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
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
        Avx2(())
    }
}

#[target_feature(enable = "avx2,fma")]
fn run_avx2<T: Task, const VNNI: bool>(isa: Avx2<VNNI>, task: T) -> T::Output {
    task.run(isa)
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn run_vnni<T: Task, const VNNI: bool>(isa: Avx2<VNNI>, task: T) -> T::Output {
    task.run(isa)
}

/// Lane `i` of `MASK[16 - count..]` is set while `i < count`.
static MASK: [i32; 32] = {
    let mut mask = [0; 32];
    let mut i = 0;
    while i < 16 {
        mask[i] = -1;
        i += 1;
    }
    mask
};

// SAFETY of every block below that only says "has": `self` exists only on CPUs that have AVX2 and FMA, and
// with `VNNI` AVX-VNNI.
impl<const VNNI: bool> Isa for Avx2<VNNI> {
    type F = __m256;
    type I = __m256i;
    type Panel = [u32; 16];

    const NAME: &'static str = if VNNI { "avx-vnni" } else { "avx2" };
    const REGISTERS: usize = 16;
    const CODES: Codes = if VNNI { Codes::QuadsOffset } else { Codes::Pairs };
    const BF16: bool = false;

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the CPU has the features that the function is compiled for.
        unsafe { if VNNI { run_vnni(self, task) } else { run_avx2(self, task) } }
    }

    #[inline(always)]
    fn load(self, panel: &Self::Panel) -> [Self::I; 2] {
        // SAFETY: has; the panel holds both vectors, and unaligned loads are meant.
        unsafe { [_mm256_loadu_si256(panel.as_ptr().cast()), _mm256_loadu_si256(panel.as_ptr().add(8).cast())] }
    }

    #[inline(always)]
    fn store(self, panel: &mut Self::Panel, value: [Self::I; 2]) {
        // SAFETY: has; the panel holds both vectors, and unaligned stores are meant.
        unsafe {
            _mm256_storeu_si256(panel.as_mut_ptr().cast(), value[0]);
            _mm256_storeu_si256(panel.as_mut_ptr().add(8).cast(), value[1]);
        }
    }

    #[inline(always)]
    fn as_f(self, bits: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_castsi256_ps(bits) }
    }

    #[inline(always)]
    fn as_i(self, value: Self::F) -> Self::I {
        // SAFETY: has.
        unsafe { _mm256_castps_si256(value) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::I {
        // SAFETY: has.
        unsafe { _mm256_set1_epi32(bits as i32) }
    }

    #[inline(always)]
    fn to_f(self, x: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has. `vmaxps` returns its second operand if either is NaN.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn first(self, value: [Self::F; 2], count: usize) -> [Self::F; 2] {
        let mask = &MASK[16 - count.min(16)..][..16];
        let none = self.splat(f32::NEG_INFINITY);
        // SAFETY: has; `mask` has 16 lanes.
        unsafe {
            let low = _mm256_castsi256_ps(_mm256_loadu_si256(mask.as_ptr().cast()));
            let high = _mm256_castsi256_ps(_mm256_loadu_si256(mask.as_ptr().add(8).cast()));
            [_mm256_blendv_ps(none, value[0], low), _mm256_blendv_ps(none, value[1], high)]
        }
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn sum_lanes(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn exp2(self, x: Self::F, polynomial: &'static [f32]) -> Self::F {
        // SAFETY: has.
        unsafe {
            let least = _mm256_set1_ps(-126.0);
            // The second operand survives a comparison with NaN.
            let clamped = _mm256_max_ps(least, x);
            let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(clamped);
            let rest = _mm256_sub_ps(clamped, whole);
            let mut y = _mm256_set1_ps(polynomial[0]);
            for &c in &polynomial[1..] {
                y = _mm256_fmadd_ps(y, rest, _mm256_set1_ps(c));
            }
            let power = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(whole));
            let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
            // "not less or equal" keeps NaN.
            _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_NLE_UQ>(x, least))
        }
    }

    #[inline(always)]
    fn dot_codes(self, acc: Self::I, left: Self::I, right: Self::I) -> Self::I {
        // SAFETY: has; the second form only if `VNNI`.
        unsafe {
            if VNNI {
                _mm256_dpbusd_avx_epi32(acc, right, left)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(left, right))
            }
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
        let to = &mut to[..8];
        // SAFETY: has; `to` has eight lanes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
    }

    #[inline(always)]
    fn transpose(self, rows: &[&[u32]], panels: &mut [Self::Panel]) {
        let zero = self.splat_bits(0);
        for (block, panels) in panels.chunks_mut(8).enumerate() {
            for half in 0..2 {
                let mut x = [zero; 8];
                for (r, x) in x.iter_mut().enumerate() {
                    if let Some(row) = rows.get(half * 8 + r) {
                        let row = &row[block * 8..];
                        let mask = &MASK[16 - row.len().min(panels.len()).min(8)..][..8];
                        // SAFETY: has; `mask` has eight lanes, and covers lanes of `row` only.
                        *x = unsafe {
                            let mask = _mm256_loadu_si256(mask.as_ptr().cast());
                            _mm256_maskload_epi32(row.as_ptr().cast(), mask)
                        };
                    }
                }
                let x = transpose8(self, x);
                for (panel, x) in panels.iter_mut().zip(x) {
                    // SAFETY: has; half a panel is one vector.
                    unsafe { _mm256_storeu_si256(panel.as_mut_ptr().add(half * 8).cast(), x) };
                }
            }
        }
    }
}

/// Rows become columns: pairs of rows are interleaved by 32 and 64 bits, then groups of four by 128 bits.
#[inline(always)]
fn transpose8<const VNNI: bool>(_: Avx2<VNNI>, x: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the argument proves that the CPU has AVX2.
    unsafe {
        let mut y = x;
        for i in [0, 4] {
            let [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
            let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            y[i] = _mm256_unpacklo_epi64(ab, cd);
            y[i + 1] = _mm256_unpackhi_epi64(ab, cd);
            y[i + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
            y[i + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
        }
        // y[4i + j], 128-bit half g: column 4g + j of rows 4i..4i + 4.
        let mut z = y;
        for j in 0..4 {
            z[j] = _mm256_permute2x128_si256::<0x20>(y[j], y[4 + j]);
            z[4 + j] = _mm256_permute2x128_si256::<0x31>(y[j], y[4 + j]);
        }
        z
    }
}
