//! Continuing a text: prefill, then a byte at a time.

use std::time::{Duration, Instant};

use super::{Attend, CONTEXT, HIDDEN, KvCache, RustLm};
use crate::models::ModelError;
use crate::models::random::Random;

/// Chooses the next byte from its scores.
///
/// Example: [`RustLm`](crate::models::rustlm::RustLm).
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    random: Random,
}

impl Sampler {
    /// At temperature 0 (or below) the most probable byte, the lowest of equals; otherwise a byte drawn
    /// with probability `∝ exp(score / temperature)`. The same seed draws the same bytes.
    pub fn new(temperature: f32, seed: u64) -> Sampler {
        Sampler { temperature, random: Random::new(seed) }
    }

    fn choose(&mut self, logits: &[f32]) -> u8 {
        let likeliest = || {
            let start = (0, f32::NEG_INFINITY);
            logits.iter().enumerate().fold(start, |best, (i, &x)| if x > best.1 { (i, x) } else { best })
        };
        let (best, max) = likeliest();
        if self.temperature <= 0.0 || self.temperature.is_nan() {
            return best as u8;
        }
        let temperature = self.temperature;
        let weight = |&x: &f32| f64::from((x - max) / temperature).exp();
        let mut left = self.random.uniform() * logits.iter().map(weight).sum::<f64>();
        for (index, logit) in logits.iter().enumerate() {
            left -= weight(logit);
            if left < 0.0 {
                return index as u8;
            }
        }
        best as u8 // rounding used up the sum
    }
}

/// How a continuation went.
///
/// Example: [`RustLm`](crate::models::rustlm::RustLm).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// The bytes after the prompt.
    pub bytes: Vec<u8>,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time of the bytes after the first.
    pub decode: Duration,
}

impl RustLm {
    /// Continues `prompt` by `count` bytes, or until the context is full. `each` is told every byte as
    /// it is chosen.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooShort`] if the prompt is empty, [`ModelError::Context`] if it alone is too long,
    /// and what `attend` returns.
    pub fn generate(
        &self,
        prompt: &[u8],
        count: usize,
        sampler: &mut Sampler,
        attend: &mut Attend<'_>,
        each: &mut dyn FnMut(u8),
    ) -> Result<Generation, ModelError> {
        if prompt.is_empty() {
            return Err(ModelError::TooShort { what: "the prompt", bytes: 0, needed: 1 });
        }
        if prompt.len() > CONTEXT {
            return Err(ModelError::Context { tokens: prompt.len(), context: CONTEXT });
        }
        let mut cache = KvCache::new(prompt.len().saturating_add(count).min(CONTEXT))?;
        let mut generation = Generation::default();
        let start = Instant::now();
        let hidden = self.forward(prompt, &mut cache, attend)?;
        let mut last = self.logits(&hidden[hidden.len() - HIDDEN..]);
        generation.prefill = start.elapsed();
        let start = Instant::now();
        while generation.bytes.len() < count {
            let byte = sampler.choose(&last);
            generation.bytes.push(byte);
            each(byte);
            if generation.bytes.len() == count || cache.len() == CONTEXT {
                break;
            }
            let hidden = self.forward(&[byte], &mut cache, attend)?;
            last = self.logits(&hidden);
        }
        generation.decode = start.elapsed();
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::rustlm::VOCABULARY;

    #[test]
    fn sampling_follows_the_scores() {
        let mut logits = vec![f32::NEG_INFINITY; VOCABULARY];
        logits[3] = 1.0;
        logits[5] = 1.0 + 3f32.ln();
        assert_eq!(Sampler::new(0.0, 1).choose(&logits), 5);
        let mut sampler = Sampler::new(1.0, 1);
        let draws: Vec<u8> = (0..4000).map(|_| sampler.choose(&logits)).collect();
        let fives = draws.iter().filter(|&&byte| byte == 5).count();
        assert!(draws.iter().all(|&byte| byte == 3 || byte == 5));
        assert!((2900..3100).contains(&fives), "{fives}");
        let mut again = Sampler::new(1.0, 1);
        assert!(draws.iter().all(|&byte| byte == again.choose(&logits)));
    }
}
