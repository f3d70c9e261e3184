//! Registers and barriers of warpgroups.

use std::panic::Location;

use crate::executor::context::call_waiting;
use crate::executor::products::Action;

/// `setmaxnreg.dec.sync.aligned.u32` [setmaxnreg]: nothing but its convergence is checked.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    call_waiting(Location::caller(), |machine, at| machine.act(Action::Registers(REGISTERS), None, at), |_| ());
}

/// `setmaxnreg.inc.sync.aligned.u32` [setmaxnreg]: nothing but its convergence is checked.
///
/// # Safety
/// As for [`decrease_registers`].
#[inline]
#[track_caller]
pub unsafe fn increase_registers<const REGISTERS: u32>() {
    call_waiting(Location::caller(), |machine, at| machine.act(Action::Registers(REGISTERS), None, at), |_| ());
}
