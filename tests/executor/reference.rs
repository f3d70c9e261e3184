//! Random problems of every kind.

use proptest::prelude::*;
use sage_spec::sm90::Exponential;
use sage_spec::symbol::{STEMS, Stem};
use sage_tests::case::{Case, Limits};
use sage_tests::judge::{Tolerance, judge};

use crate::device::{Attention, run};

/// The stem whose quantized operands Hopper's kernels take: INT8 and FP8.
const QUANTIZED_ALIKE: Stem = STEMS[1];

fn check(case: &Case, attention: Attention) -> Result<(), TestCaseError> {
    let fail = |what: String| TestCaseError::fail(format!("{}: {what}", case.describe()));
    let outcome = run(case, attention, case.seed).map_err(|fault| fail(fault.to_string()))?;
    let tolerance = match attention {
        Attention::Planned => Tolerance::EXACT,
        Attention::Hopper(Exponential::Exact) => Tolerance::OTHER_TILES,
        Attention::Hopper(Exponential::Mixed) => Tolerance::LINEAR_CODES,
    };
    judge(case, &outcome, tolerance).map_err(fail)?;
    println!("{attention:?} {figures:?}");
    Ok(())
}

proptest! {
    #![proptest_config(sage_tests::generate::config(40))]

    #[test]
    fn kernels_agree_with_the_reference(seed: u64) {
        check(&Case::random(seed, Limits::EXECUTOR), Attention::Planned)?;
    }

    #[test]
    fn hopper_kernels_agree_with_the_reference(seed: u64, exact: bool) {
        let case = Case::random_for(QUANTIZED_ALIKE, seed, Limits::EXECUTOR);
        let exponential = if exact { Exponential::Exact } else { Exponential::Mixed };
        check(&case, Attention::Hopper(exponential))?;
    }
}
