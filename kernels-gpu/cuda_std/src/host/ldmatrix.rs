//! `ldmatrix`: four 8x8 matrices of 16-bit elements from shared memory to fragments.

use std::panic::Location;

use crate::executor::warp::{Collective, meet};

/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16` [ldmatrix].
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn x4(address: u32) -> [u32; 4] {
    meet(Location::caller(), Collective::LoadMatrices { transposed: false }, &[address])
}

/// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16` [ldmatrix]: as [`x4`], each matrix transposed.
///
/// # Safety
/// As for [`x4`].
#[inline]
#[track_caller]
pub unsafe fn x4_trans(address: u32) -> [u32; 4] {
    meet(Location::caller(), Collective::LoadMatrices { transposed: true }, &[address])
}
