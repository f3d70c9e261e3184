//! `diffuse`: images from a diffusion transformer under each precision.

mod draw;
mod measure;
mod png;

use std::path::PathBuf;

use clap::Args;
use sage_attn::adaptive::Choice;
use sage_attn::models::emoji_dit::{EmojiDit, Sampling};
use sage_attn::{Attention, Device, Precision};

use super::Failure;
use super::lm::failure;
use super::variant::PrecisionOptions;

/// Options of `diffuse`.
#[derive(Args)]
pub struct DiffuseOptions {
    /// Weights of Emoji DiT
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Classes to draw, an image each; a name may come more than once. Default: every class once
    #[arg(long, num_args = 1.., value_name = "CLASS")]
    classes: Vec<String>,
    #[command(flatten)]
    precisions: PrecisionOptions,
    /// Sampling steps
    #[arg(long, value_name = "N", default_value_t = 25)]
    steps: usize,
    /// Guidance: 1 for none; more holds closer to the class and takes twice the time
    #[arg(long, value_name = "SCALE", default_value_t = 1.0)]
    guidance: f32,
    /// Seed of the noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Images that are computed together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Where to compute attention: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = |name: &str| name.parse::<Device>().map_err(|e| e.to_string()))]
    device: Device,
    /// Write the first 16 images to this PNG file, a row for each precision
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Pixels of the PNG file for each pixel of an image
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    zoom: u8,
    /// Mean and covariance of the features of real images; adds the Fréchet distance to them
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Instead of comparing pictures, measure candidate precisions layer by layer and step by step while
    /// drawing in full precision; append to this file, for `plan make`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "reference", "precision", "plan"])]
    measure: Option<PathBuf>,
    /// Precisions to measure
    #[arg(long, num_args = 1.., value_name = "CHOICE", requires = "measure",
          default_values_t = [Choice::INT4, Choice::INT8])]
    candidates: Vec<Choice>,
    /// Measure at most N heads of a layer, other ones in each image
    #[arg(long, value_name = "N", requires = "measure")]
    heads: Option<usize>,
    /// Compare at most N blocks of 128 query rows of a head
    #[arg(long, value_name = "N", requires = "measure")]
    query_blocks: Option<usize>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl DiffuseOptions {
    fn sampling(&self) -> Sampling {
        Sampling { steps: self.steps, guidance: self.guidance }
    }

    /// Indices of the classes to draw.
    fn classes(&self, model: &EmojiDit) -> Result<Vec<usize>, Failure> {
        if self.classes.is_empty() {
            return Ok((0..model.classes().len()).collect());
        }
        let index = |name: &String| {
            model.classes().iter().position(|class| class == name).ok_or_else(|| {
                Failure::Input(format!("there is no class \"{name}\"; there are {}", model.classes().join(", ")))
            })
        };
        self.classes.iter().map(index).collect()
    }
}

/// Runs the command.
pub fn diffuse(options: &DiffuseOptions) -> Result<(), Failure> {
    let model = EmojiDit::load(&options.model).map_err(failure)?;
    let classes = options.classes(&model)?;
    match &options.measure {
        Some(path) => measure::measure(options, &model, &classes, path),
        None => draw::draw(options, &model, &classes),
    }
}

/// Attention on `device`, but exact arithmetic on the CPU, which alone has it.
fn attention(choice: Choice, device: Device) -> Attention {
    let device = if choice.precision() == Precision::Exact { Device::Cpu } else { device };
    choice.apply(Attention::new().device(device))
}
