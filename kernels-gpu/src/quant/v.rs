//! V to FP8, transposed and with its tokens in the order of the PV product, or to FP16.

use cuda_std::{convert, global, math, shared, thread};
use sage_spec::params::QuantizeVParams;
use sage_spec::tiling::KV_PAD;

use super::element::{Element, Rows};
use super::lanes::{LANES, Position, load8};

const TOKENS: u32 = KV_PAD as u32;

/// The thread's eight channels: what to subtract and what to multiply by.
struct Channels {
    smoothed: bool,
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
            Channels { smoothed: p.mean != 0, mean, inverse_scale: load8(smem + first_channel * 4) }
        }
    }

    /// Value to be rounded, for each channel.
    #[inline(always)]
    fn scale(&self, mut x: [f32; 8]) -> [f32; 8] {
        let mut i = 0;
        if self.smoothed {
            while i < 8 {
                x[i] -= self.mean[i];
                i += 1;
            }
        }
        i = 0;
        while i < 8 {
            x[i] *= self.inverse_scale[i];
            i += 1;
        }
        x
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
    let rows = Rows::new::<E>(
        &p.v,
        batch,
        head - batch * p.num_heads_kv,
        p.seqlen_kv,
        position.first_feature,
        p.head_dim,
        p.vectorized,
    );
    const PER_THREAD: usize = (TOKENS / LANES) as usize;
    // SAFETY: forwarded contract.
    let (x, channels) = unsafe {
        let x = rows.load::<E, PER_THREAD, LANES>(first_token + position.lane);
        (x, Channels::load::<HEAD_DIM>(p, shared::dynamic_shared_mem(), head, position.first_feature))
    };
    let mut i = 0;
    while i < PER_THREAD {
        let token = position.lane + i as u32 * LANES;
        let x = channels.scale(x[i]);
        let row = thread::block_idx_x() as u64 * TOKENS as u64 + token as u64;
        let packed = [
            convert::f32_to_f16x2(x[0], x[1]),
            convert::f32_to_f16x2(x[2], x[3]),
            convert::f32_to_f16x2(x[4], x[5]),
            convert::f32_to_f16x2(x[6], x[7]),
        ];
        let packed = packed.map(|word| if rows.contains(first_token + token) { word } else { 0 });
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
    let warps = LANES * HEAD_DIM / 8 / 32;
    let halves = HEAD_DIM / 64;
    let thread = thread::thread_idx_x();
    let (warp_index, lane) = (thread / 32, thread % 32);
    let (octet, t) = (warp_index % halves * 8 + lane % 8, lane / 8);
    let rows =
        Rows::new::<E>(&p.v, batch, head - batch * p.num_heads_kv, p.seqlen_kv, octet * 8, p.head_dim, p.vectorized);
    let smem = shared::dynamic_shared_mem();
    const { assert!(LANES * HEAD_DIM / 8 / 32 / (HEAD_DIM / 64) == TOKENS / 16, "a group of 16 tokens for every warp") };
    let group = warp_index / halves;
    let first = first_token + group * 16 + 2 * t;
    // SAFETY: forwarded contract.
    let (near, far, channels) = unsafe {
        let (near, far) = (rows.load::<E, 2, 1>(first), rows.load::<E, 2, 1>(first + 8));
        (near, far, Channels::load::<HEAD_DIM>(p, smem + HEAD_DIM * TOKENS, head, octet * 8))
    };
    let x = [channels.scale(near[0]), channels.scale(near[1]), channels.scale(far[0]), channels.scale(far[1])];
    let byte = |offset: u32, mask: u32| if rows.contains(first + offset) { mask } else { 0 };
    let exists = byte(0, 0xff) | byte(1, 0xff00) | byte(8, 0xff_0000) | byte(9, 0xff00_0000);
    let mut channel = 0;
    while channel < 8 {
        let word = convert::f32_to_e4m3x4([x[0][channel], x[1][channel], x[2][channel], x[3][channel]]) & exists;
        let row = smem + (octet * 8 + channel as u32) * TOKENS;
        // SAFETY: inside the CTA's HEAD_DIM x 128 bytes, each word written by one thread.
        unsafe { shared::store_u32(row + (group ^ (octet % 8)) * 16 + t * 4, word) };
        channel += 1;
    }
    // SAFETY: all threads are here.
    unsafe { thread::sync_threads() };
    let seqlen_padded = p.seqlen_kv.div_ceil(TOKENS) * TOKENS;
    let threads = warps * 32;
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
