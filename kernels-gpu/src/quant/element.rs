//! Reading the caller's tensors: f16, bf16 or f32, any strides with a unit last one.

use cuda_std::{convert, global, hint, math};
use sage_spec::params::TensorArg;

/// An input type.
pub trait Element {
    /// Bytes per element.
    const BYTES: i64;

    /// Eight neighbouring elements.
    ///
    /// # Safety
    /// `address` is 16-byte aligned and readable.
    unsafe fn load8(address: u64) -> [f32; 8];

    /// One element.
    ///
    /// # Safety
    /// `address` is aligned and readable.
    unsafe fn load(address: u64) -> f32;
}

/// IEEE half precision.
pub struct F16;
/// bfloat16.
pub struct Bf16;
/// IEEE single precision.
pub struct F32;

impl Element for F16 {
    const BYTES: i64 = 2;

    #[inline(always)]
    unsafe fn load8(address: u64) -> [f32; 8] {
        // SAFETY: forwarded contract.
        let w = unsafe { global::load_u32x4(address) };
        let lo = w.map(convert::f16_to_f32);
        let hi = w.map(|w| convert::f16_to_f32(w >> 16));
        [lo[0], hi[0], lo[1], hi[1], lo[2], hi[2], lo[3], hi[3]]
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> f32 {
        // SAFETY: forwarded contract.
        convert::f16_to_f32(unsafe { global::load_u16(address) })
    }
}

impl Element for Bf16 {
    const BYTES: i64 = 2;

    #[inline(always)]
    unsafe fn load8(address: u64) -> [f32; 8] {
        // SAFETY: forwarded contract.
        let w = unsafe { global::load_u32x4(address) };
        let lo = w.map(convert::bf16_to_f32);
        let hi = w.map(|w| f32::from_bits(w & 0xffff_0000));
        [lo[0], hi[0], lo[1], hi[1], lo[2], hi[2], lo[3], hi[3]]
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> f32 {
        // SAFETY: forwarded contract.
        convert::bf16_to_f32(unsafe { global::load_u16(address) })
    }
}

impl Element for F32 {
    const BYTES: i64 = 4;

    #[inline(always)]
    unsafe fn load8(address: u64) -> [f32; 8] {
        // SAFETY: forwarded contract.
        let (a, b) = unsafe { (global::load_u32x4(address), global::load_u32x4(address + 16)) };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]].map(f32::from_bits)
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> f32 {
        // SAFETY: forwarded contract.
        unsafe { global::load_f32(address) }
    }
}

/// One head of a tensor, and the eight features a thread reads of it.
pub struct Rows {
    /// Address of the thread's first feature of token 0.
    address: u64,
    stride_token: i64,
    tokens: u32,
    first_feature: u32,
    head_dim: u32,
    vectorized: bool,
}

impl Rows {
    /// Features `first_feature..first_feature + 8` of head `head` of batch entry `batch`.
    #[inline(always)]
    pub fn new<E: Element>(
        x: &TensorArg,
        batch: u32,
        head: u32,
        tokens: u32,
        first_feature: u32,
        head_dim: u32,
        vectorized: u32,
    ) -> Self {
        let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head + first_feature as i64;
        Rows {
            address: x.ptr.wrapping_add((offset * E::BYTES) as u64),
            stride_token: x.stride_token * E::BYTES,
            tokens,
            first_feature,
            head_dim,
            vectorized: vectorized != 0,
        }
    }

    /// Whether token `token` exists.
    #[inline(always)]
    pub fn contains(&self, token: u32) -> bool {
        token < self.tokens
    }

    /// The thread's features of the tokens `first + i * STEP`; zeros where a feature does not exist, and
    /// the last token again where a token does not. Repeating it changes no maximum, and it lets all
    /// loads of a thread be in flight at once; sums and stores must leave it out ([`Rows::contains`]).
    ///
    /// # Safety
    /// The tensor is readable and has at least one token.
    #[inline(always)]
    pub unsafe fn load<E: Element, const COUNT: usize, const STEP: u32>(&self, first: u32) -> [[f32; 8]; COUNT] {
        let mut x = [[0.0f32; 8]; COUNT];
        let row = |i: usize| {
            let token = (first + i as u32 * STEP).min(self.tokens - 1);
            self.address.wrapping_add((token as i64 * self.stride_token) as u64)
        };
        if self.vectorized {
            if self.first_feature < self.head_dim {
                let mut i = 0;
                while i < COUNT {
                    // SAFETY: an existing row; alignment is what `vectorized` promises.
                    x[i] = unsafe { E::load8(row(i)) };
                    i += 1;
                }
            }
        } else {
            let mut i = 0;
            while i < COUNT {
                // A compact loop, not eight guarded loads for each token of each kernel.
                let mut j = 0;
                while j < hint::opaque(8) {
                    let mut value = 0.0;
                    if self.first_feature + j < self.head_dim {
                        // SAFETY: an existing element.
                        value = unsafe { E::load(row(i).wrapping_add((j as i64 * E::BYTES) as u64)) };
                    }
                    let mut k = 0;
                    while k < 8 {
                        x[i][k] = if k as u32 == j { value } else { x[i][k] };
                        k += 1;
                    }
                    j += 1;
                }
                i += 1;
            }
        }
        x
    }
}

/// `sum + x` if `exists`, else `sum`, without a select per value: `weight` is 1 or 0. (A value that is not
/// finite poisons the sum either way, as it does where it exists.)
#[inline(always)]
pub fn add_weighted(sum: &mut [f32; 8], x: &[f32; 8], weight: f32) {
    let mut i = 0;
    while i < 8 {
        sum[i] = math::fma(x[i], weight, sum[i]);
        i += 1;
    }
}
