//! `plot`: results files as a chart.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::file::replace;
use super::results::{Point, chart, lines, read};
use super::{Failure, print};

/// Options of `plot`.
#[derive(Args)]
#[command(after_long_help = "Examples:
  sage-attn bench --json > here.jsonl
  sage-attn plot here.jsonl --svg here.svg
  sage-attn plot benches/results/h200_bench.json here.jsonl --causal --figure attention > both.svg
  sage-attn plot benches/results/h200_accuracy.json --figure error --svg error.svg")]
pub struct PlotOptions {
    /// Results: lines that `bench --json` printed, or reports of the benchmark of GPUs, with or without peers
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only results with this many features of a head
    #[arg(long, default_value_t = 128)]
    head_dim: u64,
    /// Results with the causal mask instead of those without
    #[arg(long)]
    causal: bool,
    /// What to draw
    #[arg(long, value_enum, default_value = "e2e")]
    figure: Figure,
    /// Only these kernels and peers; all by default
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Write the chart to this file instead of to standard output
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Value of `--figure`.
#[derive(Clone, Copy, ValueEnum)]
enum Figure {
    /// Smoothing, quantization and attention
    E2e,
    /// Attention alone
    Attention,
    /// Relative L1 distance from exact attention
    Error,
}

impl Figure {
    /// What it is called, and what it is of a point.
    fn of_points(self) -> (&'static str, fn(&Point) -> Option<f64>) {
        match self {
            Figure::E2e => ("end to end", |point| point.e2e_tops),
            Figure::Attention => ("attention alone", |point| point.tops),
            Figure::Error => ("error", |point| point.rel_l1),
        }
    }
}

/// Runs the command.
pub fn plot(options: &PlotOptions) -> Result<(), Failure> {
    let mut all = Vec::new();
    for path in &options.files {
        all.extend(read(path)?);
    }
    let points: Vec<Point> = all.iter().filter(|point| options.wants(point)).cloned().collect();
    if points.is_empty() {
        return Err(Failure::Input(format!("no result fits the options; there are {}", kinds(&all))));
    }
    let mut devices: Vec<&str> = Vec::new();
    for point in &points {
        if !point.device.is_empty() && !devices.contains(&point.device.as_str()) {
            devices.push(&point.device);
        }
    }
    let mask = if options.causal { ", causal" } else { "" };
    let (what, figure) = options.figure.of_points();
    let title = format!("{} features of a head{mask}, {what}: {}", options.head_dim, devices.join(", "));
    let svg = match options.figure {
        Figure::E2e | Figure::Attention => chart(title, &points, figure),
        Figure::Error => lines(title, &points, "relative L1", figure),
    }
    .svg();
    match &options.svg {
        Some(path) => replace(path, svg.as_bytes()),
        None => print(svg.trim_end()),
    }
}

impl PlotOptions {
    fn wants(&self, point: &Point) -> bool {
        let named = self.only.is_empty() || self.only.contains(&point.name);
        let (_, figure) = self.figure.of_points();
        named && figure(point).is_some() && point.head_dim == self.head_dim && point.causal == self.causal
    }
}

/// The names, head dimensions and masks of `points`, in words.
fn kinds(points: &[Point]) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for point in points {
        let mask = if point.causal { " causal" } else { "" };
        let kind = format!("{} at {}{mask}", point.name, point.head_dim);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.join(", ")
}
