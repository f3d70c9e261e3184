//! The loop over tiles.

use cuda_std::{atomic, cp_async, shared, thread};
use sage_spec::params::QuantizeParams;
use sage_spec::schedule::{Progress, Role};

use super::element::Element;
use super::lanes::Position;
use super::tile::{DONE, Job, code, smem};
use super::{qk, stats, v};

/// Quantizes Q, K and V, the latter to FP16 or FP8.
///
/// A round: start copying the tile; draw the next ticket; wait for the statistics that the tile needs and for
/// the copies; then work. The next ticket is on its way meanwhile. Several CTAs on a multiprocessor overlap
/// their copies and their work.
///
/// # Safety
/// `sage_spec::params::QuantizeParams`, `sage_spec::launch::quantize`.
#[inline(always)]
pub unsafe fn quantize<E: Element, const HEAD_DIM: u32, const V_IS_F16: bool>(p: &QuantizeParams) {
    let base = shared::dynamic_shared_mem();
    let slot = base + const { smem::<E, HEAD_DIM>() }.work as u32;
    let ticket_word = p.progress + Progress::TICKET as u64 * 4;
    // SAFETY: one thread draws tickets; barriers separate writes of shared memory from reads; a ticket waits
    // for smaller ones only, which running CTAs have drawn; the rest is the caller's promise.
    unsafe {
        if thread::thread_idx_x() == 0 {
            Job::publish::<E>(p, slot, p.schedule.work(atomic::add_relaxed(ticket_word, 1)));
        }
        thread::sync_threads();
        loop {
            let position = Position::new::<HEAD_DIM>();
            let job = Job::read(slot);
            if job.role == DONE {
                break;
            }
            let is = |role| job.role == code(role);
            let (tokens, bit, head_dim) = if is(Role::Q) {
                (p.seqlen_q, 1, p.head_dim)
            } else if is(Role::K) || is(Role::KStatistics) {
                (p.seqlen_kv, 2, p.head_dim)
            } else {
                (p.seqlen_kv, 4, p.head_dim_v)
            };
            job.stage::<E, HEAD_DIM, false>(base, position, tokens, head_dim, p.vectorized & bit != 0);
            cp_async::commit_group();
            let mut ticket = 0;
            if position.thread == 0 {
                ticket = atomic::add_relaxed(ticket_word, 1);
                if is(Role::V) {
                    stats::wait(p.progress + Progress::v(job.head_kv) * 4);
                } else if is(Role::K) && p.k_mean != 0 || is(Role::Q) && p.qk_mean != 0 {
                    stats::wait(p.progress + Progress::k(job.head_kv) * 4);
                }
            }
            cp_async::wait_group::<0>();
            thread::sync_threads();
            // Everybody has read the slot.
            if position.thread == 0 {
                Job::publish::<E>(p, slot, p.schedule.work(ticket));
            }
            if is(Role::KStatistics) {
                stats::k::<E, HEAD_DIM>(p, &job, base, position);
            } else if is(Role::VStatistics) {
                stats::v::<E, HEAD_DIM, V_IS_F16>(p, &job, base, position);
            } else if is(Role::Q) {
                qk::q::<E, HEAD_DIM>(p, &job, base, position);
            } else if is(Role::K) {
                qk::k::<E, HEAD_DIM>(p, &job, base, position);
            } else {
                // A module has what its kernels need.
                #[cfg(feature = "sm_80")]
                if V_IS_F16 {
                    v::f16::<E, HEAD_DIM>(p, &job, base, position);
                }
                #[cfg(any(feature = "sm_89", feature = "sm_90a"))]
                if !V_IS_F16 {
                    v::fp8::<E, HEAD_DIM>(p, &job, base, position);
                }
            }
            thread::sync_threads();
        }
    }
}
