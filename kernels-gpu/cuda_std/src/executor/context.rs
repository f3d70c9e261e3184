//! The way from an instruction of the host back end to the machine that runs it.

use std::cell::Cell;
use std::panic::Location;

use super::fault::{FaultKind, Site};
use super::fiber;
use super::machine::Machine;

std::thread_local! {
    /// The machine that runs on this thread of the host.
    static CURRENT: Cell<*mut Machine> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes `machine` the one that instructions act on; returns the one before.
pub(super) fn enter(machine: *mut Machine) -> *mut Machine {
    CURRENT.replace(machine)
}

/// Runs `instruction`, of the running thread, on its machine. A fault ends the launch: the thread never
/// runs again.
///
/// # Panics
///
/// Outside of a launch.
#[inline]
pub(crate) fn call<R>(
    at: &'static Location<'static>,
    instruction: impl FnOnce(&mut Machine, Site) -> Result<R, FaultKind>,
) -> R {
    let machine = CURRENT.get();
    assert!(!machine.is_null(), "{at}: an instruction of a kernel runs only inside Launch::run");
    let site = Site(at);
    // SAFETY: `Launch::run` set the pointer and keeps the machine alive; it makes no reference to it
    // while a thread of the kernel runs, and threads run one at a time.
    let result = instruction(unsafe { &mut *machine }, site);
    match result {
        Ok(value) => value,
        Err(kind) => {
            // SAFETY: as above.
            unsafe { (*machine).fault = Some((*machine).fault(Some(site), kind)) };
            loop {
                fiber::suspend();
            }
        }
    }
}

/// As [`call`], for an instruction that may have to wait: `None` means that the machine has noted what for;
/// the thread then sleeps until it is woken and returns `after`.
#[inline]
pub(crate) fn call_waiting<R>(
    at: &'static Location<'static>,
    instruction: impl FnOnce(&mut Machine, Site) -> Result<Option<R>, FaultKind>,
    after: impl FnOnce(&mut Machine) -> R,
) -> R {
    match call(at, instruction) {
        Some(value) => value,
        None => {
            fiber::suspend();
            call(at, |machine, _| Ok(after(machine)))
        }
    }
}

/// As [`call`], for what cannot fail.
#[inline]
pub(crate) fn query<R>(at: &'static Location<'static>, question: impl FnOnce(&Machine) -> R) -> R {
    call(at, |machine, _| Ok(question(machine)))
}
