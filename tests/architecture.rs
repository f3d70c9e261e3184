//! The dependency rule, enforced on the source text: arrows point down only, instructions and
//! `unsafe` stay where they belong, and documents name files that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// What may not appear where.
struct Rule {
    /// Why the rule is there; shown when it is broken.
    why: &'static str,
    /// Prefixes of the paths it applies to.
    within: &'static [&'static str],
    /// Prefixes of the paths that are exempt.
    except: &'static [&'static str],
    /// Words that may not appear: a match has no letter, digit or underscore on either side.
    words: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        why: "instructions are written in cuda_std only, so that one search audits them all",
        within: &["host/", "kernels-gpu/", "tests/"],
        // NEON's dot product and AMX have no stable intrinsics.
        except: &[
            "kernels-gpu/cuda_std/",
            "kernels-gpu/cuda_std_macros/",
            "host/src/cpu/neon/",
            "host/src/cpu/avx512/amx.rs",
        ],
        words: &["asm!", "global_asm!", "naked_asm!"],
    },
    Rule {
        why: "unsafe code stays in cuda_std, kernels, their tiles, host/src/device and the instruction sets of \
              host/src/cpu; the CPU reference has the one call that needs detected CPU features",
        within: &["host/", "kernels-gpu/", "tests/"],
        except: &[
            "host/src/device/",
            "host/src/cpu/avx2/",
            "host/src/cpu/avx512/",
            "host/src/cpu/neon/",
            "host/src/dlpack/", // a C struct of raw pointers
            "host/capi/",       // C functions take raw pointers
            "host/examples/raw_pointers.rs",
            "host/src/reference/simd.rs",
            "host/cuda_builder/tests/fixture/", // a kernel crate
            "kernels-gpu/cuda_std/",
            "kernels-gpu/cuda_std_macros/", // generates unsafe functions
            "kernels-gpu/src/attention/",
            "kernels-gpu/src/quant/",
            "kernels-gpu/src/tile/",
            "kernels-gpu/src/pipeline/",
            "kernels-gpu/src/entry.rs",
            "tests/mock/",               // is a driver, and calls it
            "tests/gpu/harness.rs",      // launches single kernels
            "tests/executor/kernels.rs", // calls kernels, which are unsafe functions
            "tests/executor/faults.rs",  // is kernels
            "tests/executor/faults/",
            "tests/conformance/kernels/", // a kernel crate
            "tests/conformance/host.rs",  // calls kernels
            "tests/conformance/gpu.rs",   // launches kernels
            "tests/conformance/cases.rs", // names the type of a kernel
            "tests/ptx/wrappers/",        // a kernel crate
            "kernels-gpu/src/merge.rs",
            "tests/cpu/process.rs", // is an allocator
            "kernels-gpu/src/cache/",
            "kernels-gpu/src/rows.rs",
            "tests/gpu/cache.rs",     // launches on raw addresses
            "tests/host/dlpack.rs",   // plays the other side of the C struct
            "tests/gpu/harness.rs",   // launches single kernels
            "tests/gpu/embedding.rs", // launches on raw addresses
            "tests/gpu/merge.rs",
            "tests/gpu/conformance.rs",   // launches kernels of the conformance tests
            "tests/gpu/far.rs",           // launches on raw addresses
            "tests/gpu/faults.rs",        // breaks the promises of a launch
            "tests/ptx/wrappers/",        // a kernel crate
            "tests/support/functions.rs", // reads such code as text
            "tests/conformance/coverage.rs",
        ],
        words: &["unsafe"],
    },
    Rule {
        why: "the contract depends on nobody",
        within: &["host/spec/"],
        except: &[],
        words: &["sage_attn", "sage_kernels_gpu", "cuda_std", "cuda_builder", "std::"],
    },
    Rule {
        why: "a reference that shares the planner's arithmetic shares its bugs",
        within: &["host/src/reference/"],
        except: &[],
        words: &["crate::plan", "crate::device", "crate::problem", "crate::api", "sage_kernels_gpu", "cudarc"],
    },
    Rule {
        why: "the CPU back end computes; what and whether is decided above it",
        within: &["host/src/cpu/"],
        except: &[],
        words: &["crate::plan", "crate::device", "crate::problem", "crate::api", "cudarc"],
    },
    Rule {
        why: "planning runs without a GPU",
        within: &["host/src/plan/"],
        except: &[],
        words: &["crate::device", "crate::api", "crate::reference", "cudarc"],
    },
    Rule {
        why: "a problem knows nothing of how it is solved",
        within: &["host/src/problem/"],
        except: &[],
        words: &["crate::plan", "crate::device", "crate::api", "crate::reference", "cudarc"],
    },
    Rule {
        why: "the device layer serves the API, not the reverse",
        within: &["host/src/device/"],
        except: &[],
        words: &["crate::api", "crate::reference"],
    },
    Rule {
        why: "calibration, models and charts are built on attention, which does not know them",
        within: &["host/src/api/", "host/src/device/", "host/src/plan/", "host/src/problem/", "host/src/reference/"],
        except: &[],
        words: &["crate::adaptive", "crate::models", "crate::plot"],
    },
    Rule {
        why: "the driver is called in host/src/device only",
        within: &["host/src/"],
        // candle hands its tensors over as cudarc's.
        except: &["host/src/device/", "host/src/candle/cuda.rs", "host/src/lib.rs"],
        words: &["cudarc"],
    },
    Rule {
        why: "the command line uses what everybody can: the library's public interface",
        within: &["host/cli/"],
        except: &[],
        words: &["cudarc", "sage_spec"],
    },
    Rule {
        why: "the host library sees PTX, never the kernel crate",
        within: &["host/src/", "host/cli/"],
        except: &[],
        words: &["sage_kernels_gpu", "cuda_std"],
    },
    Rule {
        why: "architectures never import each other; what they share moves up",
        within: &["kernels-gpu/src/attention/sm80/"],
        except: &[],
        words: &["sm89", "sm90"],
    },
    Rule {
        why: "architectures never import each other; what they share moves up",
        within: &["kernels-gpu/src/attention/sm89/"],
        except: &[],
        words: &["sm80", "sm90"],
    },
    Rule {
        why: "architectures never import each other; what they share moves up",
        within: &["kernels-gpu/src/attention/sm90/"],
        except: &[],
        words: &["sm80", "sm89", "mma_sync"],
    },
    Rule {
        why: "tiles are below pipelines, attention and quantization",
        within: &["kernels-gpu/src/tile/"],
        except: &[],
        words: &["crate::pipeline", "crate::attention", "crate::quant", "crate::entry"],
    },
    Rule {
        why: "pipelines are below attention and quantization",
        within: &["kernels-gpu/src/pipeline/"],
        except: &[],
        words: &["crate::attention", "crate::quant", "crate::entry"],
    },
    Rule {
        why: "attention and quantization meet only through the contract",
        within: &["kernels-gpu/src/attention/"],
        except: &[],
        words: &["crate::quant", "crate::entry"],
    },
    Rule {
        why: "attention and quantization meet only through the contract",
        within: &["kernels-gpu/src/quant/"],
        except: &[],
        words: &["crate::attention", "crate::pipeline", "crate::entry"],
    },
    Rule {
        why: "the cache meets attention and quantization only through the contract",
        within: &["kernels-gpu/src/cache/"],
        except: &[],
        words: &["crate::attention", "crate::quant", "crate::entry"],
    },
    Rule {
        why: "one instruction, one function: cuda_std knows nothing of attention",
        within: &["kernels-gpu/cuda_std/"],
        except: &[],
        words: &["sage_spec", "sage_kernels_gpu", "sage_attn"],
    },
];

/// Forbidden dependencies: (manifest, package, why).
const MANIFESTS: &[(&str, &str, &str)] = &[
    ("host/Cargo.toml", "sage-kernels-gpu", "the host library sees PTX, never the kernel crate"),
    ("host/Cargo.toml", "sage-tests", "nothing depends on the tests"),
    ("host/Cargo.toml", "clap", "the command line is a package of its own"),
    ("host/cli/Cargo.toml", "cudarc", "the driver is called in host/src/device only"),
    ("host/Cargo.toml", "cuda_std", "the host library sees PTX, never the kernel crate"),
    ("kernels-gpu/Cargo.toml", "sage-attn", "kernels are below the host"),
    ("kernels-gpu/Cargo.toml", "sage-tests", "nothing depends on the tests"),
    ("kernels-gpu/cuda_std/Cargo.toml", "sage-spec", "cuda_std knows nothing of attention"),
    ("host/cuda_builder/Cargo.toml", "sage-attn", "the builder is below the library"),
];

/// The broken rules in `text`, a source file at `path` from the root of the workspace.
fn violations(path: &str, text: &str) -> Vec<String> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    let mut found = Vec::new();
    for rule in RULES.iter().filter(|rule| starts(rule.within) && !starts(rule.except)) {
        for (number, line) in text.lines().enumerate() {
            let code = code_of(line);
            for word in rule.words.iter().filter(|word| has_word(&code, word)) {
                found.push(format!("{path}:{}: {word}: {}", number + 1, rule.why));
            }
        }
    }
    found
}

/// A line without its comment and without what is between double quotes.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if quoted => drop(characters.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && characters.peek() == Some(&'/') => break,
            c if !quoted => code.push(c),
            _ => {}
        }
    }
    code
}

/// Whether `word` occurs in `code` and is not part of a longer identifier.
fn has_word(code: &str, word: &str) -> bool {
    let identifier = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let open_end = !word.ends_with(identifier);
        !before.is_some_and(identifier) && (open_end || !after.is_some_and(identifier))
    })
}

/// The dependencies of a manifest, by the names it gives them.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && let Some(end) = line.find(['.', ' ', '=']) {
            names.push(&line[..end]);
        }
    }
    names
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file below `folder`, as paths from the root.
fn sources(folder: &str, into: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root().join(folder)) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            if !path.ends_with("/target") {
                sources(&path, into);
            }
        } else if path.ends_with(".rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_source_file_obeys_the_rules() {
    let mut paths = Vec::new();
    for folder in ["host", "kernels-gpu", "tests"] {
        sources(folder, &mut paths);
    }
    assert!(paths.len() > 50, "only {} files were found", paths.len());
    let found: Vec<String> = paths
        .iter()
        .filter(|path| *path != "tests/architecture.rs") // names what it forbids
        .flat_map(|path| violations(path, &fs::read_to_string(root().join(path)).unwrap()))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_manifest_obeys_the_rules() {
    let spec = fs::read_to_string(root().join("host/spec/Cargo.toml")).unwrap();
    assert_eq!(dependencies(&spec), Vec::<&str>::new(), "the contract depends on nobody");
    for (path, package, why) in MANIFESTS {
        let manifest = fs::read_to_string(root().join(path)).unwrap();
        assert!(!dependencies(&manifest).contains(package), "{path} depends on {package}: {why}");
    }
}

#[test]
fn the_guard_fails_on_planted_violations() {
    for (path, text) in [
        ("kernels-gpu/src/attention/sm89/mod.rs", "    core::arch::asm!(\"bar.sync 0;\");"),
        ("host/src/api/mod.rs", "let x = unsafe { *p };"),
        ("host/src/plan/mod.rs", "use crate::device::Gpu;"),
        ("host/src/plan/mod.rs", "use {cudarc::driver, std::fmt};"),
        ("host/src/reference/mod.rs", "    crate::plan::plan(&problem, &capability)"),
        ("host/src/problem/mod.rs", "use crate::plan::Plan; // a comment"),
        ("host/src/cpu/attend.rs", "unsafe { isa.load(p) }"),
        ("host/src/cpu/avx512/mod.rs", "asm!(\"vdpbf16ps\")"),
        ("host/src/cpu/mod.rs", "use crate::problem::Problem;"),
        ("host/src/device/mod.rs", "use crate::api::TensorView;"),
        ("host/src/api/mod.rs", "use crate::adaptive::Choice;"),
        ("host/cli/src/run.rs", "use sage_attn::cudarc::driver::CudaContext;"),
        ("host/spec/src/dims.rs", "use std::vec::Vec;"),
        ("kernels-gpu/src/attention/sm80/mod.rs", "use super::sm89::Config;"),
        ("kernels-gpu/src/attention/sm90/mod.rs", "use super::mma_sync::qk;"),
        ("kernels-gpu/src/tile/fragment.rs", "use crate::attention::mma_sync::qk;"),
        ("kernels-gpu/src/quant/mod.rs", "use crate::attention::sm80;"),
        ("kernels-gpu/src/attention/mod.rs", "use crate::quant;"),
        ("kernels-gpu/cuda_std/src/mma.rs", "use sage_spec::Dims;"),
    ] {
        assert!(!violations(path, text).is_empty(), "{path}: {text}");
    }
    assert_eq!(dependencies("[dependencies]\nsage-attn.workspace = true\nx = \"1\"\n"), ["sage-attn", "x"]);
}

#[test]
fn the_guard_passes_what_is_allowed() {
    for (path, text) in [
        ("kernels-gpu/cuda_std/src/mma.rs", "unsafe { asm!(\"mma.sync\") }"),
        ("host/src/device/launch.rs", "unsafe { launch() }"),
        ("host/src/cpu/avx512/mod.rs", "unsafe { _mm512_add_ps(a, b) }"),
        ("host/spec/src/lib.rs", "#![forbid(unsafe_code)]"),
        ("host/src/api/mod.rs", "// unsafe code is in crate::device"),
        ("host/src/api/mod.rs", "print(\"unsafe asm!\");"),
        ("host/src/api/mod.rs", "use crate::device::Gpu;"),
        ("host/src/plan/mod.rs", "let device_name = planner::crate_device();"),
        ("kernels-gpu/src/attention/sm89/mod.rs", "use super::mma_sync::qk;"),
    ] {
        assert_eq!(violations(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

/// Paths between backquotes in `text`: they contain a slash or end in a known extension, and neither
/// spaces nor placeholders.
fn named_paths(text: &str) -> Vec<&str> {
    let extension = |word: &str| [".md", ".rs", ".toml", ".json", ".safetensors"].iter().any(|e| word.ends_with(e));
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| (word.contains('/') || extension(word)) && !word.contains([' ', '<', '*', ':', '\n', '(']))
        .collect()
}

#[test]
fn every_path_in_the_map_exists() {
    let map = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let paths = named_paths(&map);
    assert!(paths.len() > 10, "the map names only {paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "docs/README.md names {path}, which does not exist");
    }
    assert_eq!(named_paths("see `docs/nowhere.md` and `let x`"), ["docs/nowhere.md"]);
}

/// The tests named in `text`: pairs of backquoted words, a path and a name, with a colon between.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let words: Vec<&str> = text.split('`').collect();
    let pairs = (3..words.len()).step_by(2).filter(|&i| words[i - 1] == ": " && words[i - 2].ends_with(".rs"));
    pairs.map(|i| (words[i - 2], words[i])).collect()
}

/// Whether `source` has a test called `name`: a function, or an item of a macro that makes them.
fn has_test(source: &str, name: &str) -> bool {
    source.contains(&format!("fn {name}("))
        || source.lines().any(|line| line.ends_with(");") && line.contains("!(") && has_word(line, name))
}

#[test]
fn every_test_of_the_contract_exists() {
    for (document, least) in [("docs/contract.md", 80), ("docs/reliability.md", 20)] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let tests = named_tests(&text);
        assert!(tests.len() >= least, "{document} names {} tests", tests.len());
        for (path, name) in tests {
            let source = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(has_test(&source, name), "{document} names {path}: {name}, which does not exist");
        }
    }
    assert_eq!(named_tests("a `x.rs`: `one`, and `y.rs`: `two`; `z.rs`, `w`"), [("x.rs", "one"), ("y.rs", "two")]);
    assert!(has_test("fn one() {}", "one") && has_test("make!(one two);", "two") && !has_test("// one", "one"));
}

/// The variants of every error enum in `source`.
fn variants(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in source.lines() {
        if line.starts_with("pub enum ") {
            inside = line.ends_with("{") && !line.contains("Operand") && !line.contains("Axis");
        } else if line == "}" {
            inside = false;
        } else if inside && line.starts_with("    ") && line[4..].starts_with(char::is_uppercase) {
            let end = line[4..].find(|c: char| !c.is_alphanumeric()).unwrap_or(line.len() - 4);
            names.push(line[4..4 + end].to_owned());
        }
    }
    names
}

#[test]
fn every_error_has_a_test() {
    let mut errors = Vec::new();
    let mut files = vec!["host/src/error.rs".to_owned()];
    sources("host/src/error", &mut files);
    for file in files {
        errors.extend(variants(&fs::read_to_string(root().join(file)).unwrap()));
    }
    assert!(errors.len() > 85, "{} errors", errors.len());
    let mut paths = Vec::new();
    ["tests", "host/src"].iter().for_each(|folder| sources(folder, &mut paths));
    // What tests say: all of `tests/`, and what follows the tests of a source file.
    let said: String = paths
        .iter()
        .filter(|path| *path != "tests/architecture.rs")
        .map(|path| {
            let text = fs::read_to_string(root().join(path)).unwrap();
            if path.starts_with("tests/") { text } else { text.split("#[cfg(test)]").skip(1).collect() }
        })
        .collect();
    // Of another module; and one that no request reaches, as grids end before the address space does.
    errors.retain(|name| !["Adaptive", "WorkspaceOverflow"].contains(&name.as_str()));
    let untested: Vec<&String> = errors.iter().filter(|name| !has_word(&said, name)).collect();
    assert!(untested.is_empty(), "no test names {untested:?}");
}
