//! Bit patterns of f32 through the conversions of the quantizers: K to INT8 or INT4, V to E4M3.
//!
//! The first token of every key block has a magnitude that makes the scale exactly 1, so that every other element is
//! converted as it is; or, for larger elements, another power of two, as small as they allow.

use sage_attn::plan::Slot;
use sage_attn::problem::{DType, Smoothing};
use sage_attn::reference::convert::{e4m3_from_f32, e4m3_to_f32, int_code, pack_int4};
use sage_spec::layout::v_slot;
use sage_spec::quant::{E4M3_MAX, qk_scale, v_scale_fp8};
use sage_spec::symbol::Stem;
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{CodeStorage, Dims, ScaleGranularity};

use crate::case::{Case, Tensor};
use crate::generate::Random;
use crate::setup::{Setup, noisy_q};

/// Elements of a token.
const WIDTH: usize = 128;

/// Patterns of finite numbers.
pub const COUNT: u64 = 2 * f32::INFINITY.to_bits() as u64;
/// How many of them are no larger than 448, the largest number of E4M3: a scale of 1 leaves them in range.
pub const COUNT_AT_SCALE_ONE: u64 = 2 * (E4M3_MAX.to_bits() as u64 + 1);

/// Pattern `index`, less than [`COUNT`], in the order of magnitudes: +0, −0, and so on.
pub fn pattern(index: u64) -> u32 {
    (index / 2) as u32 | (((index % 2) as u32) << 31)
}

/// Where rounding changes: halves of integers and middles of neighbouring E4M3 numbers, all such numbers, and the
/// two patterns on either side of each; zeros, the smallest and the largest subnormal number.
pub fn edges() -> Vec<u32> {
    let mut edges = vec![0, 1, 0x007f_ffff, 0x0080_0000];
    let halves = (0..=254).map(|twice| twice as f32 / 2.0);
    let codes = (0..0x7e).map(e4m3_to_f32);
    let middles = (0..0x7d).map(|code| (e4m3_to_f32(code) + e4m3_to_f32(code + 1)) / 2.0);
    for x in halves.chain(codes).chain(middles) {
        edges.extend((-2..=2).map(|off| x.to_bits().wrapping_add_signed(off)).filter(|&bits| bits >> 31 == 0));
    }
    let negative: Vec<u32> = edges.iter().map(|bits| bits | 0x8000_0000).collect();
    [edges, negative].concat()
}

/// A part of the patterns: as many as `tokens` tokens hold, [`len`].
pub struct Patterns<F> {
    /// The kernel whose quantizer converts them.
    pub stem: Stem,
    /// Tokens, a multiple of 64.
    pub tokens: usize,
    /// What the scales leave in range, at least: they are 1 where that suffices, and what is larger becomes zero.
    pub reach: f32,
    /// Pattern number `i`.
    pub pattern: F,
}

/// Patterns that `tokens` tokens hold.
pub fn len(tokens: usize) -> u64 {
    (tokens / BLOCK_KV * (BLOCK_KV - 1) * WIDTH) as u64
}

impl<F: Fn(u64) -> u32> Patterns<F> {
    /// The largest magnitude of a format whose largest code is `limit`.
    fn amax(&self, limit: f32) -> f32 {
        let mut amax = limit;
        while amax < self.reach {
            amax *= 2.0;
        }
        amax.min(f32::MAX)
    }

    /// Elements by token and feature.
    fn values(&self, amax: f32) -> Vec<f32> {
        let mut values = vec![amax; self.tokens * WIDTH];
        for (block, values) in values.chunks_exact_mut(BLOCK_KV * WIDTH).enumerate() {
            let first = len(block * BLOCK_KV);
            for (i, value) in values[WIDTH..].iter_mut().enumerate() {
                let x = f32::from_bits((self.pattern)(first + i as u64));
                *value = if x.abs() <= amax { x } else { 0.0 };
            }
        }
        values
    }

    /// The problem whose keys and values they are.
    pub fn case(&self) -> Case {
        let dims = Dims {
            batch: 1,
            num_heads_q: 1,
            num_heads_kv: 1,
            seqlen_q: 1,
            seqlen_kv: self.tokens,
            head_dim: WIDTH,
            head_dim_v: WIDTH,
        };
        let setup = Setup {
            granularity: ScaleGranularity::PerBlock,
            smoothing: Smoothing::NONE,
            return_lse: false,
            dtype: DType::F32,
            ..Setup::new(self.stem, dims)
        };
        let mut case = setup.case(&noisy_q, &|_, _, _| 0.0, &|_, _, _| 0.0);
        self.refill(&mut case);
        case
    }

    /// Puts them into a problem of as many tokens for the same kernel.
    pub fn refill(&self, case: &mut Case) {
        case.k = Tensor::of(case.k.spec, self.values(self.amax(self.stem.qk.max_code())));
        case.v = Tensor::of(case.v.spec, self.values(self.amax(E4M3_MAX)));
    }

    /// Compares the codes in a workspace with the reference; how many.
    ///
    /// # Errors
    ///
    /// The first pattern whose code is another.
    pub fn check(&self, k_codes: &[u8], v_codes: &[u8]) -> Result<u64, String> {
        let limit = self.stem.qk.max_code();
        let wrong = |slot: Slot, x: f32, actual: u8, expected: u8| {
            Err(format!("{} of {:#010x} ({x:e}): {actual:#x} for {expected:#x}", slot.name(), x.to_bits()))
        };
        let amax = self.amax(limit);
        let (keys, inverse_scale) = (self.values(amax), 1.0 / qk_scale(amax, limit));
        for (at, x) in keys.chunks_exact(2).enumerate() {
            let [even, odd] = [x[0], x[1]].map(|x| int_code(x, inverse_scale, limit));
            if self.stem.storage() == CodeStorage::Packed {
                let (actual, expected) = (k_codes[at], pack_int4(even, odd));
                if actual != expected {
                    return wrong(Slot::KCodes, x[usize::from(actual & 15 == expected & 15)], actual, expected);
                }
            } else {
                for (i, code) in [even, odd].into_iter().enumerate() {
                    if k_codes[2 * at + i] != code as u8 {
                        return wrong(Slot::KCodes, x[i], k_codes[2 * at + i], code as u8);
                    }
                }
            }
        }
        let amax = self.amax(E4M3_MAX);
        let (values, inverse_scale) = (self.values(amax), 1.0 / v_scale_fp8(amax));
        let padded = v_codes.len() / WIDTH;
        // A block at a time, because its codes lie far apart: transposed.
        for (block, values) in values.chunks_exact(BLOCK_KV * WIDTH).enumerate() {
            for channel in 0..WIDTH {
                let codes = &v_codes[channel * padded + block * BLOCK_KV..][..BLOCK_KV];
                for token in 0..BLOCK_KV {
                    let x = values[token * WIDTH + channel];
                    let (actual, expected) = (codes[v_slot(token)], e4m3_from_f32(x * inverse_scale));
                    if actual != expected {
                        return wrong(Slot::VCodes, x, actual, expected);
                    }
                }
            }
        }
        Ok(2 * len(self.tokens))
    }
}

/// Pattern number `i` of a stratified choice of `count` of those below `below`: one from each of as many equal parts.
pub fn stratified(count: u64, below: u64) -> impl Fn(u64) -> u32 {
    move |i| {
        let part = below / count;
        pattern((i % count) * part + Random(i).bits() % part)
    }
}
