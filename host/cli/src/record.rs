//! A result as a line of JSON.

use sage_attn::Report;
use sage_attn::metrics::Metrics;
use serde::Serialize;

use super::{Failure, print_json};

/// One result. The keys are stable; figures that were not measured are null.
#[derive(Serialize)]
pub struct Record<'a> {
    prefix: &'a str,
    kernel: &'a str,
    device: &'a str,
    precision: &'a str,
    granularity: &'a str,
    smoothing: String,
    causal: bool,
    cosine: Option<f64>,
    rel_l1: Option<f64>,
    rmse: Option<f64>,
    max_abs: Option<f64>,
    worst_row_rel_l1: Option<f64>,
    ms: f64,
    tops: f64,
    e2e_ms: f64,
    e2e_tops: f64,
}

impl<'a> Record<'a> {
    /// The result on the tensors behind `prefix`.
    pub fn new(prefix: &'a str, causal: bool, report: &'a Report, metrics: Option<&Metrics>) -> Record<'a> {
        Record {
            prefix,
            kernel: &report.kernel,
            device: &report.device,
            precision: report.precision,
            granularity: report.granularity.name(),
            smoothing: report.smoothing.name(),
            causal,
            cosine: metrics.map(|metrics| metrics.cosine),
            rel_l1: metrics.map(|metrics| metrics.rel_l1),
            rmse: metrics.map(|metrics| metrics.rmse),
            max_abs: metrics.map(|metrics| metrics.max_abs),
            worst_row_rel_l1: metrics.map(|metrics| metrics.worst_row_rel_l1),
            ms: report.kernel_ms,
            tops: report.tops(),
            e2e_ms: report.e2e_ms,
            e2e_tops: report.e2e_tops(),
        }
    }

    /// Prints the line.
    pub fn print(&self) -> Result<(), Failure> {
        print_json(self)
    }
}
