//! The same launch again and again, while the GPU does other work too and memory moves about: the same bits.
//!
//! Results are compared on the GPU, if `SAGE_CONFORMANCE_PTX` names a folder with the kernel for that; ten thousand
//! launches of each kernel are then a matter of seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_tests::case::{Case, Limits};
use serde_json::json;

use crate::conformance::Kernel;
use crate::embedding::Session;
use crate::harness::{gpu, number, record};

/// Launches between two moves of all buffers.
const LAUNCHES_PER_MOVE: usize = 1000;

#[test]
fn repeats_under_load_have_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let capability = gpu.capability();
    let repeats = number("SAGE_GPU_REPEATS", 100) as usize;
    let differences = Kernel::load(&gpu, Arch::Sm80, "differences", 0);
    let begin = Instant::now();
    let mut done = BTreeMap::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Copies and other attention on streams of their own, until the last repeat.
        for load in 0..2u64 {
            let (gpu, stop) = (&gpu, &stop);
            scope.spawn(move || {
                let stream = gpu.context().new_stream().expect("stream");
                let case = (1000 * (load + 1)..)
                    .map(|seed| Case::random(seed, Limits::GPU))
                    .find(|case| {
                        case.stem.arch.loads_on(capability.major, capability.minor) && !case.problem.is_empty()
                    })
                    .expect("there are such problems");
                let session = Session::new(gpu, &stream, &case);
                let [from, mut to] = [(); 2].map(|()| gpu.alloc(&stream, 1 << 26).expect("memory"));
                while !stop.load(Ordering::Relaxed) {
                    (0..8).for_each(|_| session.launch());
                    // Within the device: a copy from the host keeps everybody else out of the driver.
                    stream.memcpy_dtod(&from, &mut to).expect("a copy");
                    stream.synchronize().expect("the load");
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let stems = STEMS.into_iter().filter(|stem| stem.arch.loads_on(capability.major, capability.minor));
            for case in stems.flat_map(largest_of_each_kernel) {
                let stream = gpu.context().new_stream().expect("stream");
                let (mut expected, mut spacers) = (None, Vec::new());
                for first in (0..repeats).step_by(LAUNCHES_PER_MOVE) {
                    // Keep some memory, so that the next buffers lie elsewhere.
                    spacers.push(gpu.alloc(&stream, 1 + first * 7919 % (1 << 20)).expect("memory"));
                    let mut session = Session::new(&gpu, &stream, &case);
                    let expected = expected.get_or_insert_with(|| {
                        session.launch();
                        session.results()
                    });
                    let launches = LAUNCHES_PER_MOVE.min(repeats - first);
                    let different = match &differences {
                        Some(differences) => session.repeat(differences, launches, expected),
                        None => (0..launches).find(|_| {
                            session.poison();
                            session.launch();
                            session.results() != *expected
                        }),
                    };
                    if let Some(launch) = different {
                        panic!("{}: repeat {} differs", case.describe(), first + launch);
                    }
                    *done.entry(session.symbol().to_owned()).or_insert(0) += launches;
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    record(
        "gpu_repeats",
        &json!({
            "device": gpu.name(), "differences": 0, "repeats": done, "compared_on": if differences.is_some() { "GPU" } else { "host" },
            "seconds": begin.elapsed().as_secs_f64(),
        }),
    );
}

/// Of some problems for `stem` the largest of each kernel, so that CTAs meet: smoothed queries and either head dimension
/// have kernels of their own on Hopper.
fn largest_of_each_kernel(stem: Stem) -> Vec<Case> {
    let mut largest: BTreeMap<(bool, usize), Case> = BTreeMap::new();
    for case in (1..80).map(|seed| Case::random_for(stem, seed, Limits::GPU)) {
        let kernel = (case.problem.smoothing().q, case.problem.dims().head_dim_padded());
        if largest.get(&kernel).is_none_or(|other| case.problem.flops() > other.problem.flops()) {
            largest.insert(kernel, case);
        }
    }
    for kernel in [(false, 64), (false, 128), (true, 64), (true, 128)] {
        assert!(largest.contains_key(&kernel), "{}: no problem of {kernel:?}", stem.name);
    }
    largest.into_values().collect()
}
