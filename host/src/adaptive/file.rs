//! Replacing files.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::AdaptiveError;

/// Writes `bytes` to `path` by way of a temporary file beside it, so that a reader sees either the old
/// file or the complete new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), AdaptiveError> {
    let Some(name) = path.file_name() else {
        return Err(AdaptiveError::file("write", path, "it names no file"));
    };
    let temporary = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
        // What matters is the first error; the temporary file may not even exist.
        let _ = fs::remove_file(&temporary);
        AdaptiveError::file("write", path, error)
    })
}
