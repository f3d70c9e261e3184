//! The copy: making it, building it, running its tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::fault::{Fault, patched};

/// Longest that a test may take; one that takes longer has noticed, in its way.
const LIMIT: Duration = Duration::from_secs(600);
/// Tests at a time.
const WORKERS: usize = 2;
/// Binaries of unit tests, by their packages; all others are targets of this package.
const UNIT_TESTS: [&str; 2] = ["sage-attn", "sage-spec"];

/// Whether the sources have `test`, a binary and a name.
pub fn exists(root: &Path, test: &str) -> bool {
    let (binary, name) = split(test);
    let folder = match binary {
        "sage-attn" => root.join("host/src"),
        "sage-spec" => root.join("host/spec/src"),
        _ => root.join("tests").join(binary.split('_').next().unwrap_or(binary)),
    };
    // Without `fn`: a macro may make it.
    let function = name.rsplit("::").next().unwrap_or(name);
    let mut files = Vec::new();
    list(&folder, &mut files);
    files.iter().any(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(function)))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

/// Copies the workspace to `copy`, `files` changed. What has not changed keeps its time, so that nothing is built
/// twice.
fn copy(root: &Path, copy: &Path, files: &BTreeMap<PathBuf, String>) -> Result<(), String> {
    let fail = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut all: Vec<PathBuf> =
        ["Cargo.toml", "Cargo.lock", "README.md", "rust-toolchain.toml"].iter().map(|name| root.join(name)).collect();
    for folder in ["host", "kernels-gpu", "tests", "benches"] {
        list(&root.join(folder), &mut all);
    }
    for path in all {
        let relative = path.strip_prefix(root).expect("inside the workspace");
        let bytes = match files.get(relative) {
            Some(text) => text.clone().into_bytes(),
            None => fs::read(&path).map_err(|error| fail(&path, error))?,
        };
        let to = copy.join(relative);
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let folder = to.parent().expect("a file has a folder");
        fs::create_dir_all(folder).map_err(|error| fail(folder, error))?;
        fs::write(&to, bytes).map_err(|error| fail(&to, error))?;
    }
    Ok(())
}

/// Builds the binaries called `names` of the workspace `copy`; where they are.
fn build<'a>(copy: &Path, target: &Path, names: &[&'a str]) -> Result<BTreeMap<&'a str, PathBuf>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut binaries = BTreeMap::new();
    for &name in names {
        let selection: &[&str] = match name {
            name if UNIT_TESTS.contains(&name) => &["-p", name, "--lib"],
            name => &["-p", "sage-tests", "--test", name],
        };
        let output = Command::new(&cargo)
            .args(["test", "--release", "--no-run", "--offline", "--message-format=json"])
            .args(selection)
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", target)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        let messages = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let rendered = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let errors: Vec<String> = rendered
                .filter_map(|message| message["message"]["rendered"].as_str().map(str::to_owned))
                .filter(|text| text.starts_with("error"))
                .collect();
            return Err(format!("the copy with the faults does not build:\n{}", errors.join("\n")));
        }
        let executable = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["profile"]["test"] == true)
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
            .next_back();
        binaries.insert(name, executable.ok_or_else(|| format!("cargo has built no {name}"))?);
    }
    Ok(binaries)
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// It does not exist.
    Absent,
}

/// Runs one test with `fault`, or with none, on.
fn test(binary: &Path, folder: &Path, name: &str, fault: Option<usize>) -> End {
    let mut command = Command::new(binary);
    command.args(["--exact", name, "--test-threads=1"]).current_dir(folder);
    command.env_remove("SAGE_FAULT").env_remove("SAGE_FAULTS");
    // A failure need not be made small: whether there is one is the question.
    command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("CARGO_TARGET_TMPDIR", std::env::temp_dir());
    if let Some(fault) = fault {
        command.env("SAGE_FAULT", fault.to_string());
    }
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a binary that was just built runs");
    let mut stdout = child.stdout.take().expect("it is piped");
    // A full pipe would stop the child.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stdout, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().expect("the child is ours") {
            Some(status) => break Some(status),
            None if begin.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = reader.join().unwrap_or_default();
    match status {
        Some(status) if !status.success() => End::Failed,
        Some(_) if text.contains("1 passed") => End::Passed,
        Some(_) => End::Absent,
        None => End::Failed,
    }
}

/// Runs the tests of each of the faults `chosen` until two have noticed it; tells `report` which.
///
/// # Errors
///
/// If the copy cannot be made, or one of its tests fails, or does not exist, without a fault.
pub fn run(
    root: &Path,
    faults: &[Fault],
    chosen: &[usize],
    report: impl Fn(usize, Vec<String>) + Sync,
) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let (workspace, target) = (folder.join("workspace"), folder.join("target"));
    copy(root, &workspace, &patched(root, faults)?)?;
    let mut tests: Vec<&str> = chosen.iter().flat_map(|&fault| faults[fault].tests).copied().collect();
    tests.sort_unstable();
    tests.dedup();
    let mut names: Vec<&str> = tests.iter().map(|test| split(test).0).collect();
    names.dedup();
    let binaries = build(&workspace, &target, &names)?;

    let end = |name: &str, fault: Option<usize>| {
        let (binary, filter) = split(name);
        let begin = Instant::now();
        let package = if UNIT_TESTS.contains(&binary) { "host" } else { "tests" };
        let end = test(&binaries[binary], &workspace.join(package), filter, fault);
        let on = fault.map_or("no fault", |fault| faults[fault].name);
        println!("{on}: {name}: {end:?} after {:.1} s", begin.elapsed().as_secs_f64());
        end
    };
    // Without a fault first: a test that fails anyway says nothing.
    let wrong = Mutex::new(Vec::new());
    in_parallel(&tests, |test| {
        let end = end(test, None);
        if end != End::Passed {
            wrong.lock().expect("no panic while it is held").push(format!("without a fault: {test}: {end:?}"));
        }
    });
    let wrong = wrong.into_inner().expect("no panic while it was held");
    if !wrong.is_empty() {
        return Err(wrong.join("\n"));
    }
    in_parallel(chosen, |&fault| {
        let killers = faults[fault].tests.iter().filter(|test| end(test, Some(fault)) == End::Failed).take(2);
        report(fault, killers.map(|&test| test.to_owned()).collect());
    });
    Ok(())
}

/// Binary and name of a test.
fn split(test: &str) -> (&str, &str) {
    test.split_once(' ').unwrap_or((test, ""))
}

/// Does `work` on each of `items`, several at a time.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let queue = Mutex::new(items.iter());
    let next = || queue.lock().expect("no panic while it is held").next();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}
