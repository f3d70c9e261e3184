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

/// Kernels, head dimensions and whether Q is smoothed: work items of four warpgroups and of three, with ΔS and without.
const TRIED: [(&str, usize, bool); 4] = [
    ("sm90_int8_fp8_fwd", 16, false),
    ("sm90_int8_fp8_exp2_fwd", 16, false),
    ("sm90_int4_fp8_fwd", 16, true),
    ("sm90_int8_fp8_fwd", 72, false),
];
/// Has no factor with the number of pairs: its multiples visit every pair once, and far apart ones first.
const STEP: usize = 30_011;

#[test]
fn every_pair_of_tails() {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let tried = TRIED.map(|(name, head_dim, smooth_q)| {
        let (stem, smoothing) = (stem(name), Smoothing { q: smooth_q, k: true, v: false });
        let dims = Dims {
            batch: 1,
            num_heads_q: 1,
            num_heads_kv: 1,
            seqlen_q: 1,
            seqlen_kv: 1,
            head_dim,
            head_dim_v: head_dim,
        };
        (stem, dims, smoothing, block_q(warpgroups(dims.head_dim_padded(), stem.exponential, smooth_q)))
    });
    // Residues of both lengths, causal and not.
    let counts = tried.map(|(.., block_q)| 2 * block_q * BLOCK_KV);
    let pairs: usize = counts.iter().sum();
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
                    let (mut pair, mut way) = (index * STEP % pairs, 0);
                    while pair >= counts[way] {
                        pair -= counts[way];
                        way += 1;
                    }
                    let (stem, dims, smoothing, block_q) = tried[way];
                    let (causal, pair) = (pair % 2 == 1, pair / 2);
                    // Lengths of 1 to a whole tile, sometimes after a whole one.
                    let beyond = index % 3;
                    let seqlen_q = 1 + pair % block_q + block_q * (beyond / 2);
                    let seqlen_kv = 1 + pair / block_q + BLOCK_KV * (beyond % 2);
                    let dims = Dims { seqlen_q, seqlen_kv, ..dims };
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
        "device": gpu.name(), "kernels": TRIED, "problems": done, "of": pairs, "failures": failures.len(),
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
