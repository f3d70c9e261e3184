//! V to FP16.

use cuda_std::{convert, global};
use sage_spec::params::QuantizeParams;

use super::Channels;
use crate::quant::element::Element;
use crate::quant::job::Job;
use crate::quant::lanes::{PER_THREAD, Position, TOKENS};
use crate::quant::posted::Eight;
use crate::quant::tile;

/// 128 tokens to FP16, token-major.
///
/// # Safety
/// All threads of the CTA call it; the tile is in shared memory at `base`; `inverse_scale` is requested.
#[inline(always)]
pub unsafe fn f16<E: Element, const HEAD_DIM: u32, const SMOOTHED: bool>(
    p: &QuantizeParams,
    job: &Job,
    base: u32,
    position: Position,
    inverse_scale: Option<Eight>,
) {
    // SAFETY: forwarded contract.
    let channels =
        unsafe { Channels::<SMOOTHED>::wait::<HEAD_DIM>(p, job.head, position.first_feature, inverse_scale) };
    let first_row = (job.head as u64 * p.schedule.tiles_kv as u64 + job.tile as u64) * TOKENS as u64;
    let mut i = 0;
    while i < PER_THREAD {
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
        unsafe { global::stream_u32x4(p.v_codes + element * 2, packed) };
        i += 1;
    }
}
