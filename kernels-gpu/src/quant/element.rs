//! Reading the caller's tensors: f16, bf16 or f32, any strides with a unit last one.

use cuda_std::{convert, global, math, shared};

use super::lanes::amax;

/// An input type.
pub trait Element {
    /// Bytes per element.
    const BYTES: u32;

    /// Eight neighbouring elements as they lie in memory.
    type Raw: Copy;

    /// Eight neighbouring elements of shared memory, as they are.
    ///
    /// # Safety
    /// As for [`Element::shared8`].
    unsafe fn raw8(address: u32) -> Self::Raw;

    /// Elements `2 pair` and `2 pair + 1` of eight, as numbers.
    fn widen2(raw: Self::Raw, pair: usize) -> [f32; 2];

    /// Eight elements as numbers.
    #[inline(always)]
    fn widen(raw: Self::Raw) -> [f32; 8] {
        let [[a, b], [c, d], [e, f], [g, h]] = [0, 1, 2, 3].map(|pair| Self::widen2(raw, pair));
        [a, b, c, d, e, f, g, h]
    }

    /// Eight neighbouring elements of shared memory.
    ///
    /// # Safety
    /// `address` is 16-byte aligned, inside shared memory and not written concurrently.
    #[inline(always)]
    unsafe fn shared8(address: u32) -> [f32; 8] {
        // SAFETY: forwarded contract.
        Self::widen(unsafe { Self::raw8(address) })
    }

    /// Eight zeros.
    const ZEROS: Self::Raw;

    /// Magnitudes of eight elements, or zeros.
    fn magnitudes(raw: Self::Raw, exist: bool) -> Self::Raw;

    /// The larger ones of two times eight magnitudes; NaN where either is.
    fn larger(a: Self::Raw, b: Self::Raw) -> Self::Raw;

    /// The largest of eight magnitudes; NaN if one is.
    fn largest(raw: Self::Raw) -> f32;

    /// The elements of one 32-bit word, of which the first `exist` exist; zeros for the others.
    ///
    /// # Safety
    /// `address` is aligned to an element; elements that exist are readable.
    unsafe fn load_word(address: u64, exist: u32) -> u32;
}

/// Widens two f16.
#[inline(always)]
fn widen_f16(w: u32) -> [f32; 2] {
    [convert::f16_to_f32(w), convert::f16_to_f32(w >> 16)]
}

/// Widens two bf16.
#[inline(always)]
fn widen_bf16(w: u32) -> [f32; 2] {
    [convert::bf16_to_f32(w), f32::from_bits(w & 0xffff_0000)]
}

/// [`Element::load_word`] of a 16-bit type.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn load_halves(address: u64, exist: u32) -> u32 {
    let mut word = 0;
    // SAFETY: forwarded contract.
    unsafe {
        if exist > 0 {
            word = global::load_u16(address);
        }
        if exist > 1 {
            word |= global::load_u16(address + 2) << 16;
        }
    }
    word
}

/// IEEE half precision.
pub struct F16;
/// bfloat16.
pub struct Bf16;
/// IEEE single precision.
pub struct F32;

macro_rules! half_element {
    ($name:ident, $widen:ident, $larger:ident) => {
        impl Element for $name {
            const BYTES: u32 = 2;

            type Raw = [u32; 4];

            #[inline(always)]
            unsafe fn raw8(address: u32) -> [u32; 4] {
                // SAFETY: forwarded contract.
                unsafe { shared::load_u32x4(address) }
            }

            #[inline(always)]
            fn widen2(raw: [u32; 4], pair: usize) -> [f32; 2] {
                $widen(raw[pair])
            }

            const ZEROS: [u32; 4] = [0; 4];

            #[inline(always)]
            fn magnitudes(raw: [u32; 4], exist: bool) -> [u32; 4] {
                let mask = if exist { 0x7fff_7fff } else { 0 };
                raw.map(|word| word & mask)
            }

            #[inline(always)]
            fn larger(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
                [0, 1, 2, 3].map(|i| math::$larger(a[i], b[i]))
            }

            #[inline(always)]
            fn largest([a, b, c, d]: [u32; 4]) -> f32 {
                let [low, high] = $widen(math::$larger(math::$larger(a, b), math::$larger(c, d)));
                math::max_propagate_nan(low, high)
            }

            #[inline(always)]
            unsafe fn load_word(address: u64, exist: u32) -> u32 {
                // SAFETY: forwarded contract.
                unsafe { load_halves(address, exist) }
            }
        }
    };
}

half_element!(F16, widen_f16, max_propagate_nan_f16x2);
half_element!(Bf16, widen_bf16, max_propagate_nan_bf16x2);

impl Element for F32 {
    const BYTES: u32 = 4;

    type Raw = [f32; 8];

    #[inline(always)]
    unsafe fn raw8(address: u32) -> [f32; 8] {
        // SAFETY: forwarded contract.
        let (a, b) = unsafe { (shared::load_u32x4(address), shared::load_u32x4(address + 16)) };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits)
    }

    #[inline(always)]
    fn widen2(raw: [f32; 8], pair: usize) -> [f32; 2] {
        [raw[2 * pair], raw[2 * pair + 1]]
    }

    const ZEROS: [f32; 8] = [0.0; 8];

    #[inline(always)]
    fn magnitudes(raw: [f32; 8], exist: bool) -> [f32; 8] {
        raw.map(|x| if exist { math::abs(x) } else { 0.0 })
    }

    #[inline(always)]
    fn larger(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        [0, 1, 2, 3, 4, 5, 6, 7].map(|i| math::max_propagate_nan(a[i], b[i]))
    }

    #[inline(always)]
    fn largest(raw: [f32; 8]) -> f32 {
        amax(&raw)
    }

    #[inline(always)]
    unsafe fn load_word(address: u64, exist: u32) -> u32 {
        // SAFETY: forwarded contract.
        if exist > 0 { unsafe { global::load_u32(address) } } else { 0 }
    }
}
