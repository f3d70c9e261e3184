//! The general kernels: windows, alignments, soft-cap, ALiBi, bias, masks and sinks.

use proptest::prelude::*;
use sage_spec::symbol::{Arch, Stem};
use sage_tests::case::{Case, Limits};
use sage_tests::generate::config;
use sage_tests::judge::judge_with;
use sage_tests::side::Side;

use crate::device::{run_with, stems};

/// Stems whose kernels have a general form.
fn general() -> Vec<Stem> {
    stems().into_iter().filter(|stem| stem.arch != Arch::Sm90a).collect()
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn general_kernels_agree_with_the_reference(seed: u64, stem in prop::sample::select(general())) {
        let mut case = Case::random_for(stem, seed, Limits::EXECUTOR);
        let side = Side::random(&mut case, seed);
        let fail = |what: String| TestCaseError::fail(format!("{} {:?}: {what}", case.describe(), side.modifiers));
        let outcome = run_with(&case, Some(&side), seed).map_err(|fault| fail(fault.to_string()))?;
        judge_with(&case, &side.reference(), &outcome).map_err(fail)?;
    }
}
