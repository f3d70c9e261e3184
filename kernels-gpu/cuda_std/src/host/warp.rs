//! Exchange between the lanes of a warp.

use std::panic::Location;

use crate::executor::context::query;
use crate::executor::warp::{Collective, meet};

/// Threads of a warp.
pub const WARP_SIZE: u32 = 32;

/// `%laneid` [Special Registers].
#[inline]
#[track_caller]
pub fn lane_id() -> u32 {
    query(Location::caller(), |machine| machine.lane())
}

/// `shfl.sync.bfly.b32` [shfl.sync]: the value of lane `lane ^ mask`.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn shuffle_xor(value: u32, mask: u32) -> u32 {
    let source = lane_id() ^ (mask & 0x1f);
    meet(Location::caller(), Collective::Shuffle, &[value, source])[0]
}

/// [`shuffle_xor`] of an `f32`.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn shuffle_xor_f32(value: f32, mask: u32) -> f32 {
    let source = lane_id() ^ (mask & 0x1f);
    f32::from_bits(meet(Location::caller(), Collective::Shuffle, &[value.to_bits(), source])[0])
}

/// `shfl.sync.idx.b32` [shfl.sync]: the value of lane `lane`.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn shuffle_idx(value: u32, lane: u32) -> u32 {
    meet(Location::caller(), Collective::Shuffle, &[value, lane & 0x1f])[0]
}

#[inline]
fn ballot(at: &'static Location<'static>, predicate: bool) -> u32 {
    meet(at, Collective::Ballot, &[u32::from(predicate)])[0]
}

/// `vote.sync.all.pred` [vote.sync]: whether `predicate` holds in every lane.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn vote_all(predicate: bool) -> bool {
    // Of those that exist: none says no.
    ballot(Location::caller(), !predicate) == 0
}

/// `vote.sync.any.pred` [vote.sync]: whether `predicate` holds in a lane.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn vote_any(predicate: bool) -> bool {
    ballot(Location::caller(), predicate) != 0
}

/// `vote.sync.ballot.b32` [vote.sync]: bit `l` is the predicate of lane `l`.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn vote_ballot(predicate: bool) -> u32 {
    ballot(Location::caller(), predicate)
}

/// `bar.warp.sync` [bar.warp.sync]: converges the warp and orders its memory accesses.
///
/// # Safety
/// As for [`shuffle_xor`].
#[inline]
#[track_caller]
pub unsafe fn sync_warp() {
    meet(Location::caller(), Collective::Sync, &[]);
}
