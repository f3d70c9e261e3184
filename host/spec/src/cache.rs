//! The quantized cache of keys and values: pages of 64 tokens of one key/value head, each a contiguous block in
//! the order in which attention over the cache reads it.
//!
//! A page is `[K codes][V codes][scale words]`. Its tokens fall into four *groups* of 16, and the codes of a group
//! lie in blocks of 512 bytes of which each lane of a warp owns 16: lane `4g + t` of a block at byte
//! `16 · (4g + t)`. Those 16 bytes are the lane's operands of the tensor-core products, so that a warp copies a
//! group with coalesced 16-byte accesses and no lane ever looks at the bytes of another.
//!
//! Scales are per token, one for K and one for V, so that what is in the cache never depends on what is appended
//! later, or on how many tokens came at a time. K's scale is a bf16 (rounded up), V's a power of two: E4M3 has
//! the same relative precision at every binary scale.

use crate::Precision;
use crate::launch::Cta;
use crate::layout::v_slot;
use crate::params::TensorArg;
use crate::quant::qk_scale;

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 64;
/// Tokens of a group: what a warp multiplies at a time.
pub const GROUP_TOKENS: usize = 16;
/// Groups of a page.
pub const PAGE_GROUPS: usize = PAGE_TOKENS / GROUP_TOKENS;
/// Bytes that a warp copies with one instruction.
pub const BLOCK_BYTES: usize = 512;
/// Head dimensions there are kernels for.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// Where the codes and scales of a page lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageLayout {
    /// Type of K's codes.
    pub precision: Precision,
    /// Features, 64 or 128.
    pub head_dim: usize,
}

impl PageLayout {
    /// Bytes of K of a group.
    pub const fn k_group_bytes(&self) -> usize {
        GROUP_TOKENS * self.precision.bytes(self.head_dim)
    }

    /// Bytes of V of a group.
    pub const fn v_group_bytes(&self) -> usize {
        GROUP_TOKENS * self.head_dim
    }

    /// Bytes of the scale words of a group.
    pub const fn scales_group_bytes(&self) -> usize {
        GROUP_TOKENS * 4
    }

    /// Bytes of a group in all: what must be read to attend to 16 tokens.
    pub const fn group_bytes(&self) -> usize {
        self.k_group_bytes() + self.v_group_bytes() + self.scales_group_bytes()
    }

    /// Byte of a page at which V begins.
    pub const fn v_offset(&self) -> usize {
        PAGE_GROUPS * self.k_group_bytes()
    }

    /// Byte of a page at which the scale words begin.
    pub const fn scales_offset(&self) -> usize {
        self.v_offset() + PAGE_GROUPS * self.v_group_bytes()
    }

    /// Bytes of a page of one head.
    pub const fn page_bytes(&self) -> usize {
        PAGE_GROUPS * self.group_bytes()
    }

    /// Byte of a page that holds K's code of feature `feature` of token `token` (mod 64).
    ///
    /// Lane `4g + t` owns a quarter of the features, the `t`-th, of tokens `g` and `g + 8` of the group. Eight of
    /// them are the two B registers of a product with 32 features; INT4 has the even ones in the low nibbles of a
    /// word and the odd ones in the high nibbles.
    pub const fn k_byte(&self, token: usize, feature: usize) -> usize {
        let quarter = self.head_dim / 4;
        let (n, t, r) = (token % GROUP_TOKENS, feature / quarter, feature % quarter);
        let (word, byte) = match self.precision {
            Precision::Int8 => (n / 8 * (quarter / 4) + r / 4, r % 4),
            Precision::Int4 => (n / 8 * (quarter / 8) + r / 8, r % 8 / 2),
        };
        group(token) * self.k_group_bytes() + word_offset(word, n % 8, t) + byte
    }

    /// Byte of a page that holds V's code of feature `feature` of token `token` (mod 64).
    ///
    /// A word has one feature of the four tokens whose P the lane holds after Q Kᵀ.
    pub const fn v_byte(&self, token: usize, feature: usize) -> usize {
        let n = token % GROUP_TOKENS;
        let (t, byte) = (n % 8 / 2, n / 8 * 2 + n % 2);
        self.v_offset() + group(token) * self.v_group_bytes() + word_offset(feature / 8, feature % 8, t) + byte
    }

    /// Byte of a page at which the scale word of token `token` (mod 64) lies; see [`scale_word`].
    pub const fn scale_byte(&self, token: usize) -> usize {
        let place = v_slot(token % GROUP_TOKENS) * 4;
        self.scales_offset() + group(token) * self.scales_group_bytes() + place
    }

    /// `int8_d128` and the like, the end of the kernels' symbols.
    pub const fn suffix(&self) -> &'static str {
        match (self.precision, self.head_dim) {
            (Precision::Int8, 64) => "int8_d64",
            (Precision::Int8, _) => "int8_d128",
            (Precision::Int4, 64) => "int4_d64",
            (Precision::Int4, _) => "int4_d128",
        }
    }
}

/// Group of a token within its page.
const fn group(token: usize) -> usize {
    token % PAGE_TOKENS / GROUP_TOKENS
}

/// Offset in a group's blocks of word `word` of lane `4g + t`.
const fn word_offset(word: usize, g: usize, t: usize) -> usize {
    word / 4 * BLOCK_BYTES + (4 * g + t) * 16 + word % 4 * 4
}

/// Scale word of a token: K's scale as bf16 in the low half, the *reciprocal* of V's as bf16 in the high half.
pub const fn scale_word(k_scale: f32, inverse_v_scale: f32) -> u32 {
    k_scale.to_bits() >> 16 | inverse_v_scale.to_bits() & 0xffff_0000
}

/// Scale of K's codes of a token whose largest magnitude is `amax`: a bf16, rounded up so that no code exceeds
/// `max_code`. Not a number if `amax` is not finite.
pub const fn k_scale(amax: f32, max_code: f32) -> f32 {
    let bits = qk_scale(amax, max_code).to_bits();
    if bits >= 0x7f80_0000 { f32::NAN } else { f32::from_bits((bits + 0xffff) & 0xffff_0000) }
}

/// Smallest binary exponent of V's scales. A smaller one would only matter beside values 2⁶⁰ times as large.
pub const V_EXPONENT_MIN: i32 = -60;

/// Reciprocal of the scale of V's codes of a token whose largest magnitude is `amax`: `2^-e` with the smallest `e`
/// for which `amax` is at most `448 · 2^e`. Not a number if `amax` is not finite.
pub const fn inverse_v_scale(amax: f32) -> f32 {
    /// Mantissa of 448 = 1.75 · 2⁸.
    const MANTISSA: u32 = 0x0060_0000;
    let bits = amax.to_bits();
    if bits >= 0x7f80_0000 {
        return f32::NAN;
    }
    let above = if bits & 0x007f_ffff > MANTISSA { 1 } else { 0 };
    let exponent = (bits >> 23) as i32 - 127 - 8 + above;
    let exponent = if exponent < V_EXPONENT_MIN { V_EXPONENT_MIN } else { exponent };
    f32::from_bits(((127 - exponent) as u32) << 23)
}

/// Extents of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheShape {
    /// What a page is.
    pub layout: PageLayout,
    /// Sequences.
    pub batch: usize,
    /// Key/value heads.
    pub num_heads_kv: usize,
    /// Pages that a sequence can have.
    pub pages_per_sequence: usize,
}

impl CacheShape {
    /// Tokens that a sequence can have.
    pub const fn capacity(&self) -> usize {
        self.pages_per_sequence * PAGE_TOKENS
    }

    /// Bytes of `pages` pages of all heads.
    pub const fn bytes(&self, pages: usize) -> usize {
        pages * self.num_heads_kv * self.layout.page_bytes()
    }

    /// Byte at which page `id` of a head begins.
    pub const fn page_offset(&self, id: usize, head_kv: usize) -> usize {
        (id * self.num_heads_kv + head_kv) * self.layout.page_bytes()
    }

    /// Index in the block table, or page without one, of page `page` of a sequence.
    pub const fn entry(&self, batch: usize, page: usize) -> usize {
        batch * self.pages_per_sequence + page
    }

    /// Page that holds tokens `64 · page..` of a sequence.
    pub fn page_id(&self, block_table: Option<&[u32]>, batch: usize, page: usize) -> usize {
        let entry = self.entry(batch, page);
        block_table.map_or(entry, |table| table[entry] as usize)
    }
}

/// A cache in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheArg {
    /// Pages `[pages, Hkv, page_bytes]`. Whatever they hold, they have been written once (a new cache is zeroed).
    pub pages: u64,
    /// Nullable: f32 `[B, Hkv, D]`, subtracted from every key. One mean per head for the life of a sequence.
    pub k_mean: u64,
    /// Nullable: u32 `[B, pages_per_sequence]`, the page that holds tokens `64 i..64 i + 64` of a sequence. Without
    /// it the pages of sequence `b` are `b · pages_per_sequence..`.
    pub block_table: u64,
    /// Pages that a sequence can have.
    pub pages_per_sequence: u32,
    /// Hkv.
    pub num_heads_kv: u32,
}

/// `cache_append_*`: quantizes new tokens into the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendParams {
    /// New keys, `[B, Hkv, n, D]`.
    pub k: TensorArg,
    /// New values, `[B, Hkv, n, D]`.
    pub v: TensorArg,
    /// Where they go.
    pub cache: CacheArg,
    /// u32 `[B]`: tokens that each sequence has already.
    pub lengths: u64,
    /// n.
    pub num_tokens: u32,
    /// Type of `k` and `v`: 0 f16, 1 bf16, 2 f32.
    pub dtype: u32,
    /// 1 if base addresses and strides are multiples of 16 bytes.
    pub vectorized: u32,
    /// Zero.
    pub reserved: u32,
}

/// `cache_mean`: the token mean of keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeanParams {
    /// Keys, `[B, Hkv, n, D]`.
    pub k: TensorArg,
    /// Out: f32 `[B, Hkv, D]`.
    pub mean: u64,
    /// n, not 0.
    pub num_tokens: u32,
    /// Hkv.
    pub num_heads_kv: u32,
    /// D, 64 or 128.
    pub head_dim: u32,
    /// Type of `k`.
    pub dtype: u32,
}

/// Threads of `cache_append_*`: eight a token, each an eighth of the features.
pub const APPEND_THREADS: usize = 8 * GROUP_TOKENS;

/// `cache_append_*`: V's codes of a group, a row of `head_dim + 4` bytes for each token, and its scales.
pub const fn append(layout: &PageLayout) -> Cta {
    Cta { threads: APPEND_THREADS, smem_bytes: GROUP_TOKENS * (layout.head_dim + 4) }
}

/// CTAs of `cache_append_*`: one for each group that `num_tokens` tokens can touch, for each sequence and head.
pub const fn append_grid(batch: usize, num_heads_kv: usize, num_tokens: usize) -> [usize; 2] {
    [(num_tokens + GROUP_TOKENS - 2) / GROUP_TOKENS + 1, batch * num_heads_kv]
}

/// Symbol of `cache_mean`.
pub const MEAN_SYMBOL: &str = "cache_mean";
/// Threads of `cache_mean`: `MEAN_THREADS / D` token lanes.
pub const MEAN_THREADS: usize = 512;
/// `cache_mean`, one CTA for each sequence and head: a sum from every thread.
pub const MEAN_CTA: Cta = Cta { threads: MEAN_THREADS, smem_bytes: MEAN_THREADS * 4 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::SCALE_FLOOR;

    #[test]
    fn every_code_and_scale_of_a_page_has_its_own_place() {
        for precision in [Precision::Int4, Precision::Int8] {
            for head_dim in HEAD_DIMS {
                let layout = PageLayout { precision, head_dim };
                let mut taken = [false; 64 * (128 + 128 + 4)];
                let mut insert = |place: usize| !core::mem::replace(&mut taken[place], true);
                for token in 0..PAGE_TOKENS {
                    for feature in 0..head_dim {
                        assert!(insert(layout.v_byte(token, feature)));
                        let first = insert(layout.k_byte(token, feature));
                        assert_eq!(first, precision == Precision::Int8 || feature % 2 == 0);
                    }
                    let word = layout.scale_byte(token);
                    assert!((word..word + 4).all(&mut insert));
                }
                let bytes = layout.page_bytes();
                assert!(taken[..bytes].iter().all(|&taken| taken) && !taken[bytes..].iter().any(|&taken| taken));
                assert_eq!(layout.page_bytes() % 128, 0);
            }
        }
    }

    #[test]
    fn scales_hold_their_group_and_are_no_larger_than_need_be() {
        for bits in (0..0x7f80_0000u32).step_by(8191) {
            let amax = f32::from_bits(bits);
            let scale = k_scale(amax, 127.0);
            assert_eq!(scale.to_bits() & 0xffff, 0);
            assert!(amax / scale <= 127.0 && (scale <= SCALE_FLOOR || scale <= amax / 127.0 * 1.0079), "{amax}");
            let inverse = inverse_v_scale(amax);
            assert_eq!(inverse.to_bits() & 0x007f_ffff, 0);
            assert!(amax * inverse <= 448.0, "{amax}");
            assert!(amax * inverse > 224.0 || inverse == f32::from_bits(187 << 23), "{amax}");
            let word = scale_word(scale, inverse);
            assert_eq!([f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)], [scale, inverse]);
        }
        for amax in [f32::NAN, f32::INFINITY] {
            assert!(k_scale(amax, 7.0).is_nan() && inverse_v_scale(amax).is_nan());
            let word = scale_word(k_scale(amax, 7.0), inverse_v_scale(amax));
            assert!(f32::from_bits(word << 16).is_nan() && f32::from_bits(word & 0xffff_0000).is_nan());
        }
    }
}
