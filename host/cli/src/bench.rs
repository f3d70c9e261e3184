//! `bench`: how fast attention is, by precision and length.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::ProgressBar;
use sage_attn::{Attention, Device, Layout, Report, Tensor, TensorView};
use serde::Serialize;

use super::file::replace;
use super::options::PrecisionName;
use super::results::{Point, chart, read};
use super::{Failure, print, print_json, progress, terminal};

/// Options of `bench`.
#[derive(Args)]
pub struct BenchOptions {
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = |name: &str| name.parse::<Device>().map_err(|e| e.to_string()))]
    device: Device,
    /// Number formats of Q and K; exact and int8 by default, int8 and int4 on a GPU
    #[arg(long, value_enum, value_delimiter = ',')]
    precision: Vec<PrecisionName>,
    /// Tokens
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 2048, 4096])]
    seqlen: Vec<usize>,
    /// Query tokens, where they are fewer than the keys, as in decoding
    #[arg(long, value_name = "N")]
    queries: Option<usize>,
    /// Query heads
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Key and value heads; as many as query heads by default
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Features of a head
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Measure only with (true) or only without (false) the causal mask
    #[arg(long)]
    causal: Option<bool>,
    /// Seconds to spend on each measurement, after one untimed run
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Draw operations per second, end to end, over the number of tokens into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Results files whose kernels and peers are drawn as well, where head dimension and mask are measured here
    #[arg(long, value_name = "FILES", num_args = 1.., requires = "svg")]
    overlay: Vec<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("\"{text}\" is not a number of seconds from 0 to 3600")),
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    precision: PrecisionName,
    seqlen: usize,
    causal: bool,
}

/// The measurements of a case. The keys are stable; times are the shortest of `runs`.
#[derive(Serialize)]
struct Measurement {
    kernel: String,
    device: String,
    /// Instruction set, on the CPU.
    path: Option<&'static str>,
    threads: Option<usize>,
    precision: &'static str,
    causal: bool,
    heads: usize,
    kv_heads: usize,
    seqlen_q: usize,
    seqlen_kv: usize,
    head_dim: usize,
    runs: usize,
    ms: f64,
    tops: f64,
    e2e_ms: f64,
    e2e_tops: f64,
    median_e2e_ms: f64,
    /// 10⁹ operations per second of the whole computation.
    gflops: f64,
    /// Query tokens per second of the whole computation, all heads of a layer.
    tokens_per_s: f64,
}

/// Runs the command.
pub fn bench(options: &BenchOptions) -> Result<(), Failure> {
    let cases = options.cases();
    let mut overlay = Vec::new(); // read first: a bad file must not cost the measurements
    for path in &options.overlay {
        overlay.extend(read(path)?);
    }
    let progress = progress(cases.len(), options.json);
    let mut measurements = Vec::new();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "kernel",
        "tokens",
        "causal",
        "runs",
        "ms",
        "e2e ms",
        "median e2e ms",
        "GFLOP/s",
        "tokens/s",
    ]);
    for case in cases {
        let measurement = options.measure(case, &progress)?;
        if options.json {
            print_json(&measurement)?;
        } else {
            table.add_row(row(&measurement));
        }
        measurements.push(measurement);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !options.json
        && let Some(first) = measurements.first()
    {
        let path = first.path.map_or_else(String::new, |path| format!(", {path}"));
        let threads = first.threads.map_or_else(String::new, |threads| format!(", {threads} threads"));
        let table = terminal::text(&table);
        print(format_args!(
            "{}{path}{threads}; {} heads of {} features, {} key/value heads; times are minima\n{table}",
            first.device, first.heads, first.head_dim, first.kv_heads
        ))?;
    }
    match &options.svg {
        Some(path) => replace(path, svg(&measurements, overlay).as_bytes()),
        None => Ok(()),
    }
}

impl BenchOptions {
    fn cases(&self) -> Vec<Case> {
        let on_gpu = matches!(self.device, Device::Cuda(_));
        let precisions = match (self.precision.is_empty(), on_gpu) {
            (false, _) => self.precision.clone(),
            (true, false) => vec![PrecisionName::Exact, PrecisionName::Int8],
            (true, true) => vec![PrecisionName::Int8, PrecisionName::Int4],
        };
        let masks = self.causal.map_or(vec![false, true], |causal| vec![causal]);
        let mut cases = Vec::new();
        for &seqlen in &self.seqlen {
            for &causal in &masks {
                cases.extend(precisions.iter().map(|&precision| Case { precision, seqlen, causal }));
            }
        }
        cases
    }

    /// Runs a case until the time is up, at least three times.
    fn measure(&self, case: Case, progress: &ProgressBar) -> Result<Measurement, Failure> {
        let name = format!("{} tokens", case.seqlen);
        let failure = |error| Failure::attention(&name, error);
        progress.set_message(name.clone());
        let (kv_heads, seqlen_q) = (self.kv_heads.unwrap_or(self.heads), self.queries.unwrap_or(case.seqlen));
        let tensor = |heads: usize, tokens: usize, seed: u64| -> Result<Vec<f32>, Failure> {
            let too_large = || Failure::Input(format!("{name}: the tensors do not fit the address space"));
            let len =
                heads.checked_mul(tokens).and_then(|rows| rows.checked_mul(self.head_dim)).ok_or_else(too_large)?;
            values(len, seed).ok_or_else(too_large)
        };
        let (q, k, v) =
            (tensor(self.heads, seqlen_q, 1)?, tensor(kv_heads, case.seqlen, 2)?, tensor(kv_heads, case.seqlen, 3)?);
        let (q_shape, kv_shape) = ([1, self.heads, seqlen_q, self.head_dim], [1, kv_heads, case.seqlen, self.head_dim]);
        let q = TensorView::new(&q, &q_shape, Layout::Hnd).map_err(failure)?;
        let k = TensorView::new(&k, &kv_shape, Layout::Hnd).map_err(failure)?;
        let v = TensorView::new(&v, &kv_shape, Layout::Hnd).map_err(failure)?;
        let mut out = Tensor::zeros(sage_attn::DType::F32, q_shape).map_err(failure)?;
        let attention = Attention::new().causal(case.causal).precision(case.precision.into()).device(self.device);

        let mut run = || attention.forward_into(&q, &k, &v, &mut out.view_mut()?).map(|summary| summary.report);
        let mut best = run().map_err(failure)?; // warms up; its times are replaced
        let (mut ms, mut e2e_ms) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while ms.len() < 3 || start.elapsed() < Duration::from_secs_f64(self.seconds) {
            let report = run().map_err(failure)?;
            ms.push(report.kernel_ms);
            e2e_ms.push(report.e2e_ms);
        }
        ms.sort_by(f64::total_cmp);
        e2e_ms.sort_by(f64::total_cmp);
        (best.kernel_ms, best.e2e_ms) = (ms[0], e2e_ms[0]);
        Ok(self.measurement(case, [self.heads, kv_heads, seqlen_q], &best, &e2e_ms))
    }

    fn measurement(&self, case: Case, extents: [usize; 3], best: &Report, e2e_ms: &[f64]) -> Measurement {
        let [heads, kv_heads, seqlen_q] = extents;
        let on_cpu = best.device == "cpu";
        Measurement {
            kernel: best.kernel.clone(),
            device: best.device.clone(),
            path: on_cpu.then(|| sage_attn::cpu::Path::best().name()),
            threads: on_cpu.then(sage_attn::cpu::threads),
            precision: best.precision,
            causal: case.causal,
            heads,
            kv_heads,
            seqlen_q,
            seqlen_kv: case.seqlen,
            head_dim: self.head_dim,
            runs: e2e_ms.len(),
            ms: best.kernel_ms,
            tops: best.tops(),
            e2e_ms: best.e2e_ms,
            e2e_tops: best.e2e_tops(),
            median_e2e_ms: e2e_ms[e2e_ms.len() / 2],
            gflops: best.e2e_tops() * 1e3,
            tokens_per_s: if best.e2e_ms > 0.0 { seqlen_q as f64 / (best.e2e_ms / 1e3) } else { 0.0 },
        }
    }
}

fn row(measurement: &Measurement) -> Vec<String> {
    vec![
        measurement.kernel.clone(),
        measurement.seqlen_kv.to_string(),
        if measurement.causal { "yes" } else { "no" }.into(),
        measurement.runs.to_string(),
        format!("{:.3}", measurement.ms),
        format!("{:.3}", measurement.e2e_ms),
        format!("{:.3}", measurement.median_e2e_ms),
        format!("{:.1}", measurement.gflops),
        format!("{:.0}", measurement.tokens_per_s),
    ]
}

/// The chart of `measurements`, and of what there is in `overlay` for the same head dimension and masks.
fn svg(measurements: &[Measurement], overlay: Vec<Point>) -> String {
    let mut points: Vec<Point> = measurements.iter().map(point).collect();
    let measured = |other: &Point| {
        measurements.iter().any(|own| own.head_dim as u64 == other.head_dim && own.causal == other.causal)
    };
    points.extend(overlay.into_iter().filter(measured).map(|other| Point {
        name: if other.device.is_empty() { other.name } else { format!("{} ({})", other.name, other.device) },
        ..other
    }));
    let title = measurements.first().map_or_else(String::new, |first| {
        format!("Attention on {}: {} heads of {} features", first.device, first.heads, first.head_dim)
    });
    chart(title, &points, |point| point.e2e_tops).svg()
}

fn point(measurement: &Measurement) -> Point {
    Point {
        name: measurement.kernel.clone(),
        device: measurement.device.clone(),
        causal: measurement.causal,
        head_dim: measurement.head_dim as u64,
        tokens: measurement.seqlen_kv as u64,
        e2e_tops: Some(measurement.e2e_tops),
        tops: Some(measurement.tops),
        rel_l1: None,
    }
}

/// Roughly normal values, the same every time; `None` if there is not enough memory.
fn values(len: usize, seed: u64) -> Option<Vec<f32>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).ok()?;
    let mut state = seed;
    values.extend((0..len).map(|_| {
        // Four uniforms of variance 1/12 each; the generator is Knuth's MMIX.
        let mut sum = 0.0f32;
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (state >> 40) as f32 / (1u64 << 24) as f32;
        }
        (sum - 2.0) * 3f32.sqrt()
    }));
    Some(values)
}
