//! Bits per byte of a text under each precision.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::models::rustlm::{Evaluation, RustLm, Windows};
use serde::Serialize;

use super::attend::{LayerError, Planned};
use super::{LmOptions, Variant, failure};
use crate::{Failure, print, print_json, progress, terminal};

/// The result under one precision, as JSON has it. The keys are stable.
#[derive(Serialize)]
struct Record<'a> {
    precision: &'a str,
    device: &'a str,
    bits_per_byte: f64,
    /// Beside the first precision of the command, in percent.
    difference_percent: Option<f64>,
    tokens_per_s: f64,
    int4_share: f64,
    bytes: usize,
    context: usize,
    layers: Vec<LayerRecord>,
}

#[derive(Serialize)]
struct LayerRecord {
    layer: usize,
    precision: &'static str,
    granularity: &'static str,
    smoothing: String,
    cosine: f64,
    rel_l1: f64,
    rmse: f64,
}

/// What was computed under one precision.
struct Outcome {
    evaluation: Evaluation,
    tokens_per_s: f64,
    device: String,
    int4_share: f64,
    errors: Vec<LayerError>,
}

/// Evaluates the text under every precision.
pub fn evaluate(options: &LmOptions, variants: &[Variant]) -> Result<(), Failure> {
    let text = options.source.read()?;
    let windows = Windows::new(&text, options.source.context).map_err(failure)?;
    let model = options.source.model()?;
    let progress = progress(variants.len() * windows.iter().len(), options.json);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for variant in variants {
        let outcome = run(options, variant, &model, &windows, &mut || progress.inc(1))?;
        if options.json {
            let record = record(options, variant, &outcome, outcomes.first(), text.len());
            progress.suspend(|| print_json(&record))?;
        }
        outcomes.push(outcome);
    }
    progress.finish_and_clear();
    if !options.json {
        // Exact attention stays on the CPU, so there may be two.
        let mut devices: Vec<&str> = outcomes.iter().map(|outcome| outcome.device.as_str()).collect();
        devices.dedup();
        print(format_args!(
            "{} bytes in {} windows of up to {}; attention on {}",
            text.len(),
            windows.iter().len(),
            options.source.context,
            devices.join(", then ")
        ))?;
        terminal::table(&summary(variants, &outcomes))?;
        if options.error_windows > 0 {
            terminal::table(&layers(variants, &outcomes))?;
        }
    }
    Ok(())
}

fn run(
    options: &LmOptions,
    variant: &Variant,
    model: &RustLm,
    windows: &Windows<'_>,
    step: &mut dyn FnMut(),
) -> Result<Outcome, Failure> {
    let planned = std::cell::RefCell::new(Planned::new(&variant.plan, options.source.device));
    planned.borrow_mut().measuring = options.error_windows > 0;
    let evaluation = model
        .evaluate(windows, &mut |layer, tensors| planned.borrow_mut().attend(layer, tensors), &mut |window| {
            planned.borrow_mut().measuring = window + 1 < options.error_windows;
            step();
        })
        .map_err(failure)?;
    let planned = planned.into_inner();
    let seconds = evaluation.time.saturating_sub(planned.measuring_time).as_secs_f64();
    Ok(Outcome {
        evaluation,
        tokens_per_s: evaluation.tokens as f64 / seconds,
        int4_share: planned.int4_share(),
        errors: planned.errors(),
        device: planned.device,
    })
}

/// Percent by which `outcome` takes more bits than `first`.
fn difference(outcome: &Outcome, first: Option<&Outcome>) -> Option<f64> {
    let first = first?.evaluation.bits_per_byte();
    Some((outcome.evaluation.bits_per_byte() / first - 1.0) * 100.0)
}

fn record<'a>(
    options: &LmOptions,
    variant: &'a Variant,
    outcome: &'a Outcome,
    first: Option<&Outcome>,
    bytes: usize,
) -> Record<'a> {
    let layer = |(layer, error): (usize, &LayerError)| LayerRecord {
        layer,
        precision: error.choice.precision_name(),
        granularity: error.choice.granularity().name(),
        smoothing: error.choice.smoothing().name(),
        cosine: error.cosine,
        rel_l1: error.rel_l1,
        rmse: error.rmse,
    };
    Record {
        precision: &variant.name,
        device: &outcome.device,
        bits_per_byte: outcome.evaluation.bits_per_byte(),
        difference_percent: difference(outcome, first),
        tokens_per_s: outcome.tokens_per_s,
        int4_share: outcome.int4_share,
        bytes,
        context: options.source.context,
        layers: outcome.errors.iter().enumerate().map(layer).collect(),
    }
}

fn summary(variants: &[Variant], outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "precision",
        "bits per byte",
        "difference to the first",
        "INT4 share",
        "tokens/s",
    ]);
    for (variant, outcome) in variants.iter().zip(outcomes) {
        table.add_row([
            variant.name.clone(),
            format!("{:.5}", outcome.evaluation.bits_per_byte()),
            difference(outcome, outcomes.first()).map_or_else(|| "-".into(), |percent| format!("{percent:+.3} %")),
            format!("{:.0} %", outcome.int4_share * 100.0),
            format!("{:.0}", outcome.tokens_per_s),
        ]);
    }
    table
}

fn layers(variants: &[Variant], outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    let columns = variants.iter().map(|variant| format!("{}: cosine, relative L1", variant.name));
    table.load_style(UTF8_FULL_CONDENSED).set_header(std::iter::once("layer".to_owned()).chain(columns));
    let count = outcomes.iter().map(|outcome| outcome.errors.len()).max().unwrap_or(0);
    for layer in 0..count {
        let cells = outcomes.iter().map(|outcome| {
            outcome.errors.get(layer).map_or_else(String::new, |error| {
                format!("{:.5}, {:.4} ({})", error.cosine, error.rel_l1, error.choice.precision_name())
            })
        });
        table.add_row(std::iter::once(layer.to_string()).chain(cells));
    }
    table
}
