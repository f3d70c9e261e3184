//! `ldmatrix`: four 8x8 matrices of 16-bit elements from shared memory to fragments (sm_75). Lane `l`
//! gives the address of row `l % 8` of matrix `l / 8`; register `i` then holds, for matrix `i`, the
//! four bytes `4 · (lane % 4)` of row `lane / 4`. For 8-bit and 4-bit operands a row is 16 bytes of K.

use core::arch::asm;

/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16` [ldmatrix].
///
/// # Safety
/// All 32 lanes reach this call; `address` is 16-byte aligned inside shared memory.
#[inline(always)]
pub unsafe fn x4(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for the address and convergence.
    unsafe {
        asm!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(nostack));
    }
    [a, b, c, d]
}

/// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16` [ldmatrix]: as [`x4`], each matrix transposed.
///
/// # Safety
/// As for [`x4`].
#[inline(always)]
pub unsafe fn x4_trans(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for the address and convergence.
    unsafe {
        asm!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(nostack));
    }
    [a, b, c, d]
}
