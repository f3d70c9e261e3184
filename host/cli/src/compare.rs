//! The truth that results are compared with.

use sage_attn::metrics::Metrics;
use sage_attn::problem::TensorSpec;
use sage_attn::reference::{Modifiers, attention_f64_with};
use sage_attn::{Attention, Layout, Tensor, TensorView};

use super::Failure;
use super::file::Triple;

/// The views of a triple.
pub struct Views<'a> {
    /// Queries.
    pub q: TensorView<'a>,
    /// Keys.
    pub k: TensorView<'a>,
    /// Values.
    pub v: TensorView<'a>,
}

impl<'a> Views<'a> {
    /// Views the tensors of `triple`, their axes in the order of `layout`.
    pub fn new(triple: &'a Triple, layout: Layout) -> Result<Views<'a>, Failure> {
        Ok(Views { q: triple.q.view(layout)?, k: triple.k.view(layout)?, v: triple.v.view(layout)? })
    }

    /// Exact attention of the tensors in f64, contiguous `[B, Hq, M, D]`.
    pub fn exact(&self, prefix: &str, causal: bool) -> Result<Vec<f64>, Failure> {
        self.exact_with(prefix, causal, &Modifiers::default())
    }

    /// [`Views::exact`] with modifiers.
    pub fn exact_with(&self, prefix: &str, causal: bool, modifiers: &Modifiers<'_>) -> Result<Vec<f64>, Failure> {
        let (q, shape) = (self.q.spec(), self.q.spec().output_shape(self.v.spec()));
        let out = TensorSpec::new(sage_attn::error::Operand::Out, q.dtype, &shape, Layout::Hnd)
            .map_err(|error| Failure::attention(prefix, error.into()))?;
        let problem = Attention::new()
            .causal(causal)
            .problem(*self.q.spec(), *self.k.spec(), *self.v.spec(), out)
            .map_err(|error| Failure::attention(prefix, error))?;
        let (dims, scale) = (problem.dims(), f64::from(problem.sm_scale()));
        let (q, k, v) = (self.q.host(), self.k.host(), self.v.host());
        Ok(attention_f64_with(dims, &q, &k, &v, causal, scale, modifiers).out)
    }
}

/// How far `out` is from `exact`.
pub fn metrics(out: &Tensor, exact: &[f64]) -> Metrics {
    Metrics::compare(&out.to_f32(), exact, out.shape()[3])
}
