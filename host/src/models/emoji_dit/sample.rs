//! From noise to images.

use super::{EmojiDit, VALUES};
use crate::api::{Tensor, TensorView};
use crate::error::Error;
use crate::models::ModelError;
use crate::models::random::Random;

/// How to sample.
///
/// Example: [`EmojiDit`](crate::models::emoji_dit::EmojiDit).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Euler steps from t = 1 to t = 0.
    pub steps: usize,
    /// How far to go from the velocity without a class to that with it, and beyond: 1 is the velocity with
    /// the class and takes one forward pass a step, anything else two.
    pub guidance: f32,
}

/// Computes the attention of a layer at a step; as [`super::Attend`] otherwise.
///
/// Example: [`EmojiDit`](crate::models::emoji_dit::EmojiDit).
pub type AttendAt<'a> = dyn FnMut(usize, usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> + 'a;

/// Normally distributed noise for `count` images. An image's noise depends on the seed and its index only.
///
/// ```
/// use sage_attn::models::emoji_dit::noise;
/// assert_eq!(noise(1, 8), noise(1, 8));
/// assert_ne!(noise(1, 8), noise(2, 8));
/// ```
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut noise = Vec::with_capacity(count * VALUES);
    for index in 0..count as u64 {
        let mut random = Random::new(seed ^ index.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        noise.extend((0..VALUES).map(|_| random.normal() as f32));
    }
    noise
}

impl EmojiDit {
    /// Draws an image of each of `classes` from `noise`, `[images, 3, 64, 64]`. `attend` is told the layer
    /// and the step, `each` the number of steps done.
    ///
    /// # Errors
    ///
    /// [`ModelError::Sampling`], those of [`EmojiDit::velocity`], and what `attend` returns.
    pub fn sample(
        &self,
        noise: &[f32],
        classes: &[usize],
        sampling: Sampling,
        attend: &mut AttendAt<'_>,
        each: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>, ModelError> {
        let Sampling { steps, guidance } = sampling;
        if steps == 0 || !guidance.is_finite() {
            return Err(ModelError::Sampling { steps, guidance });
        }
        let mut labels: Vec<Option<usize>> = classes.iter().copied().map(Some).collect();
        if guidance != 1.0 {
            labels.resize(2 * classes.len(), None);
        }
        let mut x = noise.to_vec();
        for step in 0..steps {
            let t = 1.0 - step as f32 / steps as f32;
            let mut attend = |layer: usize, tensors: [&TensorView<'_>; 3]| attend(layer, step, tensors);
            let mut velocity = match guidance == 1.0 {
                true => self.velocity(&x, t, &labels, &mut attend)?,
                false => self.velocity(&x.repeat(2), t, &labels, &mut attend)?,
            };
            let (with, without) = velocity.split_at_mut(x.len());
            for (with, without) in with.iter_mut().zip(&*without) {
                *with = without + guidance * (*with - without);
            }
            x.iter_mut().zip(&*with).for_each(|(x, v)| *x -= v / steps as f32);
            each(step + 1);
        }
        Ok(x)
    }
}
