//! Every example runs by itself and says what it should.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The example's executable, which `cargo test` builds beside the folder of this test's.
fn executable(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap().join("examples");
    folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

fn run(name: &str) -> String {
    let path = executable(name);
    assert!(path.exists(), "{} is not built; `cargo build --release -p sage-attn --examples` does it", path.display());
    let output = Command::new(path).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn there_is_a_test_for_every_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["calibrate", "decode", "minimal", "raw_pointers", "ring_merge", "varlen"]);
}

#[test]
fn minimal() {
    let stdout = run("minimal");
    let row = stdout.lines().find_map(|line| line.strip_prefix("first row: ")).unwrap();
    let numbers = |text: &str| -> Vec<f32> {
        text.trim_matches(['[', ']']).split(", ").map(|number| number.parse().unwrap()).collect()
    };
    let (actual, expected) = row.split_once(" of ").unwrap();
    for (actual, expected) in numbers(actual).iter().zip(numbers(expected)) {
        assert!((actual - expected).abs() < 0.08, "{row}");
    }
}

#[test]
fn ring_merge() {
    let stdout = run("ring_merge");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("rank ")).count(), 2, "{stdout}");
}

#[test]
fn decode() {
    let stdout = run("decode");
    let distances = stdout.lines().filter_map(|line| line.split_once("relative L1 ")?.1.parse::<f32>().ok());
    let distances: Vec<f32> = distances.collect();
    assert!(distances.len() == 4 && distances.iter().all(|&x| x > 0.0 && x < 0.06), "{stdout}");
}

#[test]
fn raw_pointers() {
    let stdout = run("raw_pointers");
    assert!(stdout.contains("first row: ") || stdout.contains("nothing to show: no NVIDIA driver"), "{stdout}");
}

#[test]
fn calibrate() {
    let stdout = run("calibrate");
    let layers: Vec<&str> = stdout.lines().filter(|line| line.starts_with("layer ")).collect();
    assert_eq!(layers.len(), 3, "{stdout}");
    for precision in ["int4", "int8"] {
        assert!(layers.iter().any(|line| line.contains(precision)), "{stdout}");
    }
}

#[test]
fn varlen() {
    let stdout = run("varlen");
    for line in ["sequence 0: 17 queries of 17 keys", "sequence 1: 32 queries of 132 keys", "sequence 2: 200 queries"] {
        assert!(stdout.contains(line), "{stdout}");
    }
}
