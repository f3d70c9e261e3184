//! Builds the crate in `fixture/` with whatever device toolchain the machine has; without one, each
//! test prints a line and passes.

use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::ptxas::Tools;
use cuda_builder::{CudaBuilder, CudaBuilderError, NvvmArch, inspect, ptx, toolchain};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixture");

/// Whether the machine can build kernels.
fn has_toolchain(test: &str) -> bool {
    match toolchain::discover() {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED {test}: {error}");
            false
        }
    }
}

fn builder() -> CudaBuilder {
    CudaBuilder::new(FIXTURE).arch(NvvmArch::Compute89).target_dir(scratch("fixture"))
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).expect("the builder returned its path")
}

#[test]
fn kernels_are_finished() {
    if !has_toolchain("kernels_are_finished") {
        return;
    }
    let copy = scratch("fixture-copy.ptx");
    let text = read(builder().copy_to(&copy).build().unwrap());
    assert_eq!(text, read(copy));
    assert_eq!(inspect::entries(&text).unwrap(), ["arithmetic", "calls"]);
    assert!(text.starts_with(".version 8.4\n.target sm_89\n"), "{text}");
    assert!(text.contains(")\n.maxntid 128, 1, 1\n.minnctapersm 2\n{"), "{text}");
    assert!(text.contains("add.rn.f32"), "no contraction unless asked for: {text}");
    assert!(text.contains("0f40400000"), "the feature named like the target is set: {text}");
    assert!(text.contains("fixture__helper") && !text.contains("_R"), "{text}");
    assert!(!text.contains("rust_begin_unwind") && !text.contains("//"), "{text}");
}

#[test]
fn fast_math_is_approximate() {
    if !has_toolchain("fast_math_is_approximate") {
        return;
    }
    let text = read(builder().fast_div(true).fma_contraction(true).build().unwrap());
    assert!(text.contains("div.approx.f32") && text.contains("fma.rn.f32"), "{text}");
}

#[test]
fn llvm_ir_is_written() {
    if !has_toolchain("llvm_ir_is_written") {
        return;
    }
    let path = scratch("fixture.ll");
    builder().final_module_path(&path).build().unwrap();
    assert!(read(path).contains("ptx_kernel"));
}

/// ptxas refuses LLVM's debug sections, so only the lines may be left.
#[test]
fn debug_builds_have_lines_and_bounds() {
    if !has_toolchain("debug_builds_have_lines_and_bounds") {
        return;
    }
    let text = read(builder().release(false).target_dir(scratch("fixture-debug")).build().unwrap());
    assert!(text.contains(".loc") && !text.contains(".section"), "{text}");
    assert!(text.contains(")\n.maxntid 128, 1, 1\n.minnctapersm 2\n{"), "{text}");
    match Tools::find() {
        Some(tools) => assert_eq!(tools.assemble(&text, "sm_89").unwrap().kernels.len(), 2),
        None => println!("SKIPPED ptxas: not installed"),
    }
}

#[test]
fn a_kernel_that_can_panic_is_an_error() {
    if !has_toolchain("a_kernel_that_can_panic_is_an_error") {
        return;
    }
    let error = builder().features(&["panics"]).build().unwrap_err();
    let CudaBuilderError::Ptx(ptx::PtxError::Unresolved(unresolved)) = error else {
        panic!("{error}");
    };
    assert_eq!(unresolved[0].callee, "core::panicking::panic_bounds_check");
    assert_eq!(unresolved[0].callers, ["panics"]);
}

#[test]
fn a_compile_error_is_shown() {
    if !has_toolchain("a_compile_error_is_shown") {
        return;
    }
    let error = builder().build_args(&["--features", "no_such_feature"]).build().unwrap_err();
    assert!(
        matches!(&error, CudaBuilderError::BuildFailed { stderr, .. } if stderr.contains("no_such_feature")),
        "{error}"
    );
}

/// The same source, in another folder, built from nothing, gives the same bytes.
#[test]
fn builds_are_reproducible() {
    if !has_toolchain("builds_are_reproducible") {
        return;
    }
    let elsewhere = scratch("a folder elsewhere");
    let _ = fs::remove_dir_all(&elsewhere);
    fs::create_dir_all(elsewhere.join("src")).unwrap();
    let manifest = read(Path::new(FIXTURE).join("Cargo.toml"));
    let macros = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels-gpu/cuda_std_macros");
    let manifest = manifest.replace("../../../../kernels-gpu/cuda_std_macros", macros);
    fs::write(elsewhere.join("Cargo.toml"), manifest).unwrap();
    for file in ["Cargo.lock", "src/lib.rs"] {
        fs::copy(Path::new(FIXTURE).join(file), elsewhere.join(file)).unwrap();
    }
    let clean = CudaBuilder::new(&elsewhere).arch(NvvmArch::Compute89).target_dir(elsewhere.join("out"));
    assert_eq!(read(clean.build().unwrap()), read(builder().build().unwrap()));
}
