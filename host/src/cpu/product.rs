//! The micro-kernel: a few rows times two vectors of columns, all sums in registers.

#![allow(clippy::needless_range_loop)] // iterator adapters take closures, see `block`

use super::isa::{Isa, Task, Tiled};

/// Rows that share the registers' panel of columns. Twelve rows of two vectors take 24 of the 32 registers
/// of AVX-512 and NEON; the remaining rows of a block are taken eight, four or one at a time.
const ROWS: usize = 12;
/// The same for instruction sets with 16 registers.
const FEW_ROWS: usize = 6;

/// One kind of product of 32-bit lanes.
pub trait Multiply {
    /// `acc + left · right` of every lane.
    fn step<I: Isa>(isa: I, acc: I::I, left: I::I, right: I::I) -> I::I;
    /// Whether the instruction set multiplies whole [`Tiled`] matrices, by [`Multiply::tiled`].
    fn has_tiles<I: Isa>() -> bool;
    /// Sums of codes take the place of what was there, those of bf16 are added to it.
    fn tiled<I: Isa>(isa: I, product: Tiled<I::Panel>);
}

/// f32 times f32.
pub struct F32;
/// Codes times codes, into 32-bit integers.
pub struct Integer;
/// Pairs of bf16, into f32.
pub struct Bf16;

impl Multiply for F32 {
    #[inline(always)]
    fn step<I: Isa>(isa: I, acc: I::I, left: I::I, right: I::I) -> I::I {
        isa.as_i(isa.mul_add(isa.as_f(left), isa.as_f(right), isa.as_f(acc)))
    }

    #[inline(always)]
    fn has_tiles<I: Isa>() -> bool {
        false
    }

    #[inline(always)]
    fn tiled<I: Isa>(_: I, _: Tiled<I::Panel>) {
        unreachable!("has none")
    }
}

impl Multiply for Integer {
    #[inline(always)]
    fn step<I: Isa>(isa: I, acc: I::I, left: I::I, right: I::I) -> I::I {
        isa.dot_codes(acc, left, right)
    }

    #[inline(always)]
    fn has_tiles<I: Isa>() -> bool {
        I::TILES
    }

    #[inline(always)]
    fn tiled<I: Isa>(isa: I, product: Tiled<I::Panel>) {
        isa.multiply_codes(product);
    }
}

impl Multiply for Bf16 {
    #[inline(always)]
    fn step<I: Isa>(isa: I, acc: I::I, left: I::I, right: I::I) -> I::I {
        isa.as_i(isa.dot_bf16(isa.as_f(acc), left, right))
    }

    #[inline(always)]
    fn has_tiles<I: Isa>() -> bool {
        I::TILES
    }

    #[inline(always)]
    fn tiled<I: Isa>(isa: I, product: Tiled<I::Panel>) {
        isa.add_bf16(product);
    }
}

/// Adds `left · right` to `acc`: a lane of every row of `left` meets a panel of `right`.
#[inline(always)]
fn block<I: Isa, M: Multiply, const R: usize>(
    isa: I,
    left: [&[u32]; R],
    right: &[I::Panel],
    mut acc: [[I::I; 2]; R],
) -> [[I::I; 2]; R] {
    // Loops and not closures: a closure is compiled for the baseline CPU and not inlined. Without the length of each
    // row in sight, every lane would be checked against it.
    let mut rows = [&left[0][..right.len()]; R];
    for r in 1..R {
        rows[r] = &left[r][..right.len()];
    }
    for (k, panel) in right.iter().enumerate() {
        let columns = isa.load(panel);
        for r in 0..R {
            let lane = isa.splat_bits(rows[r][k]);
            acc[r][0] = M::step(isa, acc[r][0], lane, columns[0]);
            acc[r][1] = M::step(isa, acc[r][1], lane, columns[1]);
        }
    }
    acc
}

/// The first `lanes` of rows `row..row + R` of `x`, which are `stride` apart.
#[inline(always)]
fn some_rows<const R: usize>(x: &[u32], row: usize, stride: usize, lanes: usize) -> [&[u32]; R] {
    let mut rows = [&x[row * stride..][..lanes]; R];
    for r in 1..R {
        rows[r] = &x[(row + r) * stride..][..lanes];
    }
    rows
}

/// Calls `$body` with `R` rows from `$row` on until all of `$rows` are done.
macro_rules! by_rows {
    ($isa:ty, $rows:expr, |$row:ident, $R:ident| $body:block) => {{
        let mut rest = $rows;
        while !rest.is_empty() {
            let $row = rest.start;
            if <$isa>::REGISTERS == 32 && rest.len() >= ROWS {
                const $R: usize = ROWS;
                $body
                rest.start += ROWS;
            } else if <$isa>::REGISTERS < 32 && rest.len() >= FEW_ROWS {
                const $R: usize = FEW_ROWS;
                $body
                rest.start += FEW_ROWS;
            } else if <$isa>::REGISTERS == 32 && rest.len() >= 8 {
                const $R: usize = 8;
                $body
                rest.start += 8;
            } else if rest.len() >= 4 {
                const $R: usize = 4;
                $body
                rest.start += 4;
            } else {
                const $R: usize = 1;
                $body
                rest.start += 1;
            }
        }
    }};
}

/// Scores of some rows and one tile of keys.
pub struct Scores<'a, P, M> {
    /// `[rows + SPARE_ROWS, inner]`.
    pub q: &'a [u32],
    /// Lanes of a row of Q.
    pub inner: usize,
    /// `[panels, inner]`: K, a panel of keys at a time.
    pub k: &'a [P],
    /// What the sums of a row start from; zero if empty.
    pub start: &'a [u32],
    /// Rows to compute.
    pub rows: std::ops::Range<usize>,
    /// Keys that a row needs; increasing.
    pub visible: super::mask::Mask,
    /// `[rows + SPARE_ROWS, panels]`, of the rows to compute.
    pub scores: &'a mut [P],
    /// The kind of product.
    pub product: std::marker::PhantomData<M>,
}

impl<P: bytemuck::Pod, M: Multiply> Task for Scores<'_, P, M> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Scores { q, inner, k, start, rows, visible, scores, .. } = self;
        let k: &[I::Panel] = bytemuck::cast_slice(k);
        let scores: &mut [I::Panel] = bytemuck::cast_slice_mut(scores);
        let panels = k.len() / inner;
        if M::has_tiles::<I>() {
            // Sums start from zero: such instruction sets take signed codes.
            let (left, visible) = (&q[rows.start * inner..], visible.after_rows(rows.start));
            let steps = [panels, 1];
            return M::tiled(isa, Tiled { left, inner, right: k, to: scores, steps, rows: rows.len(), visible });
        }
        for (panel, k) in k.chunks_exact(inner).enumerate() {
            by_rows!(I, rows.clone(), |row, R| {
                if visible.keys(row + R - 1) > panel * I::PANEL {
                    let left: [&[u32]; R] = some_rows(q, row, inner, inner);
                    let mut acc = [[isa.splat_bits(0); 2]; R];
                    if !start.is_empty() {
                        for r in 0..R {
                            acc[r] = [isa.splat_bits(start[row + r]); 2];
                        }
                    }
                    let sums = block::<I, M, R>(isa, left, k, acc);
                    for r in 0..R {
                        isa.store(&mut scores[(row - rows.start + r) * panels + panel], sums[r]);
                    }
                }
            });
        }
    }
}

/// Adds P V of one tile to the output.
pub struct Accumulate<'a, P, M> {
    /// `[rows + SPARE_ROWS, inner]`: P of the rows to compute.
    pub p: &'a [u32],
    /// Lanes of a row of P.
    pub inner: usize,
    /// Keys of a lane of P.
    pub per_lane: usize,
    /// `[panels, inner]`: V, a panel of channels at a time.
    pub v: &'a [P],
    /// Rows to compute.
    pub rows: std::ops::Range<usize>,
    /// Keys that a row needs; increasing.
    pub visible: super::mask::Mask,
    /// What each row's output is multiplied by first.
    pub alpha: &'a [f32],
    /// `[panels, stride]`.
    pub out: &'a mut [P],
    /// Rows of a panel of `out`.
    pub stride: usize,
    /// The kind of product.
    pub product: std::marker::PhantomData<M>,
}

impl<P: bytemuck::Pod, M: Multiply> Task for Accumulate<'_, P, M> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Accumulate { p, inner, per_lane, v, rows, visible, alpha, out, stride, .. } = self;
        let v: &[I::Panel] = bytemuck::cast_slice(v);
        let out: &mut [I::Panel] = bytemuck::cast_slice_mut(out);
        if M::has_tiles::<I>() {
            for row in rows.clone() {
                // Maxima change in the first tiles, and then hardly ever.
                if alpha[row] != 1.0 {
                    let alpha = isa.splat(alpha[row]);
                    for out in out.chunks_exact_mut(stride) {
                        let old = isa.load(&out[row]);
                        let new = [isa.mul(isa.as_f(old[0]), alpha), isa.mul(isa.as_f(old[1]), alpha)];
                        isa.store(&mut out[row], [isa.as_i(new[0]), isa.as_i(new[1])]);
                    }
                }
            }
            let (to, visible) = (&mut out[rows.start..], visible.after_rows(rows.start));
            let steps = [1, stride];
            return M::tiled(isa, Tiled { left: p, inner, right: v, to, steps, rows: rows.len(), visible });
        }
        for (v, out) in v.chunks_exact(inner).zip(out.chunks_exact_mut(stride)) {
            by_rows!(I, rows.clone(), |row, R| {
                let lanes = visible.keys(row + R - 1).div_ceil(per_lane);
                let left: [&[u32]; R] = some_rows(p, row - rows.start, inner, lanes);
                let mut acc = [[isa.splat_bits(0); 2]; R];
                for r in 0..R {
                    let (alpha, old) = (isa.splat(alpha[row + r]), isa.load(&out[row + r]));
                    acc[r] = [isa.as_i(isa.mul(isa.as_f(old[0]), alpha)), isa.as_i(isa.mul(isa.as_f(old[1]), alpha))];
                }
                let sums = block::<I, M, R>(isa, left, &v[..lanes], acc);
                for r in 0..R {
                    isa.store(&mut out[row + r], sums[r]);
                }
            });
        }
    }
}
