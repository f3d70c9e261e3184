//! Finds a rustc that can compile for `nvptx64-nvidia-cuda`.
//!
//! Two things are needed: an LLVM with the NVPTX backend (every rustc from rustup has one) and a
//! `core` for the target, either prebuilt (`rustup target add`) or as source, to be built with it.
//! [`discover`] looks in a fixed order and the [`Toolchain`] it returns says what was taken and why.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TARGET;

/// Oldest rustc whose NVPTX output is known good.
pub const MIN_RUSTC: (u32, u32) = (1, 95);

/// The commands that bring a device toolchain, as shown when none is found.
pub const INSTALL_COMMANDS: &str = "\
    rustup target add nvptx64-nvidia-cuda
    rustup toolchain install 1.95.0 --target nvptx64-nvidia-cuda
    apt-get install rustc-web cargo-web rust-web-src   (Debian, as root)";

/// Where `core` for the target comes from.
///
/// Example: [`discover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreSource {
    /// Installed with the target.
    Prebuilt,
    /// Built from the toolchain's own sources (`-Zbuild-std=core`).
    BuildStd,
}

/// A rustc and the cargo that goes with it.
///
/// Example: [`discover`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// Its cargo.
    pub cargo: PathBuf,
    /// First line of `rustc --version`.
    pub version: String,
    /// LLVM version.
    pub llvm: String,
    /// Where `core` comes from.
    pub core: CoreSource,
    /// Why this one was looked at: the place in the search order.
    pub origin: Origin,
}

/// Places a compiler is looked for.
///
/// Example: [`discover`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `CUDA_BUILDER_RUSTC` names it.
    Environment,
    /// Cargo is running it, or it is the `rustc` on `PATH`.
    Running,
    /// A toolchain that rustup installed, by name.
    Rustup(String),
    /// The distribution's package.
    Distribution,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Environment => f.write_str("named by CUDA_BUILDER_RUSTC"),
            Origin::Running => f.write_str("the rustc in use"),
            Origin::Rustup(name) => write!(f, "rustup toolchain {name}"),
            Origin::Distribution => f.write_str("the distribution's package"),
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            CoreSource::Prebuilt => "core is installed for the target",
            CoreSource::BuildStd => "core is built from its sources",
        };
        write!(f, "{} with LLVM {} at {}: {}, {core}", self.version, self.llvm, self.rustc.display(), self.origin)
    }
}

/// No compiler will do.
///
/// Example: [`discover`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolchainError {
    /// Nothing suitable anywhere; carries what was looked at and what each lacks.
    #[error(
        "no Rust toolchain can compile for nvptx64-nvidia-cuda.\nLooked at:\n{}\nAny one of these brings one:\n{INSTALL_COMMANDS}",
        list(.0)
    )]
    NotFound(Vec<Rejected>),
    /// `CUDA_BUILDER_RUSTC` is set; nothing else is tried then.
    #[error("CUDA_BUILDER_RUSTC names {0}")]
    Named(Rejected),
}

/// A compiler that was looked at and does not do.
///
/// Example: [`discover`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The compiler.
    pub rustc: PathBuf,
    /// What it lacks, as a clause.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.rustc.display(), self.reason)
    }
}

fn list(rejected: &[Rejected]) -> String {
    if rejected.is_empty() {
        return "    (no rustc at all)".to_owned();
    }
    rejected.iter().map(|one| format!("    {one}")).collect::<Vec<_>>().join("\n")
}

/// What discovery asks of the machine; tests answer from a table.
///
/// Example: [`discover_with`].
pub trait Probe {
    /// An environment variable.
    fn env(&self, name: &str) -> Option<String>;
    /// Whether a file or folder exists.
    fn exists(&self, path: &Path) -> bool;
    /// Names of the entries of a folder, sorted; empty if there is none.
    fn list(&self, folder: &Path) -> Vec<String>;
    /// Standard output of a successful run.
    fn run(&self, program: &Path, args: &[&str]) -> Option<String>;
}

/// The machine itself.
///
/// Example: [`discover_with`].
pub struct Machine;

impl Probe for Machine {
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn list(&self, folder: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn run(&self, program: &Path, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Finds a toolchain on this machine.
///
/// ```no_run
/// match cuda_builder::toolchain::discover() {
///     Ok(toolchain) => println!("{toolchain}"),
///     Err(error) => println!("{error}"), // with the commands that bring one
/// }
/// ```
pub fn discover() -> Result<Toolchain, ToolchainError> {
    discover_with(&Machine)
}

/// [`discover`] on any [`Probe`]. In this order, the first that does:
///
/// 1. `CUDA_BUILDER_RUSTC` (with `CUDA_BUILDER_CARGO`, else the cargo beside it), and no other;
/// 2. the rustc in use, then every rustup toolchain, if `core` is installed for the target;
/// 3. the same, if the sources of `core` are installed;
/// 4. the distribution's rustc, with either.
///
/// ```
/// use cuda_builder::toolchain::{Probe, discover_with};
/// use std::path::Path;
///
/// /// A machine without any compiler.
/// struct Bare;
///
/// impl Probe for Bare {
///     fn env(&self, _: &str) -> Option<String> {
///         None
///     }
///     fn exists(&self, _: &Path) -> bool {
///         false
///     }
///     fn list(&self, _: &Path) -> Vec<String> {
///         Vec::new()
///     }
///     fn run(&self, _: &Path, _: &[&str]) -> Option<String> {
///         None
///     }
/// }
///
/// let error = discover_with(&Bare).unwrap_err();
/// assert!(error.to_string().contains("rustup target add nvptx64-nvidia-cuda"));
/// ```
pub fn discover_with(probe: &impl Probe) -> Result<Toolchain, ToolchainError> {
    if let Some(rustc) = probe.env("CUDA_BUILDER_RUSTC") {
        let candidate = Candidate { rustc: rustc.into(), origin: Origin::Environment };
        return candidate.examine(probe).map_err(ToolchainError::Named);
    }
    let mut rejected = Vec::new();
    let mut build_std = None;
    for candidate in candidates(probe) {
        match candidate.examine(probe) {
            Ok(found) if found.core == CoreSource::Prebuilt => return Ok(found),
            Ok(found) => build_std = build_std.or(Some(found)),
            Err(reason) => rejected.push(reason),
        }
    }
    if let Some(found) = build_std {
        return Ok(found);
    }
    let distribution = Candidate { rustc: exe(Path::new("/usr/bin"), "rustc"), origin: Origin::Distribution };
    if !rejected.iter().any(|one| one.rustc == distribution.rustc) && probe.exists(&distribution.rustc) {
        match distribution.examine(probe) {
            Ok(found) => return Ok(found),
            Err(reason) => rejected.push(reason),
        }
    }
    Err(ToolchainError::NotFound(rejected))
}

/// A compiler to be examined.
struct Candidate {
    rustc: PathBuf,
    origin: Origin,
}

/// The rustc in use, then what rustup installed.
fn candidates(probe: &impl Probe) -> Vec<Candidate> {
    let mut all = Vec::new();
    let in_use = probe.env("RUSTC").unwrap_or_else(|| "rustc".to_owned());
    // A proxy of rustup stands for a compiler inside a sysroot; cargo beside the proxy would pick
    // its toolchain by the current folder, so the real one is taken.
    if let Some(sysroot) = probe.run(Path::new(&in_use), &["--print", "sysroot"]) {
        let rustc = exe(&Path::new(sysroot.trim()).join("bin"), "rustc");
        all.push(Candidate { rustc, origin: Origin::Running });
    }
    let rustup_home = probe.env("RUSTUP_HOME").map(PathBuf::from).or_else(|| {
        let home = probe.env("HOME").or_else(|| probe.env("USERPROFILE"))?;
        Some(Path::new(&home).join(".rustup"))
    });
    if let Some(home) = rustup_home {
        let folder = home.join("toolchains");
        for name in probe.list(&folder) {
            let rustc = exe(&folder.join(&name).join("bin"), "rustc");
            if all.iter().all(|one| one.rustc != rustc) && probe.exists(&rustc) {
                all.push(Candidate { rustc, origin: Origin::Rustup(name) });
            }
        }
    }
    all
}

impl Candidate {
    fn examine(self, probe: &impl Probe) -> Result<Toolchain, Rejected> {
        let reject = |reason: String| Rejected { rustc: self.rustc.clone(), reason };
        let verbose = probe
            .run(&self.rustc, &["--version", "--verbose"])
            .ok_or_else(|| reject("which does not run".to_owned()))?;
        let version = verbose.lines().next().unwrap_or_default().to_owned();
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (major, minor) = MIN_RUSTC;
        if field("release:").and_then(release).is_none_or(|release| release < MIN_RUSTC) {
            return Err(reject(format!("which is {version}: at least {major}.{minor} is needed")));
        }

        let sysroot =
            probe.run(&self.rustc, &["--print", "sysroot"]).ok_or_else(|| reject("which has no sysroot".to_owned()))?;
        let rustlib = Path::new(sysroot.trim()).join("lib").join("rustlib");
        let core = if probe.exists(&rustlib.join(TARGET).join("lib")) {
            CoreSource::Prebuilt
        } else if probe.exists(&rustlib.join("src/rust/library/core/Cargo.toml")) {
            CoreSource::BuildStd
        } else {
            return Err(reject(format!("which is {version} without `core` for the target")));
        };

        // A distribution may have built its LLVM without the backend; then the list is missing.
        let cpus = probe.run(&self.rustc, &["--print", "target-cpus", "--target", TARGET]);
        if cpus.is_none_or(|cpus| !cpus.contains("sm_80")) {
            return Err(reject(format!("which is {version} with an LLVM that lacks the NVPTX backend")));
        }

        let named = match self.origin {
            Origin::Environment => probe.env("CUDA_BUILDER_CARGO").map(PathBuf::from),
            _ => None,
        };
        let beside = exe(self.rustc.parent().unwrap_or(Path::new("")), "cargo");
        let cargo = match named {
            Some(cargo) => cargo,
            None if probe.exists(&beside) => beside,
            None => {
                return Err(reject(format!("which is {version} without a cargo beside it")));
            }
        };
        Ok(Toolchain {
            llvm: field("LLVM version:").unwrap_or("unknown").to_owned(),
            rustc: self.rustc,
            cargo,
            version,
            core,
            origin: self.origin,
        })
    }
}

fn exe(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// `(major, minor)` of `1.95.0` or `1.97.0-nightly`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// A machine made of tables. Compilers are folders: `<root>/bin/rustc` has sysroot `<root>`.
    #[derive(Default)]
    struct Fake {
        env: BTreeMap<String, String>,
        files: BTreeSet<PathBuf>,
        releases: BTreeMap<PathBuf, (String, bool)>,
    }

    impl Fake {
        fn compiler(mut self, root: &str, release: &str, contents: &[&str]) -> Self {
            let rustc = Path::new(root).join("bin/rustc");
            let has_nvptx = !contents.contains(&"no-nvptx");
            self.releases.insert(rustc.clone(), (release.to_owned(), has_nvptx));
            self.files.insert(rustc);
            self.files.insert(Path::new(root).join("bin/cargo"));
            for item in contents {
                self.files.insert(Path::new(root).join("lib/rustlib").join(item));
            }
            self
        }

        fn env(mut self, name: &str, value: &str) -> Self {
            self.env.insert(name.to_owned(), value.to_owned());
            self
        }
    }

    impl Probe for Fake {
        fn env(&self, name: &str) -> Option<String> {
            self.env.get(name).cloned()
        }

        fn exists(&self, path: &Path) -> bool {
            self.files.contains(path)
        }

        fn list(&self, folder: &Path) -> Vec<String> {
            let children = self.files.iter().filter_map(|file| {
                let first = file.strip_prefix(folder).ok()?.components().next()?;
                Some(first.as_os_str().to_string_lossy().into_owned())
            });
            children.collect::<BTreeSet<_>>().into_iter().collect()
        }

        fn run(&self, program: &Path, args: &[&str]) -> Option<String> {
            let (release, has_nvptx) = self.releases.get(program)?;
            match args {
                ["--print", "sysroot"] => Some(format!("{}\n", program.parent()?.parent()?.display())),
                ["--version", "--verbose"] => {
                    Some(format!("rustc {release} (fake)\nrelease: {release}\nLLVM version: 22.1\n"))
                }
                ["--print", "target-cpus", ..] => Some(if *has_nvptx { "sm_80" } else { "" }.to_owned()),
                _ => None,
            }
        }
    }

    const PREBUILT: &str = "nvptx64-nvidia-cuda/lib";
    const SOURCES: &str = "src/rust/library/core/Cargo.toml";

    fn home() -> Fake {
        Fake::default().env("HOME", "/home/u").env("RUSTC", "/home/u/.rustup/toolchains/1.95.0/bin/rustc")
    }

    const RUNNING: &str = "/home/u/.rustup/toolchains/1.95.0";
    const NIGHTLY: &str = "/home/u/.rustup/toolchains/nightly";

    #[test]
    fn environment_comes_first_and_alone() {
        let fake = home()
            .compiler(RUNNING, "1.95.0", &[PREBUILT])
            .compiler("/opt/rust", "1.96.0", &[SOURCES])
            .env("CUDA_BUILDER_RUSTC", "/opt/rust/bin/rustc")
            .env("CUDA_BUILDER_CARGO", "/opt/cargo");
        let found = discover_with(&fake).unwrap();
        assert_eq!((found.origin, found.core), (Origin::Environment, CoreSource::BuildStd));
        assert_eq!(found.cargo, Path::new("/opt/cargo"));

        let fake = home().compiler(RUNNING, "1.95.0", &[PREBUILT]).env("CUDA_BUILDER_RUSTC", "/opt/missing");
        let error = discover_with(&fake).unwrap_err();
        assert_eq!(error.to_string(), "CUDA_BUILDER_RUSTC names /opt/missing, which does not run");
    }

    #[test]
    fn running_rustc_is_preferred() {
        let fake = home().compiler(RUNNING, "1.95.0", &[PREBUILT]).compiler(NIGHTLY, "1.97.0-nightly", &[PREBUILT]);
        assert_eq!(discover_with(&fake).unwrap().origin, Origin::Running);
    }

    #[test]
    fn prebuilt_core_of_another_toolchain_beats_sources_of_this_one() {
        let fake = home().compiler(RUNNING, "1.95.0", &[SOURCES]).compiler(NIGHTLY, "1.97.0-nightly", &[PREBUILT]);
        let found = discover_with(&fake).unwrap();
        assert_eq!((found.origin, found.core), (Origin::Rustup("nightly".into()), CoreSource::Prebuilt));
    }

    #[test]
    fn sources_do_when_nothing_is_prebuilt() {
        let fake = home().compiler(RUNNING, "1.95.0", &[]).compiler(NIGHTLY, "1.97.0-nightly", &[SOURCES]).compiler(
            "/usr",
            "1.96.0",
            &[PREBUILT],
        );
        let found = discover_with(&fake).unwrap();
        assert_eq!((found.origin, found.core), (Origin::Rustup("nightly".into()), CoreSource::BuildStd));
    }

    #[test]
    fn distribution_is_the_last_resort() {
        let fake = home().compiler(RUNNING, "1.95.0", &[]).compiler("/usr", "1.96.0", &[SOURCES]);
        let found = discover_with(&fake).unwrap();
        assert_eq!((found.origin, found.core), (Origin::Distribution, CoreSource::BuildStd));
        assert_eq!(found.cargo, Path::new("/usr/bin/cargo"));
    }

    #[test]
    fn what_was_found_and_what_it_lacks_is_told() {
        let fake = home().compiler(RUNNING, "1.88.0", &[PREBUILT]).compiler(NIGHTLY, "1.97.0-nightly", &[]).compiler(
            "/usr",
            "1.96.0",
            &[SOURCES, "no-nvptx"],
        );
        let text = discover_with(&fake).unwrap_err().to_string();
        assert!(text.contains("1.88.0 (fake): at least 1.95 is needed"), "{text}");
        assert!(text.contains("1.97.0-nightly (fake) without `core`"), "{text}");
        assert!(text.contains("lacks the NVPTX backend"), "{text}");
        assert!(text.contains("rustup target add nvptx64-nvidia-cuda"), "{text}");
        assert!(text.contains("apt-get install rustc-web cargo-web rust-web-src"), "{text}");
    }

    #[test]
    fn an_empty_machine_gets_the_commands() {
        let text = discover_with(&Fake::default()).unwrap_err().to_string();
        assert!(text.contains("no rustc at all") && text.contains("rustup toolchain install"), "{text}");
    }
}
