//! Running a kernel.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::context;
use super::fault::{Fault, FaultKind};
use super::fiber::{Fiber, Progress, Stacks};
use super::machine::{Event, Machine};
use super::memory::Memory;

/// Most threads of a CTA (CUDA C++ Programming Guide, technical specifications per compute capability).
const MAX_THREADS: usize = 1024;

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
        let mut order: Vec<u64> = (0..x * y * z).collect();
        if self.seed & 1 == 1 {
            // Nothing may depend on the order of CTAs; backwards is the order furthest from the usual one.
            order.reverse();
        }
        for index in order {
            let block_idx = [index % x, index / x % y, index / x / y].map(|i| i as u32);
            run_cta(self, block_idx, memory, &kernel, &illegal)?;
        }
        Ok(())
    }
}

/// Leaves no machine behind, whatever happens.
struct Entered(*mut Machine);

impl Drop for Entered {
    fn drop(&mut self) {
        context::enter(self.0);
    }
}

fn run_cta(
    launch: &Launch,
    block_idx: [u32; 3],
    memory: &mut Memory,
    kernel: &dyn Fn(),
    illegal: &dyn Fn(String) -> Fault,
) -> Result<(), Fault> {
    let mut machine = Machine::new(launch, block_idx, memory);
    let machine = &raw mut machine;
    let mut fibers = Vec::with_capacity(launch.threads());
    for _ in 0..launch.threads() {
        let stack = STACKS.with_borrow_mut(Stacks::take).map_err(|error| illegal(format!("no stack: {error}")))?;
        // SAFETY: the fibers end in this function, which borrows the kernel.
        fibers.push(unsafe { Fiber::new(stack, kernel) });
    }
    let entered = Entered(context::enter(machine));
    let result = run_threads(machine, &mut fibers);
    drop(entered);
    STACKS.with_borrow_mut(|stacks| fibers.into_iter().for_each(|fiber| stacks.give(fiber.into_stack())));
    result
}

fn run_threads(machine: *mut Machine, fibers: &mut [Fiber]) -> Result<(), Fault> {
    loop {
        // SAFETY: no thread of the kernel is running, so nobody else refers to the machine.
        let thread = match unsafe { (*machine).next() } {
            Some(Event::Thread(thread)) => thread,
            Some(Event::Landing(flight)) => {
                // SAFETY: as above.
                unsafe { (*machine).land(flight) }?;
                continue;
            }
            // SAFETY: as above.
            None if unsafe { (*machine).finished } == fibers.len() => return Ok(()),
            // SAFETY: as above.
            None => return Err(unsafe { (*machine).deadlock() }),
        };
        // SAFETY: as above.
        unsafe { (*machine).current = thread };
        let progress = fibers[thread].resume();
        // SAFETY: as above: the thread has returned here.
        let machine = unsafe { &mut *machine };
        if let Some(fault) = machine.fault.take() {
            return Err(fault);
        }
        let ended = match progress {
            Progress::Suspended => Ok(()),
            Progress::Ended(Ok(())) => machine.finish(),
            Progress::Ended(Err(message)) => Err(FaultKind::Panic(message)),
        };
        ended.map_err(|kind| machine.fault(None, kind))?;
    }
}
