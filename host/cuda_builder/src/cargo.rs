//! Running cargo for the kernels, from wherever the builder itself runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::arch::NvvmArch;
use crate::builder::CudaBuilderError;
use crate::hex;
use crate::toolchain::Toolchain;

/// What cargo knows of the kernels' crate.
pub(crate) struct Package {
    pub(crate) lib_name: String,
    features: Vec<String>,
    pub(crate) workspace_root: PathBuf,
}

impl Package {
    /// Asks cargo.
    pub(crate) fn read(toolchain: &Toolchain, manifest_path: &Path) -> Result<Self, CudaBuilderError> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<MetadataPackage>,
            workspace_root: PathBuf,
        }
        #[derive(Deserialize)]
        struct MetadataPackage {
            manifest_path: PathBuf,
            features: std::collections::BTreeMap<String, Vec<String>>,
            targets: Vec<MetadataTarget>,
        }
        #[derive(Deserialize)]
        struct MetadataTarget {
            name: String,
            kind: Vec<String>,
        }

        let mut cargo = cargo_command(toolchain);
        cargo.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(manifest_path);
        let output = cargo.output().map_err(io_error(&toolchain.cargo))?;
        let failed = |stderr: String| CudaBuilderError::BuildFailed { command: command_line(&cargo), stderr };
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
        let wanted = manifest_path.canonicalize().map_err(io_error(manifest_path))?;
        let package = metadata
            .packages
            .into_iter()
            .find(|package| package.manifest_path.canonicalize().is_ok_and(|path| path == wanted))
            .ok_or_else(|| failed("cargo does not list the crate".to_owned()))?;
        let is_lib = |target: &&MetadataTarget| {
            target.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "rlib" | "cdylib"))
        };
        let lib = package.targets.iter().find(is_lib).ok_or_else(|| failed("the crate has no library".to_owned()))?;
        Ok(Package {
            lib_name: lib.name.replace('-', "_"),
            features: package.features.into_keys().collect(),
            workspace_root: metadata.workspace_root,
        })
    }

    /// The crate's feature for an architecture, if it has one.
    pub(crate) fn feature_of(&self, arch: NvvmArch) -> Vec<String> {
        let name = arch.target_name();
        self.features.iter().filter(|feature| *feature == name).cloned().collect()
    }
}

/// cargo with nothing of the surrounding build in its environment: a build script sees the host's
/// flags, wrappers and target folder, none of which are the kernels'.
pub(crate) fn cargo_command(toolchain: &Toolchain) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_UNSTABLE_BUILD_STD",
    ] {
        cargo.env_remove(name);
    }
    // The kernels' ABI, inline PTX and building core are unstable features of a stable compiler.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", &toolchain.rustc);
    cargo
}

/// Runs a command and returns what it printed to standard error.
pub(crate) fn run(command: &mut Command) -> Result<String, CudaBuilderError> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().map_err(io_error(&program))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(stderr)
    } else {
        Err(CudaBuilderError::BuildFailed { command: command_line(command), stderr })
    }
}

/// Runs a cargo command off the network, and again with it if a package is missing.
pub(crate) fn run_offline_first(cargo: &mut Command) -> Result<String, CudaBuilderError> {
    match run(cargo.env("CARGO_NET_OFFLINE", "true")) {
        Err(CudaBuilderError::BuildFailed { stderr, .. }) if stderr.contains("offline") => {
            run(cargo.env_remove("CARGO_NET_OFFLINE"))
        }
        result => result,
    }
}

pub(crate) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

pub(crate) fn emit(kind: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(format!("--emit={kind}="));
    argument.push(path);
    argument
}

/// Identifies a build by its command line, its settings and its compiler.
pub(crate) fn digest(cargo: &Command, toolchain: &Toolchain) -> String {
    let mut hash = Sha256::new();
    hash.update(command_line(cargo));
    for (name, value) in cargo.get_envs() {
        hash.update(format!("\n{name:?}={value:?}"));
    }
    hash.update(format!("\n{toolchain}"));
    hex(&hash.finalize()[..8])
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CudaBuilderError {
    let path = path.to_owned();
    move |source| CudaBuilderError::Io { path, source }
}

/// Only build scripts are told what the host is.
pub(crate) fn in_build_script() -> bool {
    std::env::var_os("OUT_DIR").is_some() && std::env::var_os("HOST").is_some()
}

pub(crate) fn warn(text: &str) {
    if in_build_script() {
        println!("cargo::warning=cuda_builder: {text}");
    } else {
        eprintln!("warning: cuda_builder: {text}");
    }
}

/// Makes cargo watch every source of the kernels, from the dependency file of their library.
pub(crate) fn rerun_if_changed(manifest_path: &Path, dep_info: &Path) {
    println!("cargo::rerun-if-changed={}", manifest_path.display());
    let text = fs::read_to_string(dep_info).unwrap_or_default();
    for path in sources(&text) {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The files right of the colon of a make rule, in which spaces of a name are escaped.
fn sources(dep_info: &str) -> Vec<String> {
    let Some((_, files)) = dep_info.lines().next().and_then(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    let escaped = files.replace("\\ ", "\u{0}");
    escaped.split_whitespace().map(|file| file.replace('\u{0}', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_files_are_read() {
        let rule = "/t/libk.rlib: /src/a.rs /my\\ src/b.rs\n\n/src/a.rs:\n";
        assert_eq!(sources(rule), ["/src/a.rs", "/my src/b.rs"]);
        assert!(sources("").is_empty());
    }
}
