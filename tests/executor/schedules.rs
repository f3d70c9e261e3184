//! The same bits whatever the order: at each instruction that waits, a seeded scheduler may let any other thread, copy
//! or CTA go first, for as long as it likes. An arrival that does not wait needs no delay of its own: without races,
//! which the executor refuses, nobody sees what a thread did between its last wait and the arrival before that has come.

use sage_attn::Window;
use sage_attn::problem::{Modifiers, Problem, Request, Smoothing};
use sage_spec::Dims;
use sage_tests::setup::{Setup, stem};

use crate::device::run;

/// Two work items of the Hopper kernel, two tiles of keys, two query blocks, two heads for the quantizers.
const DIMS: Dims =
    Dims { batch: 1, num_heads_q: 2, num_heads_kv: 2, seqlen_q: 132, seqlen_kv: 140, head_dim: 16, head_dim_v: 16 };

/// Schedules of each kernel: `SAGE_SCHEDULES`, by default a few.
fn schedules() -> u64 {
    std::env::var("SAGE_SCHEDULES").map_or(6, |text| text.parse().expect("SAGE_SCHEDULES is a number"))
}

fn check(name: &str, modifiers: Modifiers) {
    check_smoothed(name, DIMS, true, modifiers);
}

fn check_smoothed(name: &str, dims: Dims, q: bool, modifiers: Modifiers) {
    let smoothing = Smoothing { q, k: true, v: true };
    check_setup(Setup { causal: true, smoothing, ..Setup::new(stem(name), dims) }, modifiers);
}

fn check_setup(setup: Setup, modifiers: Modifiers) {
    let (name, mut case) = (setup.stem.name, setup.noisy());
    case.problem = Problem::new(Request { modifiers, ..case.problem.request().clone() }).expect("a valid request");
    let bits = |seed| {
        let outcome = run(&case, seed).unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
        let values = outcome.out.iter().chain(outcome.lse.iter().flatten());
        (values.map(|x| x.to_bits()).collect::<Vec<_>>(), outcome.slot_bytes())
    };
    let first = bits(0);
    for seed in 1..schedules() {
        assert!(bits(seed) == first, "{name}: schedule {seed} gives other bits");
    }
    println!("{name}: {} schedules, the same bits", schedules());
}

/// A tile of V waits for the scales; without smoothing one of K waits for nothing, and may go first.
#[test]
fn tiles_that_wait_for_statistics_let_others_go_first() {
    let smoothing = Smoothing { q: false, k: false, v: false };
    for heads in 1..5 {
        let dims = Dims { num_heads_q: heads, num_heads_kv: heads, seqlen_q: 67, seqlen_kv: 67, ..DIMS };
        for name in ["sm80_int8_f16_fwd", "sm90_int8_fp8_fwd"] {
            check_setup(Setup { smoothing, ..Setup::new(stem(name), dims) }, Modifiers::default());
        }
    }
}

#[test]
fn hopper_in_any_order() {
    check("sm90_int8_fp8_fwd", Modifiers::default());
}

#[test]
fn hopper_with_four_warpgroups_in_any_order() {
    let dims = Dims { seqlen_q: 260, ..DIMS };
    check_smoothed("sm90_int8_fp8_fwd", dims, false, Modifiers::default());
}

#[test]
fn hopper_with_modifiers_in_any_order() {
    // The last rows leave out the first tile.
    let window = Window { left: Some(9), right: None };
    check("sm90_int8_fp8_fwd", Modifiers { window, softcap: Some(3.0), ..Modifiers::default() });
}

#[test]
fn hopper_with_the_plain_exponential_in_any_order() {
    check("sm90_int8_fp8_exp2_fwd", Modifiers::default());
}

#[test]
fn mma_sync_with_fp8_in_any_order() {
    check("sm89_int4_fp8_fwd", Modifiers::default());
}

#[test]
fn mma_sync_with_fp8_and_int8_in_any_order() {
    check("sm89_int8_fp8_fwd", Modifiers::default());
}

#[test]
fn mma_sync_with_f16_in_any_order() {
    check("sm80_int8_f16_fwd", Modifiers::default());
}

#[test]
fn mma_sync_with_f16_and_int4_in_any_order() {
    check("sm80_int4_f16_fwd", Modifiers::default());
}
