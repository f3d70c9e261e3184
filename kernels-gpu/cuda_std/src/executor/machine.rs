//! One CTA at a time: its threads, its memory, and who waits for what.

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::barrier::{BARRIERS, Barrier};
use super::bulk::Flight;
use super::copies::Copies;
use super::fault::{Fault, FaultKind, Site, Waiting};
use super::grid::{Grid, actors};
use super::launch::Launch;
use super::phases::Phases;
use super::products::Warpgroup;
use super::shadow::Numbers;
use super::shared::Shared;
use super::warp::Meeting;

/// Threads of a warp.
pub(crate) const WARP: usize = 32;

/// Threads of a warpgroup.
pub(crate) const WARPGROUP: usize = 128;
/// Most mbarriers of a CTA.
pub(super) const MBARRIERS: usize = 64;

/// What a thread waits for.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// The other lanes of its warp.
    Warp,
    /// The other warps of its warpgroup.
    Warpgroup,
    /// A barrier of the CTA.
    Barrier(usize),
    /// A phase of the mbarrier at an address.
    Phase(u32),
}

/// What happens next.
pub(super) enum Event {
    /// A thread runs.
    Thread(usize),
    /// A bulk copy lands.
    Landing(Flight),
}

/// A CTA in execution, and the memory of its device.
pub(crate) struct Machine {
    pub(super) launch: Launch,
    pub(super) block_idx: [u32; 3],
    /// Index of the running thread.
    pub(super) current: usize,
    pub(super) grid: *mut Grid,
    /// Number of the first thread among the actors of the resident CTAs.
    pub(super) base: usize,
    pub(super) shared: Shared,
    pub(super) meetings: Vec<Meeting>,
    pub(super) barriers: [Barrier; BARRIERS],
    pub(super) copies: Vec<Copies>,
    /// Mbarriers by their addresses.
    pub(super) phases: BTreeMap<u32, Phases>,
    /// Bulk copies that have not landed.
    pub(super) flights: Vec<Flight>,
    pub(super) warpgroups: Vec<Warpgroup>,
    /// Per thread, what it waits for and where.
    pub(super) waits: Vec<Option<(Wait, Site)>>,
    /// Threads that can run.
    pub(super) ready: Vec<u16>,
    pub(super) finished: usize,
    pub(super) fault: Option<Fault>,
}

impl Machine {
    /// The CTA `block_idx` of `launch`, before its first instruction, as resident `slot` of `grid`.
    pub(super) fn new(launch: &Launch, block_idx: [u32; 3], slot: usize, grid: &mut Grid) -> Self {
        let threads = launch.threads();
        let base = slot * actors(threads);
        grid.clocks.renew(base..base + actors(threads), base + threads..base + actors(threads));
        let pollution = [0xff, 0x80, 0x7f, 0x00][grid.random.below(4)];
        Machine {
            launch: launch.clone(),
            block_idx,
            current: 0,
            grid,
            base,
            shared: Shared::new(launch.shared_bytes as usize, Numbers { base, threads }, pollution),
            meetings: (0..threads.div_ceil(WARP)).map(|warp| Meeting::new((threads - warp * WARP).min(WARP))).collect(),
            barriers: std::array::from_fn(|_| Barrier::default()),
            copies: (0..threads).map(|_| Copies::default()).collect(),
            phases: BTreeMap::new(),
            flights: Vec::new(),
            warpgroups: (0..threads / WARPGROUP).map(|_| Warpgroup::default()).collect(),
            waits: vec![None; threads],
            ready: (0..threads as u16).collect(),
            finished: 0,
            fault: None,
        }
    }

    /// Index of the running thread's CTA in the grid.
    pub(crate) fn block_idx(&self) -> [u32; 3] {
        self.block_idx
    }

    /// The launch.
    pub(crate) fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Index of the running thread in its CTA.
    pub(crate) fn thread_idx(&self) -> [u32; 3] {
        let ([x, y, _], thread) = (self.launch.block, self.current as u32);
        [thread % x, thread / x % y, thread / x / y]
    }

    /// Lane of the running thread in its warp.
    pub(crate) fn lane(&self) -> u32 {
        (self.current % WARP) as u32
    }

    /// `ld.shared` of `N` bytes.
    pub(crate) fn load_shared<const N: usize>(&mut self, address: u32, at: Site) -> Result<[u8; N], FaultKind> {
        self.shared.load(self.view(self.current), address, at)
    }

    /// `st.shared`.
    pub(crate) fn store_shared(&mut self, address: u32, data: &[u8], at: Site) -> Result<(), FaultKind> {
        self.shared.store(self.view(self.current), address, data, at)
    }

    /// `fence.proxy.async`.
    pub(crate) fn fence_proxy(&mut self) {
        self.grid().clocks.fence_proxy(self.base + self.current);
    }

    /// The running thread will wait.
    pub(super) fn wait(&mut self, wait: Wait, at: Site) {
        self.waits[self.current] = Some((wait, at));
    }

    /// `thread` need not wait any more.
    pub(super) fn wake(&mut self, thread: usize) {
        self.grid().progress();
        self.waits[thread] = None;
        self.ready.push(thread as u16);
    }

    /// Whether anything can happen: a thread can run, or a copy can land.
    pub(super) fn can_go_on(&self) -> bool {
        !self.ready.is_empty() || !self.flights.is_empty()
    }

    /// Takes what happens next: any thread that can run, any copy that can land.
    pub(super) fn next(&mut self) -> Option<Event> {
        if !self.can_go_on() {
            return None;
        }
        let index = self.grid().random.below(self.ready.len() + self.flights.len());
        Some(match index.checked_sub(self.ready.len()) {
            None => Event::Thread(self.ready.swap_remove(index).into()),
            Some(index) => Event::Landing(self.flights.swap_remove(index)),
        })
    }

    /// The running thread ends.
    pub(super) fn finish(&mut self) -> Result<(), FaultKind> {
        self.finished += 1;
        self.copies[self.current].check_finished()?;
        match self.warpgroups.get(self.current / WARPGROUP) {
            Some(warpgroup) => warpgroup.check_finished(),
            None => Ok(()),
        }
    }

    /// The fault of the running thread.
    pub(super) fn fault(&self, at: Option<Site>, kind: FaultKind) -> Fault {
        let Launch { name, seed, .. } = &self.launch;
        Fault { kernel: name.clone(), seed: *seed, block: self.block_idx, thread: self.current as u32, at, kind }
    }

    /// The fault of a CTA in which no thread can run and not all have ended.
    pub(super) fn deadlock(&mut self) -> Fault {
        let mut groups: BTreeMap<String, (Waiting, usize)> = BTreeMap::new();
        for (thread, wait) in self.waits.iter().enumerate() {
            let Some((wait, at)) = *wait else { continue };
            let what = self.describe(wait, thread);
            let key = format!("{what} {at}");
            let waiting = Waiting { thread: thread as u32, what, at };
            groups.entry(key).or_insert((waiting, 0)).1 += 1;
        }
        let mut waiting: Vec<_> = groups.into_values().collect();
        waiting.sort_by_key(|(waiting, _)| waiting.thread);
        if let Some((first, _)) = waiting.first() {
            self.current = first.thread as usize;
        }
        let at = waiting.first().map(|(first, _)| first.at);
        self.fault(at, FaultKind::Deadlock { waiting, finished: self.finished })
    }

    /// What a thread waits for, in words.
    fn describe(&self, wait: Wait, thread: usize) -> String {
        match wait {
            Wait::Warp => self.meetings[thread / WARP].describe(),
            Wait::Warpgroup => self.warpgroups[thread / WARPGROUP].describe(),
            Wait::Phase(address) => match self.phases.get(&address) {
                Some(phases) => phases.describe(address),
                None => "a barrier".into(),
            },
            Wait::Barrier(index) => self.barriers[index].describe(index),
        }
    }
}
