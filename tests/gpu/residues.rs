//! Every pair of a length of the last tile of queries and one of the last tile of keys, on the kernels for Hopper.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sage_attn::problem::Smoothing;
use sage_spec::Dims;
use sage_spec::sm90::{BLOCK_KV, block_q, warpgroups};
use sage_spec::symbol::Arch;
use sage_tests::judge::judge;
use sage_tests::setup::{Setup, stem};
use serde_json::json;

use crate::harness::{gpu, number, record, run};

/// Of work items of three and of four warpgroups.
const STEMS_TRIED: [&str; 2] = ["sm90_int8_fp8_exp2_fwd", "sm90_int8_fp8_fwd"];
/// Has no factor with the number of pairs: its multiples visit every pair once, and far apart ones first.
const STEP: usize = 30_011;

#[test]
fn every_pair_of_tails() {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let tried = STEMS_TRIED.map(|name| {
        let stem = stem(name);
        let block_q = block_q(warpgroups(64, stem.exponential, false));
        // Residues of both lengths, causal and not.
        (stem, block_q, 2 * block_q * BLOCK_KV)
    });
    // With smoothed queries all work items have three warpgroups.
    let smoothing = Smoothing { q: false, k: true, v: false };
    let pairs: usize = tried.iter().map(|(_, _, pairs)| pairs).sum();
    if !Arch::Sm90a.loads_on(capability.major, capability.minor) {
        return println!("SKIPPED: this GPU does not load {}", Arch::Sm90a.target());
    }
    let limit = Duration::from_secs(number("SAGE_GPU_SECONDS", 5));
    let (begin, next, failures) = (Instant::now(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begin.elapsed() < limit {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= pairs {
                        break;
                    }
                    let pair = index * STEP % pairs;
                    let [(stem, block_q, count), second] = tried;
                    let (stem, block_q, pair) =
                        if pair < count { (stem, block_q, pair) } else { (second.0, second.1, pair - count) };
                    let (causal, pair) = (pair % 2 == 1, pair / 2);
                    // Lengths of 1 to a whole tile, sometimes after a whole one.
                    let beyond = index % 3;
                    let seqlen_q = 1 + pair % block_q + block_q * (beyond / 2);
                    let seqlen_kv = 1 + pair / block_q + BLOCK_KV * (beyond % 2);
                    let dims = Dims {
                        batch: 1,
                        num_heads_q: 1,
                        num_heads_kv: 1,
                        seqlen_q,
                        seqlen_kv,
                        head_dim: 16,
                        head_dim_v: 16,
                    };
                    let case = Setup { causal, smoothing, ..Setup::new(stem, dims) }.noisy();
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
    let done = next.into_inner().min(pairs);
    let failures = failures.into_inner().expect("no panic while it was held");
    let figures = json!({
        "device": gpu.name(), "kernels": STEMS_TRIED, "problems": done, "of": pairs, "failures": failures.len(),
        "seconds": begin.elapsed().as_secs_f64(),
    });
    record("gpu_residues", &figures);
    // Of ten million rows one has a key so heavy that its code, rounded the other way than the reference's, moves the
    // log-sum-exp further than twice what rounding costs the reference there.
    assert!(
        failures.len() * 10_000 <= done,
        "{} of {done} pairs fail\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
}
