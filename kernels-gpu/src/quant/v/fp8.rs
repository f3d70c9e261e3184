//! V to FP8, transposed and with its tokens in the order of the PV product.

use cuda_std::{convert, global, math, shared, thread};
use sage_spec::params::QuantizeParams;

use super::{Channels, octet_of};
use crate::quant::element::Element;
use crate::quant::job::Job;
use crate::quant::lanes::{LANES, Position, TOKENS, load8, reduce_lanes, store8};
use crate::quant::posted::Eight;
use crate::quant::stats;
use crate::quant::tile::smem;

/// Sums of eight pairs.
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
/// All threads of the CTA call it; the tile is in shared memory at `base`, tables from `cta` on; `inverse_scale` is requested.
#[inline(always)]
pub unsafe fn fp8<E: Element, const HEAD_DIM: u32, const SMOOTHED: bool>(
    p: &QuantizeParams,
    job: &Job,
    cta: u32,
    base: u32,
    position: Position,
    inverse_scale: Option<Eight>,
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
    let (octet, t) = (octet_of::<HEAD_DIM>(thread), lane / 8);
    // SAFETY: forwarded contract.
    let channels = unsafe { Channels::<SMOOTHED>::wait::<HEAD_DIM>(p, job.head, octet * 8, inverse_scale) };
    let table = cta + tables.lanes as u32;
    // The thread's place in the table, anew as in `Position::new`.
    let place = || {
        let thread = thread::reread_thread_idx_x();
        let (warp_index, lane) = (thread / 32, thread % 32);
        let first_feature = octet_of::<HEAD_DIM>(thread) * 8;
        Position { thread, lane: warp_index / halves * 4 + lane / 8, first_feature }
    };
    // A select an element, or five registers for masks and weights.
    let short_of_registers = const { HEAD_DIM > 128 || E::BYTES > 2 };
    let mut rounding = [0.0f32; 8];
    let mut round = 0;
    while round < ROUNDS {
        let group = warp_index / halves + round * (TOKENS / 16 / ROUNDS);
        let first = group * 16 + 2 * t;
        // SAFETY: the tile is there: the codes cover its first half only, after it has been read.
        let x =
            [0, 1, 8, 9].map(|offset| unsafe { E::raw8(base + ((first + offset) * HEAD_DIM + octet * 8) * E::BYTES) });
        let exists = [0, 1, 8, 9].map(|offset| job.first_token() + first + offset < p.seqlen_kv);
        // A token that does not exist is another one again: it has no code, and nothing was rounded.
        let bytes = [0xff, 0xff00, 0xff_0000, 0xff00_0000];
        let mask = [0, 1, 2, 3].map(|i| if exists[i] { bytes[i] } else { 0 });
        let mask = mask[0] | mask[1] | mask[2] | mask[3];
        let weight = exists.map(|exists| if exists { 1.0 } else { 0.0 });
        let mut words = [0; 8];
        let mut c = 0;
        while c < 8 {
            let mut x = [0, 1, 2, 3].map(|i| channels.scale(c, E::widen2(x[i], c / 2)[c % 2]));
            if short_of_registers {
                x = [0, 1, 2, 3].map(|i| if exists[i] { x[i] } else { 0.0 });
            }
            let word = convert::f32_to_e4m3x4(x);
            words[c] = if short_of_registers { word } else { word & mask };
            let [low, high] = convert::e4m3x4_to_f16x4(word);
            let value = [low, low >> 16, high, high >> 16].map(convert::f16_to_f32);
            let mut i = 0;
            while i < 4 {
                let difference = x[i] - value[i];
                rounding[c] = if short_of_registers {
                    rounding[c] + difference
                } else {
                    math::fma(difference, weight[i], rounding[c])
                };
                i += 1;
            }
            c += 1;
        }
        // SAFETY: all threads are here; each word of the codes' HEAD_DIM x 128 bytes is written by one thread, and so is its slot.
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
            global::stream_u32x4(p.v_codes + row + (job.first_token() + chunk * 16) as u64, bytes);
        }
        i += 1;
    }
    // SAFETY: forwarded contract.
    unsafe { stats::v_rounding::<HEAD_DIM>(p, job, thread, rounding) };
}
