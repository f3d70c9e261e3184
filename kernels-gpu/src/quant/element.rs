//! Reading the caller's tensors: f16, bf16 or f32, any strides with a unit last one.

use cuda_std::{convert, global, hint};
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
    pub fn new<E: Element>(x: &TensorArg, batch: u32, head: u32, tokens: u32, first_feature: u32, head_dim: u32, vectorized: u32) -> Self {
        let vectorized = vectorized != 0;
        // Features beyond head_dim are read from the last ones instead, and replaced by zeros.
        let readable = if vectorized { first_feature.min(head_dim - 8) } else { 0 };
        let offset = batch as i64 * x.stride_batch + head as i64 * x.stride_head + readable as i64;
        Rows { address: x.ptr.wrapping_add((offset * E::BYTES) as u64), stride_token: x.stride_token * E::BYTES, tokens, first_feature, head_dim, vectorized }
    }

    /// Whether token `token` exists.
    #[inline(always)]
    pub fn contains(&self, token: u32) -> bool {
        token < self.tokens
    }

    /// The thread's features of token `token`; zeros where token or feature do not exist. Branch-free on
    /// the vectorized path (a missing token reads the last one), so that loads overlap.
    ///
    /// # Safety
    /// The tensor is readable and has at least one token.
    #[inline(always)]
    pub unsafe fn load<E: Element>(&self, token: u32) -> [f32; 8] {
        let row = self.address.wrapping_add((token.min(self.tokens - 1) as i64 * self.stride_token) as u64);
        let exists = self.contains(token);
        if self.vectorized {
            // SAFETY: an existing row; alignment is what `vectorized` promises.
            let x = unsafe { E::load8(row) };
            let exists = exists && self.first_feature < self.head_dim;
            x.map(|x| if exists { x } else { 0.0 })
        } else {
            // A compact loop, not eight guarded loads for each token of each kernel.
            let mut x = [0.0f32; 8];
            let mut i = 0;
            while i < hint::opaque(8) {
                let feature = self.first_feature + i;
                let mut value = 0.0;
                if exists && feature < self.head_dim {
                    // SAFETY: an existing element.
                    value = unsafe { E::load(row.wrapping_add((feature as i64 * E::BYTES) as u64)) };
                }
                let mut j = 0;
                while j < 8 {
                    x[j] = if j as u32 == i { value } else { x[j] };
                    j += 1;
                }
                i += 1;
            }
            x
        }
    }
}
