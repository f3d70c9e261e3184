//! The skeleton of a Hopper kernel, and what it should compute, written down without looking at it.

use conformance_kernels::skeleton::{self, KEYS, QUERIES, SHARED_BYTES, THREADS, V_ROWS};
use cuda_std::executor::numeric::{e4m3_to_f32, f32_to_e4m3};
use sage_spec::symbol::Arch;
use sage_tests::generate::Random;

use crate::cases::{Case, Rule};
use crate::host;
use crate::maps::place;

/// More tiles than the rings have stages.
const TILES: usize = 5;
/// More work items than CTAs.
const ITEMS: usize = 3;
const CTAS: u32 = 2;
const WIDTH: usize = 128;
/// Factor from a score to log2 units: a standard deviation of 1.8 octaves.
const SCALE: f32 = 1.2e-4;

/// Rows of codes.
struct Operands {
    q: Vec<[i8; WIDTH]>,
    /// By item and key.
    k: Vec<[i8; WIDTH]>,
    /// E4M3, by item and key.
    v: Vec<[u8; WIDTH]>,
}

fn operands() -> Operands {
    let mut random = Random(0x5e1e);
    let mut int8 = |rows| -> Vec<[i8; WIDTH]> {
        let code = |random: &mut Random| (36.0 * random.normal()).round().clamp(-127.0, 127.0) as i8;
        (0..rows).map(|_| std::array::from_fn(|_| code(&mut random))).collect()
    };
    let (q, k) = (int8(QUERIES), int8(ITEMS * TILES * KEYS));
    let value = |_| std::array::from_fn(|_| f32_to_e4m3(random.normal()));
    Operands { q, k, v: (0..ITEMS * TILES * KEYS).map(value).collect() }
}

/// Rows of 128 bytes as the tensor cores find them.
fn swizzled<'a>(rows: impl ExactSizeIterator<Item = &'a [u8; WIDTH]>) -> Vec<u8> {
    let mut tile = vec![0; rows.len() * WIDTH];
    for (row, bytes) in rows.enumerate() {
        bytes.iter().enumerate().for_each(|(k, &byte)| tile[place(row, k, WIDTH)] = byte);
    }
    tile
}

/// Token that lies at place `i` of 16 along a row of V: what a lane holds of P after `wgmma` is what it must hold to
/// multiply.
const ORDER: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

/// The kernel with its operands.
pub fn case() -> Case {
    let Operands { q, k, v } = operands();
    let unsigned = |rows: &[[i8; WIDTH]]| -> Vec<[u8; WIDTH]> { rows.iter().map(|row| row.map(|x| x as u8)).collect() };
    let mut image = swizzled(unsigned(&q).iter());
    unsigned(&k).chunks(KEYS).for_each(|tile| image.extend(swizzled(tile.iter())));
    for tile in v.chunks(KEYS) {
        let mut rows = [[0; WIDTH]; V_ROWS];
        for (channel, row) in rows[..WIDTH].iter_mut().enumerate() {
            *row = std::array::from_fn(|i| tile[i / 16 * 16 + ORDER[i % 16]][channel]);
        }
        rows[WIDTH] = [f32_to_e4m3(1.0); WIDTH];
        image.extend(swizzled(rows.iter()));
    }
    let codes = ITEMS * TILES * QUERIES * KEYS / 4;
    let words = codes + ITEMS * QUERIES * WIDTH;
    let threads = CTAS * THREADS;
    // Hopper keeps 13 bits of a sum's largest term, so that each of a tile's 128 terms may lose a unit of the last of
    // them, of row sums always in the same direction: up to 1/64 of an output, which is an average of normal numbers
    // and stays below 1/4 or so.
    let rule = Rule::BitsThen(codes, 1.0 / 256.0);
    let mut input = vec![0; threads as usize];
    input[..3].copy_from_slice(&[TILES as u32, ITEMS as u32, SCALE.to_bits()]);
    let case = Case::new("skeleton", skeleton::skeleton, Arch::Sm90a, threads, words / threads as usize);
    Case { block: THREADS, shared_bytes: SHARED_BYTES, input, image, rule, ..case }
}

/// Codes of P by item, query and key, from the fragments the kernel stores.
fn codes_of(words: &[u32]) -> Vec<[Vec<u8>; QUERIES]> {
    let mut codes: Vec<[Vec<u8>; QUERIES]> =
        (0..ITEMS).map(|_| std::array::from_fn(|_| vec![0; TILES * KEYS])).collect();
    for (i, word) in words.iter().enumerate() {
        let (tile, thread, register) = (i / (384 * 16), i / 16 % 384, i % 16);
        let query = thread / 32 * 16 + thread % 32 / 4 + 8 * (register % 2);
        for (byte, code) in word.to_le_bytes().into_iter().enumerate() {
            // Registers 2 s and 2 s + 1 hold 16 keys; byte b is at place 4 t + b of them.
            let key = register / 2 * 16 + ORDER[thread % 4 * 4 + byte];
            codes[tile / TILES][query][tile % TILES * KEYS + key] = code;
        }
    }
    codes
}

#[test]
fn codes_and_outputs_are_what_they_should_be() {
    let Operands { q, k, v } = operands();
    let case = case();
    let words = host::run(&case);
    let Rule::BitsThen(split, _) = case.rule else { panic!("{:?}", case.rule) };
    let codes = codes_of(&words[..split]);
    let (mut ties, mut error, mut size) = (0, 0.0, 0.0);
    for (item, codes) in codes.iter().enumerate() {
        let keys = item * TILES * KEYS..(item + 1) * TILES * KEYS;
        for (query, codes) in codes.iter().enumerate() {
            let score = |key: &[i8; WIDTH]| -> f64 {
                let sum: i32 = q[query].iter().zip(key).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                f64::from(sum) * f64::from(SCALE)
            };
            let scores: Vec<f64> = k[keys.clone()].iter().map(score).collect();
            let mut max = f64::NEG_INFINITY;
            // Sums over V, over ones, and with exact weights.
            let (mut sums, mut exact) = ([0.0; WIDTH + 1], [0.0; WIDTH + 1]);
            let largest = scores.iter().copied().fold(max, f64::max);
            for (tile, scores) in scores.chunks(KEYS).enumerate() {
                let new = scores.iter().copied().fold(max, f64::max);
                sums.iter_mut().for_each(|sum| *sum *= (max - new).exp2());
                max = new;
                for (i, score) in scores.iter().enumerate() {
                    let code = codes[tile * KEYS + i];
                    let expected = (8.0 * (score - max + 15.8) - 0.4).max(0.0);
                    // f32 may round what lies half-way the other way.
                    assert!(
                        (f64::from(code) - expected).abs() < 0.501,
                        "item {item} query {query}: {code}, {expected}"
                    );
                    ties += usize::from(f64::from(code) != expected.round_ties_even());
                    let (weight, exact_weight) = (f64::from(e4m3_to_f32(code)), (score - largest).exp2());
                    let values = &v[keys.start + tile * KEYS + i];
                    for (channel, x) in values.iter().map(|&x| f64::from(e4m3_to_f32(x))).chain([1.0]).enumerate() {
                        sums[channel] += weight * x;
                        exact[channel] += exact_weight * x;
                    }
                }
            }
            let row = split + (item * QUERIES + query) * WIDTH;
            for (channel, word) in words[row..row + WIDTH].iter().enumerate() {
                let (actual, expected) = (f64::from(f32::from_bits(*word)), sums[channel] / sums[WIDTH]);
                assert!((actual - expected).abs() < 2e-6, "item {item} query {query} {channel}: {actual}, {expected}");
                let exact = exact[channel] / exact[WIDTH];
                error += (actual - exact).abs();
                size += exact.abs();
            }
        }
    }
    assert!(ties < 100, "{ties} codes of {} are not the nearest", split * 4);
    // What rounding P costs attention that is this flat.
    assert!(error / size < 0.05, "{}", error / size);
    println!("relative L1 {:.4}, {ties} ties", error / size);
}
