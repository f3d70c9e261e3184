//! Random problems of every kind.

use proptest::prelude::*;
use sage_spec::symbol::STEMS;
use sage_tests::case::{Case, Limits};
use sage_tests::generate::config;
use sage_tests::judge::judge;

use crate::device::run;

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn kernels_agree_with_the_reference(seed: u64, stem in prop::sample::select(STEMS.to_vec())) {
        let case = Case::random_for(stem, seed, Limits::EXECUTOR);
        let fail = |what: String| TestCaseError::fail(format!("{}: {what}", case.describe()));
        let outcome = run(&case, seed).map_err(|fault| fail(fault.to_string()))?;
        judge(&case, &outcome).map_err(fail)?;
    }
}
