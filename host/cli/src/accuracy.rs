//! `accuracy`: the error of every precision, granularity and smoothing.

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::{Attention, Precision, ScaleGranularity, Smoothing, spec};

use super::compare::{Views, metrics};
use super::file::Archive;
use super::numerics::Numerics;
use super::options::Input;
use super::record::Record;
use super::{Failure, print, progress, terminal};

/// Options of `accuracy`.
#[derive(Args)]
pub struct AccuracyOptions {
    #[command(flatten)]
    input: Input,
    /// Whose arithmetic to measure: that of the sm80, sm89 or sm90 kernels, of one kernel such as
    /// sm80_int8_f16_fwd, or cpu. By default that of the GPU's kernels, and of sm90 where there is no GPU. On the CPU
    /// the reference does what the kernels do step for step; a GPU runs them
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<Numerics>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// One combination of options.
#[derive(Clone, Copy)]
struct Variant {
    codes: spec::Precision,
    granularity: ScaleGranularity,
    smoothing: Smoothing,
}

/// Every combination that is measured with these numerics.
fn variants(numerics: Numerics) -> Vec<Variant> {
    let smoothing = |q, k, v| Smoothing { q, k, v };
    let smoothings =
        [Smoothing::NONE, smoothing(false, true, false), smoothing(true, true, false), smoothing(true, true, true)];
    let granularities = [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread];
    let mut variants = Vec::new();
    for codes in numerics.precisions() {
        for granularity in granularities {
            variants.extend(smoothings.map(|smoothing| Variant { codes, granularity, smoothing }));
        }
    }
    variants
}

/// Runs the command.
pub fn accuracy(options: &AccuracyOptions) -> Result<(), Failure> {
    let archive = Archive::open(&options.input.file)?;
    let (layout, causal) = (options.input.layout(&archive), options.input.causal(&archive));
    let prefixes = options.input.prefixes(&archive)?;
    let numerics = options.kernel.unwrap_or_else(|| Numerics::default_for(options.input.device));
    let device = numerics.device(options.input.device)?;
    let variants = variants(numerics);
    let progress = progress(prefixes.len() * variants.len(), options.json);
    for prefix in &prefixes {
        let triple = archive.triple(prefix)?;
        let views = Views::new(&triple, layout)?;
        let exact = views.exact(prefix, causal)?;
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "kernel",
            "granularity",
            "smoothing",
            "cosine",
            "relative L1",
            "RMSE",
            "worst row L1",
        ]);
        let mut place = String::new();
        for variant in &variants {
            let output = numerics
                .apply(variant.attention().causal(causal).device(device), variant.codes)
                .forward(&views.q, &views.k, &views.v)
                .map_err(|error| Failure::attention(prefix, error))?;
            let metrics = metrics(&output.out, &exact);
            if options.json {
                Record::new(prefix, causal, &output.report, Some(&metrics)).print()?;
            } else {
                table.add_row([
                    output.report.kernel.clone(),
                    output.report.granularity.name().to_owned(),
                    output.report.smoothing.name(),
                    format!("{:.6}", metrics.cosine),
                    format!("{:.6}", metrics.rel_l1),
                    format!("{:.6}", metrics.rmse),
                    format!("{:.6}", metrics.worst_row_rel_l1),
                ]);
                place.clone_from(&output.report.device);
            }
            progress.inc(1);
        }
        if !options.json {
            let tensors = if prefix.is_empty() { "q, k, v".to_owned() } else { format!("{prefix}*") };
            let table = terminal::text(&table);
            progress.suspend(|| print(format_args!("{tensors}: {} on {place}\n{table}", numerics.describe(&place))))?;
        }
    }
    progress.finish_and_clear();
    Ok(())
}

impl Variant {
    fn attention(&self) -> Attention {
        let precision = match self.codes {
            spec::Precision::Int4 => Precision::Int4,
            spec::Precision::Int8 => Precision::Int8,
        };
        Attention::new().precision(precision).granularity(self.granularity).smoothing(self.smoothing)
    }
}
