//! The layers of transformers besides attention, on rows of f32 and in parallel over rows.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::{ModelError, Weights};

/// Rows that one task of a matrix product takes: enough that packing the weights is a small part.
const ROWS_PER_TASK: usize = 256;

/// `y = x Wᵀ + b`.
///
/// Example: [`Weights`].
pub struct Linear {
    inputs: usize,
    outputs: usize,
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    /// `[outputs]`, or nothing.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `<name>.weight` `[outputs, inputs]` and, if `bias`, `<name>.bias` `[outputs]`.
    ///
    /// # Errors
    ///
    /// Those of [`Weights::tensor`].
    pub fn load(
        weights: &Weights,
        name: &str,
        [inputs, outputs]: [usize; 2],
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let weight = weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = match bias {
            true => Some(weights.tensor(&format!("{name}.bias"), &[outputs])?),
            false => None,
        };
        Ok(Linear { inputs, outputs, weight, bias })
    }

    /// Features of a row of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x` is `[rows, inputs]`; the result `[rows, outputs]`.
    ///
    /// # Panics
    ///
    /// If `x` is not whole rows.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        assert_eq!(x.len(), rows * self.inputs, "not whole rows of {}", self.inputs);
        let mut y = vec![0.0; rows * self.outputs];
        match rows {
            1 => self.row(x, &mut y),
            _ => x
                .par_chunks(ROWS_PER_TASK * self.inputs)
                .zip(y.par_chunks_mut(ROWS_PER_TASK * self.outputs))
                .for_each(|(x, y)| self.rows(x, y)),
        }
        y
    }

    fn rows(&self, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.inputs;
        let beta = match &self.bias {
            Some(bias) => {
                y.chunks_exact_mut(self.outputs).for_each(|y| y.copy_from_slice(bias));
                1.0
            }
            None => 0.0,
        };
        let matrices = (
            ArrayView2::from_shape((rows, self.inputs), x),
            ArrayView2::from_shape((self.outputs, self.inputs), &self.weight),
            ArrayViewMut2::from_shape((rows, self.outputs), y),
        );
        // The lengths are those of the shapes, so all three are matrices.
        if let (Ok(x), Ok(weight), Ok(mut y)) = matrices {
            general_mat_mul(1.0, &x, &weight.t(), beta, &mut y);
        }
    }

    /// One row, where packing the weights for a matrix product would cost more than the product.
    fn row(&self, x: &[f32], y: &mut [f32]) {
        for (index, (y, weight)) in y.iter_mut().zip(self.weight.chunks_exact(self.inputs)).enumerate() {
            *y = dot(x, weight) + self.bias.as_ref().map_or(0.0, |bias| bias[index]);
        }
    }
}

/// Dot product with independent sums, which the compiler turns into vectors.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (x_chunks, y_chunks) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest: f32 = x_chunks.remainder().iter().zip(y_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x_chunks.zip(y_chunks) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// `x / rms(x) · weight`, row by row.
///
/// Example: [`Weights`].
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// `<name>.weight` `[features]`.
    ///
    /// # Errors
    ///
    /// Those of [`Weights::tensor`].
    pub fn load(weights: &Weights, name: &str, features: usize, eps: f32) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: weights.tensor(&format!("{name}.weight"), &[features])?, eps })
    }

    /// `x` and the result are `[rows, features]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let features = self.weight.len();
        let mut y = vec![0.0; x.len()];
        x.par_chunks(features).zip(y.par_chunks_mut(features)).with_min_len(ROWS_PER_TASK).for_each(|(x, y)| {
            let scale = 1.0 / (dot(x, x) / features as f32 + self.eps).sqrt();
            for ((y, x), weight) in y.iter_mut().zip(x).zip(&self.weight) {
                *y = x * scale * weight;
            }
        });
        y
    }
}

/// `silu(gate) · up`, element by element, into `gate`.
///
/// ```
/// let mut gate = [0.0, 1.0];
/// sage_attn::models::ops::swiglu(&mut gate, &[2.0, 2.0]);
/// assert!(gate[0] == 0.0 && (gate[1] - 1.462_117).abs() < 1e-5);
/// ```
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    gate.par_iter_mut().zip(up).with_min_len(1 << 14).for_each(|(gate, up)| *gate *= up / (1.0 + (-*gate).exp()));
}

/// `x += y`, element by element.
///
/// ```
/// let mut x = [1.0, 2.0];
/// sage_attn::models::ops::add(&mut x, &[0.5, 0.5]);
/// assert_eq!(x, [1.5, 2.5]);
/// ```
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `[batch, heads, tokens, features]` as `[batch, tokens, heads, features]`.
///
/// ```
/// use sage_attn::models::ops::token_major;
/// // Two heads of one feature for three tokens.
/// assert_eq!(token_major(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 2, 3, 1]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// ```
pub fn token_major(x: &[f32], [batch, heads, tokens, features]: [usize; 4]) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for (entry, token) in (0..batch * tokens).map(|row| (row / tokens, row % tokens)) {
        for head in 0..heads {
            y.extend_from_slice(&x[((entry * heads + head) * tokens + token) * features..][..features]);
        }
    }
    y
}
