//! `run`: attention on the tensors of a file.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::metrics::Metrics;
use sage_attn::{Attention, Output, SideInputs, Smoothing};

use super::compare::{Views, metrics};
use super::file::{Archive, Written, write};
use super::modifiers::ModifierOptions;
use super::options::{GranularityName, Input, PrecisionName, parse_smoothing};
use super::record::Record;
use super::{Failure, note, terminal};

/// Options of `run`.
#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    modifiers: ModifierOptions,
    /// Number format of Q and K
    #[arg(long, value_enum, default_value = "auto")]
    precision: PrecisionName,
    /// Which elements of Q and K share a scale
    #[arg(long, value_enum, default_value = "thread")]
    granularity: GranularityName,
    /// Means to subtract before quantizing: some of q,k,v, or none; by default k, and q for int4
    #[arg(long, value_parser = parse_smoothing)]
    smooth: Option<Smoothing>,
    /// GPU kernel to use, such as sm80_int8_f16_fwd; by default the best for the device. On the CPU the reference does
    /// what the kernel does step for step
    #[arg(long, value_name = "STEM")]
    kernel: Option<String>,
    /// Write the output and the log-sum-exp as <PREFIX>out and <PREFIX>lse to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compare with exact attention in f64
    #[arg(long)]
    compare: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl RunOptions {
    fn attention(&self, causal: bool) -> Attention {
        let mut attention = Attention::new()
            .causal(causal)
            .precision(self.precision.into())
            .granularity(self.granularity.into())
            .device(self.input.device)
            .return_lse(self.out.is_some());
        if let Some(smoothing) = self.smooth {
            attention = attention.smoothing(smoothing);
        }
        if let Some(kernel) = &self.kernel {
            attention = attention.kernel(kernel);
        }
        self.modifiers.apply(attention)
    }
}

/// Runs the command.
pub fn run(options: &RunOptions) -> Result<(), Failure> {
    let archive = Archive::open(&options.input.file)?;
    let (layout, causal) = (options.input.layout(&archive), options.input.causal(&archive));
    let attention = options.attention(causal);
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "tensors",
        "kernel",
        "device",
        "precision",
        "ms",
        "e2e ms",
        "cosine",
        "relative L1",
        "RMSE",
        "worst row L1",
    ]);
    let mut written = Vec::new();
    let mut cpu_reason = None;
    for prefix in options.input.prefixes(&archive)? {
        let triple = archive.triple(&prefix)?;
        let views = Views::new(&triple, layout)?;
        let slopes = options.modifiers.slopes(views.q.spec().shape[1]);
        let side = slopes.as_deref().map_or(SideInputs::new(), |slopes| SideInputs::new().alibi(slopes));
        let output = attention
            .forward_with(&views.q, &views.k, &views.v, &side)
            .map_err(|error| Failure::attention(&prefix, error))?;
        let metrics = match options.compare {
            true => {
                let modifiers = options.modifiers.reference(slopes.as_deref());
                Some(metrics(&output.out, &views.exact_with(&prefix, causal, &modifiers)?))
            }
            false => None,
        };
        if options.json {
            Record::new(&prefix, causal, &output.report, metrics.as_ref()).print()?;
        } else {
            table.add_row(row(&prefix, &output, metrics.as_ref()));
        }
        cpu_reason = output.report.note.clone();
        if options.out.is_some() {
            written.extend(tensors(&prefix, output));
        }
    }
    if let Some(path) = &options.out {
        write(path, &written)?;
    }
    if !options.json {
        terminal::table(&table)?;
    }
    if let Some(reason) = cpu_reason {
        note(format_args!("computed on the CPU: {reason}"));
    }
    Ok(())
}

fn row(prefix: &str, output: &Output, metrics: Option<&Metrics>) -> Vec<String> {
    let report = &output.report;
    let figure =
        |value: fn(&Metrics) -> f64| metrics.map_or_else(|| "-".into(), |metrics| format!("{:.6}", value(metrics)));
    vec![
        if prefix.is_empty() { "q, k, v".into() } else { format!("{prefix}*") },
        report.kernel.clone(),
        report.device.clone(),
        report.precision.to_owned(),
        format!("{:.3}", report.kernel_ms),
        format!("{:.3}", report.e2e_ms),
        figure(|metrics| metrics.cosine),
        figure(|metrics| metrics.rel_l1),
        figure(|metrics| metrics.rmse),
        metrics.map_or_else(
            || "-".into(),
            |metrics| format!("{:.6} (row {})", metrics.worst_row_rel_l1, metrics.worst_row),
        ),
    ]
}

/// The output and the log-sum-exp as tensors of a file.
fn tensors(prefix: &str, output: Output) -> Vec<Written> {
    let shape = output.out.shape();
    let mut tensors = vec![Written {
        name: format!("{prefix}out"),
        dtype: output.out.dtype(),
        shape: shape.to_vec(),
        bytes: output.out.to_le_bytes(),
    }];
    if let Some(lse) = output.lse {
        tensors.push(Written {
            name: format!("{prefix}lse"),
            dtype: sage_attn::DType::F32,
            shape: shape[..3].to_vec(),
            bytes: lse.iter().flat_map(|x| x.to_le_bytes()).collect(),
        });
    }
    tensors
}
