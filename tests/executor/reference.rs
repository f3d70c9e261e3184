//! Random problems of every kind.

use proptest::prelude::*;
use sage_spec::symbol::{STEMS, Stem};
use sage_tests::case::{Case, Limits};
use sage_tests::generate::config;
use sage_tests::judge::judge;

use crate::device::run;

/// The problem of `seed`; what is wrong comes with the command that repeats it.
fn check(stem: Stem, seed: u64) -> Result<(), String> {
    let case = Case::random_for(stem, seed, Limits::EXECUTOR);
    let fail = |what: String| format!("{}: {what}\nrepeat: {}", case.describe(), case.repeat("one_plain_case"));
    let outcome = run(&case, seed).map_err(|fault| fail(fault.to_string()))?;
    judge(&case, &outcome).map(drop).map_err(fail)
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn kernels_agree_with_the_reference(seed: u64, stem in prop::sample::select(STEMS.to_vec())) {
        check(stem, seed).map_err(TestCaseError::fail)?;
    }
}

/// The problem that `SAGE_CASE` names, or a first one.
#[test]
fn one_plain_case() {
    let (stem, seed) = Case::of_environment().unwrap_or((STEMS[0], 1));
    check(stem, seed).unwrap_or_else(|what| panic!("{what}"));
}
