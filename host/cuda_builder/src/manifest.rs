//! Which source and which compiler a set of checked-in PTX modules comes from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;

/// Version of the manifest's own format.
pub const SCHEMA: u32 = 1;

/// Contents of `manifest.json`.
///
/// ```
/// use cuda_builder::manifest::{Manifest, SCHEMA};
/// let folder = std::env::temp_dir().join(format!("manifest-{}", std::process::id()));
/// std::fs::create_dir_all(&folder)?;
/// let (rustc, llvm, source_sha256) = ("rustc 1.95.0".into(), "22.1".into(), "0".repeat(64));
/// let manifest = Manifest { schema: SCHEMA, rustc, llvm, source_sha256, modules: Default::default() };
/// manifest.store(&folder)?;
/// assert_eq!(Manifest::load(&folder)?, manifest);
/// std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// First line of `rustc --version`.
    pub rustc: String,
    /// LLVM version.
    pub llvm: String,
    /// [`source_hash`] of the kernels.
    pub source_sha256: String,
    /// Per target, `sm_89` for instance.
    pub modules: BTreeMap<String, ModuleEntry>,
}

/// One module of a manifest.
///
/// Example: [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleEntry {
    /// SHA-256 of its text.
    pub sha256: String,
    /// Compiler flags it was built with.
    pub flags: Vec<String>,
    /// Its kernels, sorted.
    pub entries: Vec<String>,
}

/// Why checked-in modules cannot be used as they are.
///
/// Example: [`Manifest`].
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{path}: {source}")]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The manifest has another format.
    #[error("the manifest has schema {0}, this builder reads {SCHEMA}")]
    Schema(u32),
    /// The kernels' source is not what the modules were built from.
    #[error("the kernels' source has changed since the modules were built")]
    SourceChanged,
    /// The builder would use other flags today.
    #[error("{0} was built with other compiler flags")]
    FlagsChanged(String),
    /// A module is not the one that was built.
    #[error("{0} differs from its checksum")]
    ModuleChanged(PathBuf),
    /// A module is not in the manifest.
    #[error("the manifest has no module for {0}")]
    ModuleMissing(String),
}

impl Manifest {
    /// Reads `manifest.json` in `folder`.
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join("manifest.json");
        let text = read(&path)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| ManifestError::Malformed { path, source })?;
        if manifest.schema != SCHEMA {
            return Err(ManifestError::Schema(manifest.schema));
        }
        Ok(manifest)
    }

    /// Writes `manifest.json` in `folder`.
    pub fn store(&self, folder: &Path) -> Result<(), ManifestError> {
        let path = folder.join("manifest.json");
        let text = serde_json::to_string_pretty(self).expect("the manifest has string keys only") + "\n";
        fs::write(&path, text).map_err(|source| ManifestError::Io { path, source })
    }

    /// Whether the modules in `folder` are those of the manifest, and the manifest is that of a source
    /// with `source_sha256` and of `flags` per target. Without a source (a published crate has none)
    /// only the modules are checked.
    pub fn check(
        &self,
        folder: &Path,
        source_sha256: Option<&str>,
        flags: &BTreeMap<String, Vec<String>>,
    ) -> Result<(), ManifestError> {
        if source_sha256.is_some_and(|hash| hash != self.source_sha256) {
            return Err(ManifestError::SourceChanged);
        }
        for (target, flags) in flags {
            let module = self.modules.get(target).ok_or_else(|| ManifestError::ModuleMissing(target.clone()))?;
            if source_sha256.is_some() && module.flags != *flags {
                return Err(ManifestError::FlagsChanged(target.clone()));
            }
            let path = module_path(folder, target);
            if module.sha256 != text_hash(&read(&path)?) {
                return Err(ManifestError::ModuleChanged(path));
            }
        }
        Ok(())
    }
}

/// Where the module of a target lies.
///
/// ```
/// use cuda_builder::manifest::module_path;
/// assert_eq!(module_path("ptx".as_ref(), "sm_89"), std::path::Path::new("ptx/sm_89.ptx"));
/// ```
pub fn module_path(folder: &Path, target: &str) -> PathBuf {
    folder.join(format!("{target}.ptx"))
}

/// SHA-256 of a text, the same whether a checkout wrote its lines with LF or CR LF.
///
/// ```
/// use cuda_builder::manifest::text_hash;
/// assert_eq!(text_hash(b"a\r\nb\n"), text_hash(b"a\nb\n"));
/// ```
pub fn text_hash(text: &[u8]) -> String {
    hex(&Sha256::digest(with_unix_lines(text)))
}

/// SHA-256 over every `.rs` file and `Cargo.toml` below `folders` of `root`, but not below the folders
/// `except`: for each, in the order of relative paths, path, length and contents.
///
/// ```
/// use cuda_builder::manifest::source_hash;
/// let root = env!("CARGO_MANIFEST_DIR").as_ref();
/// assert_ne!(source_hash(root, &["src"], &[])?, source_hash(root, &["src"], &["src/ptx"])?);
/// # Ok::<(), cuda_builder::manifest::ManifestError>(())
/// ```
pub fn source_hash(root: &Path, folders: &[&str], except: &[&str]) -> Result<String, ManifestError> {
    let mut files = BTreeMap::new();
    for folder in folders {
        collect(root, folder, except, &mut files)?;
    }
    let mut hash = Sha256::new();
    for (relative, path) in files {
        let text = read(&path)?;
        let text = with_unix_lines(&text);
        hash.update(format!("{relative}\n{}\n", text.len()));
        hash.update(&text);
    }
    Ok(hex(&hash.finalize()))
}

/// Adds the sources below `root/folder` under their relative path with `/`.
fn collect(
    root: &Path,
    folder: &str,
    except: &[&str],
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ManifestError> {
    let path = root.join(folder);
    let error = |source| ManifestError::Io { path: path.clone(), source };
    for entry in fs::read_dir(&path).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = format!("{folder}/{name}");
        if entry.file_type().map_err(error)?.is_dir() {
            if name != "target" && !except.contains(&relative.as_str()) {
                collect(root, &relative, except, files)?;
            }
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            files.insert(relative, entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ManifestError> {
    fs::read(path).map_err(|source| ManifestError::Io { path: path.to_owned(), source })
}

/// LF for CR LF. The common case is a copy-free search: build scripts are compiled without optimisation,
/// and the modules are megabytes.
fn with_unix_lines(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\r') {
        return Cow::Borrowed(text);
    }
    let mut result = Vec::with_capacity(text.len());
    for (index, &byte) in text.iter().enumerate() {
        if byte != b'\r' || text.get(index + 1) != Some(&b'\n') {
            result.push(byte);
        }
    }
    Cow::Owned(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("manifest-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("k/src")).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn hash(&self) -> String {
            source_hash(&self.0, &["k"], &["k/host"]).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_hash_sees_names_contents_and_nothing_else() {
        let folder = Folder::new("hash");
        folder.write("k/Cargo.toml", "[package]\n");
        folder.write("k/src/lib.rs", "fn a() {}\n");
        let first = folder.hash();

        folder.write("k/README.md", "no source");
        fs::create_dir_all(folder.0.join("k/host")).unwrap();
        folder.write("k/host/lib.rs", "fn c() {}\n");
        folder.write("k/src/lib.rs", "fn a() {}\r\n");
        assert_eq!(folder.hash(), first);

        folder.write("k/src/lib.rs", "fn b() {}\n");
        let second = folder.hash();
        assert_ne!(second, first);

        fs::rename(folder.0.join("k/src/lib.rs"), folder.0.join("k/src/main.rs")).unwrap();
        assert_ne!(folder.hash(), second);
    }

    #[test]
    fn a_stale_manifest_says_why() {
        let folder = Folder::new("check");
        folder.write("sm_80.ptx", ".version 7.0\n");
        let flags = vec!["-Ctarget-cpu=sm_80".to_owned()];
        let module = ModuleEntry { sha256: text_hash(b".version 7.0\n"), flags: flags.clone(), entries: Vec::new() };
        let manifest = Manifest {
            schema: SCHEMA,
            rustc: "rustc".to_owned(),
            llvm: "22".to_owned(),
            source_sha256: "hash".to_owned(),
            modules: BTreeMap::from([("sm_80".to_owned(), module)]),
        };
        manifest.store(&folder.0).unwrap();
        assert_eq!(Manifest::load(&folder.0).unwrap(), manifest);

        let flags = BTreeMap::from([("sm_80".to_owned(), flags)]);
        let other_flags = BTreeMap::from([("sm_80".to_owned(), Vec::new())]);
        let other_target = BTreeMap::from([("sm_89".to_owned(), Vec::new())]);
        let check = |source, flags| manifest.check(&folder.0, source, flags);
        assert!(check(Some("hash"), &flags).is_ok());
        assert!(check(None, &other_flags).is_ok());
        assert!(matches!(check(Some("other"), &flags), Err(ManifestError::SourceChanged)));
        assert!(matches!(check(Some("hash"), &other_flags), Err(ManifestError::FlagsChanged(_))));
        assert!(matches!(check(None, &other_target), Err(ManifestError::ModuleMissing(_))));

        folder.write("sm_80.ptx", ".version 7.1\n");
        assert!(matches!(check(None, &flags), Err(ManifestError::ModuleChanged(_))));
    }
}
