//! `lm`: a language model under each precision.

mod attend;
mod evaluate;
mod generate;

use std::path::PathBuf;

use clap::Args;
use sage_attn::Device;
use sage_attn::models::ModelError;
use sage_attn::models::rustlm::RustLm;

use super::Failure;
use super::variant::{PrecisionOptions, Variant};

pub use attend::on_cpu_if_exact;

/// Options of `lm`.
#[derive(Args)]
pub struct LmOptions {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    precisions: PrecisionOptions,
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

/// Runs the command.
pub fn lm(options: &LmOptions) -> Result<(), Failure> {
    let variants = options.precisions.variants()?;
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
