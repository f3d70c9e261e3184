//! Where a thread is in its CTA and grid, and the CTA barrier.

use std::panic::Location;

use crate::executor::context::{call_waiting, query};

macro_rules! register {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => { $(
        $(#[$doc])*
        #[inline]
        #[track_caller]
        pub fn $name() -> u32 {
            query(Location::caller(), $value)
        }
    )* };
}

register! {
    /// `%tid.x` [Special Registers].
    thread_idx_x = |machine| machine.thread_idx()[0];
    /// `%ctaid.x` [Special Registers].
    block_idx_x = |machine| machine.block_idx()[0];
    /// `%ctaid.y` [Special Registers].
    block_idx_y = |machine| machine.block_idx()[1];
    /// `%ntid.x` [Special Registers].
    block_dim_x = |machine| machine.launch().block[0];
    /// `%nctaid.x` [Special Registers].
    grid_dim_x = |machine| machine.launch().grid[0];
    /// `%tid.y` [Special Registers].
    thread_idx_y = |machine| machine.thread_idx()[1];
    /// `%tid.z` [Special Registers].
    thread_idx_z = |machine| machine.thread_idx()[2];
    /// `%ctaid.z` [Special Registers].
    block_idx_z = |machine| machine.block_idx()[2];
    /// `%ntid.y` [Special Registers].
    block_dim_y = |machine| machine.launch().block[1];
    /// `%ntid.z` [Special Registers].
    block_dim_z = |machine| machine.launch().block[2];
    /// `%nctaid.y` [Special Registers].
    grid_dim_y = |machine| machine.launch().grid[1];
    /// `%nctaid.z` [Special Registers].
    grid_dim_z = |machine| machine.launch().grid[2];
    /// `%tid.x`, read again.
    reread_thread_idx_x = |machine| machine.thread_idx()[0];
    /// `%ctaid.x`, read again.
    reread_block_idx_x = |machine| machine.block_idx()[0];
    /// `%ctaid.y`, read again.
    reread_block_idx_y = |machine| machine.block_idx()[1];
}

/// Global thread index along x.
#[inline]
#[track_caller]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// `bar.sync 0` [bar.sync]: waits for all threads of the CTA and orders their memory accesses.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn sync_threads() {
    call_waiting(Location::caller(), |machine, at| machine.barrier(0, None, true, at), |_| ())
}

/// `bar.sync barrier, threads` [bar].
///
/// # Safety
/// As for [`sync_threads`].
#[inline]
#[track_caller]
pub unsafe fn sync_named(barrier: u32, threads: u32) {
    call_waiting(Location::caller(), |machine, at| machine.barrier(barrier, Some(threads), true, at), |_| ())
}

/// `bar.arrive barrier, threads` [bar].
///
/// # Safety
/// As for [`sync_threads`].
#[inline]
#[track_caller]
pub unsafe fn arrive_named(barrier: u32, threads: u32) {
    call_waiting(Location::caller(), |machine, at| machine.barrier(barrier, Some(threads), false, at), |_| ())
}

/// `bar.red.or.pred condition, barrier, threads` [bar].
///
/// # Safety
/// As for [`sync_threads`].
#[inline]
#[track_caller]
pub unsafe fn any_named(barrier: u32, threads: u32, condition: bool) -> bool {
    call_waiting(
        Location::caller(),
        |machine, at| machine.barrier_or(barrier, threads, condition, at),
        |machine| machine.barrier_result(barrier),
    )
}
