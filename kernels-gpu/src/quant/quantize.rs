//! The loop over tiles.

use cuda_std::{atomic, cp_async, hint, shared, thread, warp};
use sage_spec::launch::{WORK_BYTES, quantize_buffers};
use sage_spec::params::QuantizeParams;
use sage_spec::schedule::{Progress, Role};

use super::element::Element;
use super::job::{DONE, Job, code};
use super::lanes::{LANES, Position, TOKENS};
use super::posted::Eight;
use super::tile::smem;
use super::{qk, stats, v};

/// Quantizes Q, K and V, the latter to FP16 or FP8.
///
/// A round: request the statistics that this tile needs; draw a ticket; start copying the next tile (where there is room for
/// two, else this one); wait for this tile's copies, then work. Statistics, copies and the ticket are on their way meanwhile.
/// If the statistics have not come then, and the next tile needs none, it comes first.
///
/// # Safety
/// `sage_spec::params::QuantizeParams`, `sage_spec::launch::quantize`.
#[inline(always)]
pub unsafe fn quantize<E: Element, const HEAD_DIM: u32, const V_IS_F16: bool>(p: &QuantizeParams) {
    let buffers = const { quantize_buffers(HEAD_DIM as usize, E::BYTES as usize) as u32 };
    let cta = shared::dynamic_shared_mem();
    // What to do, and the tile.
    let slot = |i: u32| cta + const { smem::<E, HEAD_DIM>() }.work as u32 + i * WORK_BYTES;
    let buffer = |i: u32| cta + i * (TOKENS * HEAD_DIM * E::BYTES);
    // Where there is room for one tile only it is this one.
    let other = |i: u32| buffers - 1 - i;
    let ticket_word = p.progress + Progress::TICKET as u64 * 4;
    // The older one, whose copies have started if there is room for two.
    let mut first = 0;
    let is_last = cta + const { smem::<E, HEAD_DIM>() }.is_last as u32;
    // SAFETY: one thread draws tickets; barriers separate writes of shared memory from reads; a ticket waits
    // for smaller ones and for tiles that are begun, and a CTA works on its tickets in ascending order, but for those that wait
    // for nothing, so that the smallest unfinished one is being worked on; the rest is the caller's promise.
    unsafe {
        if thread::thread_idx_x() == 0 {
            let mut i = 0;
            while i < buffers {
                Job::publish::<E, HEAD_DIM>(p, slot(i), p.schedule.work(atomic::add_relaxed(ticket_word, 1)));
                i += 1;
            }
        }
        thread::sync_threads();
        if buffers == 2 {
            stage::<E, HEAD_DIM>(slot(0), buffer(0), Position::new::<HEAD_DIM>());
        }
        loop {
            let position = Position::new::<HEAD_DIM>();
            let (mut now, mut job) = (first, Job::read(slot(first)));
            if job.role == DONE {
                break;
            }
            // K's mean, or the reciprocals of V's scales, for the thread's features.
            let mut statistics = if job.awaited != 0 {
                let channel = v::first_channel::<HEAD_DIM, V_IS_F16>(position);
                let feature = if job.role == code(Role::V) { channel } else { position.first_feature };
                Some(Eight::request(job.awaited + (feature * 4) as u64))
            } else {
                None
            };
            // The lane, zero, in the address: where ptxas sees one word for all lanes it adds once for the warp
            // and waits for the sum here, to deal it out.
            let lane = warp::lane_id() as u64 * 4;
            let (mut ticket, mut begun) = (0, 0);
            if position.thread == 0 {
                ticket = atomic::add_relaxed(ticket_word + lane, 1);
            }
            stage::<E, HEAD_DIM>(slot(other(first)), buffer(other(first)), position);
            if buffers == 2 {
                cp_async::wait_group::<1>();
                let waits = statistics.is_some_and(|statistics| !statistics.are_here());
                if warp::vote_any(thread::any_named(1, const { LANES * HEAD_DIM / 8 }, waits)) {
                    let next = Job::read(slot(other(first)));
                    if next.role != DONE && next.awaited == 0 {
                        (now, job, statistics) = (other(first), next, None);
                        cp_async::wait_group::<0>();
                        thread::sync_threads();
                    }
                }
            } else {
                cp_async::wait_group::<0>();
                thread::sync_threads();
            }
            // Everybody has read the slot.
            if position.thread == 0 {
                if job.counter != 0 {
                    begun = atomic::add_relaxed(p.progress + job.counter as u64 * 4 + lane, 1) + 1;
                }
                // Anew: else what derives from the schedule has a register through all tiles.
                let mut schedule = p.schedule;
                schedule.lookahead = hint::opaque(schedule.lookahead);
                Job::publish::<E, HEAD_DIM>(p, slot(now), schedule.work(ticket));
            }
            first = other(now);
            let is = |role| job.role == code(role);
            let base = buffer(now);
            // Who has begun the last tile of a head reduces what all of them leave: the others are being finished, and wait for
            // smaller tickets only.
            let reduces = || {
                if thread::reread_thread_idx_x() == 0 {
                    shared::store_u32(is_last, (begun == p.schedule.tiles_kv) as u32);
                }
                thread::sync_threads();
                shared::load_u32(is_last) != 0
            };
            if is(Role::KStatistics) {
                stats::k::<E, HEAD_DIM>(p, &job, cta, base, position);
                if reduces() {
                    stats::reduce_k::<E, HEAD_DIM>(p, job.head, cta, thread::reread_thread_idx_x());
                }
            } else if is(Role::VStatistics) {
                stats::v::<E, HEAD_DIM>(p, &job, cta, base, position);
                if reduces() {
                    stats::reduce_v::<E, HEAD_DIM, V_IS_F16>(p, job.head, cta, thread::reread_thread_idx_x());
                }
            } else if is(Role::Q) {
                qk::q::<E, HEAD_DIM>(p, &job, cta, base, position, statistics);
            } else if is(Role::K) {
                qk::k::<E, HEAD_DIM>(p, &job, cta, base, position, statistics);
            } else {
                // A module has what its kernels need.
                #[cfg(feature = "sm_80")]
                if V_IS_F16 {
                    if p.v_mean != 0 {
                        v::f16::f16::<E, HEAD_DIM, true>(p, &job, base, position, statistics);
                    } else {
                        v::f16::f16::<E, HEAD_DIM, false>(p, &job, base, position, statistics);
                    }
                }
                #[cfg(any(feature = "sm_89", feature = "sm_90a"))]
                if !V_IS_F16 {
                    if p.v_mean != 0 {
                        v::fp8::fp8::<E, HEAD_DIM, true>(p, &job, cta, base, position, statistics);
                    } else {
                        v::fp8::fp8::<E, HEAD_DIM, false>(p, &job, cta, base, position, statistics);
                    }
                    if reduces() {
                        stats::reduce_rounding::<E, HEAD_DIM>(p, job.head, cta, thread::reread_thread_idx_x());
                    }
                }
            }
            thread::sync_threads();
        }
    }
}

/// Starts copying the tile of the work at `slot`, if there is one, to `buffer`, as one group.
///
/// # Safety
/// As for [`Job::read`] and [`Source::stage`](super::tile::Source::stage).
#[inline(always)]
unsafe fn stage<E: Element, const HEAD_DIM: u32>(slot: u32, buffer: u32, position: Position) {
    // SAFETY: forwarded contract.
    unsafe {
        let (job, source) = (Job::read(slot), Job::read_source(slot));
        // K and V are read twice, and the second read finds them in the cache if nothing else stays there. A policy is a
        // descriptor in uniform registers, where each copy would move one that was chosen before.
        if job.role != DONE {
            if job.read_again {
                source.stage::<E, HEAD_DIM, false>(buffer, position, Some(cp_async::evict_last()));
            } else {
                source.stage::<E, HEAD_DIM, false>(buffer, position, Some(cp_async::evict_first()));
            }
        }
    }
    cp_async::commit_group();
}
