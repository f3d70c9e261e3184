//! Kernels with one mistake each. The executor names the mistake and its line, whatever order threads run in;
//! without the mistake the same kernel passes.

use cuda_std::executor::{Access, Actor, Fault, FaultKind, Launch, Memory, Space};
use cuda_std::{cp_async, global, mbarrier, shared, thread, tma, warp, wgmma};

mod places;

/// The kernels, as text.
const SOURCES: [&str; 2] = [include_str!("faults.rs"), include_str!("faults/places.rs")];

/// Line of its file that ends in the comment `// here: marker`.
fn line_of(marker: &str) -> u32 {
    let end = format!("// here: {marker}");
    let line = SOURCES.iter().find_map(|source| source.lines().position(|line| line.ends_with(&end)));
    line.unwrap_or_else(|| panic!("no line ends in `{end}`")) as u32 + 1
}

/// Runs one CTA in many orders of threads.
fn run(threads: u32, shared_bytes: u32, kernel: impl Fn(u64)) -> Result<(), Fault> {
    for seed in 0..16 {
        let mut memory = Memory::new();
        let buffer = memory.upload("buffer", &[0x38; 4096]);
        let launch = Launch { shared_bytes, seed, ..Launch::new("planted", 1, threads) };
        launch.run(&mut memory, || kernel(buffer))?;
    }
    Ok(())
}

/// The fault of `kernel(true)`, on the line marked `marker` (or on another one: `a|b`, where either of two
/// threads may be the one that finds out); `kernel(false)` has none.
fn fault(marker: &str, threads: u32, shared_bytes: u32, kernel: impl Fn(bool, u64)) -> FaultKind {
    if let Err(fault) = run(threads, shared_bytes, |buffer| kernel(false, buffer)) {
        panic!("without the mistake: {fault}");
    }
    let fault = run(threads, shared_bytes, |buffer| kernel(true, buffer)).expect_err("there is a mistake");
    let at = fault.at.unwrap_or_else(|| panic!("{fault}"));
    let is_marked = marker.split('|').any(|marker| at.line() == line_of(marker));
    assert!(at.file().contains("faults") && is_marked, "{fault}");
    assert_eq!((fault.kernel.as_str(), fault.block), ("planted", [0; 3]));
    let text = fault.to_string();
    assert!(text.contains("kernel planted") && text.contains(&format!("thread {}", fault.thread)), "{text}");
    fault.kind
}

/// Address of the CTA's shared memory.
fn smem() -> u32 {
    shared::dynamic_shared_mem()
}

#[test]
fn a_race_is_named() {
    let kind = fault("race write|race read", 64, 256, |mistake, buffer| {
        let me = thread::thread_idx_x();
        // SAFETY: the executor checks.
        unsafe {
            shared::store_u32(smem() + me * 4, 0);
            thread::sync_threads();
            shared::store_u32(smem() + me * 4, me + 1); // here: race write
            if !mistake {
                thread::sync_threads();
            }
            let value = shared::load_u32(smem() + (63 - me) * 4); // here: race read
            global::store_u32(buffer + u64::from(me) * 4, value);
        }
    });
    let FaultKind::Race { access, other, by: Actor::Thread(_), other_at, .. } = kind else { panic!("{kind}") };
    let (here, there) = if access == Access::Read { ("write", Access::Write) } else { ("read", Access::Read) };
    assert_eq!((other, other_at.line()), (there, line_of(&format!("race {here}"))));
}

#[test]
fn a_missing_fence_is_named() {
    let kind = fault("fence", 128, 8192 + 1024, |mistake, _| {
        let me = thread::thread_idx_x();
        let tile = smem();
        // SAFETY: the executor checks.
        unsafe {
            // 64 rows of A and 8 of B by threads, as a kernel fills a tile that no bulk copy brings.
            for chunk in 0..4 {
                shared::store_u32x4(tile + (chunk * 128 + me) * 16, [0x0101_0101; 4]);
            }
            if !mistake {
                tma::fence_proxy_async();
            }
            thread::sync_threads();
            let mut d = [0.0f32; 32];
            wgmma::fence();
            wgmma::m64n64k32_e4m3(&mut d, [0; 4], wgmma::descriptor(tile, wgmma::Swizzle::Bytes128), 0); // here: fence
            wgmma::commit_group();
            wgmma::wait_group::<0>();
        }
    });
    assert!(matches!(kind, FaultKind::Unfenced { access: Access::Read, .. }), "{kind}");
}

/// A producer thread and a consumer warp with two buffers; the consumer's parity is wrong from the second round
/// on if there is a `mistake`.
fn ring(mistake: bool, buffer: u64) {
    let me = thread::thread_idx_x();
    let (tiles, full, empty) = (smem(), smem() + 512, smem() + 528);
    // SAFETY: the executor checks.
    unsafe {
        if me == 0 {
            for stage in 0..2 {
                mbarrier::init(full + stage * 8, 1);
                mbarrier::init(empty + stage * 8, 32);
            }
            mbarrier::fence_init();
        }
        thread::sync_threads();
        if me == 0 {
            for tile in 0..6 {
                let (stage, round) = (tile % 2, tile / 2);
                mbarrier::wait(empty + stage * 8, (round & 1) ^ 1);
                mbarrier::arrive_expect_tx(full + stage * 8, 256);
                tma::load_bulk(tiles + stage * 256, buffer + u64::from(tile) * 256, 256, full + stage * 8);
            }
        } else if me >= 32 {
            for tile in 0..6 {
                let (stage, round) = (tile % 2, tile / 2);
                let parity = if mistake { 0 } else { round & 1 };
                mbarrier::wait(full + stage * 8, parity); // here: parity
                assert_eq!(shared::load_u32(tiles + stage * 256 + (me - 32) * 4), 0x3838_3838);
                mbarrier::arrive(empty + stage * 8);
            }
        }
    }
}

#[test]
fn a_wrong_parity_is_named() {
    let kind = fault("parity", 64, 1024, ring);
    assert!(matches!(kind, FaultKind::Parity { parity: 0, completed: 1, .. }), "{kind}");
}

#[test]
fn a_tail_that_is_one_too_long_is_named() {
    let kind = fault("tail", 1024, 0, |mistake, buffer| {
        let (me, count) = (thread::thread_idx_x(), 1023);
        // SAFETY: the executor checks.
        unsafe {
            if me < count || mistake {
                // The buffer has 1,024 words; these start at its second.
                let value = global::load_u32(buffer + 4 + u64::from(me) * 4); // here: tail
                assert_eq!(value, 0x3838_3838);
            }
        }
    });
    let expected = matches!(&kind, FaultKind::OutOfBounds { space: Space::Global, access: Access::Read, hint, .. }
        if hint == "byte 4096 of \"buffer\", which has 4096 bytes");
    assert!(expected, "{kind}");
}

#[test]
fn a_copy_read_before_its_wait_is_named() {
    let kind = fault("copy", 32, 512, |mistake, buffer| {
        let me = thread::thread_idx_x();
        let (to, from) = (smem() + me * 16, buffer + u64::from(me) * 16);
        // SAFETY: the executor checks.
        unsafe {
            cp_async::copy16(to, from);
            cp_async::commit_group();
            if !mistake {
                cp_async::wait_group::<0>();
            }
            assert_eq!(shared::load_u32(to), 0x3838_3838); // here: copy
            cp_async::wait_group::<0>();
        }
    });
    assert!(matches!(kind, FaultKind::InFlight { access: Access::Read, .. }), "{kind}");
}

#[test]
fn a_copy_waited_for_by_another_thread_only_is_named() {
    let kind = fault("other copy", 64, 1024, |mistake, buffer| {
        let me = thread::thread_idx_x();
        // SAFETY: the executor checks.
        unsafe {
            cp_async::copy16(smem() + me * 16, buffer + u64::from(me) * 16);
            cp_async::commit_group();
            cp_async::wait_group::<0>();
            if mistake {
                warp::sync_warp();
            } else {
                thread::sync_threads();
            }
            assert_eq!(shared::load_u32(smem() + (63 - me) * 16), 0x3838_3838); // here: other copy
        }
    });
    let unordered = matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. });
    assert!(unordered || matches!(kind, FaultKind::InFlight { .. }), "{kind}");
}

/// `wgmma` of tiles of ones; `between` happens before the wait, with the accumulators and the tile's address.
fn product(between: impl Fn(&mut [f32; 32], u32)) -> [f32; 32] {
    let (me, tile) = (thread::thread_idx_x(), smem());
    let mut d = [0.0f32; 32];
    // SAFETY: the executor checks.
    unsafe {
        for chunk in 0..4 {
            shared::store_u32x4(tile + (chunk * 128 + me) * 16, [0x3838_3838; 4]);
        }
        tma::fence_proxy_async();
        thread::sync_threads();
        wgmma::fence();
        wgmma::m64n64k32_e4m3(&mut d, [0x3838_3838; 4], wgmma::descriptor(tile, wgmma::Swizzle::Bytes128), 0); // here: product
        wgmma::commit_group();
        between(&mut d, tile);
        wgmma::wait_group::<0>(); // here: wait
    }
    d
}

#[test]
fn products_are_right_when_waited_for() {
    run(128, 8192, |_| assert_eq!(product(|_, _| ()), [32.0; 32])).unwrap();
}

#[test]
fn an_accumulator_used_before_its_wait_is_named() {
    let kind = fault("early", 128, 8192, |mistake, _| {
        product(|d, _| {
            if mistake {
                std::hint::black_box(cuda_std::math::max(d[3], 0.0)); // here: early
            }
        });
    });
    assert!(
        matches!(kind, FaultKind::Unfinished { product_at, .. } if product_at.line() == line_of("product")),
        "{kind}"
    );
}

#[test]
fn an_accumulator_changed_before_its_wait_is_named() {
    let kind = fault("wait", 128, 8192, |mistake, _| {
        product(|d, _| {
            if mistake {
                d[5] = std::hint::black_box(1.0);
            }
        });
    });
    assert!(
        matches!(kind, FaultKind::Unfinished { product_at, .. } if product_at.line() == line_of("product")),
        "{kind}"
    );
}

#[test]
fn an_operand_overwritten_before_its_wait_is_named() {
    let kind = fault("operand", 160, 8192, |mistake, _| {
        // SAFETY: the executor checks.
        let sync = || unsafe { thread::sync_threads() };
        if thread::thread_idx_x() < 128 {
            product(|_, _| {
                if mistake {
                    sync()
                }
            });
            if !mistake {
                sync();
            }
        } else {
            sync(); // the one in `product`
            sync();
            // SAFETY: the executor checks.
            unsafe { shared::store_u32(smem(), thread::block_dim_x()) } // here: operand
        }
    });
    assert!(matches!(kind, FaultKind::Race { by: Actor::Warpgroup(0), access: Access::Write, .. }), "{kind}");
}

#[test]
fn lanes_in_different_collectives_are_named() {
    let kind = fault("converged|divergent", 32, 0, |mistake, _| {
        let me = warp::lane_id();
        // SAFETY: the executor checks.
        unsafe {
            if mistake && me == 9 {
                warp::sync_warp(); // here: divergent
            }
            warp::shuffle_xor(me, 1); // here: converged
        }
    });
    assert!(matches!(kind, FaultKind::Divergent { .. }), "{kind}");
}

#[test]
fn a_barrier_that_a_thread_never_reaches_is_named() {
    let kind = fault("deadlock", 96, 0, |mistake, _| {
        if !mistake || thread::thread_idx_x() != 40 {
            // SAFETY: the executor checks.
            unsafe { thread::sync_threads() } // here: deadlock
        }
    });
    let FaultKind::Deadlock { waiting, finished: 1 } = &kind else { panic!("{kind}") };
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].1, 95);
    assert!(kind.to_string().contains("95 of 96 threads have arrived"), "{kind}");
}

#[test]
fn an_mbarrier_that_lacks_bytes_is_named() {
    let kind = fault("bytes", 32, 512, |mistake, buffer| {
        let barrier = smem() + 256;
        // SAFETY: the executor checks.
        unsafe {
            if thread::thread_idx_x() == 0 {
                mbarrier::init(barrier, 1);
                mbarrier::fence_init();
                mbarrier::arrive_expect_tx(barrier, if mistake { 256 } else { 128 });
                tma::load_bulk(smem(), buffer, 128, barrier);
            }
            thread::sync_threads();
            mbarrier::wait(barrier, 0); // here: bytes
        }
    });
    assert!(matches!(kind, FaultKind::Deadlock { .. }) && kind.to_string().contains("128 bytes"), "{kind}");
}

#[test]
fn an_mbarrier_unknown_to_copies_is_named() {
    let kind = fault("init", 32, 512, |mistake, buffer| {
        let barrier = smem() + 256;
        // SAFETY: the executor checks.
        unsafe {
            if thread::thread_idx_x() == 0 {
                mbarrier::init(barrier, 1);
                if !mistake {
                    mbarrier::fence_init();
                }
                mbarrier::arrive_expect_tx(barrier, 128);
                tma::load_bulk(smem(), buffer, 128, barrier); // here: init
            }
            thread::sync_threads();
            mbarrier::wait(barrier, 0);
        }
    });
    assert!(matches!(kind, FaultKind::Barrier { .. }), "{kind}");
}

#[test]
fn too_many_arrivals_are_named() {
    let kind = fault("arrivals", 32, 16, |mistake, _| {
        let me = thread::thread_idx_x();
        // SAFETY: the executor checks.
        unsafe {
            if me == 0 {
                mbarrier::init(smem(), 31);
            }
            thread::sync_threads();
            if me == 0 {
                // Announces bytes that never come: the phase stays.
                mbarrier::arrive_expect_tx(smem(), if mistake { 16 } else { 0 });
            } else if me < 31 || mistake {
                mbarrier::arrive(smem()); // here: arrivals
            }
        }
    });
    assert!(matches!(kind, FaultKind::Barrier { .. }), "{kind}");
}

#[test]
fn uninitialised_shared_memory_is_named() {
    let kind = fault("undefined", 32, 256, |mistake, _| {
        let address = smem() + thread::thread_idx_x() * 4;
        // SAFETY: the executor checks.
        unsafe {
            if !mistake {
                shared::store_u32(address, 1);
            }
            shared::load_u32(address); // here: undefined
        }
    });
    assert!(matches!(kind, FaultKind::Uninitialised { space: Space::Shared, .. }), "{kind}");
}

#[test]
fn shared_accesses_outside_or_misaligned_are_named() {
    let kind = fault("outside", 32, 128, |mistake, _| {
        let shift = if mistake { 4 } else { 0 };
        // SAFETY: the executor checks.
        unsafe { shared::store_u32(smem() + thread::thread_idx_x() * 4 + shift, 1) } // here: outside
    });
    assert!(matches!(kind, FaultKind::OutOfBounds { space: Space::Shared, .. }), "{kind}");
    let kind = fault("misaligned", 1, 128, |mistake, _| {
        let shift = if mistake { 8 } else { 0 };
        // SAFETY: the executor checks.
        unsafe { shared::store_u32x4(smem() + shift, [1; 4]) } // here: misaligned
    });
    assert!(matches!(kind, FaultKind::Misaligned { space: Space::Shared, align: 16, .. }), "{kind}");
}

#[test]
fn global_words_that_two_threads_share_are_named() {
    let kind = fault("two writers", 32, 0, |mistake, buffer| {
        let me = u64::from(thread::thread_idx_x());
        let word = if mistake { me / 2 } else { me };
        // SAFETY: the executor checks.
        unsafe { global::store_u32(buffer + word * 4, me as u32) } // here: two writers
    });
    assert!(matches!(kind, FaultKind::GlobalConflict { access: Access::Write, .. }), "{kind}");
}

#[test]
fn a_written_word_read_as_a_constant_is_named() {
    let kind = fault("constant", 1, 0, |mistake, buffer| {
        // SAFETY: the executor checks.
        unsafe {
            global::store_u32(buffer + if mistake { 0 } else { 4 }, 1);
            global::load_u32(buffer); // here: constant
        }
    });
    assert!(matches!(kind, FaultKind::GlobalConflict { access: Access::Read, .. }), "{kind}");
}

#[test]
fn a_panic_is_a_fault() {
    let fault = run(1, 0, |_| assert_eq!(thread::block_dim_x(), 2, "too few")).unwrap_err();
    assert!(matches!(&fault.kind, FaultKind::Panic(message) if message.contains("too few")), "{fault}");
}

#[test]
fn copies_that_nobody_waits_for_are_named() {
    let fault = run(1, 16, |buffer| {
        // SAFETY: the executor checks.
        unsafe { cp_async::copy16(smem(), buffer) } // here: unawaited
    });
    let fault = fault.unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Unawaited { .. }), "{fault}");
    assert!(fault.to_string().contains(&format!("faults.rs:{}", line_of("unawaited"))), "{fault}");
}
