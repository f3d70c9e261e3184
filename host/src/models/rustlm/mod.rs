//! RustLM: a byte-level language model of Rust source, 7.6 M parameters.
//!
//! A decoder-only transformer: 8 layers of hidden size 256, 4 query heads that share 2 key/value heads
//! of 128 features, SwiGLU, RMSNorm, rotary positions in the rotate-half convention, a context of 4,096
//! tokens; a token is a byte. Its keys have strong channel offsets, as those of larger models do.

mod cache;
mod evaluate;
mod generate;
mod rope;

use std::path::Path;

pub use cache::KvCache;
pub use evaluate::{Evaluation, Windows};
pub use generate::{Generation, Sampler};

use rope::Rope;

use super::ops::{self, Linear, RmsNorm};
use super::{ModelError, Weights};
use crate::api::{Tensor, TensorView};
use crate::error::Error;
use crate::problem::Layout;

/// Width of the residual stream.
const HIDDEN: usize = 256;
/// Attention layers.
pub const LAYERS: usize = 8;
/// Query heads.
pub const HEADS_Q: usize = 4;
/// Key/value heads.
pub const HEADS_KV: usize = 2;
/// Features of a head.
pub const HEAD_DIM: usize = 128;
/// Inner width of the MLP.
const MLP: usize = 704;
/// Tokens the model can see.
pub const CONTEXT: usize = 4096;
/// Values of a token.
pub const VOCABULARY: usize = 256;
const RMS_EPS: f32 = 1e-6;
const ROPE_THETA: f64 = 10_000.0;

/// What the metadata of the weights must say.
const METADATA: [(&str, &str); 10] = [
    ("arch", "rustlm"),
    ("hidden_size", "256"),
    ("num_hidden_layers", "8"),
    ("num_attention_heads", "4"),
    ("num_key_value_heads", "2"),
    ("head_dim", "128"),
    ("intermediate_size", "704"),
    ("vocab_size", "256"),
    ("max_position_embeddings", "4096"),
    ("rope_theta", "10000"),
];

/// Computes the attention of a layer: of `q` `[1, 4, M, 128]` over `k` and `v` `[1, 2, N, 128]`, causal;
/// N − M tokens came before. The result has the shape of `q`.
///
/// Example: [`RustLm`].
pub type Attend<'a> = dyn FnMut(usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> + 'a;

/// The model.
///
/// ```
/// use sage_attn::models::rustlm::{KvCache, RustLm};
/// use sage_attn::{Attention, Precision, TensorView};
///
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/rustlm.safetensors");
/// let model = RustLm::load(path.as_ref())?;
/// let mut cache = KvCache::new(16)?;
/// let attention = Attention::new().causal(true).precision(Precision::Int8);
/// let mut attend = |_layer: usize, [q, k, v]: [&TensorView<'_>; 3]| Ok(attention.forward(q, k, v)?.out);
/// let hidden = model.forward(b"fn main(", &mut cache, &mut attend)?;
/// let logits = model.logits(&hidden[hidden.len() - 256..]);
/// assert_eq!(logits.len(), 256); // what may follow
/// assert!(logits[usize::from(b')')] > logits[usize::from(b'q')]);
/// # Ok::<(), sage_attn::models::ModelError>(())
/// ```
pub struct RustLm {
    fingerprint: String,
    /// `[VOCABULARY, HIDDEN]`.
    embed: Vec<f32>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: Rope,
}

struct Layer {
    attn_norm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    mlp_norm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Layer {
    fn load(weights: &Weights, index: usize) -> Result<Layer, ModelError> {
        let norm = |name: &str| RmsNorm::load(weights, &format!("layers.{index}.{name}"), HIDDEN, RMS_EPS);
        let linear = |name: &str, shape, bias| Linear::load(weights, &format!("layers.{index}.{name}"), shape, bias);
        Ok(Layer {
            attn_norm: norm("attn_norm")?,
            q_proj: linear("q_proj", [HIDDEN, HEADS_Q * HEAD_DIM], true)?,
            k_proj: linear("k_proj", [HIDDEN, HEADS_KV * HEAD_DIM], true)?,
            v_proj: linear("v_proj", [HIDDEN, HEADS_KV * HEAD_DIM], true)?,
            o_proj: linear("o_proj", [HEADS_Q * HEAD_DIM, HIDDEN], false)?,
            mlp_norm: norm("mlp_norm")?,
            gate_proj: linear("gate_proj", [HIDDEN, MLP], false)?,
            up_proj: linear("up_proj", [HIDDEN, MLP], false)?,
            down_proj: linear("down_proj", [MLP, HIDDEN], false)?,
        })
    }

    fn mlp(&self, x: &[f32]) -> Vec<f32> {
        let x = self.mlp_norm.forward(x);
        let mut gate = self.gate_proj.forward(&x);
        ops::swiglu(&mut gate, &self.up_proj.forward(&x));
        self.down_proj.forward(&gate)
    }
}

impl RustLm {
    /// Reads the weights at `path`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the file cannot be read, is no safetensors file, describes another model, or
    /// lacks a tensor or has it in another shape.
    pub fn load(path: &Path) -> Result<RustLm, ModelError> {
        let weights = Weights::open(path)?;
        for (key, expected) in METADATA {
            let found = weights.metadata(key).unwrap_or("missing");
            if found != expected {
                let (path, found) = (weights.path().to_owned(), found.to_owned());
                return Err(ModelError::Metadata { path, key, found, expected: expected.to_owned() });
            }
        }
        Ok(RustLm {
            fingerprint: weights.fingerprint(),
            embed: weights.tensor("embed.weight", &[VOCABULARY, HIDDEN])?,
            layers: (0..LAYERS).map(|index| Layer::load(&weights, index)).collect::<Result<_, _>>()?,
            norm: RmsNorm::load(&weights, "norm", HIDDEN, RMS_EPS)?,
            lm_head: Linear::load(&weights, "lm_head", [HIDDEN, VOCABULARY], false)?,
            rope: Rope::new(CONTEXT, HEAD_DIM, ROPE_THETA),
        })
    }

    /// A name for the weights, [`super::fingerprint`] of their file.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Appends `tokens` to what `cache` holds and returns their hidden states, `[tokens, 256]`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Context`] if they do not fit the cache, and what `attend` returns. After an error
    /// the cache holds what it held before.
    pub fn forward(&self, tokens: &[u8], cache: &mut KvCache, attend: &mut Attend<'_>) -> Result<Vec<f32>, ModelError> {
        let past = cache.reserve(tokens.len())?;
        let mut x: Vec<f32> =
            tokens.iter().flat_map(|&token| &self.embed[usize::from(token) * HIDDEN..][..HIDDEN]).copied().collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = self.attention(index, layer, &x, past, cache, attend)?;
            ops::add(&mut x, &layer.o_proj.forward(&attended));
            let inner = layer.mlp(&x);
            ops::add(&mut x, &inner);
        }
        cache.advance(tokens.len());
        Ok(x)
    }

    /// `[tokens, 512]` from `x` `[tokens, 256]`; writes the tokens' keys and values to the cache.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        past: usize,
        cache: &mut KvCache,
        attend: &mut Attend<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        let x = layer.attn_norm.forward(x);
        let mut q = layer.q_proj.forward(&x);
        let mut k = layer.k_proj.forward(&x);
        self.rope.rotate(&mut q, HEADS_Q, past);
        self.rope.rotate(&mut k, HEADS_KV, past);
        cache.write(index, past, &k, &layer.v_proj.forward(&x));

        let tokens = q.len() / (HEADS_Q * HEAD_DIM);
        let q = TensorView::new(&q, &[1, tokens, HEADS_Q, HEAD_DIM], Layout::Nhd)?;
        let [k, v] = cache.views(index, past + tokens)?;
        let out = attend(index, [&q, &k, &v])?;
        if out.shape() != q.spec().shape {
            return Err(ModelError::Attended { shape: out.shape(), expected: q.spec().shape });
        }
        Ok(ops::token_major(&out.to_f32(), out.shape()))
    }

    /// The scores of the next token after each of `hidden`, `[tokens, 256]`: `[tokens, 256]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        self.lm_head.forward(&self.norm.forward(hidden))
    }
}
