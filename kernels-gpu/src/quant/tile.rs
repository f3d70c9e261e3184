//! A tile of 128 tokens on its way from the caller's tensor to shared memory: f16, bf16 or f32, any strides
//! with a unit last one.

use cuda_std::cp_async::CachePolicy;
use cuda_std::{cp_async, hint, shared};
use sage_spec::launch::{QuantizeSmem, quantize_smem};
use sage_spec::params::TensorArg;

use super::element::Element;
use super::lanes::{LANES, PER_THREAD, Position, TOKENS};
use crate::words::{join, split};

/// Where a CTA's tables lie.
pub const fn smem<E: Element, const HEAD_DIM: u32>() -> QuantizeSmem {
    quantize_smem(HEAD_DIM as usize, E::BYTES as usize)
}

/// Where a tile comes from.
#[derive(Clone, Copy)]
pub struct Source {
    /// Address of token 0 of the head.
    base: u64,
    /// Bytes from one token to the next.
    stride: i64,
    /// First token of the tile.
    first_token: u32,
    /// Tokens of the head; 0 for a tile that nobody wants.
    tokens: u32,
    /// Features that exist.
    head_dim: u32,
    /// Whether rows can be copied 16 bytes at a time.
    vectorized: bool,
}

impl Source {
    /// No tile.
    pub const NONE: Source = Source { base: 0, stride: 0, first_token: 0, tokens: 0, head_dim: 0, vectorized: false };

    /// Tile `tile` of head `head` of batch entry `batch` of `x`, `[B, H, tokens, head_dim]`.
    #[inline(always)]
    pub fn new<E: Element>(
        x: &TensorArg,
        [batch, head, tile]: [u32; 3],
        [tokens, head_dim]: [u32; 2],
        vectorized: bool,
    ) -> Source {
        let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head;
        let base = x.ptr.wrapping_add((offset * E::BYTES as i64) as u64);
        let stride = x.stride_token * E::BYTES as i64;
        Source { base, stride, first_token: tile * TOKENS, tokens, head_dim, vectorized }
    }

    /// Leaves it for the whole CTA.
    ///
    /// # Safety
    /// 32 bytes at `slot` are 16-byte aligned, and read by nobody until a barrier.
    #[inline(always)]
    pub unsafe fn write(&self, slot: u32) {
        let ([a, b], [c, d]) = (split(self.base), split(self.stride as u64));
        // SAFETY: the caller vouches for the slot.
        unsafe {
            shared::store_u32x4(slot, [a, b, c, d]);
            shared::store_u32x4(slot + 16, [self.first_token, self.tokens, self.head_dim, self.vectorized as u32]);
        }
    }

    /// What [`Source::write`] has left.
    ///
    /// # Safety
    /// A barrier lies between.
    #[inline(always)]
    pub unsafe fn read(slot: u32) -> Source {
        // SAFETY: the caller vouches for the barrier.
        let ([a, b, c, d], [first_token, tokens, head_dim, vectorized]) =
            unsafe { (shared::load_u32x4(slot), shared::load_u32x4(slot + 16)) };
        let (base, stride) = (join([a, b]), join([c, d]) as i64);
        Source { base, stride, first_token, tokens, head_dim, vectorized: vectorized != 0 }
    }

    /// Starts copying the tile to shared memory, by threads as [`Position`] has them: zeros where a feature does not exist, and the last token again
    /// where a token does not. Repeating it changes no maximum; sums and codes must leave it out.
    ///
    /// # Safety
    /// The tokens are readable; `vectorized` is what `QuantizeParams` says; `tile` holds a tile that
    /// nobody else uses until this thread has waited for its copies and all threads have met.
    #[inline(always)]
    pub unsafe fn stage<E: Element, const HEAD_DIM: u32, const SWIZZLED: bool>(
        &self,
        tile: u32,
        position: Position,
        policy: Option<CachePolicy>,
    ) {
        let row_bytes = HEAD_DIM * E::BYTES;
        let feature = position.first_feature;
        let column = self.base.wrapping_add((feature * E::BYTES) as u64);
        let from = |token: u32| {
            let token = (self.first_token + token).min(self.tokens - 1);
            column.wrapping_add((token as i64 * self.stride) as u64)
        };
        let to = |token: u32| tile + token * row_bytes + place::<E, SWIZZLED>(token, feature);
        let copy = |to: u32, from: u64| {
            let mut byte = 0;
            while byte < 8 * E::BYTES {
                // SAFETY: the caller vouches for both; a row that exists, to the thread's own place in the tile.
                unsafe {
                    match policy {
                        Some(policy) => cp_async::copy16_with_policy(to + byte, from + byte as u64, policy),
                        None => cp_async::copy16(to + byte, from + byte as u64),
                    }
                }
                byte += 16;
            }
        };
        if feature >= self.head_dim {
            let mut i = 0;
            while i < PER_THREAD {
                let mut byte = 0;
                while byte < 8 * E::BYTES {
                    // SAFETY: the thread's own place in the tile.
                    unsafe { shared::store_u32x4(to(position.token(i)) + byte, [0; 4]) };
                    byte += 16;
                }
                i += 1;
            }
        } else if self.vectorized && self.first_token + TOKENS <= self.tokens {
            // The common case, by additions only.
            let mut address = from(position.token(0));
            let step = (self.stride * LANES as i64) as u64;
            let mut i = 0;
            while i < PER_THREAD {
                copy(to(position.token(i)), address);
                address = address.wrapping_add(step);
                i += 1;
            }
        } else {
            // Compact loops: these are for ends and odd strides, not for speed.
            let mut i = 0;
            while i < hint::opaque(PER_THREAD as u32) {
                let token = position.token(i as usize);
                let (from, to) = (from(token), to(token));
                if self.vectorized {
                    copy(to, from);
                } else {
                    let mut word = 0;
                    while word < hint::opaque(2 * E::BYTES) {
                        let first = feature + word * 4 / E::BYTES;
                        let exist = self.head_dim.saturating_sub(first);
                        // SAFETY: a row that exists, to the thread's own place in the tile.
                        unsafe {
                            let value = E::load_word(from.wrapping_add((word * 4) as u64), exist);
                            shared::store_u32(to + word * 4, value);
                        }
                        word += 1;
                    }
                }
                i += 1;
            }
        }
    }
}

/// Byte of a row at which the eight features from `feature` on lie. Swizzled, eight rows have them in eight
/// places, so that threads of neighbouring tokens do not meet in a bank.
#[inline(always)]
fn place<E: Element, const SWIZZLED: bool>(token: u32, feature: u32) -> u32 {
    (if SWIZZLED { feature ^ (token % 8 * 8) } else { feature }) * E::BYTES
}

/// The thread's eight features of token `token` of the tile, as they are.
///
/// # Safety
/// The tile is there.
#[inline(always)]
pub unsafe fn raw<E: Element, const HEAD_DIM: u32>(tile: u32, first_feature: u32, token: u32) -> E::Raw {
    // SAFETY: inside the tile.
    unsafe { E::raw8(tile + (token * HEAD_DIM + first_feature) * E::BYTES) }
}

/// The thread's eight features of token `token` of the tile.
///
/// # Safety
/// The tile is there.
#[inline(always)]
pub unsafe fn read<E: Element, const HEAD_DIM: u32>(tile: u32, first_feature: u32, token: u32) -> [f32; 8] {
    // SAFETY: forwarded contract.
    E::widen(unsafe { raw::<E, HEAD_DIM>(tile, first_feature, token) })
}

/// As [`read`], of a swizzled tile.
///
/// # Safety
/// The tile is there.
#[inline(always)]
pub unsafe fn read_swizzled<E: Element, const HEAD_DIM: u32>(tile: u32, first_feature: u32, token: u32) -> [f32; 8] {
    // SAFETY: inside the tile.
    unsafe { E::shared8(tile + token * HEAD_DIM * E::BYTES + place::<E, true>(token, first_feature)) }
}
