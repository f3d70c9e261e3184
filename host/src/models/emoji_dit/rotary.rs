//! Rotary positions in two dimensions.

use rayon::prelude::*;

/// Angle of pair `i` is `position · BASE^(−i / pairs)`.
const BASE: f64 = 100.0;

/// The first half of a head's features turns with the row of the token's patch, the second with its
/// column, each in the rotate-half convention.
pub struct Rotary {
    pairs: usize,
    /// `[tokens, 2, pairs]` of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    /// For tokens in a square of `side` by `side`.
    pub fn new(side: usize, head_dim: usize) -> Rotary {
        let pairs = head_dim / 4;
        let mut turns = Vec::with_capacity(side * side * 2 * pairs);
        for token in 0..side * side {
            for position in [token / side, token % side] {
                turns.extend((0..pairs).map(|i| {
                    let angle = position as f64 * BASE.powf(-(i as f64) / pairs as f64);
                    (angle.cos() as f32, angle.sin() as f32)
                }));
            }
        }
        Rotary { pairs, turns }
    }

    /// Turns `x`, `[images, tokens, heads, head_dim]`.
    pub fn rotate(&self, x: &mut [f32], heads: usize) {
        let (pairs, per_token) = (self.pairs, 2 * self.pairs);
        let tokens = self.turns.len() / per_token;
        x.par_chunks_mut(heads * 4 * pairs).enumerate().with_min_len(64).for_each(|(index, token)| {
            let turns = &self.turns[index % tokens * per_token..][..per_token];
            for head in token.chunks_exact_mut(4 * pairs) {
                for (half, turns) in head.chunks_exact_mut(2 * pairs).zip(turns.chunks_exact(pairs)) {
                    let (first, second) = half.split_at_mut(pairs);
                    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }
}
