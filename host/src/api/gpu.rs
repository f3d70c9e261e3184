//! Attention of host tensors on a GPU.

use super::report::Report;
use super::side::SideInputs;
use super::tensor::{TensorView, TensorViewMut};
use crate::device::{Gpu, HostResult};
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

/// Computes the sequences of `plan` one after the other.
pub fn run_packed(
    gpu: &Gpu,
    plan: &PackedPlan,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    side: &SideInputs<'_>,
    out: &mut TensorViewMut<'_>,
) -> Result<(Option<Vec<f32>>, Report), Error> {
    let problem = plan.problem();
    let dims = problem.dims();
    let width = dims.head_dim * problem.out().dtype.bytes();
    let mut bytes = vec![0; dims.num_heads_q * dims.seqlen_q * width];
    let mut lse = problem.return_lse().then(|| vec![f32::NEG_INFINITY; problem.lse_elems()]);
    let (mut kernel_ms, mut e2e_ms) = (0.0, 0.0);
    for (index, part) in plan.parts() {
        let (rows, keys) = (plan.sequences().q(*index), plan.sequences().kv(*index));
        let (q, k, v) = (q.bytes_from(rows.start)?, k.bytes_from(keys.start)?, v.bytes_from(keys.start)?);
        let HostResult { out, lse: of_part, kernel_ms: kernel, e2e_ms: e2e } =
            gpu.run_host_with(part, q, k, v, &side.bytes(problem, *index))?;
        // The part lies in memory as the whole does, so its rows are as far apart.
        for head in 0..dims.num_heads_q {
            let from = head * dims.seqlen_q * width;
            let to = from + rows.start * width;
            bytes[to..to + rows.len() * width].copy_from_slice(&out[from..from + rows.len() * width]);
            if let (Some(lse), Some(of_part)) = (&mut lse, &of_part) {
                let to = head * dims.seqlen_q + rows.start;
                lse[to..to + rows.len()].copy_from_slice(&of_part[head * rows.len()..(head + 1) * rows.len()]);
            }
        }
        kernel_ms += kernel;
        e2e_ms += e2e;
    }
    out.store_bytes(&bytes);
    let name = plan.parts().first().map_or("none", |(_, part)| part.stem().name);
    let pv = plan.parts().first().map(|(_, part)| part.stem().pv);
    let device = format!("cuda:{}", gpu.ordinal());
    Ok((lse, Report { kernel_ms, e2e_ms, ..Report::new(problem, name.into(), device, pv) }))
}
