//! `--precision` and `--plan` of the commands that run models.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use sage_attn::adaptive::{Choice, PrecisionPlan};

use super::Failure;

/// The precisions to run a model with.
#[derive(Args)]
pub struct PrecisionOptions {
    /// Precisions of attention: exact, int8, int4 or auto, which follows the plan; int8 and int4 also with
    /// granularity and smoothing, as in int4/thread/q,k or int8/block/none
    #[arg(long, num_args = 1.., value_name = "PRECISION", default_value = "auto")]
    precision: Vec<PrecisionArg>,
    /// Precision plan that auto follows; without one, auto is int8 everywhere
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

/// Value of `--precision`.
#[derive(Clone, Copy, PartialEq)]
enum PrecisionArg {
    /// What the plan says.
    Auto,
    /// The same everywhere.
    Uniform(Choice),
}

impl FromStr for PrecisionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<PrecisionArg, String> {
        match text {
            "auto" => Ok(PrecisionArg::Auto),
            _ => text.parse().map(PrecisionArg::Uniform).map_err(|_| {
                format!("\"{text}\" is not a precision; use auto, exact, int8, int4, or for instance int4/thread/q,k")
            }),
        }
    }
}

/// A precision with its name and its plan.
pub struct Variant {
    pub name: String,
    pub plan: PrecisionPlan,
}

impl PrecisionOptions {
    /// The precisions, in the order of the command line.
    pub fn variants(&self) -> Result<Vec<Variant>, Failure> {
        if self.plan.is_some() && !self.precision.contains(&PrecisionArg::Auto) {
            return Err(Failure::Input("--plan is for --precision auto; leave out one of the two".into()));
        }
        let variant = |&precision: &PrecisionArg| match precision {
            PrecisionArg::Uniform(choice) => {
                Ok(Variant { name: choice.to_string(), plan: PrecisionPlan::uniform(choice) })
            }
            PrecisionArg::Auto => {
                let plan = match &self.plan {
                    Some(path) => super::plan::load(path)?,
                    None => PrecisionPlan::uniform(Choice::INT8),
                };
                Ok(Variant { name: "auto".into(), plan })
            }
        };
        self.precision.iter().map(variant).collect()
    }
}
