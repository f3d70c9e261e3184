//! A tile of 128 tokens on its way from the caller's tensor to shared memory: f16, bf16 or f32, any strides
//! with a unit last one.

use cuda_std::cp_async::CachePolicy;
use cuda_std::{cp_async, hint, math, shared};
use sage_spec::launch::{QuantizeSmem, quantize_smem};
use sage_spec::params::{QuantizeParams, TensorArg};
use sage_spec::schedule::{Role, Work};

use super::element::Element;
use super::lanes::{PER_THREAD, Position, TOKENS};

/// Where a CTA's tables lie.
pub const fn smem<E: Element, const HEAD_DIM: u32>() -> QuantizeSmem {
    quantize_smem(HEAD_DIM as usize, E::BYTES as usize)
}

/// What all threads of a CTA know about their tile: eight words of shared memory.
#[derive(Clone, Copy)]
pub struct Job {
    /// What to do; a number beyond the roles when nothing is left.
    pub role: u32,
    /// Flattened (batch, head) of the tile's own tensor.
    pub head: u32,
    /// Flattened (batch, kv head).
    pub head_kv: u32,
    /// Tile of the head.
    pub tile: u32,
    /// Address of token 0 of the head.
    base: u64,
    /// Bytes from one token to the next.
    stride: i64,
}

/// Number of a role in [`Job::role`].
pub const fn code(role: Role) -> u32 {
    role as u32
}

/// [`Job::role`] when no ticket is left.
pub const DONE: u32 = 5;

impl Job {
    /// Tile `tile` of head `head` of batch entry `batch` of `x`, by itself.
    #[inline(always)]
    pub fn new<E: Element>(x: &TensorArg, batch: u32, head: u32, tile: u32) -> Job {
        let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head;
        let base = x.ptr.wrapping_add((offset * E::BYTES as i64) as u64);
        Job { role: DONE, head, head_kv: head, tile, base, stride: x.stride_token * E::BYTES as i64 }
    }

    /// Works out `work` for the whole CTA.
    ///
    /// # Safety
    /// Counts of a launched problem are not zero; `slot` is read by nobody until a barrier.
    #[inline(always)]
    pub unsafe fn publish<E: Element>(p: &QuantizeParams, slot: u32, work: Option<Work>) {
        let Some(Work { role, head_kv, tile }) = work else {
            // The rest too: everybody reads all eight words.
            // SAFETY: the caller vouches for the slot.
            unsafe {
                shared::store_u32x4(slot, [DONE, 0, 0, 0]);
                shared::store_u32x4(slot + 16, [0; 4]);
            }
            return;
        };
        // SAFETY: counts are not zero.
        let batch = unsafe { math::div_u32(head_kv, p.num_heads_kv) };
        let mut head_in_batch = head_kv - batch * p.num_heads_kv;
        let (mut head, mut tile) = (head_kv, tile);
        let x: TensorArg = match role {
            Role::Q => {
                let blocks = p.seqlen_q.div_ceil(TOKENS);
                // SAFETY: counts are not zero.
                let (group, in_group) =
                    unsafe { (math::div_u32(p.num_heads_q, p.num_heads_kv), math::div_u32(tile, blocks)) };
                head_in_batch = head_in_batch * group + in_group;
                head = batch * p.num_heads_q + head_in_batch;
                tile -= in_group * blocks;
                p.q
            }
            Role::K | Role::KStatistics => p.k,
            Role::V | Role::VStatistics => p.v,
        };
        let Job { base, stride, .. } = Job::new::<E>(&x, batch, head_in_batch, tile);
        let stride = stride as u64;
        // SAFETY: the caller vouches for the slot.
        unsafe {
            shared::store_u32x4(slot, [code(role), head, head_kv, tile]);
            shared::store_u32x4(slot + 16, [base as u32, (base >> 32) as u32, stride as u32, (stride >> 32) as u32]);
        }
    }

    /// What [`Job::publish`] has left.
    ///
    /// # Safety
    /// A barrier lies between.
    #[inline(always)]
    pub unsafe fn read(slot: u32) -> Job {
        // SAFETY: the caller vouches for the barrier.
        let (a, b) = unsafe { (shared::load_u32x4(slot), shared::load_u32x4(slot + 16)) };
        let wide = |lo: u32, hi: u32| lo as u64 | (hi as u64) << 32;
        Job {
            role: a[0],
            head: a[1],
            head_kv: a[2],
            tile: a[3],
            base: wide(b[0], b[1]),
            stride: wide(b[2], b[3]) as i64,
        }
    }

    /// First token of the tile.
    #[inline(always)]
    pub fn first_token(&self) -> u32 {
        self.tile * TOKENS
    }

    /// Starts copying the tile to shared memory, by threads as [`Position`] has them: zeros where a feature does not exist, and the last token again
    /// where a token does not. Repeating it changes no maximum; sums and codes must leave it out.
    ///
    /// # Safety
    /// `tokens`, at least one, are readable; `vectorized` is what `QuantizeParams` says; `tile` holds a tile that
    /// nobody else uses until this thread has waited for its copies and all threads have met.
    #[inline(always)]
    pub unsafe fn stage<E: Element, const HEAD_DIM: u32, const SWIZZLED: bool>(
        &self,
        tile: u32,
        position: Position,
        tokens: u32,
        head_dim: u32,
        vectorized: bool,
        policy: Option<CachePolicy>,
    ) {
        let row_bytes = HEAD_DIM * E::BYTES;
        let feature = position.first_feature;
        let column = self.base.wrapping_add((feature * E::BYTES) as u64);
        let from = |token: u32| {
            let token = (self.first_token() + token).min(tokens - 1);
            column.wrapping_add((token as i64 * self.stride) as u64)
        };
        let to = |token: u32| tile + token * row_bytes + place::<E, SWIZZLED>(token, feature);
        // SAFETY: rows that exist, to the thread's own places in the tile.
        unsafe {
            if feature >= head_dim {
                let mut i = 0;
                while i < PER_THREAD {
                    let mut byte = 0;
                    while byte < 8 * E::BYTES {
                        shared::store_u32x4(to(position.token(i)) + byte, [0; 4]);
                        byte += 16;
                    }
                    i += 1;
                }
            } else if vectorized {
                let mut i = 0;
                while i < PER_THREAD {
                    let token = position.token(i);
                    let (from, to) = (from(token), to(token));
                    let mut byte = 0;
                    while byte < 8 * E::BYTES {
                        match policy {
                            Some(policy) => cp_async::copy16_with_policy(to + byte, from + byte as u64, policy),
                            None => cp_async::copy16(to + byte, from + byte as u64),
                        }
                        byte += 16;
                    }
                    i += 1;
                }
            } else {
                // Compact loops: this path is for odd strides, not for speed.
                let mut i = 0;
                while i < hint::opaque(PER_THREAD as u32) {
                    let token = position.token(i as usize);
                    let (from, to) = (from(token), to(token));
                    let mut word = 0;
                    while word < hint::opaque(2 * E::BYTES) {
                        let first = feature + word * 4 / E::BYTES;
                        let value = E::load_word(from.wrapping_add((word * 4) as u64), head_dim.saturating_sub(first));
                        shared::store_u32(to + word * 4, value);
                        word += 1;
                    }
                    i += 1;
                }
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

/// The thread's eight features of token `token` of the tile.
///
/// # Safety
/// The tile is there.
#[inline(always)]
pub unsafe fn read<E: Element, const HEAD_DIM: u32>(tile: u32, first_feature: u32, token: u32) -> [f32; 8] {
    // SAFETY: inside the tile.
    unsafe { E::shared8(tile + (token * HEAD_DIM + first_feature) * E::BYTES) }
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
