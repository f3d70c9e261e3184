//! Tensor-core arithmetic on the fragments of a warp [mma, ldmatrix].

use std::vec;
use std::vec::Vec;

use super::machine::WARP;
use super::numeric;
use super::warp::{Operands, Results};

/// Shape and types of `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Signed 4-bit integers, K = 64.
    M16N8K64S4,
    /// Signed 8-bit integers, K = 32.
    M16N8K32S8,
    /// FP16, K = 16.
    M16N8K16F16,
    /// FP8 E4M3, K = 32.
    M16N8K32E4M3,
}

/// Four 8x8 matrices of 16-bit elements: lane `l` gave row `l % 8` of matrix `l / 8` and receives elements
/// `2 (l % 4)` and the next of row `l / 4` (or column, transposed) of each.
pub(super) fn matrices(rows: &[[u8; 16]; WARP], transposed: bool, results: &mut [Results; WARP]) {
    let element = |matrix: usize, row: usize, column: usize| {
        let bytes = &rows[matrix * 8 + row][column * 2..];
        u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    for (lane, result) in results.iter_mut().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (matrix, register) in result.iter_mut().enumerate() {
            let [low, high] = [0, 1].map(|i| match transposed {
                false => element(matrix, g, 2 * t + i),
                true => element(matrix, 2 * t + i, g),
            });
            *register = low | high << 16;
        }
    }
}

/// `D = A B + C` of a warp.
pub(super) fn multiply(shape: Shape, operands: &[Operands; WARP], results: &mut [Results; WARP]) {
    match shape {
        Shape::M16N8K64S4 => integers::<64>(4, operands, results),
        Shape::M16N8K32S8 => integers::<32>(8, operands, results),
        Shape::M16N8K16F16 => floats::<16>(16, |bits| numeric::f16_to_f32(bits as u16), operands, results),
        Shape::M16N8K32E4M3 => floats::<32>(8, |bits| numeric::e4m3_to_f32(bits as u8), operands, results),
    }
}

/// Where the elements of A and B lie (PTX ISA, "Matrix Fragments for mma.m16n8k*"): calls `place` with row or
/// column, index along K, and bits, for `registers` registers of a lane. Register `r` of A holds row
/// `g + 8 (r % 2)`, those of B column `g`; its elements start at `(4 r' + t) * per`, where `per` elements fill
/// a register and `r'` counts registers along K.
fn unpack(bits: u32, lane: usize, registers: &[u32], rows_per_step: usize, mut place: impl FnMut(usize, usize, u32)) {
    let (g, t, per) = (lane / 4, lane % 4, (32 / bits) as usize);
    for (index, &register) in registers.iter().enumerate() {
        let (row, step) = (g + 8 * (index % rows_per_step), index / rows_per_step);
        for i in 0..per {
            let element = register >> (bits * i as u32) & (u32::MAX >> (32 - bits));
            place(row, (4 * step + t) * per + i, element);
        }
    }
}

/// Row and column of accumulator register `register` of lane `lane`.
fn accumulator(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2)
}

fn integers<const K: usize>(bits: u32, operands: &[Operands; WARP], results: &mut [Results; WARP]) {
    let (mut a, mut b) = ([[0i32; K]; 16], [[0i32; K]; 8]);
    let signed = |x: u32| (x << (32 - bits)) as i32 >> (32 - bits);
    for (lane, operands) in operands.iter().enumerate() {
        unpack(bits, lane, &operands[..4], 2, |row, k, x| a[row][k] = signed(x));
        unpack(bits, lane, &operands[4..6], 1, |column, k, x| b[column][k] = signed(x));
    }
    for (lane, result) in results.iter_mut().enumerate() {
        for (register, d) in result.iter_mut().enumerate() {
            let (row, column) = accumulator(lane, register);
            let sum: i32 = a[row].iter().zip(&b[column]).map(|(x, y)| x * y).sum();
            *d = operands[lane][6 + register].wrapping_add(sum as u32);
        }
    }
}

/// Products are exact and added in f64, then rounded to f32. Hardware aligns them to the largest and cuts off
/// low bits; the conformance tests bound the difference.
fn floats<const K: usize>(
    bits: u32,
    widen: impl Fn(u32) -> f32,
    operands: &[Operands; WARP],
    results: &mut [Results; WARP],
) {
    let (mut a, mut b) = ([[0f64; K]; 16], [[0f64; 8]; K]);
    for (lane, operands) in operands.iter().enumerate() {
        unpack(bits, lane, &operands[..4], 2, |row, k, x| a[row][k] = widen(x).into());
        unpack(bits, lane, &operands[4..6], 1, |column, k, x| b[k][column] = widen(x).into());
    }
    let mut d = [[0f64; 8]; 16];
    for (row, d) in a.iter().zip(&mut d) {
        for (x, b) in row.iter().zip(&b) {
            d.iter_mut().zip(b).for_each(|(d, y)| *d += x * y);
        }
    }
    for (lane, result) in results.iter_mut().enumerate() {
        for (register, bits) in result.iter_mut().enumerate() {
            let (row, column) = accumulator(lane, register);
            let c = f32::from_bits(operands[lane][6 + register]);
            *bits = numeric::canonical((f64::from(c) + d[row][column]) as f32).to_bits();
        }
    }
}

/// 32 bytes along K of one row of A or one column of B.
pub(super) type Operand = [u8; 32];

/// Rows of A of a warpgroup whose lanes hold them in registers, in the order of the lanes: each warp has 16
/// rows, as A of `mma.m16n8k32`.
pub(super) fn rows_of_registers(registers: impl Iterator<Item = [u32; 4]>) -> Vec<Operand> {
    let mut rows = vec![[0; 32]; 64];
    for (thread, registers) in registers.enumerate() {
        let (warp, lane) = (thread / WARP, thread % WARP);
        unpack(8, lane, &registers, 2, |row, k, x| rows[warp * 16 + row][k] = x as u8);
    }
    rows
}

/// Adds `product(row, column)` to the accumulators of every lane of a warpgroup: word `4b + e` of a lane is row
/// `g + 8 (e / 2)` of its warp's 16, column `8b + 2t + e % 2`.
fn accumulate<'a>(lanes: impl Iterator<Item = &'a mut [u32]>, mut add: impl FnMut(usize, usize, &mut u32)) {
    for (thread, values) in lanes.enumerate() {
        let (warp, lane) = (thread / WARP, thread % WARP);
        for (i, value) in values.iter_mut().enumerate() {
            let (row, column) = accumulator(lane, i % 4);
            add(warp * 16 + row, i / 4 * 8 + column, value);
        }
    }
}

/// `wgmma` of signed 8-bit integers.
pub(super) fn warpgroup_integers<'a>(a: &[Operand], b: &[Operand], lanes: impl Iterator<Item = &'a mut [u32]>) {
    let widen = |x: &Operand| x.map(|x| i16::from(x as i8));
    let (a, b): (Vec<_>, Vec<_>) = (a.iter().map(widen).collect(), b.iter().map(widen).collect());
    accumulate(lanes, |row, column, value| {
        let sum: i32 = a[row].iter().zip(&b[column]).map(|(x, y)| i32::from(*x) * i32::from(*y)).sum();
        *value = value.wrapping_add(sum as u32);
    });
}

/// `wgmma` of FP8 E4M3: products are exact and added in f64, then the sum is rounded to f32; hardware keeps
/// fewer bits, which the conformance tests bound.
pub(super) fn warpgroup_floats<'a>(a: &[Operand], b: &[Operand], lanes: impl Iterator<Item = &'a mut [u32]>) {
    let table: Vec<f64> = (0..=255).map(|code| numeric::e4m3_to_f32(code).into()).collect();
    let widen = |x: &Operand| x.map(|x| table[usize::from(x)]);
    let columns = b.len();
    let mut transposed = vec![0.0; 32 * columns];
    for (column, x) in b.iter().map(widen).enumerate() {
        x.iter().enumerate().for_each(|(k, x)| transposed[k * columns + column] = *x);
    }
    let mut sums = vec![0.0; a.len() * columns];
    for (row, sums) in a.iter().map(widen).zip(sums.chunks_exact_mut(columns)) {
        for (x, b) in row.iter().zip(transposed.chunks_exact(columns)) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += x * b);
        }
    }
    accumulate(lanes, |row, column, value| {
        let sum = f64::from(f32::from_bits(*value)) + sums[row * columns + column];
        *value = numeric::canonical(sum as f32).to_bits();
    });
}
