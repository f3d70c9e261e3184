//! Nothing is left out: every function of `cuda_std` is called by a kernel here, and every kernel is a case.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sage_tests::functions::{identifier, of_cuda_std};

use crate::cases;

/// Functions that no kernel here calls, as `module::name`, and why a comparison could not show anything.
const REASONS: &[(&str, &str)] = &[];

/// The source of the kernels.
fn source() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/kernels/src");
    let files = fs::read_dir(folder).expect("the kernels are part of the workspace");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(entry.expect("the folder can be listed").path()).expect("the file was just listed")
    };
    files.map(read).collect()
}

/// Whether `source` names `path`, and not a longer name that begins like it.
fn names(source: &str, path: &str) -> bool {
    source.match_indices(path).any(|(at, _)| identifier(&source[at + path.len()..]).is_none())
}

/// Functions that `source` does not name and that have no reason, and reasons for functions that need none.
fn uncovered(source: &str, reasons: &[(&str, &str)]) -> Vec<String> {
    let functions: BTreeSet<String> = of_cuda_std().iter().map(|(module, name)| format!("{module}::{name}")).collect();
    let excused = |path: &str| reasons.iter().any(|(of, why)| *of == path && !why.is_empty());
    let missing = functions.iter().filter(|path| !names(source, path) && !excused(path));
    let idle = reasons.iter().filter(|(path, _)| !functions.contains(*path) || names(source, path));
    missing.cloned().chain(idle.map(|(path, _)| format!("{path}, which needs no reason"))).collect()
}

#[test]
fn every_function_has_a_kernel_or_a_reason() {
    assert_eq!(uncovered(&source(), REASONS), Vec::<String>::new(), "see docs/testing.md, \"Adding an instruction\"");
}

#[test]
fn a_function_without_a_kernel_is_found() {
    let without = source().replace("atomic::add_relaxed", "").replace("wgmma::m64n136k32_e4m3", "");
    let both = ["atomic::add_relaxed", "wgmma::m64n136k32_e4m3"];
    assert_eq!(uncovered(&without, REASONS), both);
    assert_eq!(uncovered(&without, &[(both[0], "a reason"), (both[1], "another")]), Vec::<String>::new());
    assert_eq!(uncovered(&source(), &[(both[0], "a reason")]), ["atomic::add_relaxed, which needs no reason"]);
}

/// Kernels that `source` defines: functions that take `p`, and lines of the macros, `name(..) -> words = ..`.
fn kernels(source: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut lines = source.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let function = match lines.peek() {
            Some(next) if line.starts_with("#[kernel") => next.strip_prefix("pub unsafe fn ").and_then(identifier),
            _ => None,
        };
        let of_macro = line.split_once(") -> ").filter(|(_, rest)| {
            rest.split_once(" = ").is_some_and(|(words, _)| words.chars().all(|c| c.is_ascii_digit()))
        });
        all.extend(function.or_else(|| of_macro.and_then(|(head, _)| identifier(head))));
    }
    all
}

#[test]
fn every_kernel_is_a_case() {
    let cases: BTreeSet<String> = cases::all().iter().map(|case| case.symbol.to_owned()).collect();
    // Kernels called so have a mistake, for tools to find: there is no result to compare.
    let compared: BTreeSet<String> =
        kernels(&source()).into_iter().filter(|name| !name.starts_with("control_")).collect();
    assert_eq!(compared, cases);
}
