//! Attention of host tensors on a GPU.

use super::report::Report;
use super::tensor::{TensorView, TensorViewMut};
use crate::device::Gpu;
use crate::error::Error;
use crate::plan::Plan;

/// Computes `plan` into `out`; returns the log-sum-exp if the plan has one, and the report.
pub fn run(
    gpu: &Gpu,
    plan: &Plan,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
    out: &mut TensorViewMut<'_>,
) -> Result<(Option<Vec<f32>>, Report), Error> {
    let result = gpu.run_host(plan, q.span_bytes()?, k.span_bytes()?, v.span_bytes()?)?;
    out.store_bytes(&result.out);
    let stem = plan.stem();
    let device = format!("cuda:{}", gpu.ordinal());
    let mut report = Report::new(plan.problem(), stem.name.into(), device, Some(stem.pv));
    report.kernel_ms = result.kernel_ms;
    report.e2e_ms = result.e2e_ms;
    Ok((result.lse, report))
}
