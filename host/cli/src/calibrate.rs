//! `calibrate`: measure candidate precisions on a language model and write a precision plan.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::adaptive::{Calibrator, Choice, Measurements, Origin, Rule, Sampling, Site, Speeds, Trial};
use sage_attn::models::fingerprint;
use sage_attn::models::rustlm::{HEAD_DIM, HEADS_KV, HEADS_Q, KvCache, LAYERS, RustLm, Windows};
use sage_attn::plot::HeatMap;
use sage_attn::{Attention, Device, Layout, Precision, TensorView};

use super::file::replace;
use super::lm::{Source, failure, on_cpu_if_exact};
use super::plan::{RuleOptions, adaptive, show};
use super::{Failure, note, print, progress, terminal};

/// Options of `calibrate`.
#[derive(Args)]
pub struct CalibrateOptions {
    #[command(flatten)]
    source: Source,
    /// Write the plan to this file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Append measurements to this file as they are made, and go on from those it holds; by default the
    /// plan's name with .measurements.jsonl added
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
    /// Precisions to measure, such as int4/thread/q,k int8/block/k exact; at least one int4 and one int8
    #[arg(long, num_args = 1.., value_name = "CHOICE", default_values_t = [Choice::INT4, Choice::INT8])]
    candidates: Vec<Choice>,
    #[command(flatten)]
    rule: RuleOptions,
    /// Speed of INT4 over INT8: ignored, measured on the device, or a number measured elsewhere. Unless INT4
    /// is faster, the plan does not use it
    #[arg(long, value_name = "ignored|measured|RATIO", default_value = "ignored", value_parser = parse_speedup)]
    speedup: Speedup,
    /// Measure every Nth window only
    #[arg(long, value_name = "N", default_value_t = 1)]
    every: usize,
    /// Measure at most N key/value heads of a layer, other ones in each window
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Compare at most N blocks of 128 query rows of a head
    #[arg(long, value_name = "N")]
    query_blocks: Option<usize>,
    /// Draw a heat map of the error by layer and candidate
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Value of `--speedup`.
#[derive(Clone, Copy)]
enum Speedup {
    Ignored,
    Measured,
    Ratio(f64),
}

fn parse_speedup(text: &str) -> Result<Speedup, String> {
    match (text, text.parse()) {
        ("ignored", _) => Ok(Speedup::Ignored),
        ("measured", _) => Ok(Speedup::Measured),
        (_, Ok(ratio)) if ratio > 0.0 && f64::is_finite(ratio) => Ok(Speedup::Ratio(ratio)),
        _ => Err("use ignored, measured, or a positive number such as 1.3".into()),
    }
}

impl CalibrateOptions {
    fn journal(&self) -> PathBuf {
        self.measurements.clone().unwrap_or_else(|| {
            let mut name = self.out.file_name().unwrap_or_default().to_owned();
            name.push(".measurements.jsonl");
            self.out.with_file_name(name)
        })
    }

    fn sampling(&self) -> Sampling {
        Sampling { samples: self.every, timesteps: 1, heads: self.heads, query_blocks: self.query_blocks }
    }
}

/// Runs the command.
pub fn calibrate(options: &CalibrateOptions) -> Result<(), Failure> {
    let rule = options.rule.rule()?;
    let text = options.source.read()?;
    let windows = Windows::new(&text, options.source.context).map_err(failure)?;
    let model = options.source.model()?;
    let name = options.source.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Measurements of another model or text must not be taken for those of this one.
    let subject =
        format!("{name} {} on text {}, windows of {}", model.fingerprint(), fingerprint(&text), options.source.context);
    let journal = options.journal();
    let mut calibrator =
        Calibrator::resume(&journal, &subject, options.candidates.clone(), options.sampling()).map_err(adaptive)?;
    let before = calibrator.measurements().records().len();
    if before > 0 {
        note(format_args!("{} holds {before} measurements already; they are not made again", journal.display()));
    }
    measure(options, &model, &windows, &mut calibrator)?;
    if let Rule::Loss { .. } = rule {
        try_layers(options, &model, &windows, &mut calibrator)?;
    }

    let measurements = calibrator.measurements();
    let speeds = speeds(options, &text)?;
    let plan = rule.plan(measurements, &speeds).map_err(adaptive)?;
    let origin = Origin { model: name, ..plan.origin().clone() };
    let plan = plan.with_origin(origin);
    plan.save(&options.out).map_err(adaptive)?;
    if let Some(path) = &options.svg {
        replace(path, HeatMap::of_plan(measurements, &plan).to_svg().as_bytes())?;
    }
    if options.json {
        return print(plan.to_json().trim_end());
    }
    terminal::table(&errors(measurements))?;
    for &choice in measurements.candidates() {
        if let Some(loss) = measurements.loss(Trial::everywhere(choice)) {
            print(format_args!("loss with {choice} everywhere: {:+.3} %", loss * 100.0))?;
        }
    }
    show(&plan)
}

/// Runs the model in full precision over every window that has something left to measure.
fn measure(
    options: &CalibrateOptions,
    model: &RustLm,
    windows: &Windows<'_>,
    calibrator: &mut Calibrator,
) -> Result<(), Failure> {
    let site = |layer, sample| Site { layer, timestep: 0, sample };
    let wanted = |calibrator: &Calibrator, sample| (0..LAYERS).any(|layer| calibrator.wants(site(layer, sample)));
    let left: usize = (0..windows.iter().len())
        .map(|sample| (0..LAYERS).filter(|&layer| calibrator.wants(site(layer, sample))).count())
        .sum();
    let progress = progress(left, options.json);
    let quantized = Attention::new().causal(true).device(options.source.device);
    let exact = Choice::EXACT.apply(Attention::new().causal(true).device(Device::Cpu));
    for (sample, window) in windows.iter().enumerate() {
        if !wanted(calibrator, sample) {
            continue;
        }
        let mut cache = KvCache::new(window.len()).map_err(failure)?;
        model
            .forward(window, &mut cache, &mut |layer, [q, k, v]| {
                let out = exact.forward(q, k, v)?.out;
                if calibrator.observe_with_exact(site(layer, sample), &quantized, [q, k, v], &out)? {
                    progress.inc(1);
                }
                Ok(out)
            })
            .map_err(failure)?;
    }
    progress.finish_and_clear();
    Ok(())
}

/// Measures the model's loss with INT8 everywhere and with INT4 in each layer alone.
fn try_layers(
    options: &CalibrateOptions,
    model: &RustLm,
    windows: &Windows<'_>,
    calibrator: &mut Calibrator,
) -> Result<(), Failure> {
    // The best candidate of each precision in each layer.
    let best = |percent| {
        let rule = Rule::percentile(percent);
        rule.plan(calibrator.measurements(), &Speeds::unmeasured()).map_err(adaptive)
    };
    let (int4, int8) = (best(0.0)?, best(100.0)?.default_choice());
    let layers = (0..LAYERS).map(|layer| Trial::cell(layer, 0, int4.at(layer, 0)));
    let mut trials: Vec<Trial> = std::iter::once(Trial::everywhere(int8)).chain(layers).collect();
    trials.retain(|&trial| calibrator.measurements().loss(trial).is_none());
    if trials.is_empty() {
        return Ok(());
    }
    let progress = progress((trials.len() + 1) * windows.iter().len(), options.json);
    let bits = |choose: &dyn Fn(usize) -> Choice| -> Result<f64, Failure> {
        let mut attend = |layer: usize, [q, k, v]: [&TensorView<'_>; 3]| {
            let choice = choose(layer);
            let attention = choice.apply(Attention::new().causal(true).device(options.source.device));
            Ok(on_cpu_if_exact(choice, attention).forward(q, k, v)?.out)
        };
        let evaluation = model.evaluate(windows, &mut attend, &mut |_| progress.inc(1)).map_err(failure)?;
        Ok(evaluation.bits_per_byte())
    };
    let exact = bits(&|_| Choice::EXACT)?;
    for trial in trials {
        let alone = trial.cell.map(|(layer, _)| layer);
        let choose = |layer| if alone.is_none_or(|alone| alone == layer) { trial.choice } else { int8 };
        calibrator.record_loss(trial, bits(&choose)? / exact - 1.0).map_err(adaptive)?;
    }
    progress.finish_and_clear();
    Ok(())
}

/// The speeds of the candidates, as far as they are asked for.
fn speeds(options: &CalibrateOptions, text: &[u8]) -> Result<Speeds, Failure> {
    match options.speedup {
        Speedup::Ignored => Ok(Speeds::unmeasured()),
        Speedup::Ratio(ratio) => Ok(Speeds::assumed(options.source.device.to_string(), ratio)),
        Speedup::Measured => {
            // Times depend on the shapes, hardly on the values; the text makes values of all sizes.
            let tokens = options.source.context.min(text.len());
            let values = |heads: usize| -> Vec<f32> {
                let bytes = text.iter().cycle().take(tokens * heads * HEAD_DIM);
                bytes.enumerate().map(|(i, &byte)| f32::from(byte ^ (i * 37) as u8) / 64.0 - 2.0).collect()
            };
            let (q, kv) = (values(HEADS_Q), values(HEADS_KV));
            let view = |x, heads| {
                TensorView::new(x, &[1, heads, tokens, HEAD_DIM], Layout::Hnd).map_err(|e| Failure::attention("", e))
            };
            let (q, kv) = (view(&q, HEADS_Q)?, view(&kv, HEADS_KV)?);
            let attention = Attention::new().causal(true).device(options.source.device);
            let quantized: Vec<Choice> =
                options.candidates.iter().copied().filter(|choice| choice.precision() != Precision::Exact).collect();
            Speeds::measure(&attention, &quantized, 5, [&q, &kv, &kv]).map_err(|error| Failure::attention("", error))
        }
    }
}

/// The measurements as a table: the score the rules rank by, and what it is made of.
fn errors(measurements: &Measurements) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "layer",
        "candidate",
        "score",
        "deviation",
        "cosine",
        "relative L1",
        "RMSE",
        "worst row L1",
        "loss alone",
    ]);
    for cell in measurements.cells() {
        for (candidate, spread) in measurements.candidates().iter().zip(&cell.spreads) {
            table.add_row([
                cell.layer.to_string(),
                candidate.to_string(),
                format!("{:.4}", spread.score()),
                format!("{:.4}", spread.score_deviation()),
                format!("{:.5}", spread.cosine()),
                format!("{:.4}", spread.rel_l1()),
                format!("{:.5}", spread.rmse()),
                format!("{:.3}", spread.worst_row_rel_l1()),
                measurements
                    .loss(Trial::cell(cell.layer, cell.timestep, *candidate))
                    .map_or_else(|| "-".into(), |loss| format!("{:+.3} %", loss * 100.0)),
            ]);
        }
    }
    table
}
