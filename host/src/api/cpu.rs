//! Attention on the CPU: the fast path where it computes what is asked, the reference where there are
//! modifiers or where a GPU's kernel was named.

use std::time::Instant;

use sage_spec::PvFormat;
use sage_spec::symbol::{Arch, Stem};

use super::report::Report;
use super::side::SideInputs;
use super::tensor::{TensorView, TensorViewMut};
use crate::cpu::{self, OutputMut, Path};
use crate::error::Error;
use crate::plan::check_heads;
use crate::problem::Problem;
use crate::reference::{self, HostTensor, Options};

/// Computes `problem` into `out`; returns the log-sum-exp of every row and the report.
///
/// # Errors
///
/// [`crate::error::PlanError::Modifiers`] if a kernel was named that does not take heads as wide.
pub fn run(
    problem: &Problem,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    side: &SideInputs<'_>,
    out: &mut TensorViewMut<'_>,
) -> Result<(Vec<f32>, Report), Error> {
    let pv = problem.pv().unwrap_or(PvFormat::Fp8);
    let (kernel, pv) = match (problem.codes(), problem.kernel()) {
        (None, _) => ("cpu_exact_fwd".to_owned(), None),
        (Some(precision), None) => (format!("cpu_{}_{}_fwd", precision.name(), pv.name()), Some(pv)),
        (Some(_), Some(stem)) => {
            check_heads(problem, &stem)?;
            (stem.name.to_owned(), Some(pv))
        }
    };
    let mut report = Report::new(problem, kernel, "cpu".into(), pv);
    if problem.is_empty() {
        // The extents that are not zero may be anything.
        return Ok((Vec::new(), report));
    }
    let tensors = [q.host(), k.host(), v.host()];
    let start = Instant::now();
    let lse = match out.contiguous() {
        Some(out) if is_fast(problem) && problem.sequences().is_none() => {
            attend_plain(problem, tensors, out, &mut report)
        }
        _ => {
            let mut copy = vec![0.0; q.spec().output_shape(v.spec()).iter().product()];
            let lse = match problem.sequences() {
                None => attend(problem, tensors, side, 0, &mut copy, &mut report),
                Some(_) => attend_packed(problem, tensors, side, &mut copy, &mut report),
            };
            out.store_f32(&copy);
            lse
        }
    };
    report.e2e_ms = milliseconds(start);
    Ok((lse, report))
}

/// Whether the fast path computes `problem`: without modifiers, and with numerics of its own.
fn is_fast(problem: &Problem) -> bool {
    problem.is_plain() && problem.kernel().is_none()
}

/// Every packed sequence by itself.
fn attend_packed(
    problem: &Problem,
    [q, k, v]: [HostTensor<'_>; 3],
    side: &SideInputs<'_>,
    out: &mut [f32],
    report: &mut Report,
) -> Vec<f32> {
    let (dims, head_dim) = (problem.dims(), problem.dims().head_dim_v);
    let mut lse = vec![f32::NEG_INFINITY; problem.lse_elems()];
    let sequences = problem
        .sequences()
        .into_iter()
        .flat_map(|sequences| (0..sequences.len()).map(move |index| (index, sequences.q(index), sequences.kv(index))));
    for (index, rows, keys) in sequences {
        let Some(of_sequence) = problem.sequence(index) else { continue };
        let tensors = [q.from_token(rows.start), k.from_token(keys.start), v.from_token(keys.start)];
        let mut part = vec![0.0; dims.num_heads_q * rows.len() * head_dim];
        let part_lse = attend(&of_sequence, tensors, side, index, &mut part, report);
        for head in 0..dims.num_heads_q {
            let (from, to) = (head * rows.len(), head * dims.seqlen_q + rows.start);
            lse[to..to + rows.len()].copy_from_slice(&part_lse[from..from + rows.len()]);
            let out = &mut out[to * head_dim..(to + rows.len()) * head_dim];
            out.copy_from_slice(&part[from * head_dim..(from + rows.len()) * head_dim]);
        }
    }
    lse
}

/// One batch of sequences of equal lengths, with the side inputs from batch entry `entry` on, into
/// contiguous `out`; adds the time of attention to the report.
fn attend(
    problem: &Problem,
    tensors: [HostTensor<'_>; 3],
    side: &SideInputs<'_>,
    entry: usize,
    out: &mut [f32],
    report: &mut Report,
) -> Vec<f32> {
    if is_fast(problem) {
        return attend_plain(problem, tensors, OutputMut::F32(out), report);
    }
    let ([q, k, v], dims) = (tensors, problem.dims());
    let modifiers = side.host(dims, problem.modifiers(), entry);
    let (attended, result) = match options(problem) {
        None => {
            let (causal, sm_scale) = (problem.causal(), problem.sm_scale());
            (Instant::now(), reference::attention_f32_with(dims, &q, &k, &v, causal, sm_scale, &modifiers))
        }
        Some(options) => {
            let quantized = reference::quantize(dims, &q, &k, &v, &options);
            let attended = Instant::now();
            let result = match problem.kernel() {
                Some(Stem { arch: Arch::Sm90a, exponential, .. }) => {
                    reference::attention_quantized_sm90_with(dims, &quantized, &k, &options, exponential, &modifiers)
                }
                _ => reference::attention_quantized_with(dims, &quantized, &k, &options, &modifiers),
            };
            (attended, result)
        }
    };
    report.kernel_ms += milliseconds(attended);
    out.copy_from_slice(&result.out);
    result.lse
}

/// [`attend`] without modifiers.
fn attend_plain(
    problem: &Problem,
    [q, k, v]: [HostTensor<'_>; 3],
    out: OutputMut<'_>,
    report: &mut Report,
) -> Vec<f32> {
    let (path, dims) = (Path::best(), problem.dims());
    let (attended, lse) = match options(problem) {
        None => {
            let (causal, sm_scale) = (problem.causal(), problem.sm_scale());
            (Instant::now(), cpu::attention_exact(path, dims, [&q, &k, &v], causal, sm_scale, out))
        }
        Some(options) => {
            let quantized = cpu::quantize_kv(path, dims, [&q, &k, &v], &options);
            (Instant::now(), cpu::attention_with_queries(path, dims, &quantized, [&q, &k], &options, out))
        }
    };
    report.kernel_ms += milliseconds(attended);
    lse
}

/// How to quantize; `None` if the precision is exact.
fn options(problem: &Problem) -> Option<Options> {
    let smoothing = problem.smoothing();
    Some(Options {
        causal: problem.causal(),
        sm_scale: problem.sm_scale(),
        precision: problem.codes()?,
        granularity: problem.granularity(),
        pv: problem.pv().unwrap_or(PvFormat::Fp8),
        smooth_q: smoothing.q,
        smooth_k: smoothing.k,
        smooth_v: smoothing.v,
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
