//! Emoji DiT: a diffusion transformer that draws emoji of 64x64 pixels, 6.9 M parameters.
//!
//! It predicts the velocity `noise − image` of a rectified flow. A token is a patch of 2x2 pixels, so there
//! are 1,024; 8 blocks of hidden size 256, 4 heads of 64 features, RMS-normalised q and k with rotary
//! positions in two dimensions, and modulations of time and class that all blocks share up to a table of
//! their own. `tests/models/emoji_dit/` has the PyTorch definition and how the weights were made.

mod block;
mod rotary;
mod sample;

use std::path::Path;

pub use sample::{AttendAt, Sampling, noise};

use super::ops::Linear;
use super::{ModelError, Weights};
use crate::api::{Tensor, TensorView};
use crate::error::Error;
use block::{Block, modulated};
use rotary::Rotary;

/// Pixels of a side.
pub const SIZE: usize = 64;
/// Values of an image: red, green and blue planes, −1 to 1.
pub const VALUES: usize = 3 * SIZE * SIZE;
/// Attention layers.
pub const LAYERS: usize = 8;
/// Heads.
pub const HEADS: usize = 4;
/// Features of a head.
pub const HEAD_DIM: usize = 64;
/// Tokens of an image.
pub const TOKENS: usize = SIDE * SIDE;
/// Width of the residual stream.
const HIDDEN: usize = HEADS * HEAD_DIM;
/// Pixels of a patch's side.
const PATCH: usize = 2;
/// Patches of a side.
const SIDE: usize = SIZE / PATCH;
/// Values of a patch.
const PATCH_VALUES: usize = 3 * PATCH * PATCH;
/// Frequencies of the embedding of time.
const FREQUENCIES: usize = HIDDEN / 2;
/// Rows of a block's modulation: shift, scale and gate of attention, then of the MLP.
const MODULATIONS: usize = 6;
/// Most classes that a file may name.
const MAX_CLASSES: usize = 10_000;

/// Computes the attention of a layer: of q, k and v `[images, 4, 1024, 64]`, without a mask.
///
/// Example: [`EmojiDit`].
pub type Attend<'a> = dyn FnMut(usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> + 'a;

/// The model.
///
/// ```no_run
/// use sage_attn::models::emoji_dit::{EmojiDit, Sampling, noise};
/// let model = EmojiDit::load("tests/data/emoji_dit.safetensors".as_ref())?;
/// println!("{:?}, {} values of noise", model.classes(), noise(1, 12).len());
/// # Ok::<(), sage_attn::models::ModelError>(())
/// ```
pub struct EmojiDit {
    fingerprint: String,
    classes: Vec<String>,
    patch: Linear,
    time_in: Linear,
    time_out: Linear,
    /// `[classes + 1, HIDDEN]`; the last row is for no class.
    class_embed: Vec<f32>,
    modulation: Linear,
    blocks: Vec<Block>,
    /// `[2, HIDDEN]`: shift and scale.
    final_table: Vec<f32>,
    last: Linear,
    rotary: Rotary,
}

impl EmojiDit {
    /// Reads the weights at `path`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the file cannot be read, is no safetensors file, describes another model, or
    /// lacks a tensor or has it in another shape.
    pub fn load(path: &Path) -> Result<EmojiDit, ModelError> {
        let weights = Weights::open(path)?;
        let expect = |key: &'static str, expected: String| match weights.metadata(key) {
            Some(found) if found == expected => Ok(()),
            found => {
                let (path, found) = (weights.path().to_owned(), found.unwrap_or("missing").to_owned());
                Err(ModelError::Metadata { path, key, found, expected })
            }
        };
        expect("format", "emoji-dit-1".into())?;
        expect("size", SIZE.to_string())?;
        expect("patch", PATCH.to_string())?;
        expect("head_dim", HEAD_DIM.to_string())?;
        let classes: Vec<String> =
            weights.metadata("classes").unwrap_or("").lines().take(MAX_CLASSES).map(str::to_owned).collect();
        if classes.is_empty() {
            let (path, expected) = (weights.path().to_owned(), "one class a line".into());
            return Err(ModelError::Metadata { path, key: "classes", found: "empty or missing".into(), expected });
        }
        let linear = |name: &str, shape| Linear::load(&weights, name, shape, true);
        Ok(EmojiDit {
            fingerprint: weights.fingerprint(),
            patch: linear("patch", [PATCH_VALUES, HIDDEN])?,
            time_in: linear("time_in", [2 * FREQUENCIES, HIDDEN])?,
            time_out: linear("time_out", [HIDDEN, HIDDEN])?,
            class_embed: weights.tensor("class_embed.weight", &[classes.len() + 1, HIDDEN])?,
            modulation: linear("modulation", [HIDDEN, MODULATIONS * HIDDEN])?,
            blocks: (0..LAYERS).map(|index| Block::load(&weights, index)).collect::<Result<_, _>>()?,
            final_table: weights.tensor("final.table", &[2, HIDDEN])?,
            last: linear("final", [HIDDEN, PATCH_VALUES])?,
            rotary: Rotary::new(SIDE, HEAD_DIM),
            classes,
        })
    }

    /// A name for the weights, [`super::fingerprint`] of their file.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Names of the classes, in order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Velocity of `images` `[images, 3, 64, 64]` at time `t`, 1 for noise to 0 for an image. `classes`
    /// has one entry for each image, `None` for no class.
    ///
    /// # Errors
    ///
    /// [`ModelError::Images`] if there are no images or not one for each class, [`ModelError::Class`], and
    /// what `attend` returns.
    pub fn velocity(
        &self,
        images: &[f32],
        t: f32,
        classes: &[Option<usize>],
        attend: &mut Attend<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        if classes.is_empty() || images.len() != classes.len() * VALUES {
            return Err(ModelError::Images { values: images.len(), classes: classes.len(), each: VALUES });
        }
        let condition = self.condition(t, classes)?;
        let active: Vec<f32> = condition.iter().map(|&c| silu(c)).collect();
        let shared = self.modulation.forward(&active);

        let mut x = self.patch.forward(&patches(images));
        for (index, block) in self.blocks.iter().enumerate() {
            block.forward(&mut x, &shared, &self.rotary, &mut |tensors| attend(index, tensors))?;
        }
        let (shift, scale) = self.final_table.split_at(HIDDEN);
        let plus = |table: &[f32]| -> Vec<f32> {
            condition.chunks_exact(HIDDEN).flat_map(|c| c.iter().zip(table).map(|(c, t)| c + t)).collect()
        };
        Ok(pixels(&self.last.forward(&modulated(&x, &plus(shift), &plus(scale)))))
    }

    /// Embedding of time and class, `[images, HIDDEN]`.
    fn condition(&self, t: f32, classes: &[Option<usize>]) -> Result<Vec<f32>, ModelError> {
        let mut waves = vec![0.0f32; 2 * FREQUENCIES];
        let (cosines, sines) = waves.split_at_mut(FREQUENCIES);
        for (i, (cosine, sine)) in cosines.iter_mut().zip(sines).enumerate() {
            let frequency = 10_000f64.powf(-(i as f64) / FREQUENCIES as f64);
            let angle = 1000.0 * f64::from(t) * frequency;
            (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
        }
        let mut time = self.time_in.forward(&waves);
        time.iter_mut().for_each(|x| *x = silu(*x));
        let time = self.time_out.forward(&time);

        let mut condition = Vec::with_capacity(classes.len() * HIDDEN);
        for class in classes {
            let row = class.unwrap_or(self.classes.len());
            if class.is_some_and(|class| class >= self.classes.len()) {
                return Err(ModelError::Class { class: row, classes: self.classes.len() });
            }
            let embedding = &self.class_embed[row * HIDDEN..][..HIDDEN];
            condition.extend(time.iter().zip(embedding).map(|(time, class)| time + class));
        }
        Ok(condition)
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// For each value of `[images, tokens, patch values]` its place in `[images, 3, SIZE, SIZE]`; a patch has
/// its values by colour, row, column.
fn places(images: usize) -> impl Iterator<Item = usize> {
    (0..images * VALUES).map(|index| {
        let (token, value) = (index / PATCH_VALUES, index % PATCH_VALUES);
        let (image, token) = (token / TOKENS, token % TOKENS);
        let (colour, row, column) = (value / (PATCH * PATCH), value / PATCH % PATCH, value % PATCH);
        let (y, x) = (token / SIDE * PATCH + row, token % SIDE * PATCH + column);
        ((image * 3 + colour) * SIZE + y) * SIZE + x
    })
}

/// Images as tokens.
fn patches(images: &[f32]) -> Vec<f32> {
    places(images.len() / VALUES).map(|place| images[place]).collect()
}

/// Tokens as images.
fn pixels(tokens: &[f32]) -> Vec<f32> {
    let mut images = vec![0.0; tokens.len()];
    for (place, value) in places(tokens.len() / VALUES).zip(tokens) {
        images[place] = *value;
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_two_by_two_pixels_of_each_colour() {
        let images: Vec<f32> = (0..2 * VALUES).map(|i| i as f32).collect();
        let tokens = patches(&images);
        // Token 33 of the second image: row 1, column 1 of patches, so pixels (2..4, 2..4).
        let start = VALUES + (2 * SIZE + 2);
        let expected: Vec<f32> =
            [0, 1, 2].map(|c| [0, 1, SIZE, SIZE + 1].map(|p| (start + c * SIZE * SIZE + p) as f32)).concat();
        assert_eq!(tokens[VALUES + 33 * PATCH_VALUES..][..PATCH_VALUES], expected);
        assert_eq!(pixels(&tokens), images);
    }
}
