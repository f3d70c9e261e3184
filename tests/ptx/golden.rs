//! What each function of `cuda_std` becomes in PTX, against committed text.
//!
//! `wrappers/` has one kernel per function. The instructions of each, with registers renamed in the
//! order they appear, are compared with `golden/<target>/<module>_<function>.ptx`, where the target is
//! the lowest that has the function. After a change that is meant,
//! `SAGE_ATTN_WRITE_GOLDEN=1 cargo test -p sage-tests --test ptx_golden` writes the files anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::manifest::Manifest;
use cuda_builder::{CudaBuilder, NvvmArch, inspect, toolchain};
use sage_tests::functions;

/// Lowest first.
const ARCHS: [NvvmArch; 3] = [NvvmArch::Compute80, NvvmArch::Compute89, NvvmArch::Compute90a];

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx")
}

/// Names and texts of the committed files, per target.
fn committed(target: &str) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(here().join("golden").join(target)) else {
        return BTreeMap::new();
    };
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path()).expect("the file was just listed");
        (name.strip_suffix(".ptx").map_or(name.clone(), str::to_owned), text.replace("\r\n", "\n"))
    };
    entries.map(|entry| read(entry.expect("the folder can be listed"))).collect()
}

/// `<module>_<function>` of every public function in `cuda_std/src`.
fn public_functions() -> BTreeSet<String> {
    functions::of_cuda_std().into_iter().map(|(module, name)| format!("{module}_{name}")).collect()
}

#[test]
fn every_function_has_a_golden_file() {
    let golden: BTreeSet<String> = ARCHS.iter().flat_map(|arch| committed(arch.target_name()).into_keys()).collect();
    let functions = public_functions();
    let missing: Vec<_> = functions.difference(&golden).collect();
    let orphans: Vec<_> = golden.difference(&functions).collect();
    assert!(
        missing.is_empty() && orphans.is_empty(),
        "without a golden file: {missing:?}; files without a function: {orphans:?}. Add or remove the \
         kernels in tests/ptx/wrappers, then see the head of this file"
    );
}

#[test]
fn functions_become_the_golden_instructions() {
    let test = "functions_become_the_golden_instructions";
    let toolchain = match toolchain::discover() {
        Ok(toolchain) => toolchain,
        Err(error) => return println!("SKIPPED {test}: {error}"),
    };
    // Another LLVM may word the same instruction differently.
    let wanted = Manifest::load(&here().join("../../host/ptx")).unwrap().llvm;
    let major = |version: &str| version.split('.').next().map(str::to_owned);
    if major(&toolchain.llvm) != major(&wanted) {
        return println!("SKIPPED {test}: the golden files come from LLVM {wanted}, here is {toolchain}");
    }
    let write = std::env::var("SAGE_ATTN_WRITE_GOLDEN").is_ok_and(|value| value == "1");
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden");
    let mut seen = BTreeSet::new();
    let mut differences = Vec::new();
    for arch in ARCHS {
        let target = arch.target_name();
        let path = CudaBuilder::new(here().join("wrappers"))
            .arch(arch)
            .toolchain(toolchain.clone())
            .target_dir(&target_dir)
            .build()
            .unwrap_or_else(|error| panic!("{error}"));
        let ptx = fs::read_to_string(path).unwrap();
        let fresh: BTreeMap<String, String> = inspect::entries(&ptx)
            .unwrap()
            .into_iter()
            .filter(|name| seen.insert(name.clone()))
            .map(|name| {
                let text = inspect::normalised(&ptx, &name).unwrap().expect("the entry was just listed");
                (name, text)
            })
            .collect();
        if write {
            write_golden(target, &fresh);
        }
        let golden = committed(target);
        for name in fresh.keys().chain(golden.keys()).collect::<BTreeSet<_>>() {
            if fresh.get(name) != golden.get(name) {
                let show = |text: Option<&String>| text.cloned().unwrap_or_else(|| "nothing\n".to_owned());
                differences.push(format!(
                    "{target} {name} was\n{}and is\n{}",
                    show(golden.get(name)),
                    show(fresh.get(name))
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Replaces the files of a target.
fn write_golden(target: &str, texts: &BTreeMap<String, String>) {
    let folder = here().join("golden").join(target);
    let _ = fs::remove_dir_all(&folder);
    if texts.is_empty() {
        return;
    }
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in texts {
        fs::write(folder.join(format!("{name}.ptx")), text).unwrap();
    }
}
