//! `lm`: a language model under each precision.

mod attend;
mod evaluate;
mod generate;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use sage_attn::Device;
use sage_attn::adaptive::{Choice, PrecisionPlan};
use sage_attn::models::ModelError;
use sage_attn::models::rustlm::RustLm;

use super::Failure;

pub use attend::on_cpu_if_exact;

/// Options of `lm`.
#[derive(Args)]
pub struct LmOptions {
    #[command(flatten)]
    pub source: Source,
    /// Precisions of attention: exact, int8, int4 or auto, which follows the plan; int8 and int4 also with
    /// granularity and smoothing, as in int4/thread/q,k or int8/block/none
    #[arg(long, num_args = 1.., value_name = "PRECISION", default_value = "auto")]
    precision: Vec<PrecisionArg>,
    /// Precision plan that auto follows; without one, auto is int8 everywhere
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Windows on which the error of every layer is measured; they are not part of the time
    #[arg(long, value_name = "N", default_value_t = 1)]
    error_windows: usize,
    /// Continue this prompt instead of evaluating a text
    #[arg(long, value_name = "PROMPT", conflicts_with = "text")]
    generate: Option<String>,
    /// Bytes to generate
    #[arg(long, value_name = "N", default_value_t = 200, requires = "generate")]
    tokens: usize,
    /// Temperature of generation; 0 takes the most probable byte
    #[arg(long, value_name = "T", default_value_t = 0.0, requires = "generate")]
    temperature: f32,
    /// Seed of generation
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "generate")]
    seed: u64,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// A model and a text.
#[derive(Args)]
pub struct Source {
    /// Weights of RustLM
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Files whose bytes, one file after the other, are the text
    #[arg(long, num_args = 1.., value_name = "FILES")]
    pub text: Vec<PathBuf>,
    /// Use only the first N bytes of the text
    #[arg(long, value_name = "N")]
    pub bytes: Option<usize>,
    /// Bytes of a window; the model sees nothing before its window
    #[arg(long, value_name = "N", default_value_t = sage_attn::models::rustlm::CONTEXT)]
    pub context: usize,
    /// Where to compute attention: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = |name: &str| name.parse::<Device>().map_err(|e| e.to_string()))]
    pub device: Device,
}

impl Source {
    /// Loads the model.
    pub fn model(&self) -> Result<RustLm, Failure> {
        RustLm::load(&self.model).map_err(failure)
    }

    /// The files' bytes, joined and cut off.
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        if self.text.is_empty() {
            return Err(Failure::Input("there is no text; name files with --text".into()));
        }
        let mut text = Vec::new();
        for path in &self.text {
            let bytes = std::fs::read(path)
                .map_err(|error| Failure::Input(format!("{}: cannot read the file: {error}", path.display())))?;
            text.extend(bytes);
        }
        text.truncate(self.bytes.unwrap_or(usize::MAX));
        Ok(text)
    }
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
struct Variant {
    name: String,
    plan: PrecisionPlan,
}

impl LmOptions {
    fn variants(&self) -> Result<Vec<Variant>, Failure> {
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

/// Runs the command.
pub fn lm(options: &LmOptions) -> Result<(), Failure> {
    let variants = options.variants()?;
    match &options.generate {
        Some(prompt) => generate::generate(options, &variants, prompt),
        None => evaluate::evaluate(options, &variants),
    }
}

/// The failure of a model.
pub fn failure(error: ModelError) -> Failure {
    match error {
        ModelError::Attention(error) => Failure::attention("", error),
        error => Failure::Input(error.to_string()),
    }
}
