//! What the CTAs of a launch share: device memory, its synchronisation, and time.

use std::collections::BTreeMap;
use std::format;
use std::vec;

use super::clocks::{Clocks, Published, View};
use super::fault::{FaultKind, Site, Waiting};
use super::machine::{MBARRIERS, Machine, WARPGROUP};
use super::memory::{Memory, Read};

/// How often threads may look at words that do not change, one after the other, before that counts as waiting
/// in vain.
const MAX_SPINS: u32 = 100_000;

/// Everything beyond the CTAs.
pub(super) struct Grid {
    pub(super) memory: *mut Memory,
    pub(super) clocks: Clocks,
    pub(super) random: Random,
    /// What atomic operations on a word have published.
    words: BTreeMap<u64, Published>,
    /// Looks at words since something last happened.
    spins: u32,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct Random(u64);

impl Random {
    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Actors of a CTA: its threads, its mbarriers, its warpgroups.
pub(super) fn actors(threads: usize) -> usize {
    threads + MBARRIERS + threads / WARPGROUP
}

impl Grid {
    /// For up to `residents` CTAs of `threads` threads at a time.
    pub(super) fn new(memory: *mut Memory, threads: usize, residents: usize, seed: u64) -> Self {
        Grid {
            memory,
            clocks: Clocks::new(residents * actors(threads)),
            random: Random(seed),
            words: BTreeMap::new(),
            spins: 0,
        }
    }

    /// Something happened: whoever looks again may see something new.
    pub(super) fn progress(&mut self) {
        self.spins = 0;
    }
}

/// How an atomic operation orders memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Not at all.
    Relaxed,
    /// Earlier accesses of others before later ones of this thread.
    Acquire,
    /// Earlier accesses of this thread before later ones of others.
    Release,
    /// Both.
    AcquireRelease,
}

impl Machine {
    /// The launch's part. Nobody keeps what it returns beyond an instruction.
    pub(super) fn grid<'a>(&self) -> &'a mut Grid {
        // SAFETY: `Launch::run` owns the grid for as long as there are machines, and no reference to it lives
        // while a machine executes an instruction.
        unsafe { &mut *self.grid }
    }

    /// The device memory.
    pub(super) fn memory<'a>(&self) -> &'a mut Memory {
        // SAFETY: `Launch::run` holds the only reference for as long as there are machines, and does not use
        // it meanwhile.
        unsafe { &mut *self.grid().memory }
    }

    /// What `thread` of this CTA knows.
    pub(super) fn view<'a>(&self, thread: usize) -> View<'a> {
        self.grid().clocks.view(self.base + thread)
    }

    /// `thread` publishes what it has done and seen.
    pub(super) fn release(&self, thread: usize, to: &mut Published) {
        self.grid().clocks.release(self.base + thread, to);
    }

    /// `thread` is ordered after what was published.
    pub(super) fn acquire(&self, thread: usize, from: &Published) {
        self.grid().clocks.acquire(self.base + thread, from);
    }

    /// `ld.global` of `N` bytes.
    pub(crate) fn load_global<const N: usize>(&mut self, address: u64, how: Read) -> Result<[u8; N], FaultKind> {
        self.memory().load(self.view(self.current), address, N, how)
    }

    /// `st.global`.
    pub(crate) fn store_global(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        self.grid().progress();
        self.memory().store(self.view(self.current), address, data)
    }

    /// An atomic operation that replaces a word by `change(word)`; the old word.
    pub(crate) fn atomic(
        &mut self,
        address: u64,
        order: Order,
        change: impl FnOnce(u32) -> u32,
    ) -> Result<u32, FaultKind> {
        let mut published = self.grid().words.remove(&address).unwrap_or_default();
        let mut new = None;
        let old = self.memory().atomic(address, |old| *new.insert(change(old)))?;
        if new != Some(old) {
            self.grid().progress();
        }
        if matches!(order, Order::Acquire | Order::AcquireRelease) {
            self.acquire(self.current, &published);
        }
        if matches!(order, Order::Release | Order::AcquireRelease) {
            self.release(self.current, &mut published);
        }
        self.grid().words.insert(address, published);
        Ok(old)
    }

    /// The running thread lets others run before it looks at the word `address`.
    pub(crate) fn spin(&mut self, address: u64, at: Site) -> Result<Option<()>, FaultKind> {
        let grid = self.grid();
        grid.spins += 1;
        if grid.spins > MAX_SPINS {
            let what = format!("global word {address:#x} to change, which nobody is going to do");
            let waiting = vec![(Waiting { thread: self.current as u32, what, at }, 1)];
            return Err(FaultKind::Deadlock { waiting, finished: self.finished });
        }
        self.ready.push(self.current as u16);
        Ok(None)
    }
}
