//! Every bit pattern of f32 through the conversions to INT8, INT4 and E4M3, bit for bit.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sage_attn::plan::Slot;
use sage_spec::symbol::STEMS;
use sage_tests::patterns::{COUNT, Patterns, pattern};
use serde_json::json;

use crate::embedding::Session;
use crate::harness::{gpu, number, record};

/// Tokens of a launch.
const TOKENS: usize = 1 << 15;
/// Has no factor with the number of launches that all patterns take: its multiples visit every launch once.
const STEP: u64 = 7_919;

#[test]
fn every_pattern_is_rounded_as_by_the_reference() {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let limit = Duration::from_secs(number("SAGE_GPU_SECONDS", 5));
    let len = Patterns::len(TOKENS);
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
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let stream = gpu.context().new_stream().expect("stream");
                    while begin.elapsed() < until {
                        let part = next.fetch_add(1, Ordering::Relaxed);
                        if part >= parts {
                            break;
                        }
                        let first = part * STEP % parts * len;
                        let patterns = Patterns { stem, tokens: TOKENS, pattern: &|i| pattern((first + i) % COUNT) };
                        let case = patterns.case();
                        let session = Session::new(&gpu, &stream, &case);
                        session.launch();
                        match patterns.check(&session.slot(Slot::KCodes), &session.slot(Slot::VCodes)) {
                            Ok(_) => _ = converted.fetch_add(len, Ordering::Relaxed),
                            Err(what) => wrong.lock().expect("no panic while it is held").push(what),
                        }
                    }
                });
            }
        });
        let converted = converted.into_inner().min(COUNT);
        figures.insert(stem.name, json!({ "patterns": converted, "of": COUNT }));
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
