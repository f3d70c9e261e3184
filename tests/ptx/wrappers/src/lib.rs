//! One kernel per function of `cuda_std`, named `<module>_<function>`: what each becomes in PTX is
//! compared with `tests/ptx/golden`. A function without a kernel here fails `tests/ptx/golden.rs`.
#![no_std]
#![feature(abi_ptx, asm_experimental_arch)]

use cuda_std::kernel;
#[cfg(feature = "sm_90a")]
use cuda_std::{mbarrier, tma, warpgroup, wgmma};
use cuda_std::{atomic, convert, cp_async, global, hint, ldmatrix, math, mma, shared, thread, warp};

cuda_std::declare_dynamic_shared_memory!();

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// `name(arguments) -> result = call`: a kernel that stores the result of the call.
macro_rules! golden {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $call:expr;)*) => {
        $(golden!(@ $name($($arg: $type),*) $(-> $result)? = $call);)*
    };
    (@ $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $call:expr) => {
        /// Stores the result of the function it is named after.
        ///
        /// # Safety
        /// Never run.
        #[kernel]
        #[allow(unused_unsafe)]
        pub unsafe fn $name(out: *mut $result, $($arg: $type),*) {
            // SAFETY: never run.
            unsafe { *out = $call }
        }
    };
    (@ $name:ident($($arg:ident: $type:ty),*) = $call:expr) => {
        /// Calls the function it is named after.
        ///
        /// # Safety
        /// Never run.
        #[kernel]
        #[allow(unused_unsafe)]
        pub unsafe fn $name($($arg: $type),*) {
            // SAFETY: never run.
            unsafe { $call }
        }
    };
}

golden! {
    atomic_add_relaxed(address: u64, value: u32) -> u32 = atomic::add_relaxed(address, value);
    atomic_add_acq_rel(address: u64, value: u32) -> u32 = atomic::add_acq_rel(address, value);
    atomic_add_f32(address: u64, value: f32) -> f32 = atomic::add_f32(address, value);
    atomic_load_acquire(address: u64) -> u32 = atomic::load_acquire(address);
    atomic_load_relaxed_x4(address: u64) -> [u32; 4] = atomic::load_relaxed_x4(address);
    atomic_store_relaxed(address: u64, value: u32) = atomic::store_relaxed(address, value);
    atomic_store_release(address: u64, value: u32) = atomic::store_release(address, value);

    convert_f16_to_f32(bits: u32) -> f32 = convert::f16_to_f32(bits);
    convert_bf16_to_f32(bits: u32) -> f32 = convert::bf16_to_f32(bits);
    convert_f32_to_f16x2(lo: f32, hi: f32) -> u32 = convert::f32_to_f16x2(lo, hi);
    convert_f32_to_bf16x2(lo: f32, hi: f32) -> u32 = convert::f32_to_bf16x2(lo, hi);
    convert_permute_bytes(a: u32, b: u32) -> u32 = convert::permute_bytes::<0x5410>(a, b);

    cp_async_copy16(dst: u32, src: u64) = cp_async::copy16(dst, src);
    cp_async_evict_first() -> u64 = cp_async::evict_first().0;
    cp_async_evict_last() -> u64 = cp_async::evict_last().0;
    cp_async_copy16_with_policy(dst: u32, src: u64, policy: u64) =
        cp_async::copy16_with_policy(dst, src, cp_async::CachePolicy(policy));
    cp_async_commit_group() = cp_async::commit_group();
    cp_async_wait_group() = cp_async::wait_group::<1>();

    global_load_u8(address: u64) -> u32 = global::load_u8(address);
    global_load_u16(address: u64) -> u32 = global::load_u16(address);
    global_load_u32(address: u64) -> u32 = global::load_u32(address);
    global_load_f32(address: u64) -> f32 = global::load_f32(address);
    global_load_u32x4(address: u64) -> [u32; 4] = global::load_u32x4(address);
    global_read_f32(address: u64) -> f32 = global::read_f32(address);
    global_read_f32x4(address: u64) -> [f32; 4] = global::read_f32x4(address);
    global_store_u16(address: u64, value: u32) = global::store_u16(address, value);
    global_store_u32(address: u64, value: u32) = global::store_u32(address, value);
    global_store_f32(address: u64, value: f32) = global::store_f32(address, value);
    global_store_u32x2(address: u64, a: u32, b: u32) = global::store_u32x2(address, [a, b]);
    global_store_u32x4(address: u64, a: u32, b: u32, c: u32, d: u32) = global::store_u32x4(address, [a, b, c, d]);
    global_stream_u32(address: u64, value: u32) = global::stream_u32(address, value);
    global_stream_u32x2(address: u64, a: u32, b: u32) = global::stream_u32x2(address, [a, b]);
    global_stream_u32x4(address: u64, a: u32, b: u32, c: u32, d: u32) = global::stream_u32x4(address, [a, b, c, d]);

    hint_opaque(value: u32) -> u32 = hint::opaque(value);

    ldmatrix_x4(address: u32) -> [u32; 4] = ldmatrix::x4(address);
    ldmatrix_x4_trans(address: u32) -> [u32; 4] = ldmatrix::x4_trans(address);

    math_fma(a: f32, b: f32, c: f32) -> f32 = math::fma(a, b, c);
    math_max(a: f32, b: f32) -> f32 = math::max(a, b);
    math_max_propagate_nan(a: f32, b: f32) -> f32 = math::max_propagate_nan(a, b);
    math_min_propagate_nan(a: f32, b: f32) -> f32 = math::min_propagate_nan(a, b);
    math_abs(a: f32) -> f32 = math::abs(a);
    math_exp2(x: f32) -> f32 = math::exp2(x);
    math_log2(x: f32) -> f32 = math::log2(x);
    math_div_u32(a: u32, b: u32) -> u32 = math::div_u32(a, b);
    math_reciprocal_approx(x: f32) -> f32 = math::reciprocal_approx(x);
    math_reciprocal(x: f32) -> f32 = math::reciprocal(x);
    math_distinct_copy(x: f32) -> f32 = math::distinct_copy(x);
    math_fma_saturate(a: f32, b: f32, c: f32) -> f32 = math::fma_saturate(a, b, c);
    math_fma_f16x2(a: u32, b: u32, c: u32) -> u32 = math::fma_f16x2(a, b, c);
    math_max_propagate_nan_f16x2(a: u32, b: u32) -> u32 = math::max_propagate_nan_f16x2(a, b);
    math_max_propagate_nan_bf16x2(a: u32, b: u32) -> u32 = math::max_propagate_nan_bf16x2(a, b);
    math_max_s32(a: u32, b: u32) -> u32 = math::max_s32(a, b);

    mma_m16n8k64_s4(
        a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: u32, c1: u32, c2: u32, c3: u32
    ) -> [u32; 4] = mma::m16n8k64_s4([a0, a1, a2, a3], [b0, b1], [c0, c1, c2, c3]);
    mma_m16n8k32_s8(
        a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: u32, c1: u32, c2: u32, c3: u32
    ) -> [u32; 4] = mma::m16n8k32_s8([a0, a1, a2, a3], [b0, b1], [c0, c1, c2, c3]);
    mma_m16n8k16_f16(
        a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32
    ) -> [f32; 4] = mma::m16n8k16_f16([a0, a1, a2, a3], [b0, b1], [c0, c1, c2, c3]);

    shared_dynamic_shared_mem() -> u32 = shared::dynamic_shared_mem();
    shared_load_u32(address: u32) -> u32 = shared::load_u32(address);
    shared_load_f32(address: u32) -> f32 = shared::load_f32(address);
    shared_load_u32x4(address: u32) -> [u32; 4] = shared::load_u32x4(address);
    shared_store_u32(address: u32, value: u32) = shared::store_u32(address, value);
    shared_store_f32(address: u32, value: f32) = shared::store_f32(address, value);
    shared_store_u32x4(address: u32, a: u32, b: u32, c: u32, d: u32) = shared::store_u32x4(address, [a, b, c, d]);

    thread_thread_idx_x() -> u32 = thread::thread_idx_x();
    thread_block_idx_x() -> u32 = thread::block_idx_x();
    thread_block_idx_y() -> u32 = thread::block_idx_y();
    thread_block_dim_x() -> u32 = thread::block_dim_x();
    thread_grid_dim_x() -> u32 = thread::grid_dim_x();
    thread_thread_idx_y() -> u32 = thread::thread_idx_y();
    thread_thread_idx_z() -> u32 = thread::thread_idx_z();
    thread_block_idx_z() -> u32 = thread::block_idx_z();
    thread_block_dim_y() -> u32 = thread::block_dim_y();
    thread_block_dim_z() -> u32 = thread::block_dim_z();
    thread_grid_dim_y() -> u32 = thread::grid_dim_y();
    thread_grid_dim_z() -> u32 = thread::grid_dim_z();
    thread_index_1d() -> u32 = thread::index_1d();
    thread_sync_threads() = thread::sync_threads();
    thread_sync_named() = thread::sync_named(3, 64);
    thread_arrive_named() = thread::arrive_named(3, 64);
    thread_any_named(x: u32) -> u32 = thread::any_named(3, 64, x > 1) as u32;
    thread_reread_thread_idx_x() -> u32 = thread::reread_thread_idx_x();
    thread_reread_block_idx_x() -> u32 = thread::reread_block_idx_x();
    thread_reread_block_idx_y() -> u32 = thread::reread_block_idx_y();

    warp_lane_id() -> u32 = warp::lane_id();
    warp_shuffle_xor(value: u32, mask: u32) -> u32 = warp::shuffle_xor(value, mask);
    warp_shuffle_xor_f32(value: f32, mask: u32) -> f32 = warp::shuffle_xor_f32(value, mask);
    warp_shuffle_idx(value: u32, lane: u32) -> u32 = warp::shuffle_idx(value, lane);
    warp_vote_all(x: u32) -> u32 = warp::vote_all(x > 1) as u32;
    warp_vote_any(x: u32) -> u32 = warp::vote_any(x > 1) as u32;
    warp_vote_ballot(x: u32) -> u32 = warp::vote_ballot(x > 1);
    warp_sync_warp() = warp::sync_warp();
}

#[cfg(feature = "sm_89")]
golden! {
    convert_f32_to_e4m3x4(a: f32, b: f32, c: f32, d: f32) -> u32 = convert::f32_to_e4m3x4([a, b, c, d]);
    convert_e4m3x4_to_f16x4(codes: u32) -> [u32; 2] = convert::e4m3x4_to_f16x4(codes);
    mma_m16n8k32_e4m3(
        a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32
    ) -> [f32; 4] = mma::m16n8k32_e4m3([a0, a1, a2, a3], [b0, b1], [c0, c1, c2, c3]);
}

#[cfg(feature = "sm_90a")]
golden! {
    mbarrier_init(barrier: u32, arrivals: u32) = mbarrier::init(barrier, arrivals);
    mbarrier_fence_init() = mbarrier::fence_init();
    mbarrier_arrive(barrier: u32) = mbarrier::arrive(barrier);
    mbarrier_arrive_expect_tx(barrier: u32, bytes: u32) = mbarrier::arrive_expect_tx(barrier, bytes);
    mbarrier_try_wait(barrier: u32, parity: u32) -> u32 = mbarrier::try_wait(barrier, parity) as u32;
    mbarrier_wait(barrier: u32, parity: u32) = mbarrier::wait(barrier, parity);
    mbarrier_wait_again(barrier: u32, parity: u32) = mbarrier::wait_again(barrier, parity);

    tma_fence_proxy_async() = tma::fence_proxy_async();
    tma_prefetch_map(map: u64) = tma::prefetch_map(map);
    tma_load_3d(shared: u32, map: u64, x: u32, y: u32, z: u32, barrier: u32) = tma::load_3d(shared, map, x, y, z, barrier);
    tma_load_bulk(shared: u32, global: u64, bytes: u32, barrier: u32) = tma::load_bulk(shared, global, bytes, barrier);

    warpgroup_decrease_registers() = warpgroup::decrease_registers::<24>();
    warpgroup_increase_registers() = warpgroup::increase_registers::<160>();

    wgmma_descriptor(address: u32) -> u64 = wgmma::descriptor(address, wgmma::Swizzle::Bytes128);
    wgmma_fence() = wgmma::fence();
    wgmma_commit_group() = wgmma::commit_group();
    wgmma_wait_group() = wgmma::wait_group::<0>();
    wgmma_m64n128k32_s8(a: u64, b: u64, accumulate: u32) -> [u32; 64] = {
        let mut d = [0; 64];
        wgmma::m64n128k32_s8(&mut d, a, b, accumulate);
        d
    };
    wgmma_m64n64k32_e4m3(a0: u32, a1: u32, a2: u32, a3: u32, b: u64, accumulate: u32) -> [f32; 32] = {
        let mut d = [0.0; 32];
        wgmma::m64n64k32_e4m3(&mut d, [a0, a1, a2, a3], b, accumulate);
        d
    };
    wgmma_m64n72k32_e4m3(a0: u32, a1: u32, a2: u32, a3: u32, b: u64, accumulate: u32) -> [f32; 36] = {
        let mut d = [0.0; 36];
        wgmma::m64n72k32_e4m3(&mut d, [a0, a1, a2, a3], b, accumulate);
        d
    };
    wgmma_m64n128k32_e4m3(a0: u32, a1: u32, a2: u32, a3: u32, b: u64, accumulate: u32) -> [f32; 64] = {
        let mut d = [0.0; 64];
        wgmma::m64n128k32_e4m3(&mut d, [a0, a1, a2, a3], b, accumulate);
        d
    };
    wgmma_m64n136k32_e4m3(a0: u32, a1: u32, a2: u32, a3: u32, b: u64, accumulate: u32) -> [f32; 68] = {
        let mut d = [0.0; 68];
        wgmma::m64n136k32_e4m3(&mut d, [a0, a1, a2, a3], b, accumulate);
        d
    };
}
