//! Stores of output elements.

use cuda_std::{convert, global};

/// Two neighbouring channels of the output, from `address` on; `second` says whether the second one
/// exists, `paired` whether one access may store both. `dtype` is 0 for f16, 1 for bf16, 2 for f32.
///
/// # Safety
/// The elements that exist are mapped, aligned to their size and accessed by no other thread; to the pair's if `paired`.
#[inline(always)]
pub unsafe fn store_pair(address: u64, values: [f32; 2], dtype: u32, paired: bool, second: bool) {
    // SAFETY: the caller vouches for both elements.
    unsafe {
        if dtype == 2 {
            global::store_f32(address, values[0]);
            if second {
                global::store_f32(address + 4, values[1]);
            }
            return;
        }
        let bits = if dtype == 0 {
            convert::f32_to_f16x2(values[0], values[1])
        } else {
            convert::f32_to_bf16x2(values[0], values[1])
        };
        if paired && second {
            global::store_u32(address, bits);
        } else {
            global::store_u16(address, bits & 0xffff);
            if second {
                global::store_u16(address + 2, bits >> 16);
            }
        }
    }
}
