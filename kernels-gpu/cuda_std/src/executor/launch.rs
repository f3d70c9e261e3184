//! Running a kernel.

use std::boxed::Box;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::context;
use super::fault::{Fault, FaultKind};
use super::fiber::{Fiber, Progress, Stacks};
use super::grid::Grid;
use super::machine::{Event, Machine};
use super::memory::Memory;

/// Most threads of a CTA (CUDA C++ Programming Guide, technical specifications per compute capability).
const MAX_THREADS: usize = 1024;
/// Most threads that run at a time.
const MAX_RESIDENT_THREADS: usize = 1024;

std::thread_local! {
    static STACKS: std::cell::RefCell<Stacks> = std::cell::RefCell::default();
}

/// Geometry of a launch, and the order its threads run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What faults call the kernel.
    pub name: String,
    /// CTAs along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y and z; at most 1024.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Which of the possible orders of threads and CTAs.
    pub seed: u64,
}

impl Launch {
    /// `grid` CTAs of `threads` threads along x, without shared memory, with seed 0.
    pub fn new(name: &str, grid: u32, threads: u32) -> Self {
        Launch { name: name.into(), grid: [grid, 1, 1], block: [threads, 1, 1], shared_bytes: 0, seed: 0 }
    }

    /// Threads of a CTA.
    pub(super) fn threads(&self) -> usize {
        self.block.iter().map(|&extent| extent as usize).product()
    }

    /// Calls `kernel` once for every thread of the launch, on `memory`.
    ///
    /// # Errors
    ///
    /// The first [`Fault`]. What threads did before it is in `memory`.
    pub fn run(&self, memory: &mut Memory, kernel: impl Fn()) -> Result<(), Fault> {
        let illegal = |what: String| Fault {
            kernel: self.name.clone(),
            seed: self.seed,
            block: [0; 3],
            thread: 0,
            at: None,
            kind: FaultKind::Illegal(what),
        };
        if !(1..=MAX_THREADS).contains(&self.threads()) {
            return Err(illegal(format!("a CTA has 1 to {MAX_THREADS} threads, not {:?}", self.block)));
        }
        memory.begin_launch();
        let [x, y, z] = self.grid.map(u64::from);
        let ctas = x * y * z;
        // How many CTAs run at a time is not the kernel's business: one, so that each finds what those before it
        // have left, or several, so that they wait for each other.
        let most = (MAX_RESIDENT_THREADS / self.threads()).clamp(1, 4);
        let residents = (1 + (self.seed / 2) as usize % most).min(ctas as usize).max(1);
        let mut grid = Grid::new(memory, self.threads(), residents, self.seed);
        let mut waiting: Vec<u64> = (0..ctas).collect();
        if self.seed & 1 == 0 {
            // Nothing may depend on the order of CTAs; backwards is the order furthest from the usual one.
            waiting.reverse();
        }
        let mut resident: Vec<Resident> = Vec::new();
        let result = (|| {
            for slot in 0..residents {
                let Some(index) = waiting.pop() else { break };
                resident.push(Resident::new(self, index, slot, &mut grid, &kernel).map_err(illegal)?);
            }
            while !resident.is_empty() {
                let able: Vec<usize> = (0..resident.len()).filter(|&i| resident[i].machine.can_go_on()).collect();
                let Some(&chosen) = able.get(grid.random.below(able.len().max(1))) else {
                    return Err(resident[0].machine.deadlock());
                };
                if resident[chosen].step()? {
                    let done = resident.swap_remove(chosen);
                    let slot = done.slot;
                    done.end();
                    if let Some(index) = waiting.pop() {
                        resident.push(Resident::new(self, index, slot, &mut grid, &kernel).map_err(illegal)?);
                    }
                }
            }
            Ok(())
        })();
        resident.into_iter().for_each(Resident::end);
        result
    }
}

/// A CTA in execution.
struct Resident {
    slot: usize,
    machine: Box<Machine>,
    fibers: Vec<Fiber>,
}

impl Resident {
    /// CTA number `index` of `launch`. `kernel` outlives it.
    fn new(launch: &Launch, index: u64, slot: usize, grid: &mut Grid, kernel: &dyn Fn()) -> Result<Self, String> {
        let [x, y, _] = launch.grid.map(u64::from);
        let block_idx = [index % x, index / x % y, index / x / y].map(|i| i as u32);
        let machine = Box::new(Machine::new(launch, block_idx, slot, grid));
        let mut fibers = Vec::with_capacity(launch.threads());
        for _ in 0..launch.threads() {
            let stack = STACKS.with_borrow_mut(Stacks::take).map_err(|error| format!("no stack: {error}"))?;
            // SAFETY: `Launch::run` ends all residents before it returns, and borrows the kernel.
            fibers.push(unsafe { Fiber::new(stack, kernel) });
        }
        Ok(Resident { slot, machine, fibers })
    }

    /// Lets one thing happen; whether that was the last.
    fn step(&mut self) -> Result<bool, Fault> {
        match self.machine.next() {
            None => return Err(self.machine.deadlock()),
            Some(Event::Landing(flight)) => self.machine.land(flight)?,
            Some(Event::Thread(thread)) => {
                self.machine.current = thread;
                let entered = Entered(context::enter(&raw mut *self.machine));
                let progress = self.fibers[thread].resume();
                drop(entered);
                if let Some(fault) = self.machine.fault.take() {
                    return Err(fault);
                }
                let ended = match progress {
                    Progress::Suspended => Ok(()),
                    Progress::Ended(Ok(())) => self.machine.finish(),
                    Progress::Ended(Err(message)) => Err(FaultKind::Panic(message)),
                };
                ended.map_err(|kind| self.machine.fault(None, kind))?;
            }
        }
        Ok(self.machine.finished == self.fibers.len() && self.machine.flights.is_empty())
    }

    /// Gives the stacks back.
    fn end(self) {
        STACKS.with_borrow_mut(|stacks| self.fibers.into_iter().for_each(|fiber| stacks.give(fiber.into_stack())));
    }
}

/// Leaves no machine behind, whatever happens.
struct Entered(*mut Machine);

impl Drop for Entered {
    fn drop(&mut self) {
        context::enter(self.0);
    }
}
