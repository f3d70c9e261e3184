//! Bit patterns of f32 through the conversions of the quantizers: K to INT8 or INT4, V to E4M3.
//!
//! The first token of every key block has the largest magnitude that its format holds. Scales are then exactly 1, and
//! every other element is converted as it is.

use sage_attn::plan::Slot;
use sage_attn::problem::Smoothing;
use sage_attn::reference::convert::{e4m3_from_f32, e4m3_to_f32, int_code, pack_int4};
use sage_spec::layout::v_slot;
use sage_spec::quant::E4M3_MAX;
use sage_spec::symbol::Stem;
use sage_spec::tiling::BLOCK_KV;
use sage_spec::{CodeStorage, Dims, ScaleGranularity};

use crate::case::Case;
use crate::generate::Random;
use crate::setup::{Setup, noisy_q};

/// Elements of a token.
const WIDTH: usize = 128;
/// Patterns of either sign that E4M3 holds at a scale of 1: those of 0 to 448.
const PER_SIGN: u64 = E4M3_MAX.to_bits() as u64 + 1;

/// Patterns that are converted, without those that no scale of 1 leaves in range: larger ones, infinities and NaN.
pub const COUNT: u64 = 2 * PER_SIGN;

/// Pattern `index`, less than [`COUNT`].
pub fn pattern(index: u64) -> u32 {
    if index < PER_SIGN { index as u32 } else { 0x8000_0000 | (index - PER_SIGN) as u32 }
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

/// A part of the patterns: as many as `tokens` tokens hold, [`Patterns::len`].
pub struct Patterns<'a> {
    /// The kernel whose quantizer converts them.
    pub stem: Stem,
    /// Tokens, a multiple of 64.
    pub tokens: usize,
    /// Pattern number `i`.
    pub pattern: &'a (dyn Fn(u64) -> u32 + Sync),
}

impl Patterns<'_> {
    /// Patterns that `tokens` tokens hold.
    pub fn len(tokens: usize) -> u64 {
        (tokens / BLOCK_KV * (BLOCK_KV - 1) * WIDTH) as u64
    }

    /// The element of a token; zero where it would not fit `limit`.
    fn value(&self, token: usize, feature: usize, limit: f32) -> f32 {
        let (block, row) = (token / BLOCK_KV, token % BLOCK_KV);
        if row == 0 {
            return limit;
        }
        let x = f32::from_bits((self.pattern)(((block * (BLOCK_KV - 1) + row - 1) * WIDTH + feature) as u64));
        if x.abs() <= limit { x } else { 0.0 }
    }

    fn k(&self, token: usize, feature: usize) -> f32 {
        self.value(token, feature, self.stem.qk.max_code())
    }

    fn v(&self, token: usize, feature: usize) -> f32 {
        self.value(token, feature, E4M3_MAX)
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
            ..Setup::new(self.stem, dims)
        };
        setup.case(&noisy_q, &|_, n, d| self.k(n, d), &|_, n, d| self.v(n, d))
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
        for token in 0..self.tokens {
            for feature in (0..WIDTH).step_by(2) {
                let x = [self.k(token, feature), self.k(token, feature + 1)];
                let [even, odd] = x.map(|x| int_code(x, 1.0, limit));
                let at = token * WIDTH + feature;
                if self.stem.storage() == CodeStorage::Packed {
                    let (actual, expected) = (k_codes[at / 2], pack_int4(even, odd));
                    if actual != expected {
                        return wrong(Slot::KCodes, x[usize::from(actual & 15 == expected & 15)], actual, expected);
                    }
                } else {
                    for (i, code) in [even, odd].into_iter().enumerate() {
                        if k_codes[at + i] != code as u8 {
                            return wrong(Slot::KCodes, x[i], k_codes[at + i], code as u8);
                        }
                    }
                }
            }
        }
        let padded = v_codes.len() / WIDTH;
        for channel in 0..WIDTH {
            let codes = &v_codes[channel * padded..(channel + 1) * padded];
            for token in 0..self.tokens {
                let x = self.v(token, channel);
                let (actual, expected) = (codes[v_slot(token)], e4m3_from_f32(x));
                if actual != expected {
                    return wrong(Slot::VCodes, x, actual, expected);
                }
            }
        }
        Ok(2 * Self::len(self.tokens))
    }
}

/// Pattern number `i` of a stratified choice of `count`: one from each of as many equal parts of all patterns.
pub fn stratified(count: u64) -> impl Fn(u64) -> u32 + Sync {
    move |i| {
        let part = COUNT / count;
        pattern((i % count) * part + Random(i).bits() % part)
    }
}
