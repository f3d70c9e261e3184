//! Measurements in a file, a line of JSON each, appended as they are made.
//!
//! The first line says what is measured and how the calls are sampled; every other line is a call. A
//! line is written at once and forced to the disk, so an interruption costs at most the call that was
//! being measured: its incomplete line is cut off when the file is opened again.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::list;
use super::{AdaptiveError, Choice, Figures, Measurements, Sampling, Site, Trial};

const FORMAT: &str = "sage-attn measurements";
const VERSION: u64 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u64,
    /// Name of the model and of its inputs.
    subject: String,
    sampling: Sampling,
    candidates: Vec<Choice>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    layer: usize,
    timestep: usize,
    sample: usize,
    figures: Vec<Figures>,
}

/// The loss of a trial; without a layer, of the choice everywhere.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LossRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestep: Option<usize>,
    choice: Choice,
    loss: f64,
}

/// An open file of measurements.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens `path`, making it if there is none, and returns what it already holds.
    pub fn open(
        path: &Path,
        subject: &str,
        candidates: Vec<Choice>,
        sampling: Sampling,
    ) -> Result<(Journal, Measurements), AdaptiveError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| AdaptiveError::file("open", path, error))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| AdaptiveError::file("read", path, error))?;
        let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..complete]).map_err(|error| AdaptiveError::Journal {
            path: path.display().to_string(),
            line: bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1,
            message: "it is not text".into(),
        })?;
        let mut measurements = Measurements::new(candidates)?;
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            subject: subject.to_owned(),
            sampling,
            candidates: measurements.candidates().to_vec(),
        };
        // A file without a complete line must be the beginning of a header: anything else is not ours.
        if complete == 0 && !line_of(path, &header)?.starts_with(&bytes) {
            return Err(bad_line(path, 1, &"the file was not written by a calibration"));
        }
        read(path, text, &header, &mut measurements)?;
        let mut journal = Journal { path: path.to_owned(), file };
        if complete < bytes.len() {
            journal.truncate(complete as u64)?;
        }
        if complete == 0 {
            journal.line(&header)?;
        }
        Ok((journal, measurements))
    }

    /// Appends the figures of a call.
    pub fn append(&mut self, site: Site, figures: &[Figures]) -> Result<(), AdaptiveError> {
        let Site { layer, timestep, sample } = site;
        self.line(&Record { layer, timestep, sample, figures: figures.to_vec() })
    }

    /// Appends the loss of a trial.
    pub fn append_loss(&mut self, trial: Trial, loss: f64) -> Result<(), AdaptiveError> {
        let (layer, timestep) = trial.cell.unzip();
        self.line(&LossRecord { layer, timestep, choice: trial.choice, loss })
    }

    fn truncate(&mut self, len: u64) -> Result<(), AdaptiveError> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(drop).map_err(|error| AdaptiveError::file("write", &self.path, error))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), AdaptiveError> {
        let line = line_of(&self.path, value)?;
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| AdaptiveError::file("write", &self.path, error))
    }
}

/// A line of the file at `path`.
fn line_of(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, AdaptiveError> {
    let mut line = serde_json::to_vec(value).map_err(|error| AdaptiveError::file("write", path, error))?;
    line.push(b'\n');
    Ok(line)
}

/// The measurements in the file at `path`, without changing it.
///
/// # Errors
///
/// [`AdaptiveError::File`] or [`AdaptiveError::Journal`].
pub fn load(path: &Path) -> Result<Measurements, AdaptiveError> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => bad_line(path, 1, &"it is not text"),
        _ => AdaptiveError::file("read", path, error),
    })?;
    let complete = text.rfind('\n').map_or(0, |end| end + 1);
    let first = text[..complete].lines().next().unwrap_or("");
    let header: Header = serde_json::from_str(first).map_err(|error| bad_line(path, 1, &error))?;
    let mut measurements = Measurements::new(header.candidates.clone())?;
    read(path, &text[..complete], &header, &mut measurements)?;
    Ok(measurements)
}

/// Reads complete lines into `measurements`; `wanted` is the header they must have.
fn read(path: &Path, text: &str, wanted: &Header, measurements: &mut Measurements) -> Result<(), AdaptiveError> {
    for (index, line) in text.lines().enumerate() {
        let bad = |error: &dyn std::fmt::Display| bad_line(path, index + 1, error);
        if index == 0 {
            let header: Header = serde_json::from_str(line).map_err(|error| bad(&error))?;
            check_header(path, &header, wanted)?;
        } else {
            insert(line, measurements).map_err(|error| bad(&error))?;
        }
    }
    Ok(())
}

/// Adds what a line says.
fn insert(line: &str, measurements: &mut Measurements) -> Result<(), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if value.get("loss").is_some() {
        let LossRecord { layer, timestep, choice, loss } =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        if layer.is_some() != timestep.is_some() {
            return Err("a layer needs a timestep, and a timestep a layer".into());
        }
        let trial = Trial { cell: layer.zip(timestep), choice };
        return measurements.insert_loss(trial, loss).map_err(|error| error.to_string());
    }
    let Record { layer, timestep, sample, figures } = serde_json::from_str(line).map_err(|error| error.to_string())?;
    measurements.insert(Site { layer, timestep, sample }, figures).map_err(|error| error.to_string())
}

fn bad_line(path: &Path, line: usize, message: &dyn std::fmt::Display) -> AdaptiveError {
    AdaptiveError::Journal { path: path.display().to_string(), line, message: message.to_string() }
}

fn check_header(path: &Path, found: &Header, wanted: &Header) -> Result<(), AdaptiveError> {
    let checks = [
        ("format", found.format.clone(), FORMAT.to_owned()),
        ("version", found.version.to_string(), VERSION.to_string()),
        ("subject", found.subject.clone(), wanted.subject.clone()),
        ("candidates", list(&found.candidates), list(&wanted.candidates)),
        ("sampling", found.sampling.to_string(), wanted.sampling.to_string()),
    ];
    for (what, found, wanted) in checks {
        if found != wanted {
            return Err(AdaptiveError::JournalMismatch { path: path.display().to_string(), what, found, wanted });
        }
    }
    Ok(())
}
