//! Loads, stores and atomic operations.

use super::*;
use cuda_std::{atomic, hint};

/// A kernel that maps a thread's words and global memory.
macro_rules! global_kernels {
    ($($name:ident($p:ident, $x:ident: $inputs:literal) -> $outputs:literal = $y:expr;)*) => { $(
        /// The instructions it is named after.
        ///
        /// # Safety
        /// [`Buffers`] of as many threads as the grid has; a word of input is a byte of the image's first 16 KiB.
        #[kernel(max_threads = 128)]
        pub unsafe fn $name($p: Buffers) {
            // SAFETY: forwarded contract.
            unsafe {
                let $x = read::<$inputs>(&$p);
                let y: [u32; $outputs] = $y;
                write(&$p, y);
            }
        }
    )* };
}

global_kernels! {
    global_loads(p, x: 1) -> 8 = {
        let at = |bytes: u32| p.image + (x[0] / bytes * bytes) as u64;
        let v = global::load_u32x4(at(16));
        [
            global::load_u8(at(1)),
            global::load_u16(at(2)),
            global::load_u32(at(4)),
            global::load_f32(at(4)).to_bits(),
            v[0], v[1], v[2], v[3]
        ]
    };
    global_reads(p, x: 1) -> 5 = {
        let at = |bytes: u32| p.image + (x[0] / bytes * bytes) as u64;
        let v = global::read_f32x4(at(16));
        [global::read_f32(at(4)).to_bits(), v[0].to_bits(), v[1].to_bits(), v[2].to_bits(), v[3].to_bits()]
    };
}

/// Every store to global memory, then reads of what other threads of the CTA stored.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads; 28 words a thread are written.
#[kernel(max_threads = 128)]
pub unsafe fn global_stores(p: Buffers) {
    let me = thread::thread_idx_x();
    let at = |first: u32, words: u32, thread: u32| p.output + (128 * first + words * thread) as u64 * 4;
    // SAFETY: forwarded contract; the barrier lies between stores and reads of the same words.
    unsafe {
        let x = read::<4>(&p);
        global::store_u32x4(at(0, 4, me), x);
        global::store_u32x2(at(4, 2, me), [x[3], x[2]]);
        global::store_u32(at(6, 1, me), x[1]);
        global::store_f32(at(7, 1, me), f(x[0]));
        // Halves of two words, each of which another thread completes.
        global::store_u16(at(8, 1, me), x[0]);
        global::store_u16(at(8, 1, 127 - me) + 2, x[1]);
        thread::sync_threads();
        let v = global::read_f32x4(at(0, 4, me ^ 33));
        global::store_u32x4(at(9, 4, me), v.map(f32::to_bits));
        let word = |first, thread| global::read_f32(at(first, 1, thread)).to_bits();
        global::store_u32x4(at(13, 4, me), [word(4, me ^ 65), word(6, me ^ 1), word(7, 127 - me), word(8, me ^ 77)]);
        global::stream_u32x4(at(17, 4, me), [x[2], x[0], x[3], x[1]]);
        global::stream_u32x2(at(21, 2, me), [x[0], x[2]]);
        global::stream_u32(at(23, 1, me), x[3]);
        thread::sync_threads();
        global::store_u32x4(
            at(24, 4, me),
            [word(17, me ^ 65), word(18, me ^ 1), word(21, 127 - me), word(23, me ^ 77)],
        );
    }
}

/// Words of the input that are not those of the image, of which a thread counts every `threads`-th. The tests on a GPU
/// compare results with it.
///
/// # Safety
/// [`Buffers`] whose input is as long as the image; a word a thread is written.
#[kernel(max_threads = 128)]
pub unsafe fn differences(p: Buffers) {
    let (mut word, mut count) = (thread::index_1d(), 0);
    // SAFETY: forwarded contract.
    unsafe {
        while word < p.image_bytes / 4 {
            let at = word as u64 * 4;
            if global::load_u32(p.input + at) != global::load_u32(p.image + at) {
                count += 1;
            }
            word += p.threads;
        }
        write(&p, [count]);
    }
}

/// Atomic sums of many CTAs. A thread's two tickets say where it writes: a ticket given out twice leaves a word
/// unwritten.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has; the image starts with two words of zero.
#[kernel(max_threads = 128)]
pub unsafe fn tickets(p: Buffers) {
    // SAFETY: forwarded contract; no two threads have the same ticket.
    unsafe {
        let relaxed = atomic::add_relaxed(p.image, 3) / 3;
        global::store_u32(p.output + relaxed as u64 * 4, relaxed * 5);
        let ordered = atomic::add_acq_rel(p.image + 4, 1);
        global::store_u32(p.output + (p.threads + ordered) as u64 * 4, ordered ^ 0x5555);
    }
}

/// How many CTAs have started before this one, counted by the word `counter`.
///
/// # Safety
/// The word is zero before the launch and nobody else's; all threads of the CTA call it once, `me` is their index.
#[inline(always)]
unsafe fn rank_of_cta(counter: u64, me: u32) -> u32 {
    let smem = shared::dynamic_shared_mem();
    // SAFETY: the barrier lies between the store and the loads.
    unsafe {
        if me == 0 {
            shared::store_u32(smem, atomic::add_relaxed(counter, 1));
        }
        thread::sync_threads();
        shared::load_u32(smem)
    }
}

/// A chain of CTAs, each of which waits for the one before, reads what all of its threads have written and adds to
/// it. The order is that in which CTAs start, so that nobody waits for one that has not.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has, in CTAs of 128; the image has a word of zero for each CTA and two
/// more; a word a thread is written.
#[kernel(max_threads = 128)]
pub unsafe fn chain(p: Buffers) {
    let me = thread::thread_idx_x();
    // SAFETY: forwarded contract; a word of the output is read after its writer's flag was acquired.
    unsafe {
        let rank = rank_of_cta(p.image, me);
        let flag = p.image + 4 + rank as u64 * 4;
        let mut sum = me as f32;
        if rank > 0 {
            if me == 0 {
                while atomic::load_acquire(flag) == 0 {}
            }
            thread::sync_threads();
            sum += global::read_f32(p.output + ((rank - 1) * 128 + (me ^ 33)) as u64 * 4);
        }
        global::store_f32(p.output + (rank * 128 + me) as u64 * 4, sum);
        thread::sync_threads();
        if me == 0 {
            atomic::store_release(flag + 4, 1);
        }
    }
}

/// The same chain by words that say for themselves that they have come, as they are zero before.
///
/// # Safety
/// As for [`chain`]; the image has four words of zero and one for each thread.
#[kernel(max_threads = 128)]
pub unsafe fn chain_of_words(p: Buffers) {
    let me = thread::thread_idx_x();
    // SAFETY: forwarded contract; words are accessed by atomic operations only.
    unsafe {
        let rank = rank_of_cta(p.image, me);
        let word = |rank: u32, thread: u32| p.image + (4 + rank * 128 + thread) as u64 * 4;
        let mut sum = me + 1;
        if rank > 0 {
            let mut words = [0; 4];
            while words[0] == 0 || words[1] == 0 || words[2] == 0 || words[3] == 0 {
                words = atomic::load_relaxed_x4(word(rank - 1, (me ^ 33) / 4 * 4));
            }
            sum += (words[0] + 3 * words[1] + 5 * words[2] + 7 * words[3]) % 65_521;
        }
        global::store_u32(p.output + (rank * 128 + me) as u64 * 4, sum);
        atomic::store_relaxed(word(rank, me), sum);
    }
}

/// Atomic sums of f32, subnormal ones too: a thread adds its word to its word of the image.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has; the image has as many words.
#[kernel(max_threads = 128)]
pub unsafe fn atomic_add_f32(p: Buffers) {
    let word = p.image + thread::index_1d() as u64 * 4;
    // SAFETY: forwarded contract.
    unsafe {
        let [x] = read::<1>(&p);
        let old = atomic::add_f32(word, f(x));
        write(&p, [old.to_bits(), atomic::load_acquire(word)]);
    }
}

/// Every store to shared memory, then loads of what other threads stored: of the warp, then of the CTA.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads.
#[kernel(max_threads = 128)]
pub unsafe fn shared_stores(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    let at = |first: u32, words: u32, thread: u32| smem + (128 * first + words * thread) * 4;
    // SAFETY: forwarded contract; barriers lie between stores and loads.
    unsafe {
        let x = read::<4>(&p);
        shared::store_u32x4(at(0, 4, me), x);
        shared::store_u32(at(4, 1, me), x[3]);
        shared::store_f32(at(5, 1, me), f(x[2]));
        warp::sync_warp();
        let near = [shared::load_u32(at(4, 1, me ^ 21)), shared::load_f32(at(5, 1, me ^ 10)).to_bits()];
        thread::sync_threads();
        let v = shared::load_u32x4(at(0, 4, 127 - me));
        write(&p, [near[0], near[1], v[0], v[1], v[2], v[3]]);
    }
}

/// Fills shared memory with a word, so that what the next kernel finds there is no accident.
///
/// # Safety
/// [`Buffers`] of as many threads as the grid has, in CTAs of 128; `image_bytes` is the dynamic shared memory of a CTA,
/// at least 2 KiB.
#[kernel(max_threads = 128)]
pub unsafe fn pollute(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    // SAFETY: forwarded contract; a barrier lies between stores and loads.
    unsafe {
        let [x] = read::<1>(&p);
        let mut offset = me * 16;
        while offset + 16 <= p.image_bytes {
            shared::store_u32x4(smem + offset, [x; 4]);
            offset += 128 * 16;
        }
        thread::sync_threads();
        write(&p, [shared::load_u32(smem + (me ^ 65) * 16)]);
    }
}

/// `cp.async` in groups: the older of two is waited for first, and read.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads; a word of input is a chunk of the image.
#[kernel(max_threads = 128)]
pub unsafe fn copy_groups(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    // SAFETY: forwarded contract; copies are waited for and barriers follow.
    unsafe {
        let [first, second] = read::<2>(&p);
        cp_async::copy16(smem + me * 16, p.image + first as u64 * 16);
        cp_async::commit_group();
        // The chunk's number is small, so this changes nothing, but makes one register of the address: see
        // `copy16_with_policy`.
        let own = (smem + me * 16) ^ (second >> 31);
        cp_async::copy16_with_policy(own + 2048, p.image + second as u64 * 16, cp_async::evict_first());
        cp_async::copy16_with_policy(own + 4096, p.image + first as u64 * 16, cp_async::evict_last());
        cp_async::commit_group();
        cp_async::wait_group::<1>();
        thread::sync_threads();
        let a = shared::load_u32x4(smem + (me ^ 33) * 16);
        cp_async::wait_group::<0>();
        thread::sync_threads();
        let b = shared::load_u32x4(smem + 2048 + (me ^ 34) * 16);
        let c = shared::load_u32(smem + 4096 + (me ^ 35) * 16);
        write(&p, [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c]);
    }
}

/// Named barriers of pairs of warps, then of three of the four, one of which only arrives.
///
/// # Safety
/// [`Buffers`] of one CTA of 128 threads.
#[kernel(max_threads = 128)]
pub unsafe fn barriers_of_pairs(p: Buffers) {
    let (smem, me) = (shared::dynamic_shared_mem(), thread::thread_idx_x());
    let pair = me / 64;
    // SAFETY: forwarded contract; barriers lie between stores and loads.
    unsafe {
        let [x] = read::<1>(&p);
        shared::store_u32(smem + me * 4, x);
        thread::sync_named(1 + pair, 64);
        let y = shared::load_u32(smem + (me ^ 63) * 4);
        thread::sync_named(1 + pair, 64);
        shared::store_u32(smem + me * 4, x ^ y);
        let mut z = x;
        if me < 32 {
            thread::arrive_named(15, 96);
        } else if me < 96 {
            thread::sync_named(15, 96);
            z = shared::load_u32(smem + me % 32 * 4);
        }
        write(&p, [y, z]);
    }
}

kernels! {
    opaque(x: 1) -> 1 = [hint::opaque(x[0])];
    rereads(x: 1) -> 3 = [
        x[0] ^ thread::reread_thread_idx_x(),
        thread::reread_block_idx_x() + 65536 * (thread::block_dim_x() + thread::reread_block_idx_y()),
        shared::dynamic_shared_mem() % 1024
    ];
    reciprocal_approx(x: 1) -> 1 = [math::reciprocal_approx(f(x[0])).to_bits()];
    distinct_copy(x: 1) -> 1 = [math::distinct_copy(f(x[0])).to_bits()];
    shuffles(x: 2) -> 2 = [warp::shuffle_xor(x[0], x[1]), warp::shuffle_idx(x[0], x[1])];
}
