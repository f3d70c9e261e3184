//! V to FP8, transposed and with its tokens in the order of the PV product, or to FP16.

use cuda_std::{convert, global, math, shared, thread};
use sage_spec::params::QuantizeVParams;
use sage_spec::tiling::KV_PAD;

use super::element::{Element, Rows};
use super::lanes::{LANES, Position, load8};

const TOKENS: u32 = KV_PAD as u32;

/// The thread's eight channels: what to subtract and what to multiply by.
struct Channels {
    mean: [f32; 8],
    inverse_scale: [f32; 8],
}

impl Channels {
    /// `smem` has `HEAD_DIM` f32 for the reciprocals: one division a channel, not one a thread and channel.
    ///
    /// # Safety
    /// All threads of the CTA call it, at least `HEAD_DIM` of them.
    #[inline(always)]
    unsafe fn load<const HEAD_DIM: u32>(p: &QuantizeVParams, smem: u32, head: u32, first_channel: u32) -> Self {
        let row = head as u64 * HEAD_DIM as u64;
        let thread = thread::thread_idx_x();
        // SAFETY: f32 [B, Hkv, Dp]; written before the barrier, read after it.
        unsafe {
            if thread < HEAD_DIM {
                shared::store_f32(smem + thread * 4, 1.0 / global::load_f32(p.scale + (row + thread as u64) * 4));
            }
            let mut mean = [0.0; 8];
            if p.mean != 0 {
                let address = p.mean + (row + first_channel as u64) * 4;
                let (a, b) = (global::load_u32x4(address), global::load_u32x4(address + 16));
                mean = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits);
            }
            thread::sync_threads();
            Channels { mean, inverse_scale: load8(smem + first_channel * 4) }
        }
    }

    /// Value to be rounded, for each channel; zero for a token that does not exist.
    #[inline(always)]
    fn scale(&self, x: &[f32; 8], exists: bool) -> [f32; 8] {
        let mut scaled = [0.0; 8];
        let mut i = 0;
        while i < 8 {
            scaled[i] = (x[i] - self.mean[i]) * self.inverse_scale[i];
            i += 1;
        }
        if exists { scaled } else { [0.0; 8] }
    }
}

/// (batch, head of V, first token) of this CTA.
#[inline(always)]
fn tile(p: &QuantizeVParams) -> (u32, u32, u32) {
    let num_tiles = p.seqlen_kv.div_ceil(TOKENS);
    // SAFETY: counts of a launched problem are not zero.
    unsafe {
        let head = math::div_u32(thread::block_idx_x(), num_tiles);
        (math::div_u32(head, p.num_heads_kv), head, (thread::block_idx_x() - head * num_tiles) * TOKENS)
    }
}

/// One CTA: 128 tokens to FP16, token-major.
///
/// # Safety
/// `sage_spec::params::QuantizeVParams`, `sage_spec::launch::quantize_v`.
#[inline(always)]
pub unsafe fn quantize_f16<E: Element, const HEAD_DIM: u32>(p: &QuantizeVParams) {
    let position = Position::new::<HEAD_DIM>();
    let (batch, head, first_token) = tile(p);
    let rows = Rows::new::<E>(&p.v, batch, head - batch * p.num_heads_kv, p.seqlen_kv, position.first_feature, p.head_dim, p.vectorized);
    const PER_THREAD: usize = (TOKENS / LANES) as usize;
    // SAFETY: forwarded contract.
    let (x, channels) = unsafe {
        let x = rows.load::<E, PER_THREAD, LANES>(first_token + position.lane);
        (x, Channels::load::<HEAD_DIM>(p, shared::dynamic_shared_mem(), head, position.first_feature))
    };
    let mut i = 0;
    while i < PER_THREAD {
        let token = position.lane + i as u32 * LANES;
        let x = channels.scale(&x[i], rows.contains(first_token + token));
        let row = thread::block_idx_x() as u64 * TOKENS as u64 + token as u64;
        let packed = [
            convert::f32_to_f16x2(x[0], x[1]),
            convert::f32_to_f16x2(x[2], x[3]),
            convert::f32_to_f16x2(x[4], x[5]),
            convert::f32_to_f16x2(x[6], x[7]),
        ];
        // SAFETY: the row is inside the padded tensor.
        unsafe { global::store_u32x4(p.codes + (row * HEAD_DIM as u64 + position.first_feature as u64) * 2, packed) };
        i += 1;
    }
}

/// One CTA: 128 tokens to FP8, transposed through shared memory.
///
/// A thread reads eight channels of the four tokens that make one 32-bit word of a channel's row
/// (`2t, 2t + 1, 2t + 8, 2t + 9` of a group of 16, see `sage_spec::layout::v_slot`). Lanes 0–7 of a warp
/// span 64 channels, `t = lane / 8` the four words of a 16-byte chunk; the chunk's place is XORed with the
/// channel group, so that the 32 lanes write to 32 banks and rows are read back as 16-byte chunks
/// without conflicts.
///
/// # Safety
/// `sage_spec::params::QuantizeVParams`, `sage_spec::launch::quantize_v`.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn quantize_fp8<E: Element, const HEAD_DIM: u32>(p: &QuantizeVParams) {
    let (batch, head, first_token) = tile(p);
    let warps = HEAD_DIM / 16;
    let halves = HEAD_DIM / 64;
    let thread = thread::thread_idx_x();
    let (warp_index, lane) = (thread / 32, thread % 32);
    let (octet, t) = (warp_index % halves * 8 + lane % 8, lane / 8);
    let rows = Rows::new::<E>(&p.v, batch, head - batch * p.num_heads_kv, p.seqlen_kv, octet * 8, p.head_dim, p.vectorized);
    let smem = shared::dynamic_shared_mem();
    let groups_per_pass = warps / halves;
    let first_group = warp_index / halves;
    let first = first_token + first_group * 16 + 2 * t;
    const PASSES: usize = 2;
    const { assert!(TOKENS / 16 / (HEAD_DIM / 16 / (HEAD_DIM / 64)) == PASSES as u32) };
    // SAFETY: forwarded contract. Tokens 2t and 2t + 1, and eight further on, of each pass's group.
    let (x, channels) = unsafe {
        let load = |pass: usize| {
            let first = first + pass as u32 * groups_per_pass * 16;
            (rows.load::<E, 2, 1>(first), rows.load::<E, 2, 1>(first + 8))
        };
        let x: [_; PASSES] = [load(0), load(1)];
        (x, Channels::load::<HEAD_DIM>(p, smem + HEAD_DIM * TOKENS, head, octet * 8))
    };
    let mut pass = 0;
    while pass < PASSES {
        let group = first_group + pass as u32 * groups_per_pass;
        let token = first + pass as u32 * groups_per_pass * 16;
        let (near, far) = &x[pass];
        let x = [
            channels.scale(&near[0], rows.contains(token)),
            channels.scale(&near[1], rows.contains(token + 1)),
            channels.scale(&far[0], rows.contains(token + 8)),
            channels.scale(&far[1], rows.contains(token + 9)),
        ];
        let mut channel = 0;
        while channel < 8 {
            let word = convert::f32_to_e4m3x4([x[0][channel], x[1][channel], x[2][channel], x[3][channel]]);
            let row = smem + (octet * 8 + channel as u32) * TOKENS;
            // SAFETY: inside the CTA's HEAD_DIM x 128 bytes, each word written by one thread.
            unsafe { shared::store_u32(row + (group ^ (octet % 8)) * 16 + t * 4, word) };
            channel += 1;
        }
        pass += 1;
    }
    // SAFETY: all threads are here.
    unsafe { thread::sync_threads() };
    let seqlen_padded = p.seqlen_kv.div_ceil(TOKENS) * TOKENS;
    let threads = HEAD_DIM * 2;
    let mut i = 0;
    while i < HEAD_DIM * 8 / threads {
        let index = i * threads + thread;
        let (channel, chunk) = (index / 8, index % 8);
        // SAFETY: written before the barrier; inside the padded tensor.
        unsafe {
            let bytes = shared::load_u32x4(smem + channel * TOKENS + (chunk ^ (channel / 8 % 8)) * 16);
            let row = (head as u64 * HEAD_DIM as u64 + channel as u64) * seqlen_padded as u64;
            global::store_u32x4(p.codes + row + (first_token + chunk * 16) as u64, bytes);
        }
        i += 1;
    }
}
