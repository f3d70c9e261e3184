//! `wgmma.mma_async`: asynchronous matrix products of a warpgroup, `D = A · B (+ D)` [Asynchronous
//! warpgroup level matrix instructions] (sm_90a).
//!
//! Four consecutive warps, the first at a multiple of four, multiply 64 rows of A by `n` columns of B.
//! A warp holds rows `16 · warp ..` of D; within them the fragment is that of [`crate::mma`]: element
//! `4b + e` of lane `l` is row `l / 4 + 8 · (e / 2)`, column `8b + 2 · (l % 4) + e % 2`. B, and A where it
//! is not in registers, lie in shared memory with 8-bit elements contiguous along K, and are named by a
//! [`descriptor`].
//!
//! An instruction reads and writes its registers until [`wait_group`] has returned for its group; ptxas
//! serialises the pipeline (its warnings C7509 to C7515) where code could touch them earlier.

use core::arch::asm;

/// How the rows of a tile in shared memory are permuted: chunk `c` (16 bytes) of row `r` lies at chunk
/// `c ^ (r mod rows)`, `rows` being 8 for 128-byte rows and, for 64-byte rows, `(r / 2) mod 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows of 64 bytes, chunks permuted within them.
    Bytes64,
    /// Rows of 128 bytes, chunks permuted within them.
    Bytes128,
}

/// Matrix descriptor of a K-major tile at shared `address` whose rows are exactly as wide as its swizzle
/// [Matrix Descriptor Format]. Adding `bytes / 16` to a descriptor moves it `bytes` further along K.
///
/// `address` is aligned to eight rows, so that the base offset is zero.
#[inline(always)]
pub fn descriptor(address: u32, swizzle: Swizzle) -> u64 {
    // Stride between groups of eight rows, in 16-byte units, and the layout type of bits 62 and 63.
    let (stride, layout) = match swizzle {
        Swizzle::Bytes64 => (32u64, 2u64),
        Swizzle::Bytes128 => (64, 1),
    };
    (address as u64 >> 4) & 0x3fff | 1 << 16 | stride << 32 | layout << 62
}

/// `wgmma.fence.sync.aligned`: orders the warpgroup's register accesses before the products that follow.
///
/// # Safety
/// All four warps of the warpgroup reach this call.
#[inline(always)]
pub unsafe fn fence() {
    // SAFETY: the caller keeps the warpgroup converged.
    unsafe { asm!("wgmma.fence.sync.aligned;", options(nostack)) }
}

/// `wgmma.commit_group.sync.aligned`: the products issued since the last commit become a group.
///
/// # Safety
/// As for [`fence`].
#[inline(always)]
pub unsafe fn commit_group() {
    // SAFETY: the caller keeps the warpgroup converged.
    unsafe { asm!("wgmma.commit_group.sync.aligned;", options(nostack)) }
}

/// `wgmma.wait_group.sync.aligned`: waits until at most `PENDING` groups are unfinished.
///
/// # Safety
/// As for [`fence`].
#[inline(always)]
pub unsafe fn wait_group<const PENDING: u32>() {
    // SAFETY: the caller keeps the warpgroup converged.
    unsafe { asm!("wgmma.wait_group.sync.aligned {};", const PENDING, options(nostack)) }
}

/// Writes the function of one instruction. `$i` number the accumulators; `$a` is how A is passed: a descriptor, or
/// four registers.
macro_rules! wgmma {
    ($(#[$doc:meta])* $name:ident, $element:ty, $instruction:literal, shared, $tail:literal, [$first:literal $($i:literal)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All four warps of the warpgroup reach this call; `a` and `b` are descriptors of tiles that are
        /// complete and stay so until the group has finished; `d` is not accessed before that.
        #[inline(always)]
        pub unsafe fn $name(d: &mut [$element; [$first $(, $i)*].len()], a: u64, b: u64, accumulate: u32) {
            // SAFETY: the caller vouches for tiles, registers and convergence.
            unsafe {
                asm!(concat!("{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0; ", $instruction,
                        " {{{", $first, "}" $(, ", {", $i, "}")*, "}}, {a}, {b}, p", $tail, "; }}"),
                    inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                    a = in(reg64) a, b = in(reg64) b, accumulate = in(reg32) accumulate, options(nostack));
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $element:ty, $instruction:literal, registers, $tail:literal, [$first:literal $($i:literal)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All four warps of the warpgroup reach this call; `b` is the descriptor of a tile that is complete
        /// and stays so until the group has finished; neither `d` nor `a` is written before that.
        #[inline(always)]
        pub unsafe fn $name(d: &mut [$element; [$first $(, $i)*].len()], a: [u32; 4], b: u64, accumulate: u32) {
            // SAFETY: the caller vouches for tiles, registers and convergence.
            unsafe {
                asm!(concat!("{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0; ", $instruction,
                        " {{{", $first, "}" $(, ", {", $i, "}")*, "}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, p", $tail, "; }}"),
                    inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b = in(reg64) b, accumulate = in(reg32) accumulate, options(nostack));
            }
        }
    };
}

wgmma! {
    /// `m64n128k32` of signed 8-bit integers into s32. `accumulate` 0 starts from zero.
    m64n128k32_s8, u32, "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8", shared, "", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63]
}
wgmma! {
    /// `m64n64k32` of FP8 E4M3 into f32, A in registers (the fragment of `mma.m16n8k32`). `accumulate` 0
    /// starts from zero.
    m64n64k32_e4m3, f32, "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3", registers, ", 1, 1",
    [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31]
}
wgmma! {
    /// `m64n72k32` of FP8 E4M3 into f32, A in registers (the fragment of `mma.m16n8k32`). `accumulate` 0
    /// starts from zero.
    m64n72k32_e4m3, f32, "wgmma.mma_async.sync.aligned.m64n72k32.f32.e4m3.e4m3", registers, ", 1, 1",
    [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35]
}
wgmma! {
    /// `m64n128k32` of FP8 E4M3 into f32, A in registers (the fragment of `mma.m16n8k32`). `accumulate` 0
    /// starts from zero.
    m64n128k32_e4m3, f32, "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3", registers, ", 1, 1",
    [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63]
}
wgmma! {
    /// `m64n136k32` of FP8 E4M3 into f32, A in registers (the fragment of `mma.m16n8k32`). `accumulate` 0
    /// starts from zero.
    m64n136k32_e4m3, f32, "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3", registers, ", 1, 1",
    [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67]
}
