//! The encoder of all-MiniLM-L6-v2: BERT with 6 layers of hidden size 384, 12 heads of 32 features.

use std::path::Path;

use sage_attn::models::ops::{Linear, add, token_major};
use sage_attn::models::{ModelError, Weights};
use sage_attn::{Error, Layout, Tensor, TensorView};

pub const LAYERS: usize = 6;
const HEADS: usize = 12;
const HEAD_DIM: usize = 32;
const HIDDEN: usize = HEADS * HEAD_DIM;
const MLP: usize = 1536;
/// Tokens the model can see.
pub const CONTEXT: usize = 512;
const EPS: f32 = 1e-12;

/// Computes the attention of a layer: of q, k and v `[1, 12, tokens, 32]`, without a mask.
pub type Attend<'a> = dyn FnMut(usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> + 'a;

pub struct Encoder {
    /// `[vocabulary, HIDDEN]`.
    words: Vec<f32>,
    /// `[CONTEXT, HIDDEN]`.
    positions: Vec<f32>,
    /// `[2, HIDDEN]`; a sentence by itself is of the first type.
    types: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

impl Layer {
    fn load(weights: &Weights, index: usize) -> Result<Layer, ModelError> {
        let linear = |name: &str, shape| Linear::load(weights, &format!("encoder.layer.{index}.{name}"), shape, true);
        let norm = |name: &str| LayerNorm::load(weights, &format!("encoder.layer.{index}.{name}"));
        Ok(Layer {
            query: linear("attention.self.query", [HIDDEN, HIDDEN])?,
            key: linear("attention.self.key", [HIDDEN, HIDDEN])?,
            value: linear("attention.self.value", [HIDDEN, HIDDEN])?,
            output: linear("attention.output.dense", [HIDDEN, HIDDEN])?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: linear("intermediate.dense", [HIDDEN, MLP])?,
            down: linear("output.dense", [MLP, HIDDEN])?,
            norm: norm("output.LayerNorm")?,
        })
    }
}

impl Encoder {
    /// Reads the weights at `path`, which have `vocabulary` words.
    pub fn load(path: &Path, vocabulary: usize) -> Result<Encoder, ModelError> {
        let weights = Weights::open(path)?;
        let embedding = |name: &str, rows| weights.tensor(&format!("embeddings.{name}.weight"), &[rows, HIDDEN]);
        Ok(Encoder {
            words: embedding("word_embeddings", vocabulary)?,
            positions: embedding("position_embeddings", CONTEXT)?,
            types: embedding("token_type_embeddings", 2)?,
            norm: LayerNorm::load(&weights, "embeddings.LayerNorm")?,
            layers: (0..LAYERS).map(|index| Layer::load(&weights, index)).collect::<Result<_, _>>()?,
        })
    }

    /// The embedding of a sentence, of length 1: the mean of its tokens' last states. `tokens` are
    /// numbers of the vocabulary, 1 to 512 of them.
    pub fn embed(&self, tokens: &[u32], attend: &mut Attend<'_>) -> Result<Vec<f32>, ModelError> {
        if tokens.is_empty() || tokens.len() > CONTEXT {
            return Err(ModelError::Context { tokens: tokens.len(), context: CONTEXT });
        }
        let mut x = Vec::with_capacity(tokens.len() * HIDDEN);
        for (&token, position) in tokens.iter().zip(self.positions.chunks_exact(HIDDEN)) {
            let word = &self.words[token as usize * HIDDEN..][..HIDDEN];
            x.extend(
                word.iter().zip(position).zip(&self.types).map(|((word, position), of_type)| word + position + of_type),
            );
        }
        self.norm.apply(&mut x);
        let shape = [1, tokens.len(), HEADS, HEAD_DIM];
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = (layer.query.forward(&x), layer.key.forward(&x), layer.value.forward(&x));
            let view = |x| TensorView::new(x, &shape, Layout::Nhd);
            let (q, k, v) = (view(&q)?, view(&k)?, view(&v)?);
            let attended = attend(index, [&q, &k, &v])?;
            add(&mut x, &layer.output.forward(&token_major(&attended.to_f32(), attended.shape())));
            layer.attention_norm.apply(&mut x);
            let mut inner = layer.up.forward(&x);
            inner.iter_mut().for_each(|x| *x = gelu(*x));
            add(&mut x, &layer.down.forward(&inner));
            layer.norm.apply(&mut x);
        }
        let mut mean = vec![0.0; HIDDEN];
        x.chunks_exact(HIDDEN).for_each(|token| add(&mut mean, token));
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        Ok(mean.into_iter().map(|x| x / length).collect())
    }
}

/// `(x − mean) / deviation · weight + bias`, token by token.
struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str) -> Result<LayerNorm, ModelError> {
        let tensor = |part| weights.tensor(&format!("{name}.{part}"), &[HIDDEN]);
        Ok(LayerNorm { weight: tensor("weight")?, bias: tensor("bias")? })
    }

    fn apply(&self, x: &mut [f32]) {
        for token in x.chunks_exact_mut(HIDDEN) {
            let mean = token.iter().sum::<f32>() / HIDDEN as f32;
            let variance = token.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / HIDDEN as f32;
            let scale = 1.0 / (variance + EPS).sqrt();
            for ((x, weight), bias) in token.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
    }
}

/// `x Φ(x)`.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
}

/// Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26; off by at most 1.5e-7.
fn erf(x: f64) -> f64 {
    const A: [f64; 5] = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let polynomial = A.iter().rev().fold(0.0, |sum, a| (sum + a) * t);
    (1.0 - polynomial * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_known_values() {
        // Handbook of Mathematical Functions, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265)] {
            assert!((erf(x) - expected).abs() < 2e-7, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + expected).abs() < 2e-7);
        }
    }

    #[test]
    fn layer_norm_centres_and_scales() {
        let norm = LayerNorm { weight: vec![2.0; HIDDEN], bias: vec![1.0; HIDDEN] };
        let mut x: Vec<f32> = (0..HIDDEN).map(|i| if i % 2 == 0 { 5.0 } else { 3.0 }).collect();
        norm.apply(&mut x);
        assert!((x[0] - 3.0).abs() < 1e-5 && (x[1] + 1.0).abs() < 1e-5, "{} {}", x[0], x[1]);
    }
}
