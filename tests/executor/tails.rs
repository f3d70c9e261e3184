//! Every length of the last tile, of queries and of keys.

use rayon::prelude::*;
use sage_attn::problem::Smoothing;
use sage_spec::Dims;
use sage_spec::symbol::{Arch, Stem};
use sage_tests::judge::Outcome;
use sage_tests::setup::{self, Setup};

use crate::device::{attention_threads, judged};

/// Lengths up to past a whole tile of every kernel: 128 queries or keys, and 64 of the smaller ones.
const LENGTHS: std::ops::RangeInclusive<usize> = 0..=130;

/// Causal if the lengths are not both even or odd.
fn check(stem: Stem, seqlen_q: usize, seqlen_kv: usize) {
    let causal = (seqlen_q + seqlen_kv) % 2 == 1;
    check_setup(Setup { causal, ..Setup::new(stem, dims(seqlen_q, seqlen_kv)) });
}

/// The largest work items have four warpgroups: where Q is not smoothed.
fn check_largest(seqlen_q: usize, seqlen_kv: usize, causal: bool) {
    let smoothing = Smoothing { q: false, k: true, v: false };
    let setup = Setup::new(setup::stem("sm90_int8_fp8_fwd"), dims(seqlen_q, seqlen_kv));
    let outcome = check_setup(Setup { causal, smoothing, ..setup });
    assert_eq!(attention_threads(&outcome.plan), Some(640), "a producer and four warpgroups");
}

fn dims(seqlen_q: usize, seqlen_kv: usize) -> Dims {
    Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q, seqlen_kv, head_dim: 16, head_dim_v: 16 }
}

fn check_setup(setup: Setup) -> Outcome {
    judged(&setup.noisy(), (setup.dims.seqlen_q * 131 + setup.dims.seqlen_kv) as u64)
}

/// The kernel with the exact exponential of each architecture, in the precision it is made for.
fn stem(arch: Arch) -> Stem {
    setup::stem(match arch {
        Arch::Sm80 => "sm80_int8_f16_fwd",
        Arch::Sm89 => "sm89_int4_fp8_fwd",
        Arch::Sm90a => "sm90_int8_fp8_exp2_fwd",
    })
}

/// Every number of queries up to past a work item of four warpgroups, causal or not.
#[test]
fn every_number_of_queries_of_four_warpgroups() {
    (1..=260).for_each(|queries| check_largest(queries, 133, queries / 2 % 2 == 1));
}

/// Of all pairs of lengths of their last tiles, 256 queries by 128 keys, causal or not, as many as `SAGE_TAIL_PAIRS` says,
/// from all over.
#[test]
fn pairs_of_lengths_of_four_warpgroups() {
    /// Odd: its multiples visit every pair.
    const STEP: usize = 30_011;
    let count = std::env::var("SAGE_TAIL_PAIRS").map_or(128, |n| n.parse().expect("a number"));
    (0..count).into_par_iter().for_each(|index| {
        let pair = index * STEP % 65_536;
        check_largest(1 + pair % 256, 1 + pair / 256 % 128, pair / 32_768 == 1);
    });
}

/// Tests of one architecture, so that a failure says which.
macro_rules! every_number {
    ($($arch:ident: $keys:ident, $queries:ident;)*) => { $(
        #[test]
        fn $keys() {
            LENGTHS.for_each(|keys| check(stem(Arch::$arch), 3, keys));
        }

        #[test]
        fn $queries() {
            LENGTHS.for_each(|queries| check(stem(Arch::$arch), queries, 5));
        }
    )* };
}

every_number! {
    Sm80: every_number_of_keys_sm80, every_number_of_queries_sm80;
    Sm89: every_number_of_keys_sm89, every_number_of_queries_sm89;
    Sm90a: every_number_of_keys_sm90a, every_number_of_queries_sm90a;
}
