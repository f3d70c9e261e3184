//! Where elements lie in fragments and swizzled tiles: one element at a time, all of them, on the executor, against
//! products written out from the PTX ISA's figures ("Matrix Fragments for mma.m16n8k*", "Shared Memory Layout").

use cuda_std::executor::numeric::e4m3_to_f32;
use sage_spec::symbol::Arch;

use crate::cases::{self, Case};
use crate::host;

fn case(name: &str) -> Case {
    cases::all().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// Bits and K of a product of one warp, and the bits of 1.
struct Shape {
    name: &'static str,
    bits: usize,
    k: usize,
    one: u32,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "mma_s4", bits: 4, k: 64, one: 1 },
    Shape { name: "mma_s8", bits: 8, k: 32, one: 1 },
    Shape { name: "mma_f16", bits: 16, k: 16, one: 0x3c00 },
    Shape { name: "mma_e4m3", bits: 8, k: 32, one: 0x38 },
];

impl Shape {
    /// Puts `value` at index `k` along K of row or column `line` into the registers of a warp: A if `rows` is 16, B
    /// if it is 8. `registers[lane * 10 + i]`, as the kernels take them.
    fn put(&self, registers: &mut [u32], rows: usize, line: usize, k: usize, value: u32) {
        // A register holds 32 bits of one line; four lanes cover 128 bits of K; the next registers go on: first the
        // rows from 8 on, then the second half of K.
        let per = 32 / self.bits;
        let (half, within) = (k / (4 * per), k % (4 * per));
        let (lane, element) = (line % 8 * 4 + within / per, within % per);
        let register = match rows {
            16 => half * 2 + line / 8,
            _ => 4 + half,
        };
        registers[lane * 10 + register] |= value << (element * self.bits);
    }

    fn number(&self, word: u32) -> f32 {
        if self.name.starts_with("mma_s") { word as i32 as f32 } else { f32::from_bits(word) }
    }
}

/// One element of A, one of B: their product appears where the row and the column meet, and nowhere else, for
/// every row, column and index along K.
#[test]
fn fragments_of_mma_are_where_the_isa_puts_them() {
    for shape in SHAPES {
        let mut case = case(shape.name);
        // A warp for each (row, k); B has a one in column (row + k) % 8 at k.
        let warps = 16 * shape.k;
        (case.threads, case.input) = (warps as u32 * 32, vec![0; warps * 320]);
        for (warp, registers) in case.input.chunks_exact_mut(320).enumerate() {
            let (row, k) = (warp % 16, warp / 16);
            shape.put(registers, 16, row, k, shape.one);
            shape.put(registers, 8, (row + k) % 8, k, shape.one);
        }
        let d = host::run(&case);
        for (warp, words) in d.chunks_exact(128).enumerate() {
            let (row, column) = (warp % 16, (warp % 16 + warp / 16) % 8);
            for (i, &word) in words.iter().enumerate() {
                let (lane, e) = (i / 4, i % 4);
                let here = (lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2) == (row, column);
                let expected = if here { 1.0 } else { 0.0 };
                assert_eq!(shape.number(word), expected, "{} warp {warp} lane {lane} register {e}", shape.name);
            }
        }
    }
}

/// Every 16-bit element of the four matrices, plain and transposed.
#[test]
fn fragments_of_ldmatrix_are_where_the_isa_puts_them() {
    for (name, transposed) in [("matrices", false), ("matrices_transposed", true)] {
        let mut case = case(name);
        // Element e of memory is the number e; lane l gives row l of 32 rows of 8 elements.
        case.image = (0..4096u16).flat_map(u16::to_le_bytes).collect();
        case.input = (0..128).map(|thread| thread % 32).collect();
        for (i, word) in host::run(&case).into_iter().enumerate() {
            let (lane, matrix) = (i / 4 % 32, i % 4);
            let element = |i: usize| {
                let (row, column) = (lane / 4, 2 * (lane % 4) + i);
                let (row, column) = if transposed { (column, row) } else { (row, column) };
                ((matrix * 8 + row) * 8 + column) as u32
            };
            assert_eq!(word, element(0) | element(1) << 16, "{name} lane {lane} matrix {matrix}");
        }
    }
}

/// Place of byte `k` of row `row` in a swizzled K-major tile.
pub fn place(row: usize, k: usize, row_bytes: usize) -> usize {
    let chunk = match row_bytes {
        128 => (k / 16) ^ (row % 8),
        _ => (k / 16) ^ (row / 2 % 4),
    };
    row * row_bytes + chunk * 16 + k % 16
}

/// Row of a warpgroup's 64 and column that accumulator register `e` of thread `thread` holds.
fn accumulator(thread: usize, e: usize) -> (usize, usize) {
    (thread / 32 * 16 + thread % 32 / 4 + 8 * (e / 2 % 2), e / 4 * 8 + 2 * (thread % 4) + e % 2)
}

/// One 1 in each row of one operand, numbers that differ in the other: every element of both operands is met once
/// by itself.
#[derive(Clone, Copy)]
struct OneHot {
    k: usize,
    /// K of the 1 of row 0; every further row has it one further.
    first: usize,
    /// Whether A has the ones; else B.
    left: bool,
}

impl OneHot {
    fn all(k: usize) -> impl Iterator<Item = OneHot> {
        (0..2 * k).map(move |i| OneHot { k, first: i / 2, left: i % 2 == 0 })
    }

    /// Whether the 1 of row `row` is at `k`.
    fn is_one(&self, row: usize, k: usize) -> bool {
        k == (row + self.first) % self.k
    }

    /// A number of 0..126 for an element of the other operand.
    fn number(&self, row: usize, k: usize) -> u8 {
        ((row * 37 + k * 11 + row * k + self.first) % 127) as u8
    }

    /// Element of A, if `left`, or of B.
    fn element(&self, left: bool, row: usize, k: usize, one: u8) -> u8 {
        match (left == self.left, self.is_one(row, k)) {
            (true, true) => one,
            (true, false) => 0,
            (false, _) => self.number(row, k),
        }
    }

    /// The element that the product of `row` and `column` is.
    fn product(&self, row: usize, column: usize) -> u8 {
        let (one, other) = if self.left { (row, column) } else { (column, row) };
        self.number(other, (one + self.first) % self.k)
    }
}

/// Every element of A and of B in both swizzles.
#[test]
fn descriptors_and_swizzles_of_wgmma_are_where_the_isa_puts_them() {
    for (name, row_bytes) in [("wgmma_s8_swizzle64", 64), ("wgmma_s8_swizzle128", 128)] {
        let mut case = case(name);
        for hot in OneHot::all(row_bytes) {
            for (left, rows, base) in [(true, 64, 0), (false, 128, 64 * row_bytes)] {
                for (row, k) in (0..rows).flat_map(|row| (0..row_bytes).map(move |k| (row, k))) {
                    case.image[base + place(row, k, row_bytes)] = hot.element(left, row, k, 1);
                }
            }
            for (i, &word) in host::run(&case).iter().enumerate() {
                let (row, column) = accumulator(i / 64, i % 64);
                let expected = case.input[i].wrapping_add(hot.product(row, column).into());
                assert_eq!(word, expected, "{name} {} {} row {row} column {column}", hot.first, hot.left);
            }
        }
    }
}

/// `wgmma` of E4M3 in every width: rows of A of a warp are those of `mma`, and D's columns B's rows.
#[test]
fn register_operands_of_wgmma_are_where_the_isa_puts_them() {
    let widths = [("wgmma_e4m3_n64", 64), ("wgmma_e4m3_n72", 72), ("wgmma_e4m3_n128", 128), ("wgmma_e4m3_n136", 136)];
    for (name, columns) in widths {
        let mut case = case(name);
        for hot in OneHot::all(32) {
            for (row, k) in (0..columns).flat_map(|row| (0..32).map(move |k| (row, k))) {
                // K starts at chunk 2. All numbers below 127 are codes of finite values, 0x38 that of 1.
                case.image[place(row, 32 + k, 128)] = hot.element(false, row, k, 0x38);
            }
            for (i, word) in case.input.iter_mut().enumerate() {
                let (thread, register) = (i / 4, i % 4);
                let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (register % 2);
                let k = |byte| thread % 4 * 4 + byte + 16 * (register / 2);
                *word = u32::from_le_bytes([0, 1, 2, 3].map(|byte| hot.element(true, row, k(byte), 0x38)));
            }
            for (i, &word) in host::run(&case).iter().enumerate() {
                let (row, column) = accumulator(i / (columns / 2), i % (columns / 2));
                let expected = e4m3_to_f32(hot.product(row, column));
                assert_eq!(
                    f32::from_bits(word),
                    expected,
                    "{name} {} {} row {row} column {column}",
                    hot.first,
                    hot.left
                );
            }
        }
    }
}

/// Boxes arrive swizzled, zero where there is no tensor.
#[test]
fn boxes_of_tensor_maps_are_where_the_isa_puts_them() {
    for mut case in cases::all().into_iter().filter(|case| case.tiles.is_some()) {
        assert_eq!(case.arch, Arch::Sm90a);
        let tiles = case.tiles.expect("filtered");
        let ([width, rows, _], [x, y, z]) = (tiles.extents, tiles.origin);
        assert_eq!(x, 0, "{}", case.name);
        // Bytes at the same place of two chunks differ, in one of two of them at least.
        for (i, chunk) in case.image.chunks_exact_mut(16).enumerate() {
            (0..16).for_each(|byte| chunk[byte] = ((i >> (8 * (byte % 2))) ^ (byte * 29)) as u8);
        }
        let bytes = (width * tiles.box_extents[1]) as usize;
        for first in (0..bytes / 16).step_by(128) {
            case.input = (0..128).map(|thread| (first + thread) as u32).collect();
            let chunks: Vec<u8> = host::run(&case).iter().flat_map(|word| word.to_le_bytes()).collect();
            for byte in 0..bytes {
                let (row, k) = (byte / width as usize, byte % width as usize);
                let at = place(row, k, width as usize);
                if !(first * 16..(first + 128) * 16).contains(&at) {
                    continue;
                }
                let source = y.wrapping_add(row as u32);
                let expected = match source < rows {
                    true => case.image[((z * rows + source) * width) as usize + k],
                    false => 0,
                };
                assert_eq!(chunks[at - first * 16], expected, "{} row {row} byte {k}", case.name);
            }
        }
    }
}
