//! More of them: gaps and padding, fences and arrivals that lack, and the CTA of a fault.

use cuda_std::executor::{Access, FaultKind, Launch, Memory, Space};
use cuda_std::{global, mbarrier, shared, thread, tma, wgmma};

use super::{fault, line_of, smem};

#[test]
fn misaligned_global_accesses_are_named() {
    let kind = fault("misaligned global", 1, 0, |mistake, buffer| {
        let shift = if mistake { 8 } else { 0 };
        // SAFETY: the executor checks.
        unsafe { global::store_u32x4(buffer + 16 + shift, [1; 4]) } // here: misaligned global
    });
    assert!(matches!(kind, FaultKind::Misaligned { space: Space::Global, align: 16, .. }), "{kind}");
}

/// A gap between rows, and padding that nobody has written: by a load, and by a bulk copy whose bytes are used.
#[test]
fn gaps_and_padding_are_named() {
    let run = |first: u64, read: &dyn Fn(u64)| {
        let mut memory = Memory::new();
        let rows = memory.alloc("rows", 64);
        memory.write(rows, &[1; 16]);
        memory.write(rows + 48, &[1; 16]);
        memory.forbid(rows + 16, 16);
        let launch = Launch { shared_bytes: 64, ..Launch::new("planted", 1, 1) };
        launch.run(&mut memory, || read(rows + first))
    };
    // SAFETY: the executor checks.
    let load = |address| unsafe {
        global::load_u32x4(address); // here: padding
    };
    assert_eq!((run(0, &load), run(48, &load)), (Ok(()), Ok(())));
    for (first, is_gap) in [(16, true), (32, false)] {
        let fault = run(first, &load).unwrap_err();
        assert_eq!(fault.at.map(|at| at.line()), Some(line_of("padding")), "{fault}");
        match &fault.kind {
            FaultKind::OutOfBounds { space: Space::Global, hint, .. } => assert!(is_gap && hint.contains("a gap")),
            FaultKind::Uninitialised { space: Space::Global, .. } => assert!(!is_gap, "{fault}"),
            other => panic!("{other}"),
        }
    }
    // SAFETY: the executor checks.
    let copy = |address| unsafe {
        mbarrier::init(smem() + 32, 1);
        mbarrier::fence_init();
        mbarrier::arrive_expect_tx(smem() + 32, 16);
        tma::load_bulk(smem(), address, 16, smem() + 32);
        mbarrier::wait(smem() + 32, 0);
        shared::load_u32(smem()); // here: copied padding
    };
    assert_eq!(run(0, &copy), Ok(()));
    let fault = run(32, &copy).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Uninitialised { space: Space::Shared, .. }), "{fault}");
    assert_eq!(fault.at.map(|at| at.line()), Some(line_of("copied padding")), "{fault}");
}

#[test]
fn a_copy_over_words_without_a_fence_is_named() {
    let kind = fault("copy over", 32, 512, |mistake, buffer| {
        let (me, barrier) = (thread::thread_idx_x(), smem() + 256);
        // SAFETY: the executor checks.
        unsafe {
            shared::store_u32(smem() + me * 4, me);
            if !mistake {
                tma::fence_proxy_async();
            }
            if me == 0 {
                mbarrier::init(barrier, 1);
                mbarrier::fence_init();
            }
            thread::sync_threads();
            if me == 0 {
                mbarrier::arrive_expect_tx(barrier, 128);
                tma::load_bulk(smem(), buffer, 128, barrier); // here: copy over
            }
            mbarrier::wait(barrier, 0);
        }
    });
    assert!(matches!(kind, FaultKind::Unfenced { access: Access::Write, .. }), "{kind}");
}

#[test]
fn an_mbarrier_that_lacks_an_arrival_is_named() {
    let kind = fault("arrival", 32, 16, |mistake, _| {
        let me = thread::thread_idx_x();
        // SAFETY: the executor checks.
        unsafe {
            if me == 0 {
                mbarrier::init(smem(), 32);
            }
            thread::sync_threads();
            if !mistake || me != 7 {
                mbarrier::arrive(smem());
            }
            mbarrier::wait(smem(), 0); // here: arrival
        }
    });
    assert!(matches!(kind, FaultKind::Deadlock { .. }) && kind.to_string().contains("1 of 32 arrivals"), "{kind}");
}

#[test]
fn warps_in_different_products_are_named() {
    let kind = fault("whole|half", 128, 0, |mistake, _| {
        // SAFETY: the executor checks.
        unsafe {
            if mistake && thread::thread_idx_x() >= 96 {
                wgmma::commit_group(); // here: half
            }
            wgmma::fence(); // here: whole
        }
    });
    assert!(matches!(kind, FaultKind::Divergent { .. }), "{kind}");
}

/// CTA (2, 1) reads one word too many: the fault says so, whatever the order of CTAs.
#[test]
fn the_cta_and_the_thread_of_a_fault_are_named() {
    for seed in 0..16 {
        let mut memory = Memory::new();
        let buffer = memory.upload("buffer", &[0; 6 * 32 * 4]);
        let grid = [3, 2, 1];
        let launch = Launch { grid, seed, ..Launch::new("planted", 1, 32) };
        let fault = launch.run(&mut memory, || {
            let cta = thread::block_idx_y() * 3 + thread::block_idx_x();
            let word = cta * 32 + thread::thread_idx_x() + 1;
            // SAFETY: the executor checks.
            unsafe { global::load_u32(buffer + u64::from(word) * 4) }; // here: CTA
        });
        let fault = fault.unwrap_err();
        assert_eq!((fault.block, fault.thread, fault.at.map(|at| at.line())), ([2, 1, 0], 31, Some(line_of("CTA"))));
        assert!(fault.to_string().contains("kernel planted") && fault.to_string().contains("CTA (2, 1, 0), thread 31"));
    }
}
