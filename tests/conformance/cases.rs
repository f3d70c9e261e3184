//! What is compared: kernels with their inputs.

use conformance_kernels::hopper::Mapped;
use conformance_kernels::{self as kernels, Buffers, controls, hopper};
use sage_spec::symbol::Arch;
use sage_tests::generate::Random;

use crate::host::SHARED_BYTES;
use crate::skeleton;

/// How results are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Bit for bit.
    Bits,
    /// f32 within this fraction of the executor's.
    Relative(f64),
    /// f32 within this fraction of the sum of the magnitudes of what was added.
    Sum(f64),
    /// The first words bit for bit, the others f32 within a distance.
    BitsThen(usize, f64),
}

/// The kernel of a case.
#[derive(Clone, Copy)]
pub enum Kernel {
    /// Takes buffers.
    Plain(unsafe fn(Buffers)),
    /// Takes a tensor map too.
    Mapped(unsafe fn(Mapped)),
}

/// A tensor of bytes and a box of it.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    /// Bytes of a row, rows of a plane, planes: the image, without gaps.
    pub extents: [u32; 3],
    /// Bytes and rows of a box.
    pub box_extents: [u32; 2],
    /// First byte, row and plane of the box.
    pub origin: [u32; 3],
}

/// A kernel with its inputs.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    /// Name of the kernel.
    pub symbol: &'static str,
    pub kernel: Kernel,
    /// The module that has it.
    pub arch: Arch,
    pub threads: u32,
    /// Threads of a CTA.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    pub input: Vec<u32>,
    pub image: Vec<u8>,
    /// Words a thread writes.
    pub outputs: usize,
    pub tiles: Option<Tiles>,
    pub rule: Rule,
    /// Seed of the executor's order of threads.
    pub seed: u64,
    /// Type of the factors of a product, for [`Case::magnitudes`]: mask of their magnitude bits in a word.
    pub magnitude: u32,
}

impl Case {
    /// `kernel` of the module `arch`, which writes `outputs` words a thread, bit for bit.
    pub fn new(name: &'static str, kernel: unsafe fn(Buffers), arch: Arch, threads: u32, outputs: usize) -> Case {
        Case {
            name,
            symbol: name,
            kernel: Kernel::Plain(kernel),
            arch,
            threads,
            block: threads.min(128),
            shared_bytes: SHARED_BYTES,
            input: Vec::new(),
            image: Vec::new(),
            outputs,
            tiles: None,
            rule: Rule::Bits,
            seed: 0,
            magnitude: 0x7f7f_7f7f,
        }
    }

    /// `kernel` of the module of Hopper, whose threads write four words each.
    fn mapped(name: &'static str, kernel: unsafe fn(Mapped)) -> Case {
        Case { kernel: Kernel::Mapped(kernel), ..Case::new(name, kernels::opaque, Arch::Sm90a, 128, 4) }
    }

    /// The same case with all signs positive: its result is what [`Rule::Sum`] is relative to.
    pub fn magnitudes(&self) -> Case {
        // The accumulators of `mma`, operands 6 to 9, are f32.
        let per_thread = self.input.len() / self.threads as usize;
        let mask = |i: usize| if per_thread == 10 && i % 10 >= 6 { 0x7fff_ffff } else { self.magnitude };
        let input = self.input.iter().enumerate().map(|(i, x)| x & mask(i)).collect();
        Case { input, image: self.image.iter().map(|x| x & 0x7f).collect(), ..self.clone() }
    }
}

/// FP8 products on Hopper keep 13 bits after the largest term (SageAttention2, arXiv 2411.10958, section 3.4).
/// Measured on an H200: up to 1.2 · 2^-11 of the sum of magnitudes.
const HOPPER_FP8: Rule = Rule::Sum(1.0 / (1 << 10) as f64);
/// A kernel that a tool of `compute-sanitizer` must complain about.
pub struct Control {
    pub tool: &'static str,
    pub name: &'static str,
    /// The module that has it.
    pub arch: Arch,
    pub kernel: unsafe fn(Buffers),
}

/// Of every tool one at least; `tests/gpu/sanitize.sh` names them too.
pub const CONTROLS: [Control; 6] = [
    control("memcheck", "control_out_of_bounds", Arch::Sm80, controls::control_out_of_bounds),
    control("racecheck", "control_shared_race", Arch::Sm80, controls::control_shared_race),
    control("initcheck", "control_uninitialised", Arch::Sm80, controls::control_uninitialised),
    control("synccheck", "control_divergent_barrier", Arch::Sm80, controls::control_divergent_barrier),
    control("synccheck", "control_lanes_of_a_barrier", Arch::Sm80, controls::control_lanes_of_a_barrier),
    control("synccheck", "control_barrier_without_init", Arch::Sm90a, controls::control_barrier_without_init),
];

const fn control(tool: &'static str, name: &'static str, arch: Arch, kernel: unsafe fn(Buffers)) -> Control {
    Control { tool, name, arch, kernel }
}

/// Threads of a control, one CTA.
pub const CONTROL_THREADS: u32 = 64;

/// f32 of every kind: ordinary, huge, tiny, subnormal, infinite, NaN, zeros, near halves.
fn float(random: &mut Random) -> u32 {
    match random.bits() % 8 {
        0 => random.bits() as u32,
        1 => [0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x0000_0001, 0x807f_ffff, 0x7f7f_ffff]
            [(random.bits() % 8) as usize],
        2 => (random.bits() as i16 as f32 / 2.0).to_bits(),
        3 => (random.normal() * 448.0).to_bits(),
        _ => random.normal().to_bits(),
    }
}

/// Two FP16 or four E4M3 values without infinities and NaN.
fn finite(random: &mut Random, e4m3: bool) -> u32 {
    let word = random.bits() as u32;
    match e4m3 {
        true => u32::from_le_bytes(word.to_le_bytes().map(|x| if x & 0x7f == 0x7f { x ^ 1 } else { x })),
        // Exponents from 7 to 22 of 31.
        false => (word & 0x8fff_8fff).wrapping_add(0x1c00_1c00) & 0xdfff_dfff,
    }
}

/// Two f32 whose sum in global memory is worth looking at: subnormal, or of subnormal numbers, or ordinary.
fn addends(random: &mut Random) -> [u32; 2] {
    let bits = random.bits();
    let (sign, fraction) = ((bits as u32) & 0x8000_0000, (bits >> 40) as u32 & 0x007f_ffff);
    let small = 0x0080_0000 + (fraction & 0xffff);
    match bits % 6 {
        // A subnormal number and an ordinary one, a zero, or another one.
        0 => [sign | fraction, random.normal().to_bits()],
        1 => [sign | fraction, 0],
        2 => [sign | fraction, 0x8000_0000 | fraction],
        // A difference of small numbers that is subnormal.
        3 => [sign | small, !sign & 0x8000_0000 | 0x0080_0000],
        4 => [sign | small, sign | fraction],
        _ => [random.normal().to_bits(), random.normal().to_bits()],
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    let mut random = Random(0x5a9e);
    let mut all = Vec::new();
    let mut add = |name, kernel, arch, threads: u32, outputs, rule, input: Vec<u32>, image: Vec<u8>| {
        assert_eq!(input.len() % threads as usize, 0, "{name}");
        all.push(Case { input, image, rule, ..Case::new(name, kernel, arch, threads, outputs) });
    };
    macro_rules! words {
        ($count:expr, $word:expr) => {
            (0..$count).map(|_| $word(&mut random)).collect::<Vec<u32>>()
        };
    }
    let bits = |random: &mut Random| random.bits() as u32;
    const MANY: u32 = 4096;
    /// `name(inputs) -> outputs, rule, word`.
    macro_rules! elementwise {
        ($($module:ident::$name:ident($inputs:literal) -> $outputs:literal, $arch:ident, $rule:expr, $word:expr;)*) => { $(
            let input = words!(MANY * $inputs, $word);
            add(stringify!($name), $module::$name, Arch::$arch, MANY, $outputs, $rule, input, Vec::new());
        )* };
    }
    // The approximations: PTX ISA, ex2 and lg2 (2^-22, but lg2 absolutely near 1), rcp (1 ulp) and a Newton step.
    let positive = |random: &mut Random| (random.normal().abs() * 1e3 + 3.0).to_bits();
    let exponent = |random: &mut Random| (random.normal() * 20.0).to_bits();
    // Which NaN comes out of a NaN code is the device's own affair.
    let codes = |random: &mut Random| finite(random, true);
    elementwise! {
        kernels::f16_to_f32(1) -> 1, Sm80, Rule::Bits, bits;
        kernels::bf16_to_f32(1) -> 1, Sm80, Rule::Bits, bits;
        kernels::f32_to_f16x2(2) -> 1, Sm80, Rule::Bits, float;
        kernels::f32_to_bf16x2(2) -> 1, Sm80, Rule::Bits, float;
        kernels::permute_bytes(2) -> 4, Sm80, Rule::Bits, bits;
        kernels::fma(3) -> 1, Sm80, Rule::Bits, float;
        kernels::fma_saturate(3) -> 1, Sm80, Rule::Bits, float;
        kernels::fma_f16x2(3) -> 1, Sm80, Rule::Bits, bits;
        kernels::max_propagate_nan_x2(2) -> 2, Sm80, Rule::Bits, bits;
        kernels::max(2) -> 1, Sm80, Rule::Bits, float;
        kernels::max_propagate_nan(2) -> 1, Sm80, Rule::Bits, float;
        kernels::min_propagate_nan(2) -> 1, Sm80, Rule::Bits, float;
        kernels::max_s32(2) -> 1, Sm80, Rule::Bits, bits;
        kernels::abs(1) -> 1, Sm80, Rule::Bits, positive;
        kernels::exp2(1) -> 1, Sm80, Rule::Relative(2.4e-7), exponent;
        kernels::log2(1) -> 1, Sm80, Rule::Relative(4.8e-7), positive;
        kernels::reciprocal(1) -> 1, Sm80, Rule::Relative(1.2e-7), positive;
        kernels::reciprocal_approx(1) -> 1, Sm80, Rule::Relative(1.2e-7), positive;
        kernels::distinct_copy(1) -> 1, Sm80, Rule::Bits, float;
        kernels::opaque(1) -> 1, Sm80, Rule::Bits, bits;
        kernels::rereads(1) -> 3, Sm80, Rule::Bits, bits;
        kernels::shuffles(2) -> 2, Sm80, Rule::Bits, bits;
        kernels::div_u32(2) -> 1, Sm80, Rule::Bits, bits;
        kernels::places(1) -> 4, Sm80, Rule::Bits, bits;
        kernels::shuffle_xor(1) -> 5, Sm80, Rule::Bits, bits;
        kernels::votes(1) -> 3, Sm80, Rule::Bits, bits;
        kernels::shuffle_idx(2) -> 1, Sm80, Rule::Bits, bits;
        kernels::mma_s4(10) -> 4, Sm80, Rule::Bits, bits;
        kernels::mma_s8(10) -> 4, Sm80, Rule::Bits, bits;
        kernels::f32_to_e4m3x4(4) -> 1, Sm89, Rule::Bits, float;
        kernels::e4m3x4_to_f16x4(1) -> 2, Sm89, Rule::Bits, codes;
    }
    for e4m3 in [false, true] {
        let mut input = words!(MANY * 10, |random: &mut Random| finite(random, e4m3));
        for (i, word) in input.iter_mut().enumerate().filter(|(i, _)| i % 10 >= 6) {
            *word = ((i % 97) as f32 - 48.0).to_bits();
        }
        // Tensor cores cut off what lies more than 24 bits below the largest term (arXiv 2410.00242, section 5).
        let rule = Rule::Sum(1.0 / (1 << 20) as f64);
        match e4m3 {
            false => add("mma_f16", kernels::mma_f16, Arch::Sm80, MANY, 4, rule, input, Vec::new()),
            true => add("mma_e4m3", kernels::mma_e4m3, Arch::Sm89, MANY, 4, rule, input, Vec::new()),
        }
    }

    let image = |random: &mut Random, bytes: usize| (0..bytes).map(|_| random.bits() as u8).collect::<Vec<u8>>();
    macro_rules! memory {
        ($($module:ident::$name:ident($inputs:literal) -> $outputs:literal, $arch:ident, $bytes:literal, $below:literal;)*) => { $(
            let input = words!(128 * $inputs, |random: &mut Random| random.bits() as u32 % $below);
            let bytes = image(&mut random, $bytes);
            add(stringify!($name), $module::$name, Arch::$arch, 128, $outputs, Rule::Bits, input, bytes);
        )* };
    }
    memory! {
        kernels::shared_words(1) -> 5, Sm80, 16384, 4096;
        kernels::matrices(1) -> 4, Sm80, 16384, 1024;
        kernels::matrices_transposed(1) -> 4, Sm80, 16384, 1024;
        kernels::copies(1) -> 4, Sm80, 16384, 1024;
        kernels::named_barrier(1) -> 1, Sm80, 16, 4096;
        kernels::barrier_of_predicates(1) -> 1, Sm80, 16, 4096;
        kernels::barriers_of_pairs(1) -> 2, Sm80, 16, 4096;
        kernels::copy_groups(2) -> 9, Sm80, 16384, 1024;
        kernels::global_loads(1) -> 8, Sm80, 16384, 16384;
        kernels::global_reads(1) -> 5, Sm80, 16384, 16384;
        kernels::global_stores(4) -> 28, Sm80, 16, 0xffff_ffff;
        kernels::pollute(1) -> 1, Sm80, 32768, 0xffff_ffff;
        kernels::shared_stores(4) -> 6, Sm80, 16, 0xffff_ffff;
        hopper::bulk_copy(1) -> 4, Sm90a, 16384, 1024;
        hopper::bytes_of_copies(1) -> 8, Sm90a, 16384, 320;
        hopper::phases(1) -> 6, Sm90a, 16, 0xffff_ffff;
    }
    for (name, kernel, bytes) in [
        ("wgmma_s8_swizzle64", hopper::wgmma_s8_swizzle64 as unsafe fn(Buffers), 192 * 64),
        ("wgmma_s8_swizzle128", hopper::wgmma_s8_swizzle128, 192 * 128),
    ] {
        let (input, bytes) = (words!(128 * 64, bits), image(&mut random, bytes));
        add(name, kernel, Arch::Sm90a, 128, 64, Rule::Bits, input, bytes);
    }
    for (name, kernel, rows, outputs) in [
        ("wgmma_e4m3_n64", hopper::wgmma_e4m3_n64 as unsafe fn(Buffers), 64, 32),
        ("wgmma_e4m3_n72", hopper::wgmma_e4m3_n72, 72, 36),
        ("wgmma_e4m3_n128", hopper::wgmma_e4m3_n128, 128, 64),
        ("wgmma_e4m3_n136", hopper::wgmma_e4m3_n136, 136, 68),
        ("wgmma_groups", hopper::wgmma_groups, 72, 36),
    ] {
        let input = words!(128 * 4, |random: &mut Random| finite(random, true));
        let words = words!(rows * 32, |random: &mut Random| finite(random, true));
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        add(name, kernel, Arch::Sm90a, 128, outputs, HOPPER_FP8, input, bytes);
    }
    let mut add = |case: Case| all.push(case);
    // Every seventh word differs, in its last bit.
    let words: Vec<u32> = (0..128 * 20).map(|_| random.bits() as u32).collect();
    let other = words.iter().enumerate().flat_map(|(i, word)| (word ^ u32::from(i % 7 == 0)).to_le_bytes()).collect();
    add(Case { input: words, image: other, ..Case::new("differences", kernels::differences, Arch::Sm80, 128, 1) });
    // Words that the kernels count in start at zero.
    add(Case {
        input: vec![0; 4096],
        image: vec![0; 8],
        ..Case::new("tickets", kernels::tickets, Arch::Sm80, 4096, 2)
    });
    for (name, seed) in [("chain_of_single_ctas", 0), ("chain", 3)] {
        let image = vec![0; 4 * 10];
        let case = Case::new(name, kernels::chain, Arch::Sm80, 1024, 1);
        add(Case { symbol: "chain", input: vec![0; 1024], image, seed, ..case });
    }
    for (name, seed) in [("chain_of_words_of_single_ctas", 0), ("chain_of_words", 3)] {
        let image = vec![0; 4 * (4 + 1024)];
        let case = Case::new(name, kernels::chain_of_words, Arch::Sm80, 1024, 1);
        add(Case { symbol: "chain_of_words", input: vec![0; 1024], image, seed, ..case });
    }
    let terms: Vec<[u32; 2]> = (0..1024).map(|_| addends(&mut random)).collect();
    add(Case {
        input: terms.iter().map(|pair| pair[0]).collect(),
        image: terms.iter().flat_map(|pair| pair[1].to_le_bytes()).collect(),
        ..Case::new("atomic_add_f32", kernels::atomic_add_f32, Arch::Sm80, 1024, 2)
    });
    // Boxes inside the tensor, over its end, and before its beginning; boxes of queries.
    for (name, width, rows, origin) in [
        ("tensor_copy_64", 64, 64, [0, 5, 1]),
        ("tensor_copy_64_end", 64, 64, [0, 70, 2]),
        ("tensor_copy_64_queries", 64, 192, [0, 40, 1]),
        ("tensor_copy_128", 128, 64, [0, 5, 1]),
        ("tensor_copy_128_before", 128, 64, [0, -3i32 as u32, 0]),
        ("tensor_copy_128_keys", 128, 128, [0, 1, 2]),
        ("tensor_copy_128_queries", 128, 192, [0, 0, 1]),
    ] {
        let tiles = Tiles { extents: [width, rows + 32, 3], box_extents: [width, rows], origin };
        let bytes = image(&mut random, (width * (rows + 32) * 3) as usize);
        add(Case {
            symbol: "tensor_copy",
            input: (0..128).map(|thread| thread * (width * rows / 16) / 128).collect(),
            image: bytes,
            tiles: Some(tiles),
            ..Case::mapped(name, hopper::tensor_copy)
        });
    }
    add(skeleton::case());
    if let Some(case) = all.iter_mut().find(|case| case.name == "mma_f16") {
        case.magnitude = 0x7fff_7fff;
    }
    all
}
