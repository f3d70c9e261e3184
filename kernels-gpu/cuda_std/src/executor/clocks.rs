//! Vector clocks: which accesses of other threads a thread is ordered after.

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
}

/// For each pair of threads (a, b) the latest moment of thread b that thread a is ordered after, and the
/// latest whose generic writes the asynchronous proxy sees too if thread a asks it.
pub(super) struct Clocks {
    threads: usize,
    seen: Vec<u32>,
    proxied: Vec<u32>,
}

impl Clocks {
    pub(super) fn new(threads: usize) -> Self {
        let mut clocks = Clocks { threads, seen: Vec::new(), proxied: Vec::new() };
        clocks.seen.resize(threads * threads, 0);
        clocks.proxied.resize(threads * threads, 0);
        for thread in 0..threads {
            clocks.tick(thread);
        }
        clocks
    }

    fn row(&self, thread: usize) -> std::ops::Range<usize> {
        thread * self.threads..(thread + 1) * self.threads
    }

    /// The present moment of `thread`.
    pub(super) fn now(&self, thread: usize) -> u32 {
        self.seen[thread * self.threads + thread]
    }

    /// Starts the next moment of `thread`.
    fn tick(&mut self, thread: usize) {
        self.seen[thread * self.threads + thread] += 1;
    }

    /// Whether `thread` is ordered after moment `moment` of `other`.
    pub(super) fn ordered(&self, thread: usize, other: usize, moment: u32) -> bool {
        self.seen[thread * self.threads + other] >= moment
    }

    /// Whether the asynchronous proxy, asked by `thread`, sees what `other` wrote at `moment`.
    pub(super) fn proxied(&self, thread: usize, other: usize, moment: u32) -> bool {
        self.proxied[thread * self.threads + other] >= moment
    }

    /// `thread` makes all writes it is ordered after visible to the asynchronous proxy.
    pub(super) fn fence_proxy(&mut self, thread: usize) {
        let row = self.row(thread);
        join(&mut self.proxied[row.clone()], &self.seen[row]);
        self.tick(thread);
    }

    /// `thread` publishes what it has done and seen.
    pub(super) fn release(&mut self, thread: usize, to: &mut Published) {
        to.seen.resize(self.threads, 0);
        to.proxied.resize(self.threads, 0);
        let row = self.row(thread);
        join(&mut to.seen, &self.seen[row.clone()]);
        join(&mut to.proxied, &self.proxied[row]);
        self.tick(thread);
    }

    /// `thread` is ordered after all that was released.
    pub(super) fn acquire(&mut self, thread: usize, from: &Published) {
        let row = self.row(thread);
        join(&mut self.seen[row.clone()], &from.seen);
        join(&mut self.proxied[row], &from.proxied);
    }
}

fn join(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_acquire_order_what_came_before() {
        let mut clocks = Clocks::new(3);
        let before = clocks.now(0);
        assert!(clocks.ordered(0, 0, before) && !clocks.ordered(1, 0, before));
        let mut barrier = Published::default();
        clocks.release(0, &mut barrier);
        let after = clocks.now(0);
        clocks.acquire(1, &barrier);
        assert!(clocks.ordered(1, 0, before) && !clocks.ordered(1, 0, after));
        assert!(!clocks.ordered(2, 0, before));
        // Order is transitive.
        let mut next = Published::default();
        clocks.release(1, &mut next);
        clocks.acquire(2, &next);
        assert!(clocks.ordered(2, 0, before));
    }

    #[test]
    fn a_fence_on_either_side_of_a_barrier_reaches_the_proxy() {
        for writer_fences in [true, false] {
            let mut clocks = Clocks::new(2);
            let write = clocks.now(0);
            if writer_fences {
                clocks.fence_proxy(0);
            }
            let mut barrier = Published::default();
            clocks.release(0, &mut barrier);
            clocks.acquire(1, &barrier);
            assert_eq!(clocks.proxied(1, 0, write), writer_fences);
            clocks.fence_proxy(1);
            assert!(clocks.proxied(1, 0, write));
        }
    }
}
