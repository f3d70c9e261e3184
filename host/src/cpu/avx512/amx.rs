//! AMX: products of tiles, which are 16 rows of 64 bytes in registers of their own.
//!
//! Its intrinsics are not stable, hence `asm!`. The instructions take rows of lanes as their left operand and half a
//! panel of each of 16 lanes as their right, so that the buffers are those of the other paths.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use crate::cpu::isa::Tiled;

/// Rows of a step: two tiles of them times the two of a panel have four tiles of sums.
pub const ROWS: usize = 2 * TILE_ROWS;
/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Lanes of a row of a tile.
const TILE_LANES: usize = 16;

type Panel = [u32; 2 * TILE_LANES];

/// Whether the CPU has AMX for 8-bit integers and bf16, and the operating system lets this process use it.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| cpu_has() && system_permits())
}

/// Whether the CPU has the instructions, tiles of the expected shape, and a system that saves them (Intel SDM,
/// volume 1, "Programming with Intel AMX").
fn cpu_has() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // SAFETY: every CPU of 64 bits has `cpuid`, and `xgetbv` if it says so.
    let (saved, features, [size, shape, rows]) = unsafe {
        if __cpuid_count(0, 0).eax < 0x1d || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
            return false;
        }
        let saved: u32;
        asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack, preserves_flags));
        let palette = __cpuid_count(0x1d, 1);
        (saved, __cpuid_count(7, 0).edx, [palette.eax, palette.ebx, palette.ecx])
    };
    // Eight tiles of 1,024 bytes, 64 a row.
    let palette = size >> 16 == 1024 && shape == 8 << 16 | 64 && rows & 0xffff == TILE_ROWS as u32;
    saved & TILE_STATE == TILE_STATE && features & BF16_TILE_INT8 == BF16_TILE_INT8 && palette
}

/// Asks Linux for the process's right to use tiles, without which the first one is a fault; other systems are not
/// asked. Threads have the right too.
fn system_permits() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let answer: isize;
    // SAFETY: the system call takes two numbers, and changes nothing but the right and what a call changes.
    unsafe {
        asm!(
            "syscall",
            inout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// Operand of `ldtilecfg`: all tiles are whole.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE_TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs `work` with a configured tile unit, which takes some 400 cycles; without one, tile instructions are faults.
/// Afterwards there are no tiles to save when threads are switched.
///
/// # Safety
///
/// [`is_available`].
#[inline(always)]
pub unsafe fn with_tiles<R>(work: impl FnOnce() -> R) -> R {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: the unit was configured, so the instruction is there.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
    // SAFETY: the caller says that the instruction is there; the operand has 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE_TILES, options(readonly, nostack, preserves_flags)) };
    let _release = Release;
    work()
}

/// Defines a function that multiplies [`ROWS`] rows of `lanes` lanes, which are `inner` lanes apart in `left`, with
/// `lanes` lanes of a panel. Row `r` of the sums is `to[r * step]`; they begin as `$start` says.
macro_rules! product {
    ($(#[$meta:meta])* $name:ident, $dot:literal, [$($start:literal),*]) => {
        $(#[$meta])*
        ///
        /// # Safety
        ///
        /// Below [`with_tiles`].
        unsafe fn $name(left: &[u32], inner: usize, right: &[Panel], to: &mut [Panel], step: usize) {
            let lanes = right.len();
            assert!(lanes > 0 && lanes % TILE_LANES == 0);
            let (left, to) = (&left[..(ROWS - 1) * inner + lanes], &mut to[..(ROWS - 1) * step + 1]);
            // SAFETY: the unit is configured; the slices have the rows and lanes that are read and written.
            unsafe {
                asm!(
                    $($start,)*
                    "2:",
                    "tileloadd tmm4, [{left} + {left_step}]",
                    "tileloadd tmm6, [{right} + {right_step}]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{right} + {right_step} + 64]",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{lower_left} + {left_step}]",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "add {left}, 64",
                    "add {lower_left}, 64",
                    "add {right}, 16 * 128",
                    "dec {tiles}",
                    "jnz 2b",
                    "tilestored [{to} + {to_step}], tmm0",
                    "tilestored [{to} + {to_step} + 64], tmm1",
                    "tilestored [{lower_to} + {to_step}], tmm2",
                    "tilestored [{lower_to} + {to_step} + 64], tmm3",
                    left = inout(reg) left.as_ptr() => _,
                    lower_left = inout(reg) left[TILE_ROWS * inner..].as_ptr() => _,
                    left_step = in(reg) 4 * inner,
                    right = inout(reg) right.as_ptr() => _,
                    right_step = in(reg) size_of::<Panel>(),
                    to = in(reg) to.as_mut_ptr(),
                    lower_to = in(reg) to.as_mut_ptr().add(TILE_ROWS * step),
                    to_step = in(reg) size_of::<Panel>() * step,
                    tiles = inout(reg) lanes / TILE_LANES => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

product!(
    /// `to = left · right` of codes, signed both.
    multiply_step,
    "tdpbssd",
    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]
);
product!(
    /// `to += left · right` of pairs of bf16.
    add_step,
    "tdpbf16ps",
    [
        "tileloadd tmm0, [{to} + {to_step}]",
        "tileloadd tmm1, [{to} + {to_step} + 64]",
        "tileloadd tmm2, [{lower_to} + {to_step}]",
        "tileloadd tmm3, [{lower_to} + {to_step} + 64]"
    ]
);

/// Products of codes: all lanes, and the panels with keys that one of the rows of a step sees.
///
/// # Safety
///
/// Below [`with_tiles`].
pub unsafe fn multiply_codes(product: Tiled<Panel>) {
    let Tiled { left, inner, right, to, steps: [row_step, panel_step], rows, visible } = product;
    for row in (0..rows).step_by(ROWS) {
        let panels = visible.keys(rows.min(row + ROWS) - 1).div_ceil(size_of::<Panel>() / 4);
        for (panel, right) in right.chunks_exact(inner).take(panels).enumerate() {
            let to = &mut to[row * row_step + panel * panel_step..];
            // SAFETY: the caller's promise.
            unsafe { multiply_step(&left[row * inner..], inner, right, to, row_step) };
        }
    }
}

/// Adds products of pairs of bf16: all panels, and the lanes with keys that one of the rows of a step sees.
///
/// # Safety
///
/// Below [`with_tiles`].
pub unsafe fn add_bf16(product: Tiled<Panel>) {
    let Tiled { left, inner, right, to, steps: [row_step, panel_step], rows, visible } = product;
    for row in (0..rows).step_by(ROWS) {
        let lanes = visible.keys(rows.min(row + ROWS) - 1).div_ceil(2).next_multiple_of(TILE_LANES);
        for (panel, right) in right.chunks_exact(inner).enumerate() {
            let to = &mut to[row * row_step + panel * panel_step..];
            // SAFETY: the caller's promise.
            unsafe { add_step(&left[row * inner..], inner, &right[..lanes], to, row_step) };
        }
    }
}
