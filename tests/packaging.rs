//! What would be published, and what it would bring along.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Largest package that crates.io accepts (The Cargo Book, "Publishing on crates.io").
const MAX_PACKAGE_BYTES: u64 = 10 << 20;

/// Crates that compile C or C++, or that need such a library on the machine.
const C_BUILDS: [&str; 8] = ["cc", "cmake", "cxx", "cxx-build", "bindgen", "pkg-config", "vcpkg", "bindgen_cuda"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What Cargo prints; it stays off the network, as the sources of everything are here already.
fn cargo(arguments: &[&str], target: Option<&Path>) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).arg("--offline").current_dir(root());
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target); // the usual one is locked by whoever runs this test
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names of the packages in a tree, without the root's.
fn tree(package: &str, arguments: &[&str]) -> BTreeSet<String> {
    let mut all = vec!["tree", "-p", package, "--prefix", "none", "--format", "{p}"];
    all.extend(arguments);
    let names = cargo(&all, None);
    names.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn embedders_depend_on_little() {
    // With default features: nobody has to turn anything off.
    let direct = tree("sage-attn", &["-e", "normal", "--depth", "1"]);
    assert!(direct.contains("half") && direct.contains("cudarc"), "{direct:?}");
    assert!(direct.len() <= 12, "{} direct dependencies: {direct:?}", direct.len());
}

#[test]
fn nothing_compiles_c() {
    for (package, least) in [("sage-attn", 15), ("sage-attn-cli", 40), ("sage-attn-capi", 15)] {
        let all = tree(package, &["-e", "normal,build"]);
        assert!(all.len() > least, "{all:?}");
        let found: Vec<&&str> = C_BUILDS.iter().filter(|name| all.contains(**name)).collect();
        assert!(found.is_empty(), "{found:?} in the tree of {package}");
    }
}

/// The program of an embedder, and what it depends on.
const PROGRAM: &str = r#"use sage_attn::{Attention, Error, Layout, TensorView};

fn main() -> Result<(), Error> {
    let values = vec![0.5f32; 8 * 300 * 64];
    let x = TensorView::new(&values, &[1, 8, 300, 64], Layout::Hnd)?;
    let output = Attention::new().causal(true).forward(&x, &x, &x)?;
    println!("{} {:.2}", output.report.kernel, output.out.to_f32()[0]);
    Ok(())
}
"#;

/// A new package beside nothing, with a path dependency and default features, on the Rust in use: no device
/// toolchain is asked for. How long that takes on an idle machine is in docs/releasing.md; a machine that runs
/// tests is none, so what is asserted is that it works.
#[test]
fn a_program_of_ten_lines_builds_and_runs() {
    assert!(PROGRAM.lines().count() <= 10);
    let folder = std::env::temp_dir().join(format!("sage-attn-program-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("src")).unwrap();
    std::fs::write(folder.join("src/main.rs"), PROGRAM).unwrap();
    let manifest = format!(
        "[package]\nname = \"program\"\nedition = \"2024\"\n\n[dependencies]\nsage-attn = {{ path = {:?} }}\n\n[workspace]\n",
        root().join("host")
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // The versions that the workspace has are there without a network.
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let start = Instant::now();
    let output = Command::new(env!("CARGO"))
        .args(["run", "--release", "--offline", "--quiet"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        // Where the kernels' source has changed, it must be compiled; this one must not be needed.
        .env("CUDA_BUILDER_RUSTC", folder.join("no-such-compiler"))
        .output()
        .unwrap();
    println!("built and ran in {:.0} s", start.elapsed().as_secs_f64());
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.ends_with("fwd 0.50\n"), "{stdout}");
}

#[test]
fn every_published_crate_packs() {
    let target = std::env::temp_dir().join(format!("sage-attn-package-{}", std::process::id()));
    let arguments = [
        "package",
        "--workspace",
        "--exclude",
        "sage-conformance-kernels",
        "--exclude",
        "sage-tests",
        "--exclude",
        "sage-benches",
        "--exclude",
        "sage-mock-driver",
        "--exclude",
        "sage-fuzz-targets",
        "--no-verify",
        "--allow-dirty",
        "--quiet",
    ];
    cargo(&arguments, Some(&target));
    let mut packages: Vec<PathBuf> = std::fs::read_dir(target.join("package"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crate"))
        .collect();
    packages.sort();
    let version = env!("CARGO_PKG_VERSION");
    let names: Vec<String> = packages
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().trim_end_matches(&format!("-{version}")).to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "sage-attn",
            "sage-attn-capi",
            "sage-attn-cli",
            "sage-cuda-builder",
            "sage-cuda-std",
            "sage-cuda-std-macros",
            "sage-kernels-gpu",
            "sage-spec"
        ]
    );
    for package in &packages {
        let bytes = package.metadata().unwrap().len();
        println!("{}: {} KiB", package.file_name().unwrap().to_string_lossy(), bytes >> 10);
        assert!(bytes < MAX_PACKAGE_BYTES, "{}: {bytes} bytes", package.display());
    }
    std::fs::remove_dir_all(&target).unwrap();

    // Without these the build script of a published crate has nothing to embed.
    let list = cargo(&["package", "--list", "-p", "sage-attn", "--allow-dirty"], Some(&target));
    for file in ["build.rs", "ptx/manifest.json", "ptx/sm_80.ptx", "ptx/sm_89.ptx", "ptx/sm_90a.ptx", "README.md"] {
        assert!(list.lines().any(|line| line == file), "{file} is not packed:\n{list}");
    }
    for other in ["capi/", "cli/", "cuda_builder/", "spec/"] {
        assert!(!list.contains(other), "another crate, {other}, is packed:\n{list}");
    }
    let list = cargo(&["package", "--list", "-p", "sage-attn-capi", "--allow-dirty"], Some(&target));
    assert!(list.contains("include/sage_attn.h"), "{list}");
}
