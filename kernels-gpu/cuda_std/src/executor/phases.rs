//! Mbarriers: arrivals of threads and bytes of copies, counted in phases [mbarrier].

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::clocks::Published;
use super::fault::{FaultKind, Site};
use super::machine::{MBARRIERS, Machine, Wait};

/// An mbarrier.
pub(super) struct Phases {
    /// Its number among the CTA's mbarriers.
    index: usize,
    /// Arrivals of a phase.
    expected: u32,
    /// Arrivals that the present phase lacks.
    pending: u32,
    /// Announced bytes that have not come.
    bytes: i64,
    /// Phases completed.
    completed: u64,
    /// What the present phase's arrivals and copies publish.
    gathering: Published,
    /// What the last phase's did.
    last: Published,
    sleepers: Vec<u16>,
    /// Per thread, one more than the last phase it has waited for; 0 if it has waited for none.
    waited: Vec<u64>,
    /// Actor and moment of its initialisation.
    born: (usize, u32),
    /// Whether a fence has made it visible to copies.
    fenced: bool,
}

impl Phases {
    pub(super) fn describe(&self, address: u32) -> String {
        format!(
            "phase {} of mbarrier {address:#x}, which lacks {} of {} arrivals and {} bytes",
            self.completed, self.pending, self.expected, self.bytes
        )
    }
}

fn wrong(barrier: u32, what: &str) -> FaultKind {
    FaultKind::Barrier { barrier, what: what.into() }
}

impl Machine {
    /// `mbarrier.init`.
    pub(crate) fn init_phases(&mut self, address: u32, expected: u32, at: Site) -> Result<(), FaultKind> {
        if self.phases.contains_key(&address) {
            return Err(wrong(address, "it is initialised a second time"));
        }
        if self.phases.len() == MBARRIERS {
            return Err(FaultKind::Illegal(format!("the executor has room for {MBARRIERS} mbarriers")));
        }
        // 20 bits [mbarrier, Size and range].
        if !(1..1 << 20).contains(&expected) {
            return Err(wrong(address, "it expects 1 to 2^20 - 1 arrivals"));
        }
        let view = self.view(self.current);
        self.shared.make_object(view, address, at)?;
        let phases = Phases {
            index: self.phases.len(),
            expected,
            pending: expected,
            bytes: 0,
            completed: 0,
            gathering: Published::default(),
            last: Published::default(),
            sleepers: Vec::new(),
            waited: vec![0; self.launch.threads()],
            born: (view.actor, view.now),
            fenced: false,
        };
        self.phases.insert(address, phases);
        Ok(())
    }

    /// `fence.mbarrier_init`.
    pub(crate) fn fence_phases(&mut self) {
        let thread = self.base + self.current;
        self.phases.values_mut().filter(|phases| phases.born.0 == thread).for_each(|phases| phases.fenced = true);
    }

    /// The mbarrier at `address`, if the running thread may use it.
    fn phases(&mut self, address: u32) -> Result<&mut Phases, FaultKind> {
        let view = self.view(self.current);
        let Some(phases) = self.phases.get_mut(&address) else {
            return Err(wrong(address, "there is none at this address"));
        };
        let (thread, moment) = phases.born;
        if !view.ordered(thread, moment) {
            return Err(wrong(address, "no barrier lies between its initialisation and this thread"));
        }
        Ok(phases)
    }

    /// `mbarrier.arrive`, after announcing `bytes`.
    pub(crate) fn arrive_phase(&mut self, address: u32, bytes: u32) -> Result<(), FaultKind> {
        let thread = self.current;
        let phases = self.phases(address)?;
        if phases.pending == 0 {
            return Err(wrong(address, "more threads arrive in a phase than it expects"));
        }
        phases.bytes += i64::from(bytes);
        phases.pending -= 1;
        let mut gathering = std::mem::take(&mut phases.gathering);
        self.release(thread, &mut gathering);
        self.phases(address)?.gathering = gathering;
        self.complete(address);
        Ok(())
    }

    /// Ends the present phase if nothing is missing.
    fn complete(&mut self, address: u32) {
        let grid = self.grid();
        let Some(phases) = self.phases.get_mut(&address) else { return };
        if phases.pending != 0 || phases.bytes != 0 {
            return;
        }
        phases.completed += 1;
        phases.pending = phases.expected;
        let (actor, moment) = (self.base + self.waits.len() + phases.index, phases.completed as u32);
        grid.clocks.release_actor(actor, moment, &mut phases.gathering);
        phases.last.clear();
        std::mem::swap(&mut phases.last, &mut phases.gathering);
        let (last, sleepers) = (phases.last.clone(), std::mem::take(&mut phases.sleepers));
        for sleeper in sleepers {
            self.acquire(sleeper.into(), &last);
            self.wake(sleeper.into());
        }
    }

    /// `mbarrier.try_wait.parity`, which here waits as long as it takes: [mbarrier.test_wait] says that the
    /// phase named by a parity is the present one or the one before. Unless `again`, the thread has not waited for it yet.
    pub(crate) fn wait_phase(
        &mut self,
        address: u32,
        parity: u32,
        again: bool,
        at: Site,
    ) -> Result<Option<()>, FaultKind> {
        let thread = self.current;
        let phases = self.phases(address)?;
        let completed = phases.completed;
        // Phases count from 1 here, so that what a fresh barrier has "completed" is phase 0.
        let is_present = completed % 2 == u64::from(parity & 1);
        let phase = if is_present { completed + 1 } else { completed };
        if phases.waited[thread] > phase + u64::from(again) {
            return Err(FaultKind::Parity { barrier: address, parity, completed });
        }
        phases.waited[thread] = phase + 1;
        if is_present {
            phases.sleepers.push(thread as u16);
            self.wait(Wait::Phase(address), at);
            return Ok(None);
        }
        let last = phases.last.clone();
        self.acquire(thread, &last);
        Ok(Some(()))
    }

    /// Checks that a copy of the running thread may complete on the mbarrier.
    pub(super) fn check_copy_barrier(&mut self, address: u32) -> Result<(), FaultKind> {
        match self.phases(address)?.fenced {
            true => Ok(()),
            false => Err(wrong(address, "no fence_init makes it visible to copies")),
        }
    }

    /// The actor and moment as which copies land that complete on the mbarrier now.
    pub(super) fn copy_moment(&self, address: u32) -> Option<(usize, u32)> {
        let phases = self.phases.get(&address)?;
        Some((self.base + self.waits.len() + phases.index, phases.completed as u32 + 1))
    }

    /// `complete_tx`: `bytes` have landed, of a copy that published `what` when it started.
    pub(super) fn complete_bytes(&mut self, address: u32, bytes: u32, what: &Published) {
        if let Some(phases) = self.phases.get_mut(&address) {
            phases.bytes -= i64::from(bytes);
            phases.gathering.join(what);
        }
        self.complete(address);
    }
}
