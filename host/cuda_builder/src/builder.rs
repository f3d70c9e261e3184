//! [`CudaBuilder`]: one crate, one architecture, one PTX module.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TARGET;
use crate::arch::{NvvmArch, PtxIsa};
use crate::cargo::{
    Package, cargo_command, digest, emit, in_build_script, io_error, rerun_if_changed, run, run_offline_first, warn,
};
use crate::ptx::{self, PtxError};
use crate::toolchain::{self, CoreSource, Toolchain, ToolchainError};

/// Why there is no PTX.
///
/// Example: [`CudaBuilder`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaBuilderError {
    /// The path given to [`CudaBuilder::new`] holds no crate.
    #[error("crate path {0} does not exist")]
    CratePathDoesntExist(PathBuf),
    /// The module was built but could not be copied to where [`CudaBuilder::copy_to`] says.
    #[error("cannot copy the PTX file: {0}")]
    FailedToCopyPtxFile(#[source] io::Error),
    /// Cargo or rustc failed.
    #[error("the build of the kernels failed: {command}\n{stderr}")]
    BuildFailed {
        /// What was run.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// rustc's backend does not support the architecture.
    #[error(
        "{} is not supported: rustc's NVPTX backend starts at sm_{} (Volta)",
        .0.target_name(),
        NvvmArch::MIN_CAPABILITY
    )]
    UnsupportedArch(NvvmArch),
    /// No compiler was found.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The module that was built cannot work.
    #[error(transparent)]
    Ptx(#[from] PtxError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How much debug information to generate.
///
/// Example: [`CudaBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugInfo {
    /// None.
    None,
    /// Lines, for profilers and `compute-sanitizer`.
    LineTables,
}

/// An intermediate form to write beside the PTX.
///
/// Example: [`CudaBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmitOption {
    /// LLVM IR as text (`.ll`).
    LlvmIr,
    /// LLVM bitcode (`.bc`).
    Bitcode,
}

/// Builds one crate of kernels for one architecture.
///
/// The names are rust-cuda's. What steers libNVVM there and has no counterpart here is accepted, and
/// [`build`](CudaBuilder::build) says so in a build warning.
///
/// ```
/// use cuda_builder::{CudaBuilder, NvvmArch};
/// let builder = CudaBuilder::new("../kernels").arch(NvvmArch::Compute80);
/// assert!(builder.flags()?.iter().any(|flag| flag.contains("sm_80")));
/// # Ok::<(), cuda_builder::CudaBuilderError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CudaBuilder {
    path_to_crate: PathBuf,
    /// Optimise fully; `true` by default.
    pub release: bool,
    /// Where to copy the PTX.
    pub ptx_file_copy_path: Option<PathBuf>,
    /// Generate line tables in builds that are not release builds; `true` by default.
    pub generate_line_info: bool,
    /// libNVVM's optimisations: no effect, LLVM's passes follow [`release`](CudaBuilder::release).
    pub nvvm_opts: bool,
    /// The architecture.
    pub arch: NvvmArch,
    /// Flush denormals: no effect, rustc has no such mode.
    pub ftz: bool,
    /// Approximate single-precision square roots; `false` by default.
    pub fast_sqrt: bool,
    /// Approximate single-precision divisions; `false` by default.
    pub fast_div: bool,
    /// Contract `a * b + c` into a fused multiply-add; `false` by default, unlike rust-cuda: a kernel
    /// that wants an FMA says so, and a CPU reference can follow it.
    pub fma_contraction: bool,
    /// An intermediate form to write beside the PTX.
    pub emit: Option<EmitOption>,
    /// OptiX: no effect.
    pub optix: bool,
    /// Replace libm by libdevice: no effect, libdevice takes no part.
    pub override_libm: bool,
    /// Place statics in constant memory: no effect, rustc places them in global memory.
    pub use_constant_memory_space: bool,
    /// Debug information of every build, release builds included.
    pub debug: DebugInfo,
    /// Further arguments for cargo.
    pub build_args: Vec<String>,
    /// Where to write the final LLVM IR.
    pub final_module_path: Option<PathBuf>,
    features: Option<Vec<String>>,
    ptx_isa: Option<PtxIsa>,
    target_dir: Option<PathBuf>,
    toolchain: Option<Toolchain>,
    offline: bool,
}

/// rust-cuda's setters.
impl CudaBuilder {
    /// A release build for compute capability 8.0 of the crate in `path_to_crate_root`.
    pub fn new(path_to_crate_root: impl AsRef<Path>) -> Self {
        Self {
            path_to_crate: path_to_crate_root.as_ref().to_owned(),
            release: true,
            ptx_file_copy_path: None,
            generate_line_info: true,
            nvvm_opts: true,
            arch: NvvmArch::default(),
            ftz: false,
            fast_sqrt: false,
            fast_div: false,
            fma_contraction: false,
            emit: None,
            optix: false,
            override_libm: false,
            use_constant_memory_space: false,
            debug: DebugInfo::None,
            build_args: Vec::new(),
            final_module_path: None,
            features: None,
            ptx_isa: None,
            target_dir: None,
            toolchain: None,
            offline: true,
        }
    }

    /// Adds arguments for cargo.
    pub fn build_args(mut self, args: &[impl AsRef<str>]) -> Self {
        self.build_args.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets the debug information of every build.
    pub fn debug(mut self, debug_info: DebugInfo) -> Self {
        self.debug = debug_info;
        self
    }

    /// Whether to optimise fully. Without, the level is 1: at 0 most of `core` would stay behind as
    /// calls into another crate, which PTX cannot resolve.
    pub fn release(mut self, release: bool) -> Self {
        self.release = release;
        self.nvvm_opts = release;
        self
    }

    /// Whether builds that are not release builds get line tables.
    pub fn generate_line_info(mut self, generate_line_info: bool) -> Self {
        self.generate_line_info = generate_line_info;
        self
    }

    /// No effect.
    pub fn nvvm_opts(mut self, nvvm_opts: bool) -> Self {
        self.nvvm_opts = nvvm_opts;
        self
    }

    /// Sets the architecture.
    pub fn arch(mut self, arch: NvvmArch) -> Self {
        self.arch = arch;
        self
    }

    /// No effect.
    pub fn ftz(mut self, ftz: bool) -> Self {
        self.ftz = ftz;
        self
    }

    /// Whether single-precision square roots are approximate.
    pub fn fast_sqrt(mut self, fast_sqrt: bool) -> Self {
        self.fast_sqrt = fast_sqrt;
        self
    }

    /// Whether single-precision divisions are approximate.
    pub fn fast_div(mut self, fast_div: bool) -> Self {
        self.fast_div = fast_div;
        self
    }

    /// Whether `a * b + c` may become a fused multiply-add.
    pub fn fma_contraction(mut self, fma_contraction: bool) -> Self {
        self.fma_contraction = fma_contraction;
        self
    }

    /// Also writes LLVM IR beside the PTX.
    pub fn emit_llvm_ir(mut self, emit_llvm_ir: bool) -> Self {
        self.emit = emit_llvm_ir.then_some(EmitOption::LlvmIr);
        self
    }

    /// Also writes LLVM bitcode beside the PTX.
    pub fn emit_llvm_bitcode(mut self, emit_llvm_bitcode: bool) -> Self {
        self.emit = emit_llvm_bitcode.then_some(EmitOption::Bitcode);
        self
    }

    /// Copies the finished PTX to `path`.
    pub fn copy_to(mut self, path: impl AsRef<Path>) -> Self {
        self.ptx_file_copy_path = Some(path.as_ref().to_owned());
        self
    }

    /// No effect.
    pub fn optix(mut self, optix: bool) -> Self {
        self.optix = optix;
        self
    }

    /// No effect.
    pub fn override_libm(mut self, override_libm: bool) -> Self {
        self.override_libm = override_libm;
        self
    }

    /// No effect.
    pub fn use_constant_memory_space(mut self, use_constant_memory_space: bool) -> Self {
        self.use_constant_memory_space = use_constant_memory_space;
        self
    }

    /// Writes the final LLVM IR to `path`.
    pub fn final_module_path(mut self, path: impl AsRef<Path>) -> Self {
        self.final_module_path = Some(path.as_ref().to_owned());
        self
    }
}

/// What rust-cuda's builder does not have.
impl CudaBuilder {
    /// Cargo features of the kernels' crate. By default the one named like the architecture
    /// (`sm_90a`), if the crate declares it.
    pub fn features(mut self, features: &[impl AsRef<str>]) -> Self {
        self.features = Some(features.iter().map(|feature| feature.as_ref().to_owned()).collect());
        self
    }

    /// PTX ISA version. By default the lowest that has all of the architecture's instructions.
    pub fn ptx_isa(mut self, version: PtxIsa) -> Self {
        self.ptx_isa = Some(version);
        self
    }

    /// Folder for everything the build writes. By default `cuda-builder` in `OUT_DIR`, or in the
    /// workspace's `target` outside of a build script. Builds for several architectures share it.
    pub fn target_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.target_dir = Some(path.as_ref().to_owned());
        self
    }

    /// The compiler. By default [`toolchain::discover`] finds one.
    pub fn toolchain(mut self, toolchain: Toolchain) -> Self {
        self.toolchain = Some(toolchain);
        self
    }

    /// Whether to keep cargo off the network when there is a `Cargo.lock`; `true` by default. Where a package
    /// that the lock files name was never fetched (those of `core`, on a machine that never built it), it is
    /// fetched all the same.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The switches that were set and do nothing here, as sentences.
    pub fn ineffective_options(&self) -> Vec<&'static str> {
        let all = [
            (self.ftz, "ftz(true) has no effect: rustc cannot flush denormals; use PTX `.ftz` wrappers"),
            (self.release && !self.nvvm_opts, "nvvm_opts(false) has no effect: use release(false)"),
            (self.optix, "optix(true) has no effect: modules for OptiX are not supported"),
            (self.override_libm, "override_libm(true) has no effect: libdevice is not used"),
            (
                self.use_constant_memory_space,
                "use_constant_memory_space(true) has no effect: statics lie in global memory",
            ),
        ];
        all.into_iter().filter_map(|(set, text)| set.then_some(text)).collect()
    }

    /// The flags of every crate in the build. Dependencies need them as much as the kernels: their
    /// functions are inlined from MIR that was optimised when *they* were compiled.
    fn shared_flags(&self) -> Vec<String> {
        let debug_info = if self.has_debug_info() { "line-tables-only" } else { "0" };
        vec![
            // Jump threading clones barriers into both arms of a divergent branch.
            "-Zmir-enable-passes=-JumpThreading".to_owned(),
            "-Cpanic=abort".to_owned(),
            "-Coverflow-checks=off".to_owned(),
            "-Csymbol-mangling-version=v0".to_owned(),
            format!("-Cdebuginfo={debug_info}"),
        ]
    }

    /// The flags of the kernels' crate, the only one that is compiled to PTX.
    fn kernel_flags(&self) -> Result<Vec<String>, CudaBuilderError> {
        let lowest = self.arch.ptx_isa().ok_or(CudaBuilderError::UnsupportedArch(self.arch))?;
        let ptx_isa = self.ptx_isa.unwrap_or(lowest);
        let mut flags = vec![
            format!("-Ctarget-cpu={}", self.arch.target_name()),
            format!("-Ctarget-feature=+ptx{}", ptx_isa.0),
            "-Ccodegen-units=1".to_owned(),
            // Register arrays live in registers only if every loop over them is unrolled.
            "-Cllvm-args=--unroll-threshold=20000".to_owned(),
        ];
        let optional = [
            (self.fast_sqrt, "-Cllvm-args=-nvptx-prec-sqrtf32=0"),
            (self.fast_div, "-Cllvm-args=-nvptx-prec-divf32=0"),
            (self.fma_contraction, "-Cllvm-args=-nvptx-fma-level=1"),
        ];
        flags.extend(optional.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.to_owned()));
        Ok(flags)
    }

    /// The compiler flags that decide what the PTX looks like, without any path.
    pub fn flags(&self) -> Result<Vec<String>, CudaBuilderError> {
        let mut flags = vec![format!("opt-level={}", self.opt_level())];
        flags.extend(self.shared_flags());
        flags.extend(self.kernel_flags()?);
        Ok(flags)
    }

    fn opt_level(&self) -> u32 {
        if self.release { 3 } else { 1 }
    }

    fn has_debug_info(&self) -> bool {
        self.debug == DebugInfo::LineTables || self.generate_line_info && !self.release
    }

    /// Builds the module and returns the path of its PTX.
    ///
    /// In a build script this also tells cargo to run the script again when a source of the kernels
    /// or of their path dependencies changes.
    pub fn build(self) -> Result<PathBuf, CudaBuilderError> {
        for text in self.ineffective_options() {
            warn(text);
        }
        let kernel_flags = self.kernel_flags()?;
        let manifest_path = self.path_to_crate.join("Cargo.toml");
        if !manifest_path.is_file() {
            return Err(CudaBuilderError::CratePathDoesntExist(self.path_to_crate));
        }
        let toolchain = match &self.toolchain {
            Some(toolchain) => toolchain.clone(),
            None => toolchain::discover()?,
        };
        let package = Package::read(&toolchain, &manifest_path)?;
        let target_dir = self.output_folder(&package);
        fs::create_dir_all(&target_dir).map_err(io_error(&target_dir))?;

        let mut cargo = cargo_command(&toolchain);
        cargo.args(["rustc", "--lib", "--target", TARGET, "--manifest-path"]).arg(&manifest_path);
        cargo.arg("--target-dir").arg(&target_dir);
        let locked = self.offline && package.workspace_root.join("Cargo.lock").is_file();
        if locked {
            cargo.arg("--locked");
        }
        if toolchain.core == CoreSource::BuildStd {
            cargo.arg("-Zbuild-std=core");
        }
        let features = self.features.clone().unwrap_or_else(|| package.feature_of(self.arch));
        if !features.is_empty() {
            cargo.arg("--features").arg(features.join(","));
        }
        cargo.args(["--profile", if self.release { "release" } else { "dev" }]);
        cargo.args(&self.build_args).arg("--").args(&kernel_flags);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.shared_flags().join("\u{1f}"));
        self.set_profile(&mut cargo);

        // cargo keeps what it need not build again. A path that depends on the whole command line
        // and compiler says whose text lies there; two builds never share one.
        let stem = target_dir.join(format!("{}-{}", package.lib_name, digest(&cargo, &toolchain)));
        let assembly = stem.with_extension("s");
        cargo.arg(emit("asm", &assembly));
        let llvm_ir = stem.with_extension("ll");
        if self.emit == Some(EmitOption::LlvmIr) || self.final_module_path.is_some() {
            cargo.arg(emit("llvm-ir", &llvm_ir));
        }
        if self.emit == Some(EmitOption::Bitcode) {
            cargo.arg(emit("llvm-bc", &stem.with_extension("bc")));
        }
        let diagnostics = if locked { run_offline_first(&mut cargo)? } else { run(&mut cargo)? };
        eprint!("{diagnostics}");

        let raw = fs::read_to_string(&assembly).map_err(io_error(&assembly))?;
        let text = ptx::finish(&raw)?;
        let ptx = stem.with_extension("ptx");
        fs::write(&ptx, text).map_err(io_error(&ptx))?;
        if let Some(path) = &self.ptx_file_copy_path {
            fs::copy(&ptx, path).map_err(CudaBuilderError::FailedToCopyPtxFile)?;
        }
        if let Some(path) = &self.final_module_path {
            fs::copy(&llvm_ir, path).map_err(io_error(path))?;
        }
        if in_build_script() {
            let profile = if self.release { "release" } else { "debug" };
            let dep_info = target_dir.join(TARGET).join(profile).join(format!("lib{}.d", package.lib_name));
            rerun_if_changed(&manifest_path, &dep_info);
        }
        Ok(ptx)
    }

    fn output_folder(&self, package: &Package) -> PathBuf {
        match (&self.target_dir, std::env::var_os("OUT_DIR")) {
            (Some(path), _) => path.clone(),
            (None, Some(out_dir)) if in_build_script() => Path::new(&out_dir).join("cuda-builder"),
            _ => package.workspace_root.join("target").join("cuda-builder"),
        }
    }

    /// The workspace's profiles are for the host; these settings are the kernels'.
    fn set_profile(&self, cargo: &mut Command) {
        let profile = if self.release { "RELEASE" } else { "DEV" };
        let settings = [
            ("OPT_LEVEL", self.opt_level().to_string()),
            ("CODEGEN_UNITS", "1".to_owned()),
            ("PANIC", "abort".to_owned()),
            ("OVERFLOW_CHECKS", "false".to_owned()),
            ("DEBUG_ASSERTIONS", "false".to_owned()),
            ("DEBUG", if self.has_debug_info() { "line-tables-only" } else { "0" }.to_owned()),
            ("INCREMENTAL", "false".to_owned()),
            ("LTO", "off".to_owned()),
        ];
        for (name, value) in settings {
            cargo.env(format!("CARGO_PROFILE_{profile}_{name}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jump_threading_is_off_in_every_crate() {
        let flags = CudaBuilder::new("kernels").shared_flags();
        assert!(flags.contains(&"-Zmir-enable-passes=-JumpThreading".to_owned()));
    }

    #[test]
    fn flags_follow_the_arch() {
        let flags = |arch| CudaBuilder::new("kernels").arch(arch).flags().unwrap().join(" ");
        assert!(flags(NvvmArch::Compute80).contains("-Ctarget-cpu=sm_80 -Ctarget-feature=+ptx74"));
        assert!(flags(NvvmArch::Compute89).contains("-Ctarget-cpu=sm_89 -Ctarget-feature=+ptx84"));
        assert!(flags(NvvmArch::Compute90a).contains("-Ctarget-cpu=sm_90a -Ctarget-feature=+ptx80"));
        let newer = CudaBuilder::new("kernels").ptx_isa(PtxIsa(86)).flags().unwrap();
        assert!(newer.contains(&"-Ctarget-feature=+ptx86".to_owned()));
    }

    #[test]
    fn old_architectures_are_refused() {
        let error = CudaBuilder::new("kernels").arch(NvvmArch::Compute61).build().unwrap_err();
        assert!(matches!(error, CudaBuilderError::UnsupportedArch(NvvmArch::Compute61)));
        assert_eq!(error.to_string(), "sm_61 is not supported: rustc's NVPTX backend starts at sm_70 (Volta)");
    }

    #[test]
    fn a_missing_crate_is_named() {
        let error = CudaBuilder::new("no/such/crate").build().unwrap_err();
        assert_eq!(error.to_string(), "crate path no/such/crate does not exist");
    }

    #[test]
    fn switches_without_effect_are_reported() {
        assert!(CudaBuilder::new("kernels").ineffective_options().is_empty());
        let all = CudaBuilder::new("kernels")
            .ftz(true)
            .nvvm_opts(false)
            .optix(true)
            .override_libm(true)
            .use_constant_memory_space(true);
        assert_eq!(all.ineffective_options().len(), 5);
        let unoptimised = CudaBuilder::new("kernels").release(false);
        assert!(unoptimised.ineffective_options().is_empty());
    }

    #[test]
    fn fast_math_reaches_llvm() {
        let flags = CudaBuilder::new("kernels").fast_sqrt(true).fast_div(true).fma_contraction(true);
        let flags = flags.flags().unwrap().join(" ");
        for option in ["-nvptx-prec-sqrtf32=0", "-nvptx-prec-divf32=0", "-nvptx-fma-level=1"] {
            assert!(flags.contains(option), "{flags}");
        }
    }
}
