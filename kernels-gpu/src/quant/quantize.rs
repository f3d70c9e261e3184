//! The loop over tiles.

use cuda_std::{atomic, cp_async, hint, shared, thread, warp};
use sage_spec::launch::{WORK_BYTES, quantize_buffers};
use sage_spec::params::QuantizeParams;
use sage_spec::schedule::{Progress, Role, Schedule};

use super::element::Element;
use super::lanes::{Position, TOKENS};
use super::tile::{DONE, Job, code, smem};
use super::{qk, stats, v};

/// Quantizes Q, K and V, the latter to FP16 or FP8.
///
/// A round: start copying the next tile (where there is room for two, else this one); draw a ticket; wait for the
/// statistics that this tile needs and for its copies; then work. Copies and the ticket are on their way meanwhile.
///
/// # Safety
/// `sage_spec::params::QuantizeParams`, `sage_spec::launch::quantize`.
#[inline(always)]
pub unsafe fn quantize<E: Element, const HEAD_DIM: u32, const V_IS_F16: bool>(p: &QuantizeParams) {
    let buffers = const { quantize_buffers(HEAD_DIM as usize, E::BYTES as usize) as u32 };
    let cta = shared::dynamic_shared_mem();
    // Of round r: what to do, and the tile.
    let slot = |r: u32| cta + const { smem::<E, HEAD_DIM>() }.work as u32 + r % buffers * WORK_BYTES;
    let buffer = |r: u32| cta + r % buffers * (TOKENS * HEAD_DIM * E::BYTES);
    let ticket_word = p.progress + Progress::TICKET as u64 * 4;
    let mut round = 0;
    // SAFETY: one thread draws tickets; barriers separate writes of shared memory from reads; a ticket waits
    // for smaller ones only, and a CTA works on its tickets in ascending order, so that the smallest unfinished one is
    // being worked on; the rest is the caller's promise.
    unsafe {
        if thread::thread_idx_x() == 0 {
            let mut i = 0;
            while i < buffers {
                Job::publish::<E>(p, slot(i), p.schedule.work(atomic::add_relaxed(ticket_word, 1)));
                i += 1;
            }
        }
        thread::sync_threads();
        if buffers == 2 {
            stage::<E, HEAD_DIM>(p, &Job::read(slot(0)), buffer(0));
        }
        loop {
            let position = Position::new::<HEAD_DIM>();
            let job = Job::read(slot(round));
            if job.role == DONE {
                break;
            }
            let is = |role| job.role == code(role);
            let mut ticket = 0;
            if position.thread == 0 {
                // The lane, zero, in the address: where ptxas sees one word for all lanes it adds once for the warp
                // and waits for the sum here, to deal it out.
                ticket = atomic::add_relaxed(ticket_word + warp::lane_id() as u64 * 4, 1);
            }
            if buffers == 2 {
                stage::<E, HEAD_DIM>(p, &Job::read(slot(round + 1)), buffer(round + 1));
            } else {
                stage::<E, HEAD_DIM>(p, &job, buffer(round));
            }
            // In another warp than the ticket's.
            if position.thread == 32 {
                if is(Role::V) {
                    stats::wait(p.progress + Progress::v(job.head_kv) * 4);
                } else if is(Role::K) && p.k_mean != 0 || is(Role::Q) && p.qk_mean != 0 {
                    stats::wait(p.progress + Progress::k(job.head_kv) * 4);
                }
            }
            if buffers == 2 {
                cp_async::wait_group::<1>();
            } else {
                cp_async::wait_group::<0>();
            }
            thread::sync_threads();
            // Everybody has read the slot.
            if position.thread == 0 {
                // Anew: else what derives from the schedule has a register through all tiles.
                let schedule = Schedule { lookahead: hint::opaque(p.schedule.lookahead), ..p.schedule };
                Job::publish::<E>(p, slot(round), schedule.work(ticket));
            }
            let base = buffer(round);
            if is(Role::KStatistics) {
                stats::k::<E, HEAD_DIM>(p, &job, cta, base, position);
            } else if is(Role::VStatistics) {
                stats::v::<E, HEAD_DIM, V_IS_F16>(p, &job, cta, base, position);
            } else if is(Role::Q) {
                qk::q::<E, HEAD_DIM>(p, &job, cta, base, position);
            } else if is(Role::K) {
                qk::k::<E, HEAD_DIM>(p, &job, cta, base, position);
            } else {
                // A module has what its kernels need.
                #[cfg(feature = "sm_80")]
                if V_IS_F16 {
                    v::f16::<E, HEAD_DIM>(p, &job, cta, base, position);
                }
                #[cfg(any(feature = "sm_89", feature = "sm_90a"))]
                if !V_IS_F16 {
                    v::fp8::<E, HEAD_DIM>(p, &job, cta, base, position);
                }
            }
            thread::sync_threads();
            round += 1;
        }
    }
}

/// Starts copying the tile of `job`, if there is one, to `buffer`, as one group.
///
/// # Safety
/// As for [`Job::stage`].
#[inline(always)]
unsafe fn stage<E: Element, const HEAD_DIM: u32>(p: &QuantizeParams, job: &Job, buffer: u32) {
    let is = |role| job.role == code(role);
    if job.role != DONE {
        let (tokens, bit, head_dim) = if is(Role::Q) {
            (p.seqlen_q, 1, p.head_dim)
        } else if is(Role::K) || is(Role::KStatistics) {
            (p.seqlen_kv, 2, p.head_dim)
        } else {
            (p.seqlen_kv, 4, p.head_dim_v)
        };
        // K and V are read twice, and the second read finds them in the cache if nothing else stays there.
        let read_again = is(Role::KStatistics) || is(Role::VStatistics);
        let policy = if read_again { cp_async::evict_last() } else { cp_async::evict_first() };
        let vectorized = p.vectorized & bit != 0;
        let position = Position::new::<HEAD_DIM>();
        // SAFETY: the caller vouches for the buffer.
        unsafe { job.stage::<E, HEAD_DIM, false>(buffer, position, tokens, head_dim, vectorized, Some(policy)) };
    }
    cp_async::commit_group();
}
