//! The PTX modules in this build.

use sha2::{Digest, Sha256};

use crate::error::DeviceError;

/// A PTX module of this crate.
///
/// ```
/// let targets: Vec<&str> = sage_attn::device::MODULES.iter().map(|module| module.target).collect();
/// assert!(targets.contains(&"sm_89"), "{targets:?}");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedModule {
    /// PTX target, for example `sm_89`.
    pub target: &'static str,
    /// The module's text.
    pub ptx: &'static str,
    /// SHA-256 of the text, with LF line ends.
    pub sha256: &'static str,
    /// SHA-256 of the source that the kernels were built from.
    pub source_sha256: &'static str,
}

/// All modules, by target; written by the build script.
pub static MODULES: &[EmbeddedModule] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The module for `target`, after comparing its text with the recorded hash.
pub(super) fn find(modules: &[EmbeddedModule], target: &'static str) -> Result<EmbeddedModule, DeviceError> {
    let module = modules.iter().find(|module| module.target == target).ok_or_else(|| {
        let available = modules.iter().map(|module| module.target).collect();
        DeviceError::ModuleMissing { target, available }
    })?;
    // A checkout may have turned line ends into CRLF, which changes nothing about the kernels.
    let text = module.ptx.replace("\r\n", "\n");
    let digest = Sha256::digest(text.as_bytes());
    let actual: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if actual != module.sha256 {
        return Err(DeviceError::ModuleHash { target, recorded: module.sha256.to_owned(), actual });
    }
    Ok(*module)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_module_is_found_only_with_its_recorded_hash() {
        let good = EmbeddedModule { target: "sm_89", ptx: "", sha256: EMPTY, source_sha256: "" };
        assert_eq!(find(&[good], "sm_89").map(|module| module.sha256), Ok(EMPTY));
        let changed = EmbeddedModule { ptx: ".version 8.4", ..good };
        assert!(
            matches!(find(&[changed], "sm_89"), Err(DeviceError::ModuleHash { recorded, .. }) if recorded == EMPTY)
        );
        let missing = DeviceError::ModuleMissing { target: "sm_80", available: vec!["sm_89"] };
        assert_eq!(find(&[good], "sm_80").err(), Some(missing));
    }

    #[test]
    fn every_module_of_this_build_is_intact() {
        for module in MODULES {
            assert!(find(MODULES, module.target).is_ok());
        }
    }
}
