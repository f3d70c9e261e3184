//! Attention on the CPU.

use std::time::Instant;

use sage_spec::PvFormat;

use super::report::Report;
use super::side::SideInputs;
use super::tensor::{TensorView, TensorViewMut};
use crate::cpu::{self, OutputMut, Path};
use crate::problem::Problem;
use crate::reference::{self, HostTensor, Options, Output};

/// Computes `problem` into `out`; returns the log-sum-exp of every row and the report.
pub fn run(
    problem: &Problem,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    side: &SideInputs<'_>,
    out: &mut TensorViewMut<'_>,
) -> (Vec<f32>, Report) {
    let pv = problem.pv().unwrap_or(PvFormat::Fp8);
    let (kernel, pv) = match problem.codes() {
        None => ("cpu_exact_fwd".to_owned(), None),
        Some(precision) => (format!("cpu_{}_{}_fwd", precision.name(), pv.name()), Some(pv)),
    };
    let mut report = Report::new(problem, kernel, "cpu".into(), pv);
    let start = Instant::now();
    let tensors = [q.host(), k.host(), v.host()];
    let lse = match out.contiguous() {
        Some(out) if problem.is_plain() && problem.sequences().is_none() => {
            attend_plain(problem, tensors, out, &mut report)
        }
        _ => {
            let result = match problem.sequences() {
                None => attend(problem, tensors, side, 0, &mut report),
                Some(_) => attend_packed(problem, tensors, side, &mut report),
            };
            out.store_f32(&result.out);
            result.lse
        }
    };
    report.e2e_ms = milliseconds(start);
    (lse, report)
}

/// Every packed sequence by itself.
fn attend_packed(
    problem: &Problem,
    [q, k, v]: [HostTensor<'_>; 3],
    side: &SideInputs<'_>,
    report: &mut Report,
) -> Output {
    let (dims, head_dim) = (problem.dims(), problem.dims().head_dim);
    let rows = problem.lse_elems();
    let mut result = Output { out: vec![0.0; rows * head_dim], lse: vec![f32::NEG_INFINITY; rows] };
    let sequences = problem
        .sequences()
        .into_iter()
        .flat_map(|sequences| (0..sequences.len()).map(move |index| (index, sequences.q(index), sequences.kv(index))));
    for (index, rows, keys) in sequences {
        let Some(of_sequence) = problem.sequence(index) else { continue };
        let tensors = [q.from_token(rows.start), k.from_token(keys.start), v.from_token(keys.start)];
        let part = attend(&of_sequence, tensors, side, index, report);
        for head in 0..dims.num_heads_q {
            let (from, to) = (head * rows.len(), head * dims.seqlen_q + rows.start);
            result.lse[to..to + rows.len()].copy_from_slice(&part.lse[from..from + rows.len()]);
            let out = &mut result.out[to * head_dim..(to + rows.len()) * head_dim];
            out.copy_from_slice(&part.out[from * head_dim..(from + rows.len()) * head_dim]);
        }
    }
    result
}

/// One batch of sequences of equal lengths, with the side inputs from batch entry `entry` on; adds the
/// time of attention to the report.
fn attend(
    problem: &Problem,
    tensors: [HostTensor<'_>; 3],
    side: &SideInputs<'_>,
    entry: usize,
    report: &mut Report,
) -> Output {
    let dims = problem.dims();
    if problem.is_plain() {
        let mut out = vec![0.0; dims.batch * dims.num_heads_q * dims.seqlen_q * dims.head_dim];
        let lse = attend_plain(problem, tensors, OutputMut::F32(&mut out), report);
        return Output { out, lse };
    }
    let [q, k, v] = tensors;
    let modifiers = side.host(dims, problem.modifiers(), entry);
    let (causal, sm_scale) = (problem.causal(), problem.sm_scale());
    let Some(precision) = problem.codes() else {
        let attended = Instant::now();
        let result = reference::attention_f32_with(dims, &q, &k, &v, causal, sm_scale, &modifiers);
        report.kernel_ms += milliseconds(attended);
        return result;
    };
    let options = options(problem, precision);
    let quantized = reference::quantize(dims, &q, &k, &v, &options);
    let attended = Instant::now();
    let result = reference::attention_quantized_with(dims, &quantized, &k, &options, &modifiers);
    report.kernel_ms += milliseconds(attended);
    result
}

/// Attention without modifiers, which the vectorised back end computes; adds its time to the report.
fn attend_plain(
    problem: &Problem,
    [q, k, v]: [HostTensor<'_>; 3],
    out: OutputMut<'_>,
    report: &mut Report,
) -> Vec<f32> {
    let (path, dims) = (Path::best(), problem.dims());
    let Some(precision) = problem.codes() else {
        let attended = Instant::now();
        let lse = cpu::attention_exact(path, dims, [&q, &k, &v], problem.causal(), problem.sm_scale(), out);
        report.kernel_ms += milliseconds(attended);
        return lse;
    };
    let options = options(problem, precision);
    let quantized = cpu::quantize(path, dims, [&q, &k, &v], &options);
    let attended = Instant::now();
    let lse = cpu::attention_quantized(path, dims, &quantized, &k, &options, out);
    report.kernel_ms += milliseconds(attended);
    lse
}

/// What the quantizers and attention need to know of `problem`.
fn options(problem: &Problem, precision: sage_spec::Precision) -> Options {
    let smoothing = problem.smoothing();
    Options {
        causal: problem.causal(),
        sm_scale: problem.sm_scale(),
        precision,
        granularity: problem.granularity(),
        pv: problem.pv().unwrap_or(PvFormat::Fp8),
        smooth_q: smoothing.q,
        smooth_k: smoothing.k,
        smooth_v: smoothing.v,
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
