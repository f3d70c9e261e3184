//! Seeded faults: bugs that were made, or nearly made, somewhere, put into a copy of this workspace to see whether
//! the tests notice. A fault that no test notices is a hole in the tests.
//!
//! The sources stay free of them: [`list`] says which expression to replace by which. All faults are compiled into
//! one copy, each behind a number that an environment variable picks at run time, so that one build serves all.
//!
//! `SAGE_FAULTS=run` makes the copy in `target/tmp/faults`, builds it, runs each fault against the tests it names
//! and writes `docs/faults.md`; `SAGE_FAULTS=name,name` does so for some faults, whose lines are replaced, and
//! `SAGE_FAULTS=rest` for those that the document does not have yet. Without it nothing is built: it is checked that every fault still finds its place, and that the document is
//! about these faults.

mod fault;
mod list;
mod report;
mod run;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fault::Fault;

/// The workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").into()
}

/// Every fault.
fn all() -> Vec<Fault> {
    [list::quantizers::FAULTS, list::mma_sync::FAULTS, list::hopper::FAULTS, list::host::FAULTS, list::cpu::FAULTS]
        .concat()
}

#[test]
fn every_fault_has_one_place_and_names_tests() {
    let faults = all();
    assert!(faults.len() >= 40, "{} faults", faults.len());
    let mut names: Vec<&str> = faults.iter().map(|fault| fault.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), faults.len(), "two faults have the same name");
    for fault in &faults {
        assert!(fault.tests.len() >= 2, "{} names one test", fault.name);
        for test in fault.tests {
            assert!(run::exists(&root(), test), "{}: there is no test `{test}`", fault.name);
        }
    }
    // Also that no two of them overlap.
    fault::patched(&root(), &faults).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_document_is_about_these_faults_and_two_tests_kill_each() {
    let text = std::fs::read_to_string(root().join(report::DOCUMENT)).expect("docs/faults.md");
    report::check(&text, &all()).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_fault_is_killed_by_two_tests() {
    let Ok(wanted) = std::env::var("SAGE_FAULTS") else {
        return println!("SKIPPED: SAGE_FAULTS is not set");
    };
    let faults = all();
    let path = root().join(report::DOCUMENT);
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    let chosen: Vec<usize> = match wanted.as_str() {
        "run" => (0..faults.len()).collect(),
        "rest" => (0..faults.len()).filter(|&fault| report::check_line(&read(), &faults[fault]).is_err()).collect(),
        names => {
            let number = |name: &str| faults.iter().position(|fault| fault.name == name);
            names.split(',').map(|name| number(name).unwrap_or_else(|| panic!("no fault `{name}`"))).collect()
        }
    };
    let alive = Mutex::new(Vec::new());
    let report = |fault: usize, killers: Vec<String>| {
        let mut alive = alive.lock().expect("no panic while it is held");
        if killers.len() < 2 {
            alive.push(format!("{}: killed by {killers:?} alone", faults[fault].name));
        }
        std::fs::write(&path, report::text(&faults, fault, &killers, &read())).expect("docs/faults.md");
    };
    run::run(&root(), &faults, &chosen, report).unwrap_or_else(|error| panic!("{error}"));
    let alive = alive.into_inner().expect("no panic while it was held");
    assert!(alive.is_empty(), "holes in the tests:\n{}", alive.join("\n"));
}
