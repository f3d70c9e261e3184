//! Rotary positions.

use rayon::prelude::*;

/// Cosines and sines of every position, rotate-half convention: feature `i` of the first half turns
/// with feature `i` of the second by `position · theta^(−2i / head_dim)`.
pub struct Rope {
    half: usize,
    /// `[positions, half]` of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rope {
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Rope {
        let half = head_dim / 2;
        let turns = (0..positions)
            .flat_map(|position| {
                (0..half).map(move |i| {
                    let angle = position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
                    (angle.cos() as f32, angle.sin() as f32)
                })
            })
            .collect();
        Rope { half, turns }
    }

    /// Turns `x`, `[tokens, heads, head_dim]`, whose first token is at `position`.
    pub fn rotate(&self, x: &mut [f32], heads: usize, position: usize) {
        let head_dim = 2 * self.half;
        let turns = &self.turns[position * self.half..];
        x.par_chunks_mut(heads * head_dim).zip(turns.par_chunks(self.half)).with_min_len(128).for_each(
            |(token, turns)| {
                for head in token.chunks_exact_mut(head_dim) {
                    let (first, second) = head.split_at_mut(self.half);
                    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            },
        );
    }
}
