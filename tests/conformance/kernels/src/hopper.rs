//! Hopper's products, copies and barriers.

use super::*;

use cuda_std::{mbarrier, tma, wgmma};

/// `wgmma` of s8: A is the image's first 64 rows, B the next 128, both of one swizzle; the thread's words are
/// D, to which the product over all of K is added.
macro_rules! integers {
    ($($name:ident(x: 64) -> 64 = $swizzle:ident, $row_bytes:literal;)*) => { $(
        /// The instruction it is named after.
        ///
        /// # Safety
        /// [`Buffers`] of one warpgroup.
        #[kernel(max_threads = 128)]
        pub unsafe fn $name(p: Buffers) {
            // SAFETY: forwarded contract.
            unsafe {
                let smem = load_image(&p);
                let mut d = read::<64>(&p);
                let a = wgmma::descriptor(smem, wgmma::Swizzle::$swizzle);
                let b = wgmma::descriptor(smem + 64 * $row_bytes, wgmma::Swizzle::$swizzle);
                wgmma::fence();
                wgmma::m64n128k32_s8(&mut d, a, b, 1);
                wgmma::m64n128k32_s8(&mut d, a + 2, b + 2, 1);
                if $row_bytes == 128 {
                    wgmma::m64n128k32_s8(&mut d, a + 4, b + 4, 1);
                    wgmma::m64n128k32_s8(&mut d, a + 6, b + 6, 1);
                }
                wgmma::commit_group();
                wgmma::wait_group::<0>();
                write(&p, d);
            }
        }
    )* };
}

integers! {
    wgmma_s8_swizzle64(x: 64) -> 64 = Bytes64, 64;
    wgmma_s8_swizzle128(x: 64) -> 64 = Bytes128, 128;
}

/// `wgmma` of E4M3: A is the thread's four words, B the image's rows; chunk 2 of every row is where K starts.
macro_rules! floats {
    ($($name:ident(x: 4) -> $words:literal = $instruction:path;)*) => { $(
        /// The instruction it is named after.
        ///
        /// # Safety
        /// [`Buffers`] of one warpgroup.
        #[kernel(max_threads = 128)]
        pub unsafe fn $name(p: Buffers) {
            // SAFETY: forwarded contract.
            unsafe {
                let smem = load_image(&p);
                let a = read::<4>(&p);
                let mut d = [0.0f32; $words];
                wgmma::fence();
                $instruction(&mut d, a, wgmma::descriptor(smem, wgmma::Swizzle::Bytes128) + 2, 0);
                wgmma::commit_group();
                wgmma::wait_group::<0>();
                write(&p, d.map(f32::to_bits));
            }
        }
    )* };
}

floats! {
    wgmma_e4m3_n64(x: 4) -> 32 = wgmma::m64n64k32_e4m3;
    wgmma_e4m3_n72(x: 4) -> 36 = wgmma::m64n72k32_e4m3;
    wgmma_e4m3_n128(x: 4) -> 64 = wgmma::m64n128k32_e4m3;
    wgmma_e4m3_n136(x: 4) -> 68 = wgmma::m64n136k32_e4m3;
}

/// `cp.async.bulk`: one thread copies the whole image, every thread reads the chunk that its word names.
///
/// # Safety
/// [`Buffers`] of one CTA; the image is at most 16 KiB.
#[kernel(max_threads = 128)]
pub unsafe fn bulk_copy(p: Buffers) {
    let smem = shared::dynamic_shared_mem();
    let barrier = smem + 16_384;
    // SAFETY: forwarded contract.
    unsafe {
        if thread::thread_idx_x() == 0 {
            mbarrier::init(barrier, 1);
            mbarrier::fence_init();
            mbarrier::arrive_expect_tx(barrier, p.image_bytes);
            tma::load_bulk(smem, p.image, p.image_bytes, barrier);
        }
        thread::sync_threads();
        mbarrier::wait(barrier, 0);
        let [chunk] = read::<1>(&p);
        write(&p, shared::load_u32x4(smem + chunk * 16));
    }
}

/// A map beside the buffers, which it describes.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapped {
    /// Of the image.
    pub map: [u64; 16],
    /// The rest.
    pub buffers: Buffers,
    /// First element, row and plane of the box.
    pub origin: [u32; 3],
    /// Bytes of a box.
    pub box_bytes: u32,
}

/// `cp.async.bulk.tensor`: one thread copies a box, every thread reads the chunk of shared memory that its word
/// names.
///
/// # Safety
/// [`Mapped`] of one CTA; a box is at most 24 KiB.
#[kernel(max_threads = 128, parameter_align = 64)]
pub unsafe fn tensor_copy(p: Mapped) {
    let map = cuda_std::parameter_address!(tensor_copy, p);
    let smem = shared::dynamic_shared_mem();
    let barrier = smem + 24_576;
    // SAFETY: forwarded contract.
    unsafe {
        if thread::thread_idx_x() == 0 {
            tma::prefetch_map(map);
            mbarrier::init(barrier, 1);
            mbarrier::fence_init();
            mbarrier::arrive_expect_tx(barrier, p.box_bytes);
            tma::load_3d(smem, map, p.origin[0], p.origin[1], p.origin[2], barrier);
        }
        thread::sync_threads();
        mbarrier::wait(barrier, 0);
        let [chunk] = read::<1>(&p.buffers);
        write(&p.buffers, shared::load_u32x4(smem + chunk * 16));
    }
}

/// Two groups of products: the older is waited for first, and used.
///
/// # Safety
/// [`Buffers`] of one warpgroup.
#[kernel(max_threads = 128)]
pub unsafe fn wgmma_groups(p: Buffers) {
    // SAFETY: forwarded contract.
    unsafe {
        let smem = load_image(&p);
        let a = read::<4>(&p);
        let b = wgmma::descriptor(smem, wgmma::Swizzle::Bytes128);
        let (mut older, mut newer) = ([0.0f32; 32], [0.0f32; 36]);
        wgmma::fence();
        wgmma::m64n64k32_e4m3(&mut older, a, b, 0);
        wgmma::commit_group();
        wgmma::m64n72k32_e4m3(&mut newer, a, b + 4, 0);
        wgmma::commit_group();
        wgmma::wait_group::<1>();
        let mut y = [0u32; 36];
        let mut i = 0;
        while i < 32 {
            y[i] = older[i].to_bits();
            i += 1;
        }
        wgmma::wait_group::<0>();
        while i < 36 {
            y[i] = newer[i].to_bits();
            i += 1;
        }
        write(&p, y);
    }
}

/// Phases of mbarriers whose parity alternates six times: in each, every thread writes and arrives at the one, every
/// thread waits and reads what another wrote, and a lane of each warp arrives at the other when its warp has read.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads.
#[kernel(max_threads = 128)]
pub unsafe fn phases(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    let (written, read_by_all) = (smem + 1024, smem + 1032);
    // SAFETY: forwarded contract.
    unsafe {
        if me == 0 {
            mbarrier::init(written, 128);
            mbarrier::init(read_by_all, 4);
        }
        thread::sync_threads();
        let [mut x] = read::<1>(&p);
        let mut y = [0u32; 6];
        let mut round = 0;
        while round < 6 {
            let parity = round as u32 & 1;
            shared::store_u32(smem + me * 4, x);
            mbarrier::arrive(written);
            while !mbarrier::try_wait(written, parity) {}
            mbarrier::wait_again(written, parity);
            x = x.rotate_left(7) ^ shared::load_u32(smem + (me ^ (33 + 2 * round as u32)) * 4);
            y[round] = x;
            warp::sync_warp();
            if me % 32 == 0 {
                mbarrier::arrive(read_by_all);
            }
            mbarrier::wait(read_by_all, parity);
            round += 1;
        }
        write(&p, y);
    }
}

/// Bytes of many copies on one barrier: in each of two phases a lane of each warp announces and starts copies of its
/// own sizes, one of them before it is announced.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads; the image has 16 KiB; a word of input is a chunk below 320.
#[kernel(max_threads = 128)]
pub unsafe fn bytes_of_copies(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    let barrier = smem + 16_384;
    // SAFETY: forwarded contract. The copies of a phase fill 5 KiB, 1280 bytes a warp.
    unsafe {
        if me == 0 {
            mbarrier::init(barrier, 4);
            mbarrier::fence_init();
        }
        thread::sync_threads();
        let [chunk] = read::<1>(&p);
        let mut y = [0u32; 8];
        let mut round = 0;
        while round < 2 {
            if me % 32 == 0 {
                let (at, first) = (me / 32 * 1280, 16 * (1 + 3 * (me / 32)));
                let from = p.image + (round as u32 * 5120 + at) as u64;
                tma::load_bulk(smem + at, from, first, barrier);
                mbarrier::arrive_expect_tx(barrier, 1280);
                tma::load_bulk(smem + at + first, from + first as u64, 640, barrier);
                tma::load_bulk(smem + at + first + 640, from + first as u64 + 640, 640 - first, barrier);
            }
            mbarrier::wait(barrier, round as u32);
            let v = shared::load_u32x4(smem + chunk * 16);
            let mut i = 0;
            while i < 4 {
                y[4 * round + i] = v[i];
                i += 1;
            }
            thread::sync_threads();
            round += 1;
        }
        write(&p, y);
    }
}
