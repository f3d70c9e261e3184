//! V to FP8, transposed and with its tokens in the order of the PV product, or to FP16.

use cuda_std::{convert, global, shared, thread};
use sage_spec::params::QuantizeParams;

use super::element::Element;
use super::lanes::{LANES, Position, TOKENS, load8, read8, reduce_lanes, store8};
use super::stats;
use super::tile::{self, Job, smem};

/// The thread's eight channels: what to subtract and what to multiply by.
struct Channels {
    mean: [f32; 8],
    inverse_scale: [f32; 8],
}

impl Channels {
    /// `table` has `HEAD_DIM` f32 for the reciprocals: one division a channel, not one a thread and channel.
    ///
    /// # Safety
    /// All threads of the CTA call it, at least `HEAD_DIM` of them; the head's statistics are visible.
    #[inline(always)]
    unsafe fn load<const HEAD_DIM: u32>(
        p: &QuantizeParams,
        table: u32,
        thread: u32,
        head: u32,
        first_channel: u32,
    ) -> Self {
        let row = head as u64 * HEAD_DIM as u64;
        // SAFETY: f32 [B, Hkv, Dp]; written before the barrier, read after it.
        unsafe {
            if thread < HEAD_DIM {
                shared::store_f32(table + thread * 4, 1.0 / global::read_f32(p.v_scale + (row + thread as u64) * 4));
            }
            let mut mean = [0.0; 8];
            if p.v_mean != 0 {
                mean = read8(p.v_mean + (row + first_channel as u64) * 4);
            }
            thread::sync_threads();
            Channels { mean, inverse_scale: load8(table + first_channel * 4) }
        }
    }

    /// Value to be rounded, of channel `i`. (Without smoothing the mean is zero, which changes nothing.)
    #[inline(always)]
    fn scale(&self, i: usize, x: f32) -> f32 {
        (x - self.mean[i]) * self.inverse_scale[i]
    }
}

/// 128 tokens to FP16, token-major.
///
/// # Safety
/// All threads of the CTA call it; the tile is in shared memory at `base`, tables from `cta` on, the head's statistics are visible.
#[cfg(feature = "sm_80")]
#[inline(always)]
pub unsafe fn f16<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
) {
    let tables = const { smem::<E, HEAD_DIM>() };
    // SAFETY: forwarded contract.
    let channels = unsafe {
        Channels::load::<HEAD_DIM>(p, cta + tables.lanes as u32, position.thread, job.head, position.first_feature)
    };
    let first_row = (job.head as u64 * p.schedule.tiles_kv as u64 + job.tile as u64) * TOKENS as u64;
    let mut i = 0;
    while i < super::lanes::PER_THREAD {
        let token = position.token(i);
        // SAFETY: the tile is there.
        let x = unsafe { tile::read::<E, HEAD_DIM>(base, position.first_feature, token) };
        let x = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| channels.scale(i, x[i]));
        let packed = [
            convert::f32_to_f16x2(x[0], x[1]),
            convert::f32_to_f16x2(x[2], x[3]),
            convert::f32_to_f16x2(x[4], x[5]),
            convert::f32_to_f16x2(x[6], x[7]),
        ];
        let exists = job.first_token() + token < p.seqlen_kv;
        let packed = packed.map(|word| if exists { word } else { 0 });
        let element = (first_row + token as u64) * HEAD_DIM as u64 + position.first_feature as u64;
        // SAFETY: the row is inside the padded tensor.
        unsafe { global::store_u32x4(p.v_codes + element * 2, packed) };
        i += 1;
    }
}

/// Sums of eight pairs.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
fn combine8(mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
    let mut i = 0;
    while i < 8 {
        a[i] += b[i];
        i += 1;
    }
    a
}

/// 128 tokens to FP8, transposed in shared memory.
///
/// A thread reads eight channels of the four tokens that make one 32-bit word of a channel's row
/// (`2t, 2t + 1, 2t + 8, 2t + 9` of a group of 16, see `sage_spec::layout::v_slot`), twice. Lanes 0–7 of a warp
/// span 64 channels, `t = lane / 8` the four words of a 16-byte chunk; the chunk's place is XORed with the
/// channel group, so that the 32 lanes write to 32 banks and rows are read back as 16-byte chunks
/// without conflicts. The codes take the place of the tile's first half, which both rounds' threads have read
/// together.
///
/// # Safety
/// All threads of the CTA call it; the tile is in shared memory at `base`, tables from `cta` on, the head's statistics are visible.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn fp8<E: Element, const HEAD_DIM: u32>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
) {
    let tables = const { smem::<E, HEAD_DIM>() };
    const { assert!(E::BYTES >= 2, "the codes fit half of the tile") };
    let warps = LANES * HEAD_DIM / 8 / 32;
    let halves = HEAD_DIM / 64;
    /// Groups of 16 tokens of a thread.
    const ROUNDS: u32 = 2;
    const { assert!(LANES * HEAD_DIM / 8 / 32 / (HEAD_DIM / 64) * ROUNDS == TOKENS / 16) };
    let thread = position.thread;
    let (warp_index, lane) = (thread / 32, thread % 32);
    let (octet, t) = (warp_index % halves * 8 + lane % 8, lane / 8);
    // SAFETY: forwarded contract.
    let channels = unsafe { Channels::load::<HEAD_DIM>(p, cta + tables.lanes as u32, thread, job.head, octet * 8) };
    let table = cta + tables.lanes as u32;
    // The thread's place in the table, anew as in `Position::new`.
    let place = || {
        let thread = thread::reread_thread_idx_x();
        let (warp_index, lane) = (thread / 32, thread % 32);
        let first_feature = (warp_index % halves * 8 + lane % 8) * 8;
        Position { thread, lane: warp_index / halves * 4 + lane / 8, first_feature }
    };
    let mut rounding = [0.0f32; 8];
    let mut round = 0;
    while round < ROUNDS {
        let group = warp_index / halves + round * (TOKENS / 16 / ROUNDS);
        let first = group * 16 + 2 * t;
        // SAFETY: the tile is there: the codes cover its first half only, after it has been read.
        let x =
            [0, 1, 8, 9].map(|offset| unsafe { E::raw8(base + ((first + offset) * HEAD_DIM + octet * 8) * E::BYTES) });
        let exists = [0, 1, 8, 9].map(|offset| job.first_token() + first + offset < p.seqlen_kv);
        let mut words = [0; 8];
        let mut c = 0;
        while c < 8 {
            let x =
                [0, 1, 2, 3].map(|i| if exists[i] { channels.scale(c, E::widen2(x[i], c / 2)[c % 2]) } else { 0.0 });
            words[c] = convert::f32_to_e4m3x4(x);
            let [low, high] = convert::e4m3x4_to_f16x4(words[c]);
            let value = [low, low >> 16, high, high >> 16].map(convert::f16_to_f32);
            let mut i = 0;
            while i < 4 {
                rounding[c] += x[i] - value[i];
                i += 1;
            }
            c += 1;
        }
        // SAFETY: all threads are here; each word of the codes' HEAD_DIM x 128 bytes is written by one thread, and so is its
        // slot, whose place the reciprocals had.
        unsafe {
            if round == 0 {
                thread::sync_threads();
                // Not in registers through the next round.
                store8(place().slot::<HEAD_DIM>(table), rounding);
                rounding = [0.0; 8];
            } else {
                rounding = combine8(load8(place().slot::<HEAD_DIM>(table)), rounding);
            }
            let mut c = 0;
            while c < 8 {
                let row = base + (octet * 8 + c as u32) * TOKENS;
                shared::store_u32(row + (group ^ (octet % 8)) * 16 + t * 4, words[c]);
                c += 1;
            }
        }
        round += 1;
    }
    let position = place();
    let thread = position.thread;
    // SAFETY: all threads are here, where they meet; each has read its slot.
    let rounding = unsafe { reduce_lanes::<HEAD_DIM>(table, position, rounding, stats::add) };
    let seqlen_padded = p.schedule.tiles_kv as u64 * TOKENS as u64;
    let threads = warps * 32;
    let mut i = 0;
    while i < HEAD_DIM * 8 / threads {
        let index = i * threads + thread;
        let (channel, chunk) = (index / 8, index % 8);
        // SAFETY: written before the barrier; inside the padded tensor.
        unsafe {
            let bytes = shared::load_u32x4(base + channel * TOKENS + (chunk ^ (channel / 8 % 8)) * 16);
            let row = (job.head as u64 * HEAD_DIM as u64 + channel as u64) * seqlen_padded;
            global::store_u32x4(p.v_codes + row + (job.first_token() + chunk * 16) as u64, bytes);
        }
        i += 1;
    }
    // SAFETY: forwarded contract.
    unsafe { stats::v_rounding::<E, HEAD_DIM>(p, job, cta, thread, rounding) };
}
