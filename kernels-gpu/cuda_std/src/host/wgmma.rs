//! `wgmma.mma_async`: asynchronous matrix products of a warpgroup, `D = A · B (+ D)` [Asynchronous
//! warpgroup level matrix instructions]. Accumulators get their values when the group is waited for.

use std::panic::Location;

use crate::executor::context::call_waiting;
use crate::executor::products::{Action, Element, Left, Product};

/// How the rows of a tile in shared memory are permuted: chunk `c` (16 bytes) of row `r` lies at chunk
/// `c ^ (r mod rows)`, `rows` being 8 for 128-byte rows and, for 64-byte rows, `(r / 2) mod 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows of 64 bytes, chunks permuted within them.
    Bytes64,
    /// Rows of 128 bytes, chunks permuted within them.
    Bytes128,
}

/// Matrix descriptor of a K-major tile at shared `address` whose rows are exactly as wide as its swizzle
/// [Matrix Descriptor Format]. Adding `bytes / 16` to a descriptor moves it `bytes` further along K.
///
/// `address` is aligned to eight rows, so that the base offset is zero.
#[inline]
pub fn descriptor(address: u32, swizzle: Swizzle) -> u64 {
    // Stride between groups of eight rows, in 16-byte units, and the layout type of bits 62 and 63.
    let (stride, layout) = match swizzle {
        Swizzle::Bytes64 => (32u64, 2u64),
        Swizzle::Bytes128 => (64, 1),
    };
    (address as u64 >> 4) & 0x3fff | 1 << 16 | stride << 32 | layout << 62
}

#[inline]
fn act(at: &'static Location<'static>, action: Action, product: Option<Product>) {
    call_waiting(at, |machine, at| machine.act(action, product, at), |_| ());
}

/// `wgmma.fence.sync.aligned`: orders the warpgroup's register accesses before the products that follow.
///
/// # Safety
/// None is needed here: the executor checks what the PTX back end asks for.
#[inline]
#[track_caller]
pub unsafe fn fence() {
    act(Location::caller(), Action::Fence, None);
}

/// `wgmma.commit_group.sync.aligned`: the products issued since the last commit become a group.
///
/// # Safety
/// As for [`fence`].
#[inline]
#[track_caller]
pub unsafe fn commit_group() {
    act(Location::caller(), Action::Commit, None);
}

/// `wgmma.wait_group.sync.aligned`: waits until at most `PENDING` groups are unfinished.
///
/// # Safety
/// As for [`fence`].
#[inline]
#[track_caller]
pub unsafe fn wait_group<const PENDING: u32>() {
    act(Location::caller(), Action::Wait(PENDING), None);
}

/// Writes the function of one instruction: its name, type of an accumulator, types of the operands, columns, and
/// how A is passed.
macro_rules! wgmma {
    ($(#[$doc:meta])* $name:ident, $word:ty, $element:ident, $columns:literal, $left:ident($a:ty)) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `d` stays where it is, untouched, until the group has finished. The executor checks the rest.
        #[inline]
        #[track_caller]
        pub unsafe fn $name(d: &mut [$word; $columns / 2], a: $a, b: u64, accumulate: u32) {
            let d = d.as_mut_ptr().cast();
            let product = Product { d, a: Left::$left(a), b, accumulate: accumulate != 0 };
            let action = Action::Multiply { element: Element::$element, columns: $columns };
            act(Location::caller(), action, Some(product));
        }
    };
}

wgmma! {
    /// `m64n128k32` of signed 8-bit integers into s32. `accumulate` 0 starts from zero.
    m64n128k32_s8, u32, S8, 128, Shared(u64)
}
wgmma! {
    /// `m64n64k32` of FP8 E4M3 into f32, A in registers. `accumulate` 0 starts from zero.
    m64n64k32_e4m3, f32, E4M3, 64, Registers([u32; 4])
}
wgmma! {
    /// `m64n72k32` of FP8 E4M3 into f32, A in registers. `accumulate` 0 starts from zero.
    m64n72k32_e4m3, f32, E4M3, 72, Registers([u32; 4])
}
wgmma! {
    /// `m64n128k32` of FP8 E4M3 into f32, A in registers. `accumulate` 0 starts from zero.
    m64n128k32_e4m3, f32, E4M3, 128, Registers([u32; 4])
}
wgmma! {
    /// `m64n136k32` of FP8 E4M3 into f32, A in registers. `accumulate` 0 starts from zero.
    m64n136k32_e4m3, f32, E4M3, 136, Registers([u32; 4])
}
