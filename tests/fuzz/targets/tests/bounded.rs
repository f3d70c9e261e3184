//! Every target on its corpus and on inputs made from it, the same every time. `SAGE_FUZZ_RUNS=N` takes more of
//! them than the usual number, `SAGE_FUZZ_SEED=N` others.

use std::fs;
use std::path::{Path, PathBuf};

use sage_fuzz_targets::mutate::{Random, mutated};
use sage_fuzz_targets::{TARGETS, Target};

/// Inputs of a target beside its corpus.
const RUNS: u64 = 20_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of a target's corpus, by name.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("a file"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file")))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{name} has {} files", files.len());
    files
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Runs a target; a panic is told with the input.
fn run(name: &str, target: Target, what: &str, input: &[u8]) {
    let result = std::panic::catch_unwind(|| target(input));
    assert!(result.is_ok(), "{name}: {what}: {:?}", String::from_utf8_lossy(input));
}

fn bounded(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let files = corpus(name);
    for (file, input) in &files {
        run(name, target, file, input);
    }
    let mut random = Random::new(variable("SAGE_FUZZ_SEED", 1));
    for number in 0..variable("SAGE_FUZZ_RUNS", RUNS) {
        let [input, other] = [0; 2].map(|_| &files[random.below(files.len())].1);
        run(name, target, &format!("input {number}"), &mutated(input, other, &mut random));
    }
}

macro_rules! bounded {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            bounded(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test_a_binary_and_a_corpus() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), tested);
            let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("cargo-fuzz's manifest");
            for name in tested {
                let path = format!("fuzz_targets/{name}.rs");
                assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is not in the manifest");
                let source = fs::read_to_string(folder().join(&path)).expect("a binary");
                assert!(source.contains(&format!("sage_fuzz_targets::{name}::run(data)")), "{path}: {source}");
            }
        }
    };
}

bounded!(problem planning sequences safetensors precision_plan bench);

#[test]
#[should_panic(expected = "planted: input 0")]
fn a_broken_promise_is_told() {
    run("planted", |data| assert!(data.is_empty()), "input 0", &[1]);
}
