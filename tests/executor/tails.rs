//! Every length of the last tile, of queries and of keys.

use sage_spec::Dims;
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_tests::judge::judge;
use sage_tests::setup::Setup;

use crate::device::run;

/// Lengths up to past a whole tile of every kernel: 128 queries or keys, and 64 of the smaller ones.
const LENGTHS: std::ops::RangeInclusive<usize> = 0..=130;

fn check(stem: Stem, seqlen_q: usize, seqlen_kv: usize) {
    let dims = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q, seqlen_kv, head_dim: 16, head_dim_v: 16 };
    let causal = (seqlen_q + seqlen_kv) % 2 == 1;
    let case = Setup { causal, ..Setup::new(stem, dims) }.noisy();
    let outcome = run(&case, (seqlen_q * 131 + seqlen_kv) as u64);
    let outcome = outcome.unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
    judge(&case, &outcome).unwrap_or_else(|what| panic!("{}: {what}", case.describe()));
}

/// The kernel with the exact exponential of each architecture, in the precision it is made for.
fn stem(arch: Arch) -> Stem {
    named(match arch {
        Arch::Sm80 => "sm80_int8_f16_fwd",
        Arch::Sm89 => "sm89_int4_fp8_fwd",
        Arch::Sm90a => "sm90_int8_fp8_exp2_fwd",
    })
}

fn named(name: &str) -> Stem {
    STEMS.into_iter().find(|stem| stem.name == name).expect("the stem exists")
}

/// The largest work items have four warpgroups: every number of queries up to past one, causal or not.
#[test]
fn every_number_of_queries_of_four_warpgroups() {
    (1..=260).for_each(|queries| check(named("sm90_int8_fp8_fwd"), queries, 133 + queries / 2 % 2));
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
