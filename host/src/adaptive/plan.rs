//! Decisions per layer and timestep, and their file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::choice::Fields;
use super::{AdaptiveError, Choice, Rule};
use crate::problem::Precision;

/// Version of the file format.
const VERSION: u64 = 1;
const FORMAT: &str = "sage-attn precision plan";

/// What to use in every layer at every timestep.
///
/// The file is JSON. A decision holds from its timestep until the layer's next one, or to the end:
///
/// ```json
/// {
///   "format": "sage-attn precision plan",
///   "version": 1,
///   "origin": { "model": "my model", "device": "cuda:0", "samples": 8, "note": null,
///               "rule": { "kind": "percentile", "percent": 30.0, "floor": null } },
///   "timesteps": 25,
///   "default": { "precision": "int8", "granularity": "thread", "smoothing": "k" },
///   "layers": [
///     { "layer": 0, "decisions": [
///       { "from_timestep": 0, "precision": "int8", "granularity": "thread", "smoothing": "k", "score": 0.97 },
///       { "from_timestep": 10, "precision": "int4", "granularity": "thread", "smoothing": "q,k", "score": 0.95 } ] }
///   ]
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PrecisionPlan {
    origin: Origin,
    timesteps: usize,
    default: Choice,
    layers: BTreeMap<usize, Vec<Decision>>,
}

/// Where a plan comes from. Nothing here changes what the plan decides.
///
/// ```
/// use sage_attn::adaptive::{Choice, Origin, PrecisionPlan};
/// let origin = Origin { model: "my model".into(), ..Origin::default() };
/// let plan = PrecisionPlan::uniform(Choice::INT8).with_origin(origin.clone());
/// assert_eq!(PrecisionPlan::from_json(&plan.to_json())?.origin(), &origin);
/// # Ok::<(), sage_attn::adaptive::AdaptiveError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Model the plan is for.
    #[serde(default)]
    pub model: String,
    /// Device whose speed was taken into account, or empty.
    #[serde(default)]
    pub device: String,
    /// Fewest calibration inputs that any decision rests on.
    #[serde(default)]
    pub samples: usize,
    /// How it was decided; `None` if by hand.
    #[serde(default)]
    pub rule: Option<Rule>,
    /// What the rule has to say about its result.
    #[serde(default)]
    pub note: Option<String>,
}

/// What a layer uses from a timestep on.
///
/// Example: [`adaptive`](crate::adaptive).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "DecisionFile", into = "DecisionFile")]
pub struct Decision {
    /// First timestep; the decision holds until the layer's next one.
    pub from_timestep: usize,
    /// What is used.
    pub choice: Choice,
    /// Lowest mean score `cosine · (1 − relative L1)` of the timesteps it covers, if measured.
    pub score: Option<f64>,
}

/// A decision as JSON has it: the fields of the choice beside its own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionFile {
    from_timestep: usize,
    precision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    granularity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    smoothing: Option<String>,
    score: Option<f64>,
}

impl From<Decision> for DecisionFile {
    fn from(decision: Decision) -> DecisionFile {
        let Decision { from_timestep, choice, score } = decision;
        let Fields { precision, granularity, smoothing } = choice.into();
        DecisionFile { from_timestep, precision, granularity, smoothing, score }
    }
}

impl TryFrom<DecisionFile> for Decision {
    type Error = AdaptiveError;

    fn try_from(file: DecisionFile) -> Result<Decision, AdaptiveError> {
        let DecisionFile { from_timestep, precision, granularity, smoothing, score } = file;
        let choice = Fields { precision, granularity, smoothing }.try_into()?;
        Ok(Decision { from_timestep, choice, score })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    format: String,
    version: u64,
    #[serde(default)]
    origin: Origin,
    timesteps: usize,
    default: Choice,
    layers: Vec<LayerFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerFile {
    layer: usize,
    decisions: Vec<Decision>,
}

impl PrecisionPlan {
    /// A plan of `layers`, each with its decisions in ascending order of timesteps, the first from 0.
    /// Layers that are not listed use `default`. `timesteps` is how many the model runs; 1 if it has
    /// no timesteps.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError`] if a layer's decisions are not in order, do not start at 0, or start after the
    /// last timestep.
    pub fn new(
        origin: Origin,
        timesteps: usize,
        default: Choice,
        layers: BTreeMap<usize, Vec<Decision>>,
    ) -> Result<PrecisionPlan, AdaptiveError> {
        for (&layer, decisions) in &layers {
            if decisions.first().is_none_or(|first| first.from_timestep != 0) {
                return Err(AdaptiveError::PlanLayerStart { layer });
            }
            for pair in decisions.windows(2) {
                let (before, timestep) = (pair[0].from_timestep, pair[1].from_timestep);
                if timestep <= before {
                    return Err(AdaptiveError::PlanTimestepOrder { layer, timestep, before });
                }
            }
            match decisions.last() {
                Some(last) if last.from_timestep >= timesteps => {
                    return Err(AdaptiveError::PlanTimestepBeyond { layer, timestep: last.from_timestep, timesteps });
                }
                _ => {}
            }
        }
        Ok(PrecisionPlan { origin, timesteps, default, layers })
    }

    /// The same choice everywhere.
    pub fn uniform(choice: Choice) -> PrecisionPlan {
        PrecisionPlan { origin: Origin::default(), timesteps: 1, default: choice, layers: BTreeMap::new() }
    }

    /// What to use at a layer and timestep. Beyond the last timestep the last decision holds; a layer
    /// the plan does not list uses the default.
    pub fn at(&self, layer: usize, timestep: usize) -> Choice {
        let decisions = self.layers.get(&layer).map_or(&[][..], Vec::as_slice);
        let decision = decisions.iter().rev().find(|decision| decision.from_timestep <= timestep);
        decision.map_or(self.default, |decision| decision.choice)
    }

    /// The layers and their decisions.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (usize, &[Decision])> {
        self.layers.iter().map(|(&layer, decisions)| (layer, decisions.as_slice()))
    }

    /// What layers use that are not listed.
    pub fn default_choice(&self) -> Choice {
        self.default
    }

    /// Timesteps the model runs.
    pub fn timesteps(&self) -> usize {
        self.timesteps
    }

    /// Where the plan comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The plan with another origin.
    pub fn with_origin(self, origin: Origin) -> PrecisionPlan {
        PrecisionPlan { origin, ..self }
    }

    /// Share of INT4 among all layers listed and all timesteps, 0 to 1. Without layers, that of the
    /// default.
    pub fn int4_share(&self) -> f64 {
        let is_int4 = |choice: Choice| choice.precision() == Precision::Int4;
        if self.layers.is_empty() {
            return f64::from(u8::from(is_int4(self.default)));
        }
        // Timesteps may be any number, so that products need not fit a `usize`.
        let mut int4 = 0.0;
        for decisions in self.layers.values() {
            let ends = decisions.iter().skip(1).map(|next| next.from_timestep).chain([self.timesteps]);
            let spans = decisions.iter().zip(ends);
            let int4_spans = spans.filter(|(d, _)| is_int4(d.choice));
            int4 += int4_spans.map(|(d, end)| (end - d.from_timestep) as f64).sum::<f64>();
        }
        int4 / (self.layers.len() as f64 * self.timesteps as f64)
    }

    /// The plan as JSON, with a trailing newline.
    pub fn to_json(&self) -> String {
        let file = PlanFile {
            format: FORMAT.into(),
            version: VERSION,
            origin: self.origin.clone(),
            timesteps: self.timesteps,
            default: self.default,
            layers: self
                .layers
                .iter()
                .map(|(&layer, decisions)| LayerFile { layer, decisions: decisions.clone() })
                .collect(),
        };
        // Every key is a string and every value has a JSON form, so this cannot fail.
        let mut json = serde_json::to_string_pretty(&file).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Reads what [`PrecisionPlan::to_json`] writes.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError`] saying what is wrong with the text.
    pub fn from_json(json: &str) -> Result<PrecisionPlan, AdaptiveError> {
        let syntax = |error: serde_json::Error| AdaptiveError::PlanSyntax { message: error.to_string() };
        // The version first: a later one may have fields that this build does not know.
        let value: serde_json::Value = serde_json::from_str(json).map_err(syntax)?;
        if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
            return Err(AdaptiveError::PlanSyntax { message: format!("\"format\" must be \"{FORMAT}\"") });
        }
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(version) => return Err(AdaptiveError::PlanVersion { version, supported: VERSION }),
            None => return Err(AdaptiveError::PlanSyntax { message: "\"version\" must be a whole number".into() }),
        }
        // From the text again, for line and column in messages.
        let file: PlanFile = serde_json::from_str(json).map_err(syntax)?;
        let mut layers = BTreeMap::new();
        for LayerFile { layer, decisions } in file.layers {
            if let Some((&before, _)) = layers.last_key_value().filter(|&(&before, _)| before >= layer) {
                return Err(AdaptiveError::PlanLayerOrder { layer, before });
            }
            layers.insert(layer, decisions);
        }
        PrecisionPlan::new(file.origin, file.timesteps, file.default, layers)
    }

    /// Reads a plan from a file.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::File`], and those of [`PrecisionPlan::from_json`].
    pub fn load(path: &Path) -> Result<PrecisionPlan, AdaptiveError> {
        let json = std::fs::read_to_string(path).map_err(|error| AdaptiveError::file("read", path, error))?;
        PrecisionPlan::from_json(&json)
    }

    /// Writes the plan to a file, so that a reader sees either the old file or the complete new one.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::File`].
    pub fn save(&self, path: &Path) -> Result<(), AdaptiveError> {
        crate::file::replace(path, self.to_json().as_bytes()).map_err(|error| AdaptiveError::file("write", path, error))
    }
}
