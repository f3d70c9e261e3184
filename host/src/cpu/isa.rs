//! What the algorithm asks of an instruction set.

use bytemuck::Pod;

use super::mask::Mask;

/// How codes of Q and K lie in the 32-bit lanes of the integer product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Four signed codes of Q times four codes of K with 128 added, as unsigned bytes.
    QuadsOffset,
    /// Four signed codes times four signed codes.
    #[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), expect(dead_code))]
    Quads,
    /// Two codes widened to 16 bits times two such codes.
    Pairs,
}

impl Codes {
    /// Features that one 32-bit lane holds.
    pub const fn per_lane(self) -> usize {
        match self {
            Codes::QuadsOffset | Codes::Quads => 4,
            Codes::Pairs => 2,
        }
    }
}

/// Lanes of the largest panel.
pub const MOST_LANES: usize = 32;

/// An instruction set. A value proves that the CPU has it, so the operations are safe to call.
///
/// Everything works on two vectors at a time, a *panel* of 32-bit lanes in memory: one panel of columns
/// and a few rows are what the registers of the micro-kernel hold.
pub trait Isa: Copy + Send + Sync {
    /// Vector of f32.
    type F: Copy;
    /// Vector of 32-bit integers, or of raw bits.
    type I: Copy;
    /// Two vectors in memory, `[u32; PANEL]`.
    type Panel: Pod + Send + Sync;

    /// Name, as `doctor` and reports show it.
    const NAME: &'static str;
    /// 32-bit lanes of a panel; divides [`MOST_LANES`] and is a multiple of 8.
    const PANEL: usize = size_of::<Self::Panel>() / 4;
    /// Vector registers.
    const REGISTERS: usize;
    /// Whether [`Isa::mul_add`], and `f32::mul_add` below [`Isa::run`], are one instruction that rounds once.
    const FUSED: bool = true;
    /// How the integer product takes its codes.
    const CODES: Codes;
    /// Whether P and V are multiplied as pairs of bf16; otherwise as f32.
    const BF16: bool;
    /// Whether codes and pairs of bf16 are multiplied by [`Isa::multiply_codes`] and [`Isa::add_bf16`], many rows at
    /// a time; otherwise by the micro-kernel.
    const TILES: bool = false;
    /// Rows beyond the last that those products may read and overwrite.
    const SPARE_ROWS: usize = 0;

    /// Runs `task` compiled for this instruction set, and prepared for its tiles if it has some.
    fn run<T: Task>(self, task: T) -> T::Output;

    /// The vectors of a panel.
    fn load(self, panel: &Self::Panel) -> [Self::I; 2];
    /// Writes a panel.
    fn store(self, panel: &mut Self::Panel, value: [Self::I; 2]);
    /// The same bits as numbers.
    fn as_f(self, bits: Self::I) -> Self::F;
    /// The same bits.
    fn as_i(self, value: Self::F) -> Self::I;
    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// `bits` in every lane.
    fn splat_bits(self, bits: u32) -> Self::I;
    /// Integers as numbers.
    fn to_f(self, x: Self::I) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once if [`Isa::FUSED`].
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` if `a` is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `value` in the first `count` of the panel's lanes, −∞ in the others.
    fn first(self, value: [Self::F; 2], count: usize) -> [Self::F; 2];
    /// Largest lane of numbers that are not NaN.
    fn max_lane(self, x: Self::F) -> f32;
    /// Sum of the lanes.
    fn sum_lanes(self, x: Self::F) -> f32;
    /// 2^`x` by a polynomial whose coefficients, highest power first, approximate 2^r for |r| ≤ ½. Zero or
    /// denormal below −126, NaN for NaN; `x` is not above 127.
    fn exp2(self, x: Self::F, polynomial: &'static [f32]) -> Self::F;
    /// Adds to every lane of `acc` the product of its codes in `right` and `left`, as [`Isa::CODES`] says.
    fn dot_codes(self, acc: Self::I, left: Self::I, right: Self::I) -> Self::I;
    /// Adds to every lane of `acc` the product of its two bf16 in `right` and `left`; only if [`Isa::BF16`].
    fn dot_bf16(self, acc: Self::F, left: Self::I, right: Self::I) -> Self::F;
    /// Rounds a panel of numbers to bf16, in the order of the panel; only if [`Isa::BF16`].
    fn narrow(self, x: [Self::F; 2]) -> Self::I;
    /// Writes one vector to `PANEL / 2` lanes.
    fn store_half(self, to: &mut [u32], value: Self::I);
    /// Products of codes; only if [`Isa::TILES`], below [`Isa::run`].
    fn multiply_codes(self, _: Tiled<Self::Panel>) {
        unreachable!("TILES is false")
    }
    /// Adds products of pairs of bf16; only if [`Isa::TILES`], below [`Isa::run`].
    fn add_bf16(self, _: Tiled<Self::Panel>) {
        unreachable!("TILES is false")
    }
    /// `panels[c]` lane `r` = `rows[r][c]` for the columns that both have; rows beyond `rows` become zero.
    fn transpose(self, rows: &[&[u32]], panels: &mut [Self::Panel]) {
        for (column, panel) in panels.iter_mut().enumerate() {
            for (row, lane) in bytemuck::cast_slice_mut(std::slice::from_mut(panel)).iter_mut().enumerate() {
                *lane = rows.get(row).map_or(0, |row| row[column]);
            }
        }
    }
}

/// A product of many rows with many panels. What `visible` hides is zero in `left`, or not needed in `to`.
pub struct Tiled<'a, P> {
    /// `[rows + SPARE_ROWS, inner]`.
    pub left: &'a [u32],
    /// Lanes of a row, a multiple of 16.
    pub inner: usize,
    /// `[panels, inner]`.
    pub right: &'a [P],
    /// The sums of row `r` and panel `p` are at `r * steps[0] + p * steps[1]`.
    pub to: &'a mut [P],
    /// From one row and from one panel to the next.
    pub steps: [usize; 2],
    /// Rows to compute.
    pub rows: usize,
    /// Keys that a row needs; increasing.
    pub visible: Mask,
}

/// Work that an instruction set runs; `run` is `#[inline(always)]`, so that all of it is compiled for it.
pub trait Task {
    /// What it returns.
    type Output;
    /// Does the work.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Coefficients for [`Isa::exp2`] within 2e-7 (Cephes `exp2f`, netlib, S. Moshier).
pub const EXP2_F32: &[f32] =
    &[1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 0.240_226_48, std::f32::consts::LN_2, 1.0];
