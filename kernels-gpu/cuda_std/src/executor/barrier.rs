//! Barriers of a CTA [bar, barrier].

use std::format;
use std::string::String;
use std::vec::Vec;

use super::clocks::Published;
use super::fault::{FaultKind, Site};
use super::machine::{Machine, WARP, Wait};

/// Barriers of a CTA.
pub(crate) const BARRIERS: usize = 16;

/// One barrier.
#[derive(Clone, Default)]
pub(super) struct Barrier {
    /// Threads it takes; 0 between uses.
    expected: usize,
    arrived: usize,
    /// Whether a thread that has arrived brought a condition that holds.
    any: bool,
    /// What `any` was when the last use ended: no thread can begin another before all have it.
    result: bool,
    /// Threads that sleep, and where.
    sleepers: Vec<(u16, Site)>,
    published: Published,
}

impl Barrier {
    pub(super) fn describe(&self, index: usize) -> String {
        format!("barrier {index}, where {} of {} threads have arrived", self.arrived, self.expected)
    }
}

impl Machine {
    /// `bar.sync index, threads` if `waits`, else `bar.arrive`. `None` if the thread must sleep.
    pub(crate) fn barrier(
        &mut self,
        index: u32,
        threads: Option<u32>,
        waits: bool,
        at: Site,
    ) -> Result<Option<()>, FaultKind> {
        let all = self.launch.threads();
        let expected = threads.map_or(all, |threads| threads as usize);
        if index as usize >= BARRIERS {
            return Err(FaultKind::Illegal(format!("there are {BARRIERS} barriers, not {index}")));
        }
        if threads.is_some() && (expected == 0 || !expected.is_multiple_of(WARP) || expected > all) {
            return Err(FaultKind::Illegal(format!(
                "barrier {index} for {expected} threads: whole warps of the CTA's {all} threads take part"
            )));
        }
        let (thread, warp) = (self.current, self.current / WARP);
        let grid = self.grid();
        let barrier = &mut self.barriers[index as usize];
        if barrier.arrived > 0 && barrier.expected != expected {
            return Err(FaultKind::Illegal(format!(
                "barrier {index} for {expected} threads, which others use for {}",
                barrier.expected
            )));
        }
        // `.aligned`: the lanes of a warp execute the same instruction.
        let other = barrier.sleepers.iter().find(|(other, site)| usize::from(*other) / WARP == warp && *site != at);
        if let Some(&(other, other_at)) = other {
            let name = format!("barrier {index}");
            return Err(FaultKind::Divergent { here: name.clone(), there: name, other_thread: other.into(), other_at });
        }
        barrier.expected = expected;
        barrier.arrived += 1;
        grid.clocks.release(self.base + thread, &mut barrier.published);
        if barrier.arrived < expected {
            if !waits {
                return Ok(Some(()));
            }
            barrier.sleepers.push((thread as u16, at));
            self.wait(Wait::Barrier(index as usize), at);
            return Ok(None);
        }
        let mut done = std::mem::take(&mut self.barriers[index as usize]);
        if waits {
            self.acquire(thread, &done.published);
        }
        for &(sleeper, _) in &done.sleepers {
            self.acquire(sleeper.into(), &done.published);
            self.wake(sleeper.into());
        }
        // The buffers are used again.
        done.sleepers.clear();
        done.published.clear();
        (done.arrived, done.expected) = (0, 0);
        (done.result, done.any) = (done.any, false);
        self.barriers[index as usize] = done;
        Ok(Some(()))
    }

    /// `bar.red.or`: as `bar.sync`; whether `condition` holds in any of the threads. `None` if the thread must sleep, and ask
    /// [`Machine::barrier_result`] then.
    pub(crate) fn barrier_or(
        &mut self,
        index: u32,
        threads: u32,
        condition: bool,
        at: Site,
    ) -> Result<Option<bool>, FaultKind> {
        if let Some(barrier) = self.barriers.get_mut(index as usize) {
            barrier.any |= condition;
        }
        Ok(self.barrier(index, Some(threads), true, at)?.map(|()| self.barrier_result(index)))
    }

    /// What the last `bar.red.or` of the barrier found.
    pub(crate) fn barrier_result(&self, index: u32) -> bool {
        self.barriers[index as usize].result
    }
}
