//! Where elements lie in fragments and swizzled tiles: one element at a time, all of them, on the executor, against
//! products written out from the PTX ISA's figures ("Matrix Fragments for mma.m16n8k*", "Shared Memory Layout").

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
fn place(row: usize, k: usize, row_bytes: usize) -> usize {
    let chunk = match row_bytes {
        128 => (k / 16) ^ (row % 8),
        _ => (k / 16) ^ (row / 2 % 4),
    };
    row * row_bytes + chunk * 16 + k % 16
}

/// `wgmma` of integers against the product, by every element of A and B: their numbers differ.
#[test]
fn descriptors_and_swizzles_of_wgmma_are_where_the_isa_puts_them() {
    for (name, row_bytes) in [("wgmma_s8_swizzle64", 64), ("wgmma_s8_swizzle128", 128)] {
        let mut case = case(name);
        let element = |tensor: usize, row: usize, k: usize| ((tensor * 7 + row * 31 + k * 17 + row * k) % 251) as u8;
        for row in 0..64 {
            (0..row_bytes).for_each(|k| case.image[place(row, k, row_bytes)] = element(0, row, k));
        }
        for row in 0..128 {
            let b = 64 * row_bytes;
            (0..row_bytes).for_each(|k| case.image[b + place(row, k, row_bytes)] = element(1, row, k));
        }
        let d = host::run(&case);
        for (i, &word) in d.iter().enumerate() {
            let (thread, e) = (i / 64, i % 64);
            let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (e / 2 % 2);
            let column = e / 4 * 8 + 2 * (thread % 4) + e % 2;
            let product = |k| i32::from(element(0, row, k) as i8) * i32::from(element(1, column, k) as i8);
            let sum: i32 = (0..row_bytes).map(product).sum();
            assert_eq!(word, case.input[i].wrapping_add(sum as u32), "{name} thread {thread} register {e}");
        }
    }
}

/// `wgmma` of E4M3, one element of A at a time: rows of A of a warp are those of `mma`, and D's columns B's rows.
#[test]
fn register_operands_of_wgmma_are_where_the_isa_puts_them() {
    for (name, columns) in [("wgmma_e4m3_n64", 64), ("wgmma_e4m3_n72", 72), ("wgmma_e4m3_n136", 136)] {
        let mut case = case(name);
        // Small integers: 0x38 is 1, 0x40 is 2, 0x44 is 3.
        let codes = [0x00u8, 0x38, 0x40, 0x44];
        let value = |row: usize, k: usize| (row * 5 + k * 3 + row * k) % 4;
        for row in 0..columns {
            // K starts at chunk 2.
            (0..32).for_each(|k| case.image[place(row, 32 + k, 128)] = codes[value(row, k)]);
        }
        for k in 0..32 {
            case.input.fill(0);
            // Row r of every warp has its one at k + r.
            for thread in 0..128 {
                for register in 0..4 {
                    for byte in 0..4 {
                        let (row, at) =
                            (thread % 32 / 4 + 8 * (register % 2), thread % 4 * 4 + byte + 16 * (register / 2));
                        if at == (k + row) % 32 {
                            case.input[thread * 4 + register] |= 0x38 << (8 * byte);
                        }
                    }
                }
            }
            for (i, &word) in host::run(&case).iter().enumerate() {
                let (thread, e) = (i / (columns / 2), i % (columns / 2));
                let (row, column) = (thread % 32 / 4 + 8 * (e / 2 % 2), e / 4 * 8 + 2 * (thread % 4) + e % 2);
                assert_eq!(f32::from_bits(word), value(column, (k + row) % 32) as f32, "{name} k {k} word {i}");
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
