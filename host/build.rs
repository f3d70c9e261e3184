//! Embeds the kernels.
//!
//! The checked-in modules in `ptx/` are used as they are while they belong to the kernels' source,
//! and wherever that source is absent (a published crate). If the source has changed, all modules are
//! built anew; `SAGE_ATTN_REBUILD_PTX=1` also writes them back to `ptx/`, which is how a kernel author
//! checks in what was changed.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::manifest::{self, Manifest, ModuleEntry};
use cuda_builder::{CudaBuilder, NvvmArch, inspect, toolchain};

/// One module each; `sage_spec::symbol::Arch` lists the same targets.
const ARCHS: [NvvmArch; 3] = [NvvmArch::Compute80, NvvmArch::Compute89, NvvmArch::Compute90a];

/// What decides the contents of the modules, relative to the workspace.
const SOURCES: [&str; 2] = ["kernels-gpu", "host/spec"];
/// What does not, although it lies there: the back end that runs kernels on the CPU.
const EXCEPT: [&str; 2] = ["kernels-gpu/cuda_std/src/executor", "kernels-gpu/cuda_std/src/host"];

const REBUILD: &str = "SAGE_ATTN_REBUILD_PTX";

fn main() {
    if let Err(error) = embed() {
        // Cargo shows what a failing build script prints to standard error; a panic would add a backtrace.
        eprintln!("sage-attn: cannot prepare the kernels: {error}");
        std::process::exit(1);
    }
}

fn embed() -> Result<(), Box<dyn Error>> {
    let host = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let root = host.parent().ok_or("the crate lies at the root of the file system")?;
    let checked_in = host.join("ptx");
    println!("cargo::rerun-if-changed={}", checked_in.display());
    for name in [REBUILD, "CUDA_BUILDER_RUSTC", "CUDA_BUILDER_CARGO"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if !root.join("kernels-gpu").is_dir() {
        let manifest = Manifest::load(&checked_in)?;
        manifest.check(&checked_in, None, &flags(root)?)?;
        return generate(&out_dir, &checked_in, &manifest);
    }

    for folder in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
    }
    let source_sha256 = manifest::source_hash(root, &SOURCES, &EXCEPT)?;
    let write_back = env::var(REBUILD).is_ok_and(|value| value == "1");
    if !write_back {
        match check(root, &checked_in, &source_sha256) {
            Ok(manifest) => return generate(&out_dir, &checked_in, &manifest),
            Err(reason) => println!("cargo::warning=building the kernels: {reason}"),
        }
    }
    let fresh = out_dir.join("ptx");
    let manifest = build(root, &fresh, source_sha256)?;
    if write_back {
        fs::create_dir_all(&checked_in)?;
        for target in manifest.modules.keys() {
            fs::copy(manifest::module_path(&fresh, target), manifest::module_path(&checked_in, target))?;
        }
        manifest.store(&checked_in)?;
    }
    generate(&out_dir, &fresh, &manifest)
}

fn builder(root: &Path, arch: NvvmArch) -> CudaBuilder {
    CudaBuilder::new(root.join("kernels-gpu")).arch(arch)
}

/// Compiler flags per target.
fn flags(root: &Path) -> Result<BTreeMap<String, Vec<String>>, Box<dyn Error>> {
    let mut flags = BTreeMap::new();
    for arch in ARCHS {
        flags.insert(arch.target_name().to_owned(), builder(root, arch).flags()?);
    }
    Ok(flags)
}

/// The manifest, if the checked-in modules belong to this source and these flags.
fn check(root: &Path, checked_in: &Path, source_sha256: &str) -> Result<Manifest, Box<dyn Error>> {
    let manifest = Manifest::load(checked_in)?;
    manifest.check(checked_in, Some(source_sha256), &flags(root)?)?;
    Ok(manifest)
}

/// Builds every module into `folder`.
fn build(root: &Path, folder: &Path, source_sha256: String) -> Result<Manifest, Box<dyn Error>> {
    let toolchain = toolchain::discover()?;
    println!("cargo::warning=building the kernels with {toolchain}");
    fs::create_dir_all(folder)?;
    let mut modules = BTreeMap::new();
    for arch in ARCHS {
        let target = arch.target_name();
        let path = manifest::module_path(folder, target);
        builder(root, arch).toolchain(toolchain.clone()).copy_to(&path).build()?;
        let ptx = fs::read_to_string(&path)?;
        let module = ModuleEntry {
            sha256: manifest::text_hash(ptx.as_bytes()),
            flags: builder(root, arch).flags()?,
            entries: inspect::entries(&ptx)?,
        };
        modules.insert(target.to_owned(), module);
    }
    let manifest =
        Manifest { schema: manifest::SCHEMA, rustc: toolchain.version, llvm: toolchain.llvm, source_sha256, modules };
    manifest.store(folder)?;
    Ok(manifest)
}

/// Writes `kernels.rs`: the modules as an expression of type `&[EmbeddedModule]`, which `device`
/// includes.
fn generate(out_dir: &Path, folder: &Path, manifest: &Manifest) -> Result<(), Box<dyn Error>> {
    let mut text = String::from("&[\n");
    for (target, module) in &manifest.modules {
        let path = manifest::module_path(folder, target);
        let path = path.to_str().ok_or("the path of the kernels is not Unicode")?;
        let (sha256, source_sha256) = (&module.sha256, &manifest.source_sha256);
        text += &format!(
            "    EmbeddedModule {{ target: {target:?}, ptx: include_str!({path:?}), sha256: {sha256:?}, \
             source_sha256: {source_sha256:?} }},\n"
        );
    }
    text += "]\n";
    // Written only when it differs, so that an unrelated run of this script recompiles nothing.
    let path = out_dir.join("kernels.rs");
    if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
        fs::write(&path, text)?;
    }
    Ok(())
}
