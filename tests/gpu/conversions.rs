//! Every bit pattern of f32 through the conversions to INT8, INT4 and E4M3, bit for bit: every finite one through the
//! quantizers, all 2³² through the instruction.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sage_attn::plan::Slot;
use sage_attn::reference::convert::e4m3_from_f32;
use sage_spec::symbol::{Arch, STEMS};
use sage_tests::patterns::{COUNT, Patterns, len, pattern};
use serde_json::json;

use crate::conformance::{Kernel, THREADS};
use crate::embedding::Session;
use crate::harness::{gpu, number, record};

/// Tokens of a launch.
const TOKENS: usize = 1 << 15;
/// Has no factor with the number of launches that all patterns take: its multiples visit every launch once.
const STEP: u64 = 7_919;

/// Threads that fill, launch and compare: most of the work is the host's.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get())
}

#[test]
fn every_pattern_is_rounded_as_by_the_reference() {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let limit = Duration::from_secs(number("SAGE_GPU_SECONDS", 5));
    let len = len(TOKENS);
    let parts = COUNT.div_ceil(len);
    let begin = Instant::now();
    let mut figures = BTreeMap::new();
    let mut failures = Vec::new();
    // Quantizers by their codes: those of other kernels are the same.
    let names = ["sm90_int4_fp8_fwd", "sm89_int4_fp8_fwd", "sm89_int8_fp8_fwd"];
    let stems = STEMS.into_iter().filter(|stem| names.contains(&stem.name));
    let stems: Vec<_> = stems.filter(|stem| stem.arch.loads_on(capability.major, capability.minor)).collect();
    for (index, &stem) in stems.iter().enumerate() {
        // Each has an equal share of the time.
        let until = limit * (index as u32 + 1) / stems.len() as u32;
        let (next, converted, wrong) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    let stream = gpu.context().new_stream().expect("stream");
                    let mut session = None;
                    while begin.elapsed() < until {
                        let part = next.fetch_add(1, Ordering::Relaxed);
                        if part >= parts {
                            break;
                        }
                        let first = part * STEP % parts * len;
                        let last = (first + len).min(COUNT) - 1;
                        // Neighbours share a scale, so that each is near the top of its format.
                        let reach = f32::from_bits(pattern(last)).abs();
                        let patterns =
                            Patterns { stem, tokens: TOKENS, reach, pattern: |i: u64| pattern((first + i).min(last)) };
                        let (case, session) = session.get_or_insert_with(|| {
                            let case = patterns.case();
                            let session = Session::new(&gpu, &stream, &case);
                            (case, session)
                        });
                        patterns.refill(case);
                        session.upload(case);
                        session.launch();
                        match patterns.check(&session.slot(Slot::KCodes), &session.slot(Slot::VCodes)) {
                            Ok(_) => _ = converted.fetch_add(last + 1 - first, Ordering::Relaxed),
                            Err(what) => wrong.lock().expect("no panic while it is held").push(what),
                        }
                    }
                });
            }
        });
        figures.insert(stem.name, json!({ "patterns": converted.into_inner(), "of": COUNT }));
        failures.extend(wrong.into_inner().expect("no panic while it was held"));
    }
    record(
        "gpu_conversions",
        &json!({
            "device": gpu.name(), "to": ["INT8 or INT4", "E4M3"], "quantizers": figures, "mismatches": failures.len(),
            "seconds": begin.elapsed().as_secs_f64(),
        }),
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Also what no quantizer converts: infinities, NaN, and numbers beyond the format.
#[test]
fn every_pattern_through_the_instruction() {
    /// Patterns of a launch, four to a thread.
    const LEN: u64 = 1 << 24;
    const PARTS: u64 = (1 << 32) / LEN;
    let Some(gpu) = gpu() else { return };
    if !Arch::Sm89.loads_on(gpu.capability().major, gpu.capability().minor) {
        return println!("SKIPPED: this GPU does not load {}", Arch::Sm89.target());
    }
    let Some(kernel) = Kernel::load(&gpu, Arch::Sm89, "f32_to_e4m3x4", 0) else {
        return println!("SKIPPED: SAGE_CONFORMANCE_PTX has no kernels");
    };
    let limit = Duration::from_secs(number("SAGE_GPU_SECONDS", 5));
    let (begin, next, converted) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                let stream = gpu.context().new_stream().expect("stream");
                while begin.elapsed() < limit {
                    let part = next.fetch_add(1, Ordering::Relaxed);
                    if part >= PARTS {
                        break;
                    }
                    let first = part * STEP % PARTS * LEN;
                    let input: Vec<u32> = (first..first + LEN).map(|bits| bits as u32).collect();
                    let threads = (LEN / 4) as u32;
                    const { assert!((LEN / 4).is_multiple_of(THREADS as u64)) };
                    let words = kernel.map(&stream, &input, threads, 1);
                    for (x, word) in input.chunks_exact(4).zip(words) {
                        let expected = [x[0], x[1], x[2], x[3]].map(|bits| e4m3_from_f32(f32::from_bits(bits)));
                        if word != u32::from_le_bytes(expected) {
                            let what = format!("{:#010x} and the next three: {word:#010x}, not {expected:x?}", x[0]);
                            wrong.lock().expect("no panic while it is held").push(what);
                            break;
                        }
                    }
                    converted.fetch_add(LEN, Ordering::Relaxed);
                }
            });
        }
    });
    let failures = wrong.into_inner().expect("no panic while it was held");
    record(
        "gpu_conversions_e4m3",
        &json!({
            "device": gpu.name(), "patterns": converted.into_inner(), "of": 1u64 << 32, "mismatches": failures.len(),
            "seconds": begin.elapsed().as_secs_f64(),
        }),
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
