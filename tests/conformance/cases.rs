//! What is compared: kernels with their inputs.

use conformance_kernels::hopper::Mapped;
use conformance_kernels::{self as kernels, Buffers, hopper};
use sage_spec::symbol::Arch;
use sage_tests::generate::Random;

/// How results are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Bit for bit.
    Bits,
    /// f32 within this fraction of the executor's.
    Relative(f64),
    /// f32 within this fraction of the sum of the magnitudes of what was added.
    Sum(f64),
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
    pub kernel: Kernel,
    /// The module that has it.
    pub arch: Arch,
    pub threads: u32,
    /// Threads of a CTA.
    pub block: u32,
    pub input: Vec<u32>,
    pub image: Vec<u8>,
    /// Words a thread writes.
    pub outputs: usize,
    pub tiles: Option<Tiles>,
    pub rule: Rule,
    /// Type of the factors of a product, for [`Case::magnitudes`]: mask of their magnitude bits in a word.
    magnitude: u32,
}

impl Case {
    /// The same case with all signs positive: its result is what [`Rule::Sum`] is relative to.
    pub fn magnitudes(&self) -> Case {
        // The accumulators of `mma`, operands 6 to 9, are f32.
        let per_thread = self.input.len() / self.threads as usize;
        let mask = |i: usize| if per_thread == 10 && i % 10 >= 6 { 0x7fff_ffff } else { self.magnitude };
        let input = self.input.iter().enumerate().map(|(i, x)| x & mask(i)).collect();
        Case { input, image: self.image.iter().map(|x| x & 0x7f).collect(), ..self.clone() }
    }
}

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

/// Every case.
pub fn all() -> Vec<Case> {
    let mut random = Random(0x5a9e);
    let mut all = Vec::new();
    let mut add = |name, kernel, arch, threads: u32, outputs, rule, input: Vec<u32>, image: Vec<u8>| {
        assert_eq!(input.len() % threads as usize, 0, "{name}");
        let block = threads.min(128);
        let magnitude = 0x7f7f_7f7f;
        let kernel = Kernel::Plain(kernel);
        all.push(Case { name, kernel, arch, threads, block, input, image, outputs, tiles: None, rule, magnitude });
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
        kernels::max(2) -> 1, Sm80, Rule::Bits, float;
        kernels::max_propagate_nan(2) -> 1, Sm80, Rule::Bits, float;
        kernels::min_propagate_nan(2) -> 1, Sm80, Rule::Bits, float;
        kernels::max_s32(2) -> 1, Sm80, Rule::Bits, bits;
        kernels::abs(1) -> 1, Sm80, Rule::Bits, positive;
        kernels::exp2(1) -> 1, Sm80, Rule::Relative(2.4e-7), exponent;
        kernels::log2(1) -> 1, Sm80, Rule::Relative(4.8e-7), positive;
        kernels::reciprocal(1) -> 1, Sm80, Rule::Relative(1.2e-7), positive;
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
        ($($module:ident::$name:ident -> $outputs:literal, $arch:ident, $bytes:literal, $below:literal;)*) => { $(
            let input = words!(128, |random: &mut Random| random.bits() as u32 % $below);
            let bytes = image(&mut random, $bytes);
            add(stringify!($name), $module::$name, Arch::$arch, 128, $outputs, Rule::Bits, input, bytes);
        )* };
    }
    memory! {
        kernels::shared_words -> 5, Sm80, 16384, 4096;
        kernels::matrices -> 4, Sm80, 16384, 1024;
        kernels::matrices_transposed -> 4, Sm80, 16384, 1024;
        kernels::copies -> 4, Sm80, 16384, 1024;
        kernels::named_barrier -> 1, Sm80, 16, 4096;
        hopper::bulk_copy -> 4, Sm90a, 16384, 1024;
    }
    for (name, kernel, bytes) in [
        ("wgmma_s8_swizzle64", hopper::wgmma_s8_swizzle64 as unsafe fn(Buffers), 192 * 64),
        ("wgmma_s8_swizzle128", hopper::wgmma_s8_swizzle128, 192 * 128),
    ] {
        let (input, bytes) = (words!(128 * 64, bits), image(&mut random, bytes));
        add(name, kernel, Arch::Sm90a, 128, 64, Rule::Bits, input, bytes);
    }
    for (name, kernel, columns) in [
        ("wgmma_e4m3_n64", hopper::wgmma_e4m3_n64 as unsafe fn(Buffers), 64),
        ("wgmma_e4m3_n72", hopper::wgmma_e4m3_n72, 72),
        ("wgmma_e4m3_n128", hopper::wgmma_e4m3_n128, 128),
        ("wgmma_e4m3_n136", hopper::wgmma_e4m3_n136, 136),
    ] {
        let input = words!(128 * 4, |random: &mut Random| finite(random, true));
        let words = words!(columns * 32, |random: &mut Random| finite(random, true));
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // FP8 products on Hopper keep 13 bits after the largest term (SageAttention2, arXiv 2411.10958, section 3.4).
        // Measured on an H200: up to 1.2 · 2^-11 of the sum of magnitudes.
        add(name, kernel, Arch::Sm90a, 128, columns / 2, Rule::Sum(1.0 / (1 << 10) as f64), input, bytes);
    }
    // Boxes inside the tensor, over its end, and before its beginning.
    for (name, width, origin) in [
        ("tensor_copy_64", 64, [0, 5, 1]),
        ("tensor_copy_64_end", 64, [0, 70, 2]),
        ("tensor_copy_128", 128, [0, 5, 1]),
        ("tensor_copy_128_before", 128, [0, -3i32 as u32, 0]),
    ] {
        let tiles = Tiles { extents: [width, 96, 3], box_extents: [width, 64], origin };
        let input = (0..128).map(|thread| thread * (width * 64 / 16) / 128).collect();
        let bytes = image(&mut random, (width * 96 * 3) as usize);
        all.push(Case {
            name,
            kernel: Kernel::Mapped(hopper::tensor_copy),
            arch: Arch::Sm90a,
            threads: 128,
            block: 128,
            input,
            image: bytes,
            outputs: 4,
            tiles: Some(tiles),
            rule: Rule::Bits,
            magnitude: u32::MAX,
        });
    }
    if let Some(case) = all.iter_mut().find(|case| case.name == "mma_f16") {
        case.magnitude = 0x7fff_7fff;
    }
    all
}
