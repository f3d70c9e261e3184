//! `mma.sync`: warp-level matrix products `D = A · B + C` [mma]. Fragments as in the PTX ISA's "Matrix
//! Fragments": with `g = lane / 4`, `t = lane % 4`, accumulator element `e` is row `g + 8 · (e / 2)`,
//! column `2t + e % 2`. D and C are separate operands, so a constant C costs nothing.

use core::arch::asm;

macro_rules! mma {
    ($(#[$doc:meta])* $name:ident, $element:ty, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All 32 lanes reach this call.
        #[inline(always)]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [$element; 4]) -> [$element; 4] {
            let (d0, d1, d2, d3): ($element, $element, $element, $element);
            // SAFETY: registers only; the caller keeps the warp converged.
            unsafe {
                asm!(concat!($instruction, " {{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}, {{{}, {}, {}, {}}};"),
                    out(reg32) d0, out(reg32) d1, out(reg32) d2, out(reg32) d3,
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
                    in(reg32) b[0], in(reg32) b[1],
                    in(reg32) c[0], in(reg32) c[1], in(reg32) c[2], in(reg32) c[3],
                    options(nomem, nostack));
            }
            [d0, d1, d2, d3]
        }
    };
}

mma! {
    /// `m16n8k64` of signed 4-bit integers into s32 (sm_80; native on sm_80, sm_86, sm_89).
    m16n8k64_s4, u32, "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32"
}
mma! {
    /// `m16n8k32` of signed 8-bit integers into s32 (sm_80).
    m16n8k32_s8, u32, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
}
mma! {
    /// `m16n8k16` of f16 into f32 (sm_80).
    m16n8k16_f16, f32, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
}
#[cfg(feature = "sm_89")]
mma! {
    /// `m16n8k32` of FP8 E4M3 into f32 (sm_89, PTX 8.4).
    m16n8k32_e4m3, f32, "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
}
