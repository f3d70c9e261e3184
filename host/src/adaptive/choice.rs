//! What is decided for one attention call.

use std::fmt;
use std::str::FromStr;

use sage_spec::ScaleGranularity;
use serde::{Deserialize, Serialize};

use super::AdaptiveError;
use crate::api::Attention;
use crate::problem::{Precision, Smoothing};

/// Precision of Q and K, which elements share a scale, and which means are subtracted.
///
/// As text and in messages: `int4/thread/q,k`, `int8/block/none`, `exact`. In JSON the three are fields
/// of their own.
///
/// ```
/// use sage_attn::adaptive::Choice;
/// let choice: Choice = "int4/block/k".parse()?;
/// assert_eq!(choice.to_string().parse::<Choice>()?, choice);
/// assert_ne!(choice, Choice::INT4);
/// let attention = choice.apply(sage_attn::Attention::new()); // the options it stands for
/// # Ok::<(), sage_attn::adaptive::AdaptiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Choice {
    precision: Precision,
    granularity: ScaleGranularity,
    smoothing: Smoothing,
}

impl Choice {
    /// INT4 with a scale per thread, K and Q smoothed.
    pub const INT4: Choice = Choice::of(Precision::Int4);
    /// INT8 with a scale per thread, K smoothed.
    pub const INT8: Choice = Choice::of(Precision::Int8);
    /// No quantization; on the CPU only.
    pub const EXACT: Choice = Choice::of(Precision::Exact);

    /// A choice. [`Precision::Auto`] is INT8; exact arithmetic has neither scales nor smoothing, so
    /// those two are ignored for it.
    pub const fn new(precision: Precision, granularity: ScaleGranularity, smoothing: Smoothing) -> Choice {
        match precision {
            Precision::Auto => Choice { precision: Precision::Int8, granularity, smoothing },
            Precision::Int4 | Precision::Int8 => Choice { precision, granularity, smoothing },
            Precision::Exact => {
                Choice { precision, granularity: ScaleGranularity::PerThread, smoothing: Smoothing::NONE }
            }
        }
    }

    /// The defaults of a precision.
    pub const fn of(precision: Precision) -> Choice {
        let smoothing = match precision {
            Precision::Int4 => Smoothing::default_for(sage_spec::Precision::Int4),
            _ => Smoothing::default_for(sage_spec::Precision::Int8),
        };
        Choice::new(precision, ScaleGranularity::PerThread, smoothing)
    }

    /// Number format of Q Kᵀ; never [`Precision::Auto`].
    pub const fn precision(self) -> Precision {
        self.precision
    }

    /// Which elements of Q and of K share a scale.
    pub const fn granularity(self) -> ScaleGranularity {
        self.granularity
    }

    /// Which means are subtracted before quantizing.
    pub const fn smoothing(self) -> Smoothing {
        self.smoothing
    }

    /// `int4`, `int8` or `exact`.
    pub const fn precision_name(self) -> &'static str {
        match self.precision {
            Precision::Int4 => "int4",
            Precision::Exact => "exact",
            Precision::Int8 | Precision::Auto => "int8",
        }
    }

    /// `attention` with this precision, granularity and smoothing; its other options stay.
    pub fn apply(self, attention: Attention) -> Attention {
        attention.precision(self.precision).granularity(self.granularity).smoothing(self.smoothing)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.precision {
            Precision::Exact => f.write_str("exact"),
            _ => write!(f, "{}/{}/{}", self.precision_name(), self.granularity.name(), self.smoothing.name()),
        }
    }
}

impl FromStr for Choice {
    type Err = AdaptiveError;

    /// Reads `PRECISION[/GRANULARITY[/SMOOTHING]]`, what is missing being the precision's default.
    fn from_str(text: &str) -> Result<Choice, AdaptiveError> {
        let mut parts = text.splitn(3, '/');
        let default = Choice::of(precision(parts.next().unwrap_or(""))?);
        let granularity = parts.next().map_or(Ok(default.granularity), granularity)?;
        let smoothing = parts.next().map_or(Ok(default.smoothing), smoothing)?;
        Ok(Choice::new(default.precision, granularity, smoothing))
    }
}

/// A choice as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    pub(super) precision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) granularity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) smoothing: Option<String>,
}

impl From<Choice> for Fields {
    fn from(choice: Choice) -> Fields {
        let quantized = choice.precision != Precision::Exact;
        Fields {
            precision: choice.precision_name().into(),
            granularity: quantized.then(|| choice.granularity.name().into()),
            smoothing: quantized.then(|| choice.smoothing.name()),
        }
    }
}

impl TryFrom<Fields> for Choice {
    type Error = AdaptiveError;

    fn try_from(fields: Fields) -> Result<Choice, AdaptiveError> {
        let default = Choice::of(precision(&fields.precision)?);
        let granularity = fields.granularity.as_deref().map_or(Ok(default.granularity), granularity)?;
        let smoothing = fields.smoothing.as_deref().map_or(Ok(default.smoothing), smoothing)?;
        Ok(Choice::new(default.precision, granularity, smoothing))
    }
}

fn precision(name: &str) -> Result<Precision, AdaptiveError> {
    match name {
        "int4" => Ok(Precision::Int4),
        "int8" => Ok(Precision::Int8),
        "exact" => Ok(Precision::Exact),
        _ => Err(AdaptiveError::name("precision", name, "int4, int8 or exact")),
    }
}

fn granularity(name: &str) -> Result<ScaleGranularity, AdaptiveError> {
    [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread]
        .into_iter()
        .find(|granularity| granularity.name() == name)
        .ok_or_else(|| AdaptiveError::name("granularity", name, "block, warp or thread"))
}

fn smoothing(name: &str) -> Result<Smoothing, AdaptiveError> {
    let mut smoothing = Smoothing::NONE;
    if name == "none" {
        return Ok(smoothing);
    }
    for tensor in name.split(',') {
        match tensor {
            "q" => smoothing.q = true,
            "k" => smoothing.k = true,
            "v" => smoothing.v = true,
            _ => return Err(AdaptiveError::name("smoothing", name, "none, or some of q, k and v between commas")),
        }
    }
    Ok(smoothing)
}
