//! Attention of host tensors on a GPU.

use super::report::Report;
use super::side::SideInputs;
use super::tensor::{TensorView, TensorViewMut};
use crate::device::Gpu;
use crate::error::Error;
use crate::plan::{PackedPlan, Plan};

/// Computes `plan` into `out`; returns the log-sum-exp if the plan has one, and the report.
pub fn run(
    gpu: &Gpu,
    plan: &Plan,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    side: &SideInputs<'_>,
    out: &mut TensorViewMut<'_>,
) -> Result<(Option<Vec<f32>>, Report), Error> {
    let side = side.bytes(plan.problem(), 0);
    let result = gpu.run_host_with(plan, q.span_bytes()?, k.span_bytes()?, v.span_bytes()?, &side)?;
    out.store_bytes(&result.out);
    let (stem, device) = (plan.stem(), format!("cuda:{}", gpu.ordinal()));
    let report = Report::new(plan.problem(), stem.name.into(), device, Some(stem.pv));
    Ok((result.lse, Report { kernel_ms: result.kernel_ms, e2e_ms: result.e2e_ms, ..report }))
}

/// Computes the packed sequences of `plan`.
pub fn run_packed(
    gpu: &Gpu,
    plan: &PackedPlan,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    side: &SideInputs<'_>,
    out: &mut TensorViewMut<'_>,
) -> Result<(Option<Vec<f32>>, Report), Error> {
    let (problem, sequences) = (plan.problem(), plan.sequences());
    let (heads, tokens) = (problem.dims().num_heads_q, problem.dims().seqlen_q);
    let side = side.bytes(problem, 0);
    let result = gpu.run_host_packed(plan, q.span_bytes()?, k.span_bytes()?, v.span_bytes()?, &side)?;
    out.store_bytes(&result.out);
    // From sequence after sequence to head after head.
    let lse = result.lse.map(|of_sequences| {
        let mut lse = vec![f32::NEG_INFINITY; of_sequences.len()];
        for rows in (0..sequences.len()).map(|index| sequences.q(index)) {
            for head in 0..heads {
                let (from, to) = (heads * rows.start + head * rows.len(), head * tokens + rows.start);
                lse[to..to + rows.len()].copy_from_slice(&of_sequences[from..from + rows.len()]);
            }
        }
        lse
    });
    let name = plan.parts().first().map_or("none", |(_, part)| part.stem().name);
    let pv = plan.parts().first().map(|(_, part)| part.stem().pv);
    let report = Report::new(problem, name.into(), format!("cuda:{}", gpu.ordinal()), pv);
    Ok((lse, Report { kernel_ms: result.kernel_ms, e2e_ms: result.e2e_ms, ..report }))
}
