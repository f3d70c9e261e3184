//! A block: attention and an MLP, each normalised, modulated and gated.

use rayon::prelude::*;

use super::rotary::Rotary;
use super::{HEAD_DIM, HEADS, HIDDEN, MODULATIONS, TOKENS};
use crate::api::{Tensor, TensorView};
use crate::error::Error;
use crate::models::ops::{Linear, token_major};
use crate::models::{ModelError, Weights};
use crate::problem::Layout;

/// Inner width of the MLP.
const MLP: usize = 4 * HIDDEN;
const RMS_EPS: f32 = 1e-6;
/// Rows that one task of an element-wise operation takes.
const ROWS_PER_TASK: usize = 64;

/// Attention of q, k and v `[images, HEADS, TOKENS, HEAD_DIM]`.
type Attend<'a> = dyn FnMut([&TensorView<'_>; 3]) -> Result<Tensor, Error> + 'a;

pub struct Block {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    up_proj: Linear,
    down_proj: Linear,
    /// `[MODULATIONS, HIDDEN]`, added to the shared modulation.
    table: Vec<f32>,
}

impl Block {
    pub fn load(weights: &Weights, index: usize) -> Result<Block, ModelError> {
        let linear = |name: &str, shape| Linear::load(weights, &format!("blocks.{index}.{name}"), shape, false);
        let tensor = |name: &str, shape: &[usize]| weights.tensor(&format!("blocks.{index}.{name}"), shape);
        Ok(Block {
            q_proj: linear("q_proj", [HIDDEN, HIDDEN])?,
            k_proj: linear("k_proj", [HIDDEN, HIDDEN])?,
            v_proj: linear("v_proj", [HIDDEN, HIDDEN])?,
            o_proj: linear("o_proj", [HIDDEN, HIDDEN])?,
            q_norm: tensor("q_norm.weight", &[HEAD_DIM])?,
            k_norm: tensor("k_norm.weight", &[HEAD_DIM])?,
            up_proj: linear("up_proj", [HIDDEN, MLP])?,
            down_proj: linear("down_proj", [MLP, HIDDEN])?,
            table: tensor("table", &[MODULATIONS, HIDDEN])?,
        })
    }

    /// `x` is `[images, TOKENS, HIDDEN]`, `shared` `[images, MODULATIONS, HIDDEN]`.
    pub fn forward(
        &self,
        x: &mut [f32],
        shared: &[f32],
        rotary: &Rotary,
        attend: &mut Attend<'_>,
    ) -> Result<(), ModelError> {
        let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] = self.modulations(shared);
        let h = modulated(x, &shift, &scale);
        let mut q = self.q_proj.forward(&h);
        let mut k = self.k_proj.forward(&h);
        let v = self.v_proj.forward(&h);
        normalise_heads(&mut q, &self.q_norm);
        normalise_heads(&mut k, &self.k_norm);
        rotary.rotate(&mut q, HEADS);
        rotary.rotate(&mut k, HEADS);

        let shape = [x.len() / (TOKENS * HIDDEN), TOKENS, HEADS, HEAD_DIM];
        let view = |x| TensorView::new(x, &shape, Layout::Nhd);
        let (q, k, v) = (view(&q)?, view(&k)?, view(&v)?);
        let attended = attend([&q, &k, &v])?;
        if attended.shape() != q.spec().shape {
            return Err(ModelError::Attended { shape: attended.shape(), expected: q.spec().shape });
        }
        let attended = token_major(&attended.to_f32(), attended.shape());
        add_gated(x, &self.o_proj.forward(&attended), &gate);

        let mut inner = self.up_proj.forward(&modulated(x, &shift_mlp, &scale_mlp));
        inner.par_iter_mut().with_min_len(1 << 14).for_each(|x| *x = gelu_tanh(*x));
        add_gated(x, &self.down_proj.forward(&inner), &gate_mlp);
        Ok(())
    }

    /// The block's modulations, each `[images, HIDDEN]`.
    fn modulations(&self, shared: &[f32]) -> [Vec<f32>; MODULATIONS] {
        std::array::from_fn(|row| {
            let table = &self.table[row * HIDDEN..][..HIDDEN];
            let images = shared.chunks_exact(MODULATIONS * HIDDEN);
            images.flat_map(|image| image[row * HIDDEN..][..HIDDEN].iter().zip(table).map(|(s, t)| s + t)).collect()
        })
    }
}

/// `x / rms(x) · (1 + scale) + shift`, row by row; shift and scale are those of the row's image.
pub fn modulated(x: &[f32], shift: &[f32], scale: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let rows = x.par_chunks(HIDDEN).zip(y.par_chunks_mut(HIDDEN)).enumerate();
    rows.with_min_len(ROWS_PER_TASK).for_each(|(row, (x, y))| {
        let image = row / TOKENS * HIDDEN..(row / TOKENS + 1) * HIDDEN;
        let norm = inverse_rms(x);
        for (((y, x), shift), scale) in y.iter_mut().zip(x).zip(&shift[image.clone()]).zip(&scale[image]) {
            *y = x * norm * (1.0 + scale) + shift;
        }
    });
    y
}

/// `x += gate · y`, row by row; the gate is that of the row's image.
fn add_gated(x: &mut [f32], y: &[f32], gate: &[f32]) {
    let rows = x.par_chunks_mut(HIDDEN).zip(y.par_chunks(HIDDEN)).enumerate();
    rows.with_min_len(ROWS_PER_TASK).for_each(|(row, (x, y))| {
        let gate = &gate[row / TOKENS * HIDDEN..][..HIDDEN];
        for ((x, y), gate) in x.iter_mut().zip(y).zip(gate) {
            *x += gate * y;
        }
    });
}

/// `x / rms(x) · weight` for each head.
fn normalise_heads(x: &mut [f32], weight: &[f32]) {
    x.par_chunks_mut(HEAD_DIM).with_min_len(HEADS * ROWS_PER_TASK).for_each(|head| {
        let norm = inverse_rms(head);
        head.iter_mut().zip(weight).for_each(|(x, weight)| *x *= norm * weight);
    });
}

fn inverse_rms(x: &[f32]) -> f32 {
    let squares: f32 = x.iter().map(|x| x * x).sum();
    1.0 / (squares / x.len() as f32 + RMS_EPS).sqrt()
}

/// The tanh approximation of GELU, `x / 2 · (1 + tanh u) = x / (1 + e^(−2u))`.
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + (-2.0 * u).exp())
}
