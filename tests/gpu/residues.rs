//! Every pair of a length of the last tile of queries and one of the last tile of keys, on the kernels for Hopper.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sage_spec::Dims;
use sage_spec::sm90::{BLOCK_KV, BLOCK_Q};
use sage_spec::symbol::{Arch, STEMS};
use sage_tests::judge::judge;
use sage_tests::setup::Setup;
use serde_json::json;

use crate::harness::{gpu, number, record, run};

/// Pairs of residues, causal and not.
const PAIRS: u64 = 2 * (BLOCK_Q * BLOCK_KV) as u64;
/// Has no factor with [`PAIRS`]: its multiples visit every pair once, and far apart ones first.
const STEP: u64 = 30_011;

#[test]
fn every_pair_of_tails() {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let stem = STEMS.into_iter().find(|stem| stem.name == "sm90_int8_fp8_exp2_fwd").expect("the stem exists");
    if !Arch::Sm90a.loads_on(capability.major, capability.minor) {
        return println!("SKIPPED: this GPU does not load {}", Arch::Sm90a.target());
    }
    let limit = Duration::from_secs(number("SAGE_GPU_SECONDS", 5));
    let (begin, next, failures) = (Instant::now(), AtomicU64::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begin.elapsed() < limit {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= PAIRS {
                        break;
                    }
                    let pair = index * STEP % PAIRS;
                    let (causal, pair) = (pair % 2 == 1, (pair / 2) as usize);
                    // Lengths of 1 to a whole tile, sometimes after a whole one.
                    let beyond = index as usize % 3;
                    let seqlen_q = 1 + pair % BLOCK_Q + BLOCK_Q * (beyond / 2);
                    let seqlen_kv = 1 + pair / BLOCK_Q + BLOCK_KV * (beyond % 2);
                    let dims = Dims {
                        batch: 1,
                        num_heads_q: 1,
                        num_heads_kv: 1,
                        seqlen_q,
                        seqlen_kv,
                        head_dim: 16,
                        head_dim_v: 16,
                    };
                    let case = Setup { causal, ..Setup::new(stem, dims) }.noisy();
                    let outcome = std::panic::catch_unwind(|| judge(&case, &run(&gpu, &case)))
                        .unwrap_or_else(|_| Err("panicked".into()));
                    if let Err(what) = outcome {
                        failures
                            .lock()
                            .expect("no panic while it is held")
                            .push(format!("{}: {what}", case.describe()));
                    }
                }
            });
        }
    });
    let done = next.into_inner().min(PAIRS);
    let failures = failures.into_inner().expect("no panic while it was held");
    let figures = json!({
        "device": gpu.name(), "kernel": stem.name, "problems": done, "of": PAIRS, "failures": failures.len(),
        "seconds": begin.elapsed().as_secs_f64(),
    });
    record("gpu_residues", &figures);
    // Of ten million rows one has a key so heavy that its code, rounded the other way than the reference's, moves the
    // log-sum-exp further than twice what rounding costs the reference there.
    assert!(
        failures.len() as u64 * 10_000 <= done,
        "{} of {done} pairs fail\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
}
