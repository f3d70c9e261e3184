//! Attention on the CPU.

use std::time::Instant;

use sage_spec::PvFormat;

use super::report::Report;
use super::tensor::{TensorView, TensorViewMut};
use crate::cpu::{self, OutputMut, Path};
use crate::problem::Problem;
use crate::reference::Options;

/// Computes `problem` into `out`; returns the log-sum-exp of every row and the report.
pub fn run(
    problem: &Problem,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    out: &mut TensorViewMut<'_>,
) -> (Vec<f32>, Report) {
    if let Some(out) = out.contiguous() {
        return attend(problem, q, k, v, out);
    }
    let mut copy = vec![0.0; q.spec().shape.iter().product()];
    let result = attend(problem, q, k, v, OutputMut::F32(&mut copy));
    out.store_f32(&copy);
    result
}

fn attend(
    problem: &Problem,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    out: OutputMut<'_>,
) -> (Vec<f32>, Report) {
    let (path, dims, q, k, v) = (Path::best(), problem.dims(), q.host(), k.host(), v.host());
    let start = Instant::now();
    let (attended, lse, mut report) = match problem.codes() {
        None => {
            let lse = cpu::attention_exact(path, dims, [&q, &k, &v], problem.causal(), problem.sm_scale(), out);
            (start, lse, Report::new(problem, "cpu_exact_fwd".into(), "cpu".into(), None))
        }
        Some(precision) => {
            let smoothing = problem.smoothing();
            let options = Options {
                causal: problem.causal(),
                sm_scale: problem.sm_scale(),
                precision,
                granularity: problem.granularity(),
                pv: problem.pv().unwrap_or(PvFormat::Fp8),
                smooth_q: smoothing.q,
                smooth_k: smoothing.k,
                smooth_v: smoothing.v,
            };
            let quantized = cpu::quantize(path, dims, [&q, &k, &v], &options);
            let attended = Instant::now();
            let lse = cpu::attention_quantized(path, dims, &quantized, &k, &options, out);
            let kernel = format!("cpu_{}_{}_fwd", precision.name(), options.pv.name());
            (attended, lse, Report::new(problem, kernel, "cpu".into(), Some(options.pv)))
        }
    };
    report.kernel_ms = attended.elapsed().as_secs_f64() * 1e3;
    report.e2e_ms = start.elapsed().as_secs_f64() * 1e3;
    (lse, report)
}
