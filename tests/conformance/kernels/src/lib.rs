//! One kernel per instruction of `cuda_std`, run on a GPU and on the executor with the same inputs.
//!
//! Thread `i` of the grid reads its words of `input`, executes the instruction and writes its words of
//! `output`. Kernels that need shared memory first copy `image` to it, as it is.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, link_llvm_intrinsics),
    allow(internal_features)
)]
// Device code spells out its loops: an iterator may leave a call.
#![allow(clippy::needless_range_loop)]

use cuda_std::{convert, cp_async, global, kernel, ldmatrix, math, mma, shared, thread, warp};

pub mod controls;

cuda_std::declare_dynamic_shared_memory!();

/// Nothing in a kernel may panic.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// What a kernel works on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// u32 `[threads, inputs]`.
    pub input: u64,
    /// What shared memory holds, a multiple of 16 bytes.
    pub image: u64,
    /// Out: u32 `[threads, outputs]`.
    pub output: u64,
    /// Bytes of `image`.
    pub image_bytes: u32,
    /// Threads of the grid.
    pub threads: u32,
}

/// The thread's words of the input.
///
/// # Safety
/// `p` describes buffers of the launch.
#[inline(always)]
unsafe fn read<const N: usize>(p: &Buffers) -> [u32; N] {
    let mut x = [0; N];
    let mut i = 0;
    while i < N {
        // SAFETY: the caller vouches for the buffers.
        x[i] = unsafe { global::load_u32(p.input + (thread::index_1d() as u64 * N as u64 + i as u64) * 4) };
        i += 1;
    }
    x
}

/// The thread's words of the output.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn write<const N: usize>(p: &Buffers, y: [u32; N]) {
    let mut i = 0;
    while i < N {
        // SAFETY: the caller vouches for the buffers.
        unsafe { global::store_u32(p.output + (thread::index_1d() as u64 * N as u64 + i as u64) * 4, y[i]) };
        i += 1;
    }
}

/// Copies the image to shared memory, for all threads and for the asynchronous proxy; its address.
///
/// # Safety
/// As for [`read`]; all threads of the CTA call it.
#[inline(always)]
unsafe fn load_image(p: &Buffers) -> u32 {
    let smem = shared::dynamic_shared_mem();
    // SAFETY: the caller vouches for the buffers; a barrier follows.
    unsafe {
        let mut offset = thread::thread_idx_x() * 16;
        while offset < p.image_bytes {
            shared::store_u32x4(smem + offset, global::load_u32x4(p.image + offset as u64));
            offset += thread::block_dim_x() * 16;
        }
        #[cfg(feature = "sm_90a")]
        cuda_std::tma::fence_proxy_async();
        thread::sync_threads();
    }
    smem
}

/// A kernel that maps a thread's words.
macro_rules! kernels {
    ($($name:ident($x:ident: $inputs:literal) -> $outputs:literal = $y:expr;)*) => { $(
        /// The instruction it is named after.
        ///
        /// # Safety
        /// [`Buffers`] of as many threads as the grid has.
        #[kernel(max_threads = 128)]
        #[allow(unused_unsafe)]
        pub unsafe fn $name(p: Buffers) {
            // SAFETY: forwarded contract; whole warps are here.
            unsafe {
                let $x = read::<$inputs>(&p);
                let y: [u32; $outputs] = $y;
                write(&p, y);
            }
        }
    )* };
}

/// A kernel that maps a thread's words and shared memory.
macro_rules! shared_kernels {
    ($($name:ident($smem:ident, $x:ident: $inputs:literal) -> $outputs:literal = $y:expr;)*) => { $(
        /// The instruction it is named after.
        ///
        /// # Safety
        /// [`Buffers`] of as many threads as the grid has, which is one CTA.
        #[kernel(max_threads = 128)]
        #[allow(unused_unsafe)]
        pub unsafe fn $name(p: Buffers) {
            // SAFETY: forwarded contract; whole warps are here.
            unsafe {
                let $smem = load_image(&p);
                let $x = read::<$inputs>(&p);
                let y: [u32; $outputs] = $y;
                write(&p, y);
            }
        }
    )* };
}

#[inline(always)]
fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

kernels! {
    f16_to_f32(x: 1) -> 1 = [convert::f16_to_f32(x[0]).to_bits()];
    bf16_to_f32(x: 1) -> 1 = [convert::bf16_to_f32(x[0]).to_bits()];
    f32_to_f16x2(x: 2) -> 1 = [convert::f32_to_f16x2(f(x[0]), f(x[1]))];
    f32_to_bf16x2(x: 2) -> 1 = [convert::f32_to_bf16x2(f(x[0]), f(x[1]))];
    permute_bytes(x: 2) -> 4 = [
        convert::permute_bytes::<0x5410>(x[0], x[1]),
        convert::permute_bytes::<0x0040>(x[0], x[1]),
        convert::permute_bytes::<0x7362>(x[0], x[1]),
        convert::permute_bytes::<0xba98>(x[0], x[1])
    ];
    fma(x: 3) -> 1 = [math::fma(f(x[0]), f(x[1]), f(x[2])).to_bits()];
    fma_saturate(x: 3) -> 1 = [math::fma_saturate(f(x[0]), f(x[1]), f(x[2])).to_bits()];
    fma_f16x2(x: 3) -> 1 = [math::fma_f16x2(x[0], x[1], x[2])];
    max_propagate_nan_x2(x: 2) -> 2 = [math::max_propagate_nan_f16x2(x[0], x[1]), math::max_propagate_nan_bf16x2(x[0], x[1])];
    max(x: 2) -> 1 = [math::max(f(x[0]), f(x[1])).to_bits()];
    max_propagate_nan(x: 2) -> 1 = [math::max_propagate_nan(f(x[0]), f(x[1])).to_bits()];
    min_propagate_nan(x: 2) -> 1 = [math::min_propagate_nan(f(x[0]), f(x[1])).to_bits()];
    max_s32(x: 2) -> 1 = [math::max_s32(x[0], x[1])];
    abs(x: 1) -> 1 = [math::abs(f(x[0])).to_bits()];
    exp2(x: 1) -> 1 = [math::exp2(f(x[0])).to_bits()];
    log2(x: 1) -> 1 = [math::log2(f(x[0])).to_bits()];
    reciprocal(x: 1) -> 1 = [math::reciprocal(f(x[0])).to_bits()];
    div_u32(x: 2) -> 1 = [math::div_u32(x[0], x[1] | 1)];
    places(x: 1) -> 4 = [
        x[0].wrapping_add(thread::thread_idx_x()),
        thread::block_idx_x() + 256 * (thread::block_idx_y() + thread::thread_idx_y() + thread::block_idx_z()),
        thread::index_1d() + 65536 * (thread::thread_idx_z() + thread::block_dim_y() * thread::block_dim_z()),
        warp::lane_id() + 256 * (thread::grid_dim_y() + thread::grid_dim_z()) + 4096 * thread::grid_dim_x()
    ];
    shuffle_xor(x: 1) -> 5 = [
        warp::shuffle_xor(x[0], 1),
        warp::shuffle_xor(x[0], 2),
        warp::shuffle_xor(x[0], 4),
        warp::shuffle_xor(x[0], 8),
        warp::shuffle_xor_f32(f(x[0]), 16).to_bits()
    ];
    votes(x: 1) -> 3 = [
        warp::vote_all(x[0] % 16 != 3) as u32,
        warp::vote_any(x[0] % 32 == 3) as u32,
        warp::vote_ballot(x[0] % 2 == 1)
    ];
    shuffle_idx(x: 2) -> 1 = [warp::shuffle_idx(x[0], x[1] % 32)];
    mma_s4(x: 10) -> 4 = mma::m16n8k64_s4([x[0], x[1], x[2], x[3]], [x[4], x[5]], [x[6], x[7], x[8], x[9]]);
    mma_s8(x: 10) -> 4 = mma::m16n8k32_s8([x[0], x[1], x[2], x[3]], [x[4], x[5]], [x[6], x[7], x[8], x[9]]);
    mma_f16(x: 10) -> 4 = mma::m16n8k16_f16(
        [x[0], x[1], x[2], x[3]], [x[4], x[5]], [f(x[6]), f(x[7]), f(x[8]), f(x[9])]
    ).map(f32::to_bits);
}

shared_kernels! {
    shared_words(smem, x: 1) -> 5 = {
        let v = shared::load_u32x4(smem + x[0] / 4 * 16);
        [shared::load_u32(smem + x[0] * 4), v[0], v[1], v[2], v[3]]
    };
    matrices(smem, x: 1) -> 4 = ldmatrix::x4(smem + x[0] * 16);
    matrices_transposed(smem, x: 1) -> 4 = ldmatrix::x4_trans(smem + x[0] * 16);
}

/// `cp.async`: a thread copies the chunk of the image that its word names, another reads it.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has, which is one CTA.
#[kernel(max_threads = 128)]
pub unsafe fn copies(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    // SAFETY: forwarded contract; copies are waited for and a barrier follows.
    unsafe {
        let [chunk] = read::<1>(&p);
        cp_async::copy16(smem + me * 16, p.image + chunk as u64 * 16);
        cp_async::commit_group();
        cp_async::wait_group::<0>();
        thread::sync_threads();
        write(&p, shared::load_u32x4(smem + (me ^ 33) * 16));
    }
}

/// `bar.arrive` and `bar.sync` with a number: the first half of the CTA writes, the second reads.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has, which is one CTA of 128.
#[kernel(max_threads = 128)]
pub unsafe fn named_barrier(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    // SAFETY: forwarded contract; the barrier lies between writes and reads.
    unsafe {
        let [x] = read::<1>(&p);
        let mut y = x;
        if me < 64 {
            shared::store_u32(smem + me * 4, x);
            thread::arrive_named(5, 128);
        } else {
            thread::sync_named(5, 128);
            y = shared::load_u32(smem + (127 - me) * 4);
        }
        write(&p, [y]);
    }
}

/// `bar.red.or`, 32 times: whether a thread of the same half of the CTA has a value whose five bits from the 0th, the 1st, ... on
/// are 0.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has, which is one CTA of 128.
#[kernel(max_threads = 128)]
pub unsafe fn barrier_of_predicates(p: Buffers) {
    let half = thread::thread_idx_x() / 64;
    // SAFETY: forwarded contract; each barrier is one half's.
    unsafe {
        let [x] = read::<1>(&p);
        let mut found = 0;
        let mut i = 0;
        while i < 32 {
            found |= (thread::any_named(1 + half, 64, (x >> i) % 32 == 0) as u32) << i;
            i += 1;
        }
        write(&p, [found]);
    }
}

#[cfg(feature = "sm_89")]
kernels! {
    f32_to_e4m3x4(x: 4) -> 1 = [convert::f32_to_e4m3x4([f(x[0]), f(x[1]), f(x[2]), f(x[3])])];
    e4m3x4_to_f16x4(x: 1) -> 2 = convert::e4m3x4_to_f16x4(x[0]);
    mma_e4m3(x: 10) -> 4 = mma::m16n8k32_e4m3(
        [x[0], x[1], x[2], x[3]], [x[4], x[5]], [f(x[6]), f(x[7]), f(x[8]), f(x[9])]
    ).map(f32::to_bits);
}

#[cfg(feature = "sm_90a")]
mod codes;
#[cfg(feature = "sm_90a")]
pub mod hopper;
mod memory;
#[cfg(feature = "sm_90a")]
pub mod skeleton;

pub use memory::*;
