//! What all threads of a CTA know about their tile.

use cuda_std::shared;
use sage_spec::launch::WORK_BYTES;
use sage_spec::params::{QuantizeParams, TensorArg};
use sage_spec::schedule::{Progress, Role, Statistic, Work};

use super::element::Element;
use super::lanes::TOKENS;
use super::stats;
use super::tile::Source;
use crate::words::{join, split};

/// The work of a round, in shared memory before that of its [`Source`].
#[derive(Clone, Copy)]
pub struct Job {
    /// What to do; a number beyond the roles when nothing is left.
    pub role: u32,
    /// Flattened (batch, head) of the tile's own tensor.
    pub head: u32,
    /// Tile of the head.
    pub tile: u32,
    /// Word of `Progress` that counts the head's tiles; 0 if nobody does.
    pub counter: u32,
    /// Address of the row of statistics that the tile needs first; 0 if none.
    pub awaited: u64,
    /// Whether the tile's tokens are read once more later.
    pub read_again: bool,
}

/// Number of a role in [`Job::role`].
pub const fn code(role: Role) -> u32 {
    role as u32
}

/// [`Job::role`] when no ticket is left.
pub const DONE: u32 = 5;

impl Job {
    /// Bytes that a job has in shared memory; its source has as many after it.
    const BYTES: u32 = WORK_BYTES / 2;

    /// Works out `work` for the whole CTA.
    ///
    /// # Safety
    /// `slot` is read by nobody until a barrier.
    #[inline(always)]
    pub unsafe fn publish<E: Element, const HEAD_DIM: u32>(p: &QuantizeParams, slot: u32, work: Option<Work>) {
        let Some(Work { role, head_kv, tile }) = work else {
            let none = Job { role: DONE, head: 0, tile: 0, counter: 0, awaited: 0, read_again: false };
            // SAFETY: the caller vouches for the slot.
            unsafe {
                none.write(slot);
                Source::NONE.write(slot + Job::BYTES);
            }
            return;
        };
        let batch = p.schedule.by_heads_kv.quotient(head_kv);
        let mut head_in_batch = head_kv - batch * p.num_heads_kv;
        let (mut head, mut tile) = (head_kv, tile);
        let (x, tokens, head_dim, bit): (TensorArg, u32, u32, u32) = match role {
            Role::Q => {
                let in_group = p.schedule.by_query_blocks.quotient(tile);
                head_in_batch = head_in_batch * p.gqa_group + in_group;
                head = batch * p.num_heads_q + head_in_batch;
                tile -= in_group * p.seqlen_q.div_ceil(TOKENS);
                (p.q, p.seqlen_q, p.head_dim, 1)
            }
            Role::K | Role::KStatistics => (p.k, p.seqlen_kv, p.head_dim, 2),
            Role::V | Role::VStatistics => (p.v, p.seqlen_kv, p.head_dim_v, 4),
        };
        let awaited = match role {
            Role::K if p.k_mean != 0 => stats::statistic::<HEAD_DIM>(p, Statistic::KMean, head_kv),
            Role::Q if p.qk_mean != 0 => stats::statistic::<HEAD_DIM>(p, Statistic::KMean, head_kv),
            Role::V => stats::statistic::<HEAD_DIM>(p, Statistic::VInverseScale, head_kv),
            _ => 0,
        };
        let counter = match role {
            Role::V if p.v_rounding == 0 => 0,
            _ => Progress::counter(role, head_kv),
        };
        let read_again = matches!(role, Role::KStatistics | Role::VStatistics);
        let job = Job { role: code(role), head, tile, counter, awaited, read_again };
        let source = Source::new::<E>(&x, [batch, head_in_batch, tile], [tokens, head_dim], p.vectorized & bit != 0);
        // SAFETY: the caller vouches for the slot.
        unsafe {
            job.write(slot);
            source.write(slot + Job::BYTES);
        }
    }

    /// # Safety
    /// As for [`Job::publish`].
    #[inline(always)]
    unsafe fn write(&self, slot: u32) {
        let [low, high] = split(self.awaited);
        // SAFETY: the caller vouches for the slot.
        unsafe {
            shared::store_u32x4(slot, [self.role, self.head, self.tile, self.counter]);
            shared::store_u32x4(slot + 16, [low, high, self.read_again as u32, 0]);
        }
    }

    /// What [`Job::publish`] has left.
    ///
    /// # Safety
    /// A barrier lies between.
    #[inline(always)]
    pub unsafe fn read(slot: u32) -> Job {
        // SAFETY: the caller vouches for the barrier.
        let ([role, head, tile, counter], [low, high, read_again, _]) =
            unsafe { (shared::load_u32x4(slot), shared::load_u32x4(slot + 16)) };
        Job { role, head, tile, counter, awaited: join([low, high]), read_again: read_again != 0 }
    }

    /// Where the tile of the work at `slot` comes from.
    ///
    /// # Safety
    /// As for [`Job::read`].
    #[inline(always)]
    pub unsafe fn read_source(slot: u32) -> Source {
        // SAFETY: forwarded contract.
        unsafe { Source::read(slot + Job::BYTES) }
    }

    /// First token of the tile.
    #[inline(always)]
    pub fn first_token(&self) -> u32 {
        self.tile * TOKENS
    }
}
