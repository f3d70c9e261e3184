//! AVX-512 with VNNI (Ice Lake, Zen 4 and later), with BF16 (Cooper Lake, Zen 4 and later) on top of it, and with
//! AMX (Sapphire Rapids and later) on top of both.

mod amx;

use std::arch::x86_64::*;
use std::sync::OnceLock;

use crate::cpu::isa::{Codes, Isa, Task, Tiled};

/// [`Avx512`] with F, BW and VNNI.
pub const VNNI: u8 = 0;
/// [`Avx512`] with the bf16 dot product as well.
pub const BF16: u8 = 1;
/// [`Avx512`] with AMX's products of tiles as well.
pub const AMX: u8 = 2;

/// AVX-512 up to `LEVEL`: [`VNNI`], [`BF16`] or [`AMX`].
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const LEVEL: u8>(());

impl<const LEVEL: u8> Avx512<LEVEL> {
    /// Whether the CPU has the instructions.
    pub fn is_available() -> bool {
        let bf16 = LEVEL < BF16 || std::is_x86_feature_detected!("avx512bf16");
        bf16 && std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vnni")
            && std::is_x86_feature_detected!("fma")
            && (LEVEL < AMX || amx::is_available())
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
        Avx512(())
    }
}

/// Whether `vdpbf16ps` makes more products in a cycle than multiply-adds in f32 do. On Zen 4, one of it and one of
/// those start in a cycle, so it makes twice as many. On Intel's cores with AMX it starts in every second cycle, where
/// two multiply-adds start in each: half as many.
pub fn bf16_is_faster() -> bool {
    // Remembered, because virtual machines take microseconds for `cpuid`.
    static INTEL: OnceLock<bool> = OnceLock::new();
    !INTEL.get_or_init(|| {
        // SAFETY: every CPU of 64 bits has `cpuid`; a block because older compilers call it unsafe.
        #[allow(unused_unsafe)]
        let vendor = unsafe { __cpuid_count(0, 0) };
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
fn run_vnni<T: Task, const LEVEL: u8>(isa: Avx512<LEVEL>, task: T) -> T::Output {
    task.run(isa)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,fma")]
fn run_bf16<T: Task, const LEVEL: u8>(isa: Avx512<LEVEL>, task: T) -> T::Output {
    task.run(isa)
}

// SAFETY of every block below that only says "has": `self` exists only on CPUs that have AVX-512 F, BW and
// VNNI, from `BF16` on the bf16 dot product.
impl<const LEVEL: u8> Isa for Avx512<LEVEL> {
    type F = __m512;
    type I = __m512i;
    type Panel = [u32; 32];

    const NAME: &'static str = match LEVEL {
        VNNI => "avx512-vnni",
        BF16 => "avx512-vnni-bf16",
        _ => "amx",
    };
    const REGISTERS: usize = 32;
    const CODES: Codes = if LEVEL < AMX { Codes::QuadsOffset } else { Codes::Quads };
    const BF16: bool = LEVEL >= BF16;
    const TILES: bool = LEVEL >= AMX;
    const SPARE_ROWS: usize = if LEVEL < AMX { 0 } else { amx::ROWS - 1 };

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the CPU has the features that the function is compiled for.
        unsafe {
            match LEVEL {
                VNNI => run_vnni(self, task),
                BF16 => run_bf16(self, task),
                _ => amx::with_tiles(|| run_bf16(self, task)),
            }
        }
    }

    #[inline(always)]
    fn load(self, panel: &Self::Panel) -> [Self::I; 2] {
        // SAFETY: has; the panel holds both vectors, and unaligned loads are meant.
        unsafe { [_mm512_loadu_si512(panel.as_ptr().cast()), _mm512_loadu_si512(panel.as_ptr().add(16).cast())] }
    }

    #[inline(always)]
    fn store(self, panel: &mut Self::Panel, value: [Self::I; 2]) {
        // SAFETY: has; the panel holds both vectors, and unaligned stores are meant.
        unsafe {
            _mm512_storeu_si512(panel.as_mut_ptr().cast(), value[0]);
            _mm512_storeu_si512(panel.as_mut_ptr().add(16).cast(), value[1]);
        }
    }

    #[inline(always)]
    fn as_f(self, bits: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_castsi512_ps(bits) }
    }

    #[inline(always)]
    fn as_i(self, value: Self::F) -> Self::I {
        // SAFETY: has.
        unsafe { _mm512_castps_si512(value) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::I {
        // SAFETY: has.
        unsafe { _mm512_set1_epi32(bits as i32) }
    }

    #[inline(always)]
    fn to_f(self, x: Self::I) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: has.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: has. `vmaxps` returns its second operand if either is NaN.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn first(self, value: [Self::F; 2], count: usize) -> [Self::F; 2] {
        let mask = if count < 32 { (1u32 << count) - 1 } else { u32::MAX };
        let none = self.splat(f32::NEG_INFINITY);
        // SAFETY: has.
        unsafe {
            [_mm512_mask_mov_ps(none, mask as u16, value[0]), _mm512_mask_mov_ps(none, (mask >> 16) as u16, value[1])]
        }
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe { _mm512_reduce_max_ps(x) }
    }

    #[inline(always)]
    fn sum_lanes(self, x: Self::F) -> f32 {
        // SAFETY: has.
        unsafe { _mm512_reduce_add_ps(x) }
    }

    #[inline(always)]
    fn exp2(self, x: Self::F, polynomial: &'static [f32]) -> Self::F {
        // SAFETY: has.
        unsafe {
            // −∞ stays below every exponent and gives 0; a difference of infinities would be NaN.
            let x = _mm512_max_ps(_mm512_set1_ps(-1e4), x);
            let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let rest = _mm512_sub_ps(x, whole);
            let mut y = _mm512_set1_ps(polynomial[0]);
            for &c in &polynomial[1..] {
                y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(c));
            }
            _mm512_scalef_ps(y, whole)
        }
    }

    #[inline(always)]
    fn dot_codes(self, acc: Self::I, left: Self::I, right: Self::I) -> Self::I {
        // SAFETY: has.
        unsafe { _mm512_dpbusd_epi32(acc, right, left) }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, left: Self::I, right: Self::I) -> Self::F {
        assert!(LEVEL >= BF16);
        // SAFETY: has; vectors of bits and of bf16 have the same layout.
        unsafe {
            {
                let left = std::mem::transmute::<__m512i, __m512bh>(left);
                _mm512_dpbf16_ps(acc, left, std::mem::transmute::<__m512i, __m512bh>(right))
            }
        }
    }

    #[inline(always)]
    fn narrow(self, x: [Self::F; 2]) -> Self::I {
        assert!(LEVEL >= BF16);
        // SAFETY: has; vectors of bits and of bf16 have the same layout.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(x[1], x[0])) }
    }

    #[inline(always)]
    fn store_half(self, to: &mut [u32], value: Self::I) {
        let to = &mut to[..16];
        // SAFETY: has; `to` has sixteen lanes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
    }

    fn multiply_codes(self, product: Tiled<Self::Panel>) {
        assert!(LEVEL >= AMX);
        // SAFETY: `self` exists only where AMX is available, and `run` prepared it.
        unsafe { amx::multiply_codes(product) }
    }

    fn add_bf16(self, product: Tiled<Self::Panel>) {
        assert!(LEVEL >= AMX);
        // SAFETY: as above.
        unsafe { amx::add_bf16(product) }
    }

    #[inline(always)]
    fn transpose(self, rows: &[&[u32]], panels: &mut [Self::Panel]) {
        let zero = self.splat_bits(0);
        for (block, panels) in panels.chunks_mut(16).enumerate() {
            for half in 0..2 {
                let mut x = [zero; 16];
                for (r, x) in x.iter_mut().enumerate() {
                    if let Some(row) = rows.get(half * 16 + r) {
                        let row = &row[block * 16..];
                        let count = row.len().min(panels.len());
                        let mask = ((1u32 << count) - 1) as u16;
                        // SAFETY: has; `mask` covers lanes of `row` only.
                        *x = unsafe { _mm512_maskz_loadu_epi32(mask, row.as_ptr().cast()) };
                    }
                }
                let x = transpose16(self, x);
                for (panel, x) in panels.iter_mut().zip(x) {
                    // SAFETY: has; half a panel is one vector.
                    unsafe { _mm512_storeu_si512(panel.as_mut_ptr().add(half * 16).cast(), x) };
                }
            }
        }
    }
}

/// Rows become columns: pairs of rows are interleaved by 32 and 64 bits, then groups of four by 128 bits.
#[inline(always)]
fn transpose16<const LEVEL: u8>(_: Avx512<LEVEL>, x: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the argument proves that the CPU has AVX-512 F.
    unsafe {
        let mut y = x;
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            y[i] = _mm512_unpacklo_epi64(ab, cd);
            y[i + 1] = _mm512_unpackhi_epi64(ab, cd);
            y[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            y[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // y[4i + j], 128-bit group g: column 4g + j of rows 4i..4i + 4.
        let mut z = y;
        for j in 0..4 {
            let [a, b, c, d] = [y[j], y[4 + j], y[8 + j], y[12 + j]];
            let (ab, cd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
            let (ab_odd, cd_odd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
            z[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
            z[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
            z[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
            z[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
        }
        z
    }
}
