//! Vector clocks: which accesses of other actors a thread is ordered after.
//!
//! Actors are the threads of the CTA and what works beside them: each mbarrier stands for the copies that
//! complete on it, each warpgroup for its asynchronous products.

use std::vec;
use std::vec::Vec;

/// What a synchronisation object (a barrier, say) passes from one thread to another.
#[derive(Clone, Default)]
pub(crate) struct Published {
    seen: Vec<u32>,
    proxied: Vec<u32>,
}

impl Published {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.proxied.clear();
    }

    /// Adds what `other` passes on.
    pub(super) fn join(&mut self, other: &Published) {
        self.seen.resize(self.seen.len().max(other.seen.len()), 0);
        self.proxied.resize(self.proxied.len().max(other.proxied.len()), 0);
        join(&mut self.seen, &other.seen);
        join(&mut self.proxied, &other.proxied);
    }
}

/// What one actor knows at the moment of an access.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// The actor.
    pub(super) actor: usize,
    /// Its present moment.
    pub(super) now: u32,
    seen: &'a [u32],
    proxied: &'a [u32],
}

impl View<'_> {
    /// Whether the actor is ordered after moment `moment` of `other`.
    pub(super) fn ordered(&self, other: usize, moment: u32) -> bool {
        other == self.actor || self.seen[other] >= moment
    }

    /// Whether the asynchronous proxy sees what `other` wrote at `moment`.
    pub(super) fn proxied(&self, other: usize, moment: u32) -> bool {
        self.proxied[other] >= moment
    }
}

/// For each pair of actors a and b the latest moment of b that a is ordered after, and the latest whose generic
/// writes the asynchronous proxy sees too if a asks it.
pub(super) struct Clocks {
    actors: usize,
    seen: Vec<u32>,
    proxied: Vec<u32>,
}

impl Clocks {
    /// For `actors` actors, all of which start at moment 1.
    pub(super) fn new(actors: usize) -> Self {
        let (seen, proxied) = (vec![0; actors * actors], vec![0; actors * actors]);
        let mut clocks = Clocks { actors, seen, proxied };
        (0..actors).for_each(|actor| clocks.tick(actor));
        clocks
    }

    /// The actors of a CTA are `cta`, and of those that are no threads, `others`, new ones take the place: nothing
    /// is known of their moments, which start over.
    pub(super) fn renew(&mut self, cta: std::ops::Range<usize>, others: std::ops::Range<usize>) {
        for actor in cta {
            let row = self.row(actor);
            self.seen[row][others.clone()].fill(0);
        }
    }

    fn row(&self, thread: usize) -> std::ops::Range<usize> {
        thread * self.actors..(thread + 1) * self.actors
    }

    /// What `thread` knows.
    pub(super) fn view(&self, thread: usize) -> View<'_> {
        let row = self.row(thread);
        let seen = &self.seen[row.clone()];
        View { actor: thread, now: seen[thread], seen, proxied: &self.proxied[row] }
    }

    /// What all of `threads` know, as `actor` at moment `now`; `common` is room for it.
    pub(super) fn common<'a>(
        &self,
        threads: impl Iterator<Item = usize>,
        actor: usize,
        now: u32,
        common: &'a mut [Vec<u32>; 2],
    ) -> View<'a> {
        common.iter_mut().for_each(|row| {
            row.clear();
            row.resize(self.actors, u32::MAX);
        });
        let [seen, proxied] = common;
        for thread in threads {
            let row = self.row(thread);
            meet(seen, &self.seen[row.clone()]);
            meet(proxied, &self.proxied[row]);
        }
        View { actor, now, seen, proxied }
    }

    /// Starts the next moment of `thread`.
    fn tick(&mut self, thread: usize) {
        self.seen[thread * self.actors + thread] += 1;
    }

    /// `thread` makes all writes it is ordered after visible to the asynchronous proxy.
    pub(super) fn fence_proxy(&mut self, thread: usize) {
        let row = self.row(thread);
        join(&mut self.proxied[row.clone()], &self.seen[row]);
        self.tick(thread);
    }

    /// `thread` publishes what it has done and seen.
    pub(super) fn release(&mut self, thread: usize, to: &mut Published) {
        to.seen.resize(self.actors, 0);
        to.proxied.resize(self.actors, 0);
        let row = self.row(thread);
        join(&mut to.seen, &self.seen[row.clone()]);
        join(&mut to.proxied, &self.proxied[row]);
        self.tick(thread);
    }

    /// `actor`, which is no thread, publishes its moments up to `moment`.
    pub(super) fn release_actor(&self, actor: usize, moment: u32, to: &mut Published) {
        to.seen.resize(self.actors, 0);
        to.seen[actor] = to.seen[actor].max(moment);
    }

    /// `thread` is ordered after all that was released.
    pub(super) fn acquire(&mut self, thread: usize, from: &Published) {
        let row = self.row(thread);
        join(&mut self.seen[row.clone()], &from.seen);
        join(&mut self.proxied[row], &from.proxied);
    }

    /// `thread` is ordered after `actor`'s moments up to `moment`.
    pub(super) fn acquire_actor(&mut self, thread: usize, actor: usize, moment: u32) {
        let entry = &mut self.seen[thread * self.actors + actor];
        *entry = (*entry).max(moment);
    }
}

fn join(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
}

fn meet(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).min(*b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_acquire_order_what_came_before() {
        let mut clocks = Clocks::new(3);
        let before = clocks.view(0).now;
        assert!(clocks.view(0).ordered(0, before) && !clocks.view(1).ordered(0, before));
        let mut barrier = Published::default();
        clocks.release(0, &mut barrier);
        let after = clocks.view(0).now;
        clocks.acquire(1, &barrier);
        assert!(clocks.view(1).ordered(0, before) && !clocks.view(1).ordered(0, after));
        assert!(!clocks.view(2).ordered(0, before));
        // Order is transitive.
        let mut next = Published::default();
        clocks.release(1, &mut next);
        clocks.acquire(2, &next);
        assert!(clocks.view(2).ordered(0, before));
    }

    #[test]
    fn a_fence_on_either_side_of_a_barrier_reaches_the_proxy() {
        for writer_fences in [true, false] {
            let mut clocks = Clocks::new(2);
            let write = clocks.view(0).now;
            if writer_fences {
                clocks.fence_proxy(0);
            }
            let mut barrier = Published::default();
            clocks.release(0, &mut barrier);
            clocks.acquire(1, &barrier);
            assert_eq!(clocks.view(1).proxied(0, write), writer_fences);
            clocks.fence_proxy(1);
            assert!(clocks.view(1).proxied(0, write));
        }
    }

    #[test]
    fn threads_together_know_what_each_of_them_knows() {
        let mut clocks = Clocks::new(5);
        let copies = 3;
        clocks.acquire_actor(0, copies, 5);
        clocks.acquire_actor(1, copies, 3);
        let mut room = Default::default();
        let view = clocks.common([0, 1].into_iter(), copies + 1, 1, &mut room);
        assert!(view.ordered(copies, 3) && !view.ordered(copies, 4));
    }
}
