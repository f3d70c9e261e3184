//! `mma.sync`: warp-level matrix products `D = A · B + C` [mma].

use std::panic::Location;

use crate::executor::tensor::Shape;
use crate::executor::warp::{Collective, meet};

macro_rules! mma {
    ($(#[$doc:meta])* $name:ident, $element:ty, $shape:ident, $to_bits:expr, $from_bits:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// None is needed here: the executor checks what the PTX back end asks for.
        #[inline]
        #[track_caller]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [$element; 4]) -> [$element; 4] {
            let c = c.map($to_bits);
            let operands = [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]];
            meet(Location::caller(), Collective::Mma(Shape::$shape), &operands).map($from_bits)
        }
    };
}

mma! {
    /// `m16n8k64` of signed 4-bit integers into s32.
    m16n8k64_s4, u32, M16N8K64S4, |x| x, |x| x
}
mma! {
    /// `m16n8k32` of signed 8-bit integers into s32.
    m16n8k32_s8, u32, M16N8K32S8, |x| x, |x| x
}
mma! {
    /// `m16n8k16` of f16 into f32.
    m16n8k16_f16, f32, M16N8K16F16, f32::to_bits, f32::from_bits
}
#[cfg(feature = "sm_89")]
mma! {
    /// `m16n8k32` of FP8 E4M3 into f32.
    m16n8k32_e4m3, f32, M16N8K32E4M3, f32::to_bits, f32::from_bits
}
