//! One CTA at a time: its threads, its memory, and who waits for what.

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::barrier::{BARRIERS, Barrier};
use super::bulk::Flight;
use super::clocks::Clocks;
use super::copies::Copies;
use super::fault::{Fault, FaultKind, Site, Waiting};
use super::launch::Launch;
use super::memory::{Memory, Read};
use super::phases::Phases;
use super::products::Warpgroup;
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
    pub(super) memory: *mut Memory,
    pub(super) shared: Shared,
    pub(super) clocks: Clocks,
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
    pub(super) random: Random,
    pub(super) fault: Option<Fault>,
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

impl Machine {
    /// The CTA `block_idx` of `launch`, before its first instruction.
    pub(super) fn new(launch: &Launch, block_idx: [u32; 3], memory: *mut Memory) -> Self {
        let threads = launch.threads();
        let [x, y, z] = block_idx.map(u64::from);
        let mut random = Random(launch.seed ^ (x << 42) ^ (y << 21) ^ z);
        let pollution = [0xff, 0x80, 0x7f, 0x00][random.below(4)];
        Machine {
            launch: launch.clone(),
            block_idx,
            current: 0,
            memory,
            shared: Shared::new(launch.shared_bytes as usize, threads, pollution),
            clocks: Clocks::new(threads, MBARRIERS + threads / WARPGROUP),
            meetings: (0..threads.div_ceil(WARP)).map(|warp| Meeting::new((threads - warp * WARP).min(WARP))).collect(),
            barriers: std::array::from_fn(|_| Barrier::default()),
            copies: (0..threads).map(|_| Copies::default()).collect(),
            phases: BTreeMap::new(),
            flights: Vec::new(),
            warpgroups: (0..threads / WARPGROUP).map(|_| Warpgroup::default()).collect(),
            waits: vec![None; threads],
            ready: (0..threads as u16).collect(),
            finished: 0,
            random,
            fault: None,
        }
    }

    /// The device memory.
    pub(super) fn memory(&mut self) -> &mut Memory {
        // SAFETY: `Launch::run` holds the only reference for as long as the machine exists, and does not
        // use it meanwhile.
        unsafe { &mut *self.memory }
    }

    /// Index of the running thread in the whole launch.
    pub(super) fn global_thread(&self) -> u32 {
        let ([x, y, z], [grid_x, grid_y, _]) = (self.block_idx, self.launch.grid);
        ((z * grid_y + y) * grid_x + x) * self.launch.threads() as u32 + self.current as u32
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

    /// `ld.global` of `N` bytes.
    pub(crate) fn load_global<const N: usize>(&mut self, address: u64, how: Read) -> Result<[u8; N], FaultKind> {
        let thread = self.global_thread();
        self.memory().load(thread, address, N, how)
    }

    /// `st.global`.
    pub(crate) fn store_global(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let thread = self.global_thread();
        self.memory().store(thread, address, data)
    }

    /// `ld.shared` of `N` bytes.
    pub(crate) fn load_shared<const N: usize>(&mut self, address: u32, at: Site) -> Result<[u8; N], FaultKind> {
        self.shared.load(self.clocks.view(self.current), address, at)
    }

    /// `st.shared`.
    pub(crate) fn store_shared(&mut self, address: u32, data: &[u8], at: Site) -> Result<(), FaultKind> {
        self.shared.store(self.clocks.view(self.current), address, data, at)
    }

    /// `fence.proxy.async`.
    pub(crate) fn fence_proxy(&mut self) {
        self.clocks.fence_proxy(self.current);
    }

    /// The running thread will wait.
    pub(super) fn wait(&mut self, wait: Wait, at: Site) {
        self.waits[self.current] = Some((wait, at));
    }

    /// `thread` need not wait any more.
    pub(super) fn wake(&mut self, thread: usize) {
        self.waits[thread] = None;
        self.ready.push(thread as u16);
    }

    /// Takes what happens next: any thread that can run, any copy that can land.
    pub(super) fn next(&mut self) -> Option<Event> {
        let choices = self.ready.len() + self.flights.len();
        if choices == 0 {
            return None;
        }
        let index = self.random.below(choices);
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
