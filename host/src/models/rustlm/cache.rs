//! Keys and values of the tokens so far.

use super::{CONTEXT, HEAD_DIM, HEADS_KV, LAYERS};
use crate::api::TensorView;
use crate::error::Error;
use crate::models::ModelError;
use crate::problem::Layout;

/// Elements of a token's keys in one layer.
const TOKEN: usize = HEADS_KV * HEAD_DIM;

/// The keys (after rotation) and values of a sequence in every layer, f32, token by token.
///
/// Example: [`RustLm`](crate::models::rustlm::RustLm).
#[derive(Clone, Debug)]
pub struct KvCache {
    capacity: usize,
    len: usize,
    /// Per layer, K and V, `[capacity, HEADS_KV, HEAD_DIM]`.
    layers: Vec<[Vec<f32>; 2]>,
}

impl KvCache {
    /// Room for `capacity` tokens, 16 KiB each.
    ///
    /// # Errors
    ///
    /// [`ModelError::Context`] if that is more than the model can see.
    pub fn new(capacity: usize) -> Result<KvCache, ModelError> {
        if capacity > CONTEXT {
            return Err(ModelError::Context { tokens: capacity, context: CONTEXT });
        }
        let layer = || [vec![0.0; capacity * TOKEN], vec![0.0; capacity * TOKEN]];
        Ok(KvCache { capacity, len: 0, layers: (0..LAYERS).map(|_| layer()).collect() })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Checks that `tokens` more fit and returns how many there are already.
    pub(super) fn reserve(&self, tokens: usize) -> Result<usize, ModelError> {
        match self.len.checked_add(tokens) {
            Some(total) if total <= self.capacity => Ok(self.len),
            _ => Err(ModelError::Context { tokens: self.len.saturating_add(tokens), context: self.capacity }),
        }
    }

    /// Writes keys and values of tokens from position `past` on; they count from [`KvCache::advance`] on.
    pub(super) fn write(&mut self, layer: usize, past: usize, k: &[f32], v: &[f32]) {
        for (to, from) in self.layers[layer].iter_mut().zip([k, v]) {
            to[past * TOKEN..][..from.len()].copy_from_slice(from);
        }
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// K and V of the first `tokens` tokens, `[1, HEADS_KV, tokens, HEAD_DIM]`.
    pub(super) fn views(&self, layer: usize, tokens: usize) -> Result<[TensorView<'_>; 2], Error> {
        let shape = [1, tokens, HEADS_KV, HEAD_DIM];
        let [k, v] = &self.layers[layer];
        Ok([TensorView::new(k, &shape, Layout::Nhd)?, TensorView::new(v, &shape, Layout::Nhd)?])
    }
}
