//! The PTX modules in this build.

use sha2::{Digest, Sha256};

use crate::error::DeviceError;

/// A PTX module embedded in the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedModule {
    /// PTX target, e.g. `sm_89`.
    pub target: &'static str,
    /// The text.
    pub ptx: &'static str,
    /// SHA-256 of the text as recorded when it was built, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// SHA-256 of the sources it was built from.
    pub source_sha256: &'static str,
}

/// Every module of this build.
pub static MODULES: &[EmbeddedModule] = &[];

/// The module for `target`, after comparing its text with the recorded hash.
pub(super) fn find(
    modules: &[EmbeddedModule],
    target: &'static str,
) -> Result<EmbeddedModule, DeviceError> {
    let module = modules
        .iter()
        .find(|module| module.target == target)
        .ok_or_else(|| {
            let available = modules.iter().map(|module| module.target).collect();
            DeviceError::ModuleMissing { target, available }
        })?;
    let digest = Sha256::digest(module.ptx.as_bytes());
    let actual: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if actual != module.sha256 {
        return Err(DeviceError::ModuleHash {
            target,
            recorded: module.sha256.to_owned(),
            actual,
        });
    }
    Ok(*module)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_module_is_found_only_with_its_recorded_hash() {
        let good = EmbeddedModule {
            target: "sm_89",
            ptx: "",
            sha256: EMPTY,
            source_sha256: "",
        };
        assert_eq!(find(&[good], "sm_89"), Ok(good));
        let changed = EmbeddedModule {
            ptx: ".version 8.4",
            ..good
        };
        assert!(
            matches!(find(&[changed], "sm_89"), Err(DeviceError::ModuleHash { recorded, .. }) if recorded == EMPTY)
        );
        let missing = DeviceError::ModuleMissing {
            target: "sm_80",
            available: vec!["sm_89"],
        };
        assert_eq!(find(&[good], "sm_80"), Err(missing));
    }

    #[test]
    fn every_module_of_this_build_is_intact() {
        for module in MODULES {
            assert_eq!(find(MODULES, module.target), Ok(*module));
        }
    }
}
