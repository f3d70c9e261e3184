//! Random problems of every kind.

use proptest::prelude::*;
use sage_tests::case::{Case, Limits};
use sage_tests::judge::judge;

use crate::device::run;

fn check(seed: u64) -> Result<(), TestCaseError> {
    let case = Case::random(seed, Limits::EXECUTOR);
    let outcome = run(&case, seed).map_err(|fault| TestCaseError::fail(format!("{}: {fault}", case.describe())))?;
    judge(&case, &outcome).map_err(|what| TestCaseError::fail(format!("{}: {what}", case.describe())))?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn kernels_agree_with_the_reference(seed: u64) {
        check(seed)?;
    }
}
