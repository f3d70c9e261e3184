//! Any request is a problem that keeps its promises, or is refused.

use sage_attn::error::Operand;
use sage_attn::problem::{Problem, Request};

use crate::bytes::Bytes;
use crate::outcome::{Outcome, check_message};
use crate::request::request;

/// The target.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    if let Err(Outcome::Refused(error)) = validate(request(&mut bytes)) {
        check_message(&error);
    }
}

/// The problem of `request`, checked.
pub fn validate(request: Request) -> Result<Problem, Outcome> {
    let asked = request.clone();
    let problem = Problem::new(request).map_err(Outcome::Refused)?;
    check(&problem, &asked);
    Ok(problem)
}

/// Everything that a problem promises about itself.
fn check(problem: &Problem, asked: &Request) {
    let dims = problem.dims();
    assert_eq!(problem.q().shape, [dims.batch, dims.num_heads_q, dims.seqlen_q, dims.head_dim]);
    assert_eq!(problem.k().shape, [dims.batch, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim]);
    assert_eq!(problem.v().shape, [dims.batch, dims.num_heads_kv, dims.seqlen_kv, dims.head_dim_v]);
    assert_eq!(problem.out().shape, [dims.batch, dims.num_heads_q, dims.seqlen_q, dims.head_dim_v]);
    assert!(problem.sm_scale().is_finite() && problem.sm_scale() >= 0.0);
    assert!(asked.sm_scale.is_none_or(|asked| asked == problem.sm_scale()));
    let tensors = [
        (Operand::Q, problem.q()),
        (Operand::K, problem.k()),
        (Operand::V, problem.v()),
        (Operand::Out, problem.out()),
    ];
    for (operand, spec) in tensors {
        let span = spec.span_elems(operand).expect("a checked tensor spans what i64 can say");
        let bytes = span.checked_mul(spec.dtype.bytes()).expect("bytes");
        assert!(i64::try_from(bytes).is_ok());
        let elems: u128 = spec.shape.iter().map(|&extent| extent as u128).product();
        // Every element of the output has memory of its own.
        assert!(operand != Operand::Out || elems <= span as u128, "{spec:?}");
    }
    assert_eq!(problem.lse_elems() == 0, problem.is_empty());
    let flops = problem.flops();
    assert!(flops.is_finite() && flops >= 0.0, "{flops}");
    let band = problem.band();
    for row in [0, dims.seqlen_q / 2, dims.seqlen_q.saturating_sub(1)] {
        let (first, end) = band.keys(row);
        assert!(first <= end && end <= dims.seqlen_kv);
    }
    let (first, end) = band.params();
    assert!(first < i32::MAX && end > i32::MIN);
    let _ = (problem.needs_whole_scores(), problem.pv(), problem.smoothing().name());
}
