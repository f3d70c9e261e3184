//! What can go wrong while calibrating and planning.

use thiserror::Error;

use super::{Choice, Site, Trial};

/// A calibration or a precision plan that cannot be used.
///
/// ```
/// use sage_attn::adaptive::{AdaptiveError, Calibrator, Sampling};
/// let error = Calibrator::new(Vec::new(), Sampling::default()).unwrap_err();
/// assert!(matches!(error, AdaptiveError::Candidates { .. }), "{error}");
/// ```
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum AdaptiveError {
    /// A name that is not one.
    #[error("{what} \"{name}\" is not known; use {known}")]
    Name {
        /// What it should name.
        what: &'static str,
        /// Text given.
        name: String,
        /// What there is.
        known: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {message}")]
    File {
        /// What was tried: `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// What the operating system says.
        message: String,
    },
    /// A plan is not the JSON it must be.
    #[error("not a precision plan: {message}")]
    PlanSyntax {
        /// What is wrong, with line and column.
        message: String,
    },
    /// A plan of another version.
    #[error("the precision plan has version {version}; this build reads version {supported}")]
    PlanVersion {
        /// Version of the file.
        version: u64,
        /// Version understood.
        supported: u64,
    },
    /// The layers of a plan are not in order.
    #[error("the precision plan lists layer {layer} after layer {before}; layers must ascend")]
    PlanLayerOrder {
        /// Layer out of order.
        layer: usize,
        /// Layer listed before it.
        before: usize,
    },
    /// A layer of a plan has no decision for its first timestep.
    #[error("layer {layer} of the precision plan has no decision from timestep 0 on")]
    PlanLayerStart {
        /// The layer.
        layer: usize,
    },
    /// The decisions of a layer are not in order.
    #[error("layer {layer} of the precision plan lists timestep {timestep} after {before}; timesteps must ascend")]
    PlanTimestepOrder {
        /// The layer.
        layer: usize,
        /// Timestep out of order.
        timestep: usize,
        /// Timestep listed before it.
        before: usize,
    },
    /// A decision starts after the plan's last timestep.
    #[error("layer {layer} of the precision plan decides from timestep {timestep} on, but the plan has {timesteps}")]
    PlanTimestepBeyond {
        /// The layer.
        layer: usize,
        /// First timestep of the decision.
        timestep: usize,
        /// Timesteps of the plan.
        timesteps: usize,
    },
    /// A line of a file of measurements is damaged. (An incomplete last line is not an error: it is
    /// what an interruption leaves, and is measured anew.)
    #[error("{path}, line {line}: not a measurement: {message}")]
    Journal {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A file of measurements was made with other settings than those that are to go on.
    #[error("{path} holds measurements with {what} {found}, but {wanted} was asked for; use another file or delete it")]
    JournalMismatch {
        /// The file.
        path: String,
        /// What differs.
        what: &'static str,
        /// In the file.
        found: String,
        /// Asked for.
        wanted: String,
    },
    /// No candidates to measure, or one twice.
    #[error("the candidates to measure are [{}]; there must be at least one, each listed once", list(.candidates))]
    Candidates {
        /// Candidates given.
        candidates: Vec<Choice>,
    },
    /// A sampling rate of zero.
    #[error("{what} is 0; it must be at least 1")]
    SamplingZero {
        /// Field of [`super::Sampling`].
        what: &'static str,
    },
    /// The parameter of a rule is out of range.
    #[error("{what} is {value}; it must be {allowed}")]
    Parameter {
        /// Parameter.
        what: &'static str,
        /// Value given.
        value: f64,
        /// What would be right.
        allowed: &'static str,
    },
    /// Nothing was measured, so nothing can be decided.
    #[error("there are no measurements to plan with")]
    NoMeasurements,
    /// A rule needs a candidate of a precision that was not measured.
    #[error("planning needs a candidate of precision {precision}; measured were [{}]", list(.candidates))]
    NoCandidate {
        /// `int4` or `int8`.
        precision: &'static str,
        /// Candidates measured.
        candidates: Vec<Choice>,
    },
    /// The exact output of a call has another shape than its queries.
    #[error("the exact output has shape {shape:?}; it must be {expected:?}, that of the output")]
    ExactShape {
        /// Shape given.
        shape: [usize; 4],
        /// Shape of q.
        expected: [usize; 4],
    },
    /// The same call was recorded twice.
    #[error("layer {}, timestep {}, sample {} is recorded twice", .site.layer, .site.timestep, .site.sample)]
    RecordedTwice {
        /// The call.
        site: Site,
    },
    /// The same trial was recorded twice.
    #[error("the loss of {} at {:?} is recorded twice", .trial.choice, .trial.cell)]
    TriedTwice {
        /// The trial.
        trial: Trial,
    },
    /// The loss of the model was not measured.
    #[error("the loss of the model was not measured; this rule needs it")]
    NoTrials,
    /// A record has figures for another number of candidates.
    #[error("layer {}, timestep {}, sample {} has figures for {found} candidates instead of {expected}", .site.layer, .site.timestep, .site.sample)]
    FigureCount {
        /// The call.
        site: Site,
        /// Figures it has.
        found: usize,
        /// Candidates.
        expected: usize,
    },
}

impl AdaptiveError {
    pub(super) fn name(what: &'static str, name: &str, known: &'static str) -> AdaptiveError {
        AdaptiveError::Name { what, name: name.to_owned(), known }
    }

    pub(super) fn file(action: &'static str, path: &std::path::Path, error: impl std::fmt::Display) -> AdaptiveError {
        AdaptiveError::File { action, path: path.display().to_string(), message: error.to_string() }
    }
}

/// Choices between commas.
pub(super) fn list(choices: &[Choice]) -> String {
    choices.iter().map(Choice::to_string).collect::<Vec<_>>().join("; ")
}
