//! How far two sets of images are apart, as sets.
//!
//! The Fréchet distance between the normal distributions fitted to features of the images, as the FID has
//! it, but with features that need no network: the mean colour and the contrast of 4 by 4 cells. It sees
//! layout, colours and how much detail there is, not what the images show.

use serde::{Deserialize, Serialize};

use super::ModelError;

/// Cells of a side.
const CELLS: usize = 4;
/// Features of an image: red, green, blue and contrast of each cell.
pub const FEATURES: usize = 4 * CELLS * CELLS;

/// Features of an image of three planes of `size` by `size`, −1 to 1: of each cell the means of red, green
/// and blue and the deviation of their mean.
///
/// # Panics
///
/// If the image is not three planes, or `size` is not a multiple of 4.
///
/// Example: [`Normal`].
pub fn features(image: &[f32], size: usize) -> Vec<f64> {
    assert_eq!(image.len(), 3 * size * size, "not three planes");
    assert!(size > 0 && size.is_multiple_of(CELLS), "{size} pixels are not whole cells");
    let side = size / CELLS;
    let pixels = (side * side) as f64;
    let mut features = Vec::with_capacity(FEATURES);
    for cell in 0..CELLS * CELLS {
        let (top, left) = (cell / CELLS * side, cell % CELLS * side);
        let (mut colours, mut grey, mut grey_squared) = ([0.0; 3], 0.0, 0.0);
        for (y, x) in (0..side * side).map(|pixel| (top + pixel / side, left + pixel % side)) {
            let rgb = [0, 1, 2].map(|plane| f64::from(image[(plane * size + y) * size + x]).clamp(-1.0, 1.0));
            let mean = rgb.iter().sum::<f64>() / 3.0;
            colours.iter_mut().zip(rgb).for_each(|(sum, value)| *sum += value);
            grey += mean;
            grey_squared += mean * mean;
        }
        features.extend(colours.map(|sum| sum / pixels));
        features.push((grey_squared / pixels - (grey / pixels).powi(2)).max(0.0).sqrt());
    }
    features
}

/// A normal distribution of features.
///
/// ```
/// use sage_attn::models::distribution::Normal;
/// let set: Vec<Vec<f64>> = (0..10).map(|i| vec![f64::from(i % 3), f64::from(i)]).collect();
/// let normal = Normal::fit(&set)?;
/// assert!(normal.is_valid() && normal.frechet(&normal).abs() < 1e-6);
/// # Ok::<(), sage_attn::models::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normal {
    /// `[FEATURES]`.
    mean: Vec<f64>,
    /// `[FEATURES, FEATURES]`, row by row.
    covariance: Vec<f64>,
}

impl Normal {
    /// The distribution of a set of [`features`], each counting the same.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooFewImages`] if there are fewer than two.
    pub fn fit(set: &[Vec<f64>]) -> Result<Normal, ModelError> {
        if set.len() < 2 {
            return Err(ModelError::TooFewImages { images: set.len(), needed: 2 });
        }
        let count = set.len() as f64;
        let mut mean = vec![0.0; FEATURES];
        for features in set {
            mean.iter_mut().zip(features).for_each(|(mean, x)| *mean += x / count);
        }
        let mut covariance = vec![0.0; FEATURES * FEATURES];
        for features in set {
            let centred: Vec<f64> = features.iter().zip(&mean).map(|(x, mean)| x - mean).collect();
            for (row, x) in covariance.chunks_exact_mut(FEATURES).zip(&centred) {
                row.iter_mut().zip(&centred).for_each(|(sum, y)| *sum += x * y / (count - 1.0));
            }
        }
        Ok(Normal { mean, covariance })
    }

    /// Whether mean and covariance have the lengths and values they must have.
    pub fn is_valid(&self) -> bool {
        let lengths = self.mean.len() == FEATURES && self.covariance.len() == FEATURES * FEATURES;
        lengths && self.mean.iter().chain(&self.covariance).all(|x| x.is_finite())
    }

    /// `|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½)`: 0 for equal distributions.
    pub fn frechet(&self, other: &Normal) -> f64 {
        let means: f64 = self.mean.iter().zip(&other.mean).map(|(a, b)| (a - b).powi(2)).sum();
        // The trace of the root of C₁ C₂ is that of the root of the symmetric C₁^½ C₂ C₁^½.
        let root = square_root(&self.covariance);
        let product = multiply(&multiply(&root, &other.covariance), &root);
        let (values, _) = eigen(&product);
        let mixed: f64 = values.iter().map(|value| value.max(0.0).sqrt()).sum();
        let trace = |matrix: &[f64]| (0..FEATURES).map(|i| matrix[i * FEATURES + i]).sum::<f64>();
        (means + trace(&self.covariance) + trace(&other.covariance) - 2.0 * mixed).max(0.0)
    }
}

fn multiply(a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; FEATURES * FEATURES];
    for (row, a) in product.chunks_exact_mut(FEATURES).zip(a.chunks_exact(FEATURES)) {
        for (a, b) in a.iter().zip(b.chunks_exact(FEATURES)) {
            row.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    product
}

/// The symmetric root of a covariance.
fn square_root(matrix: &[f64]) -> Vec<f64> {
    let (values, vectors) = eigen(matrix);
    let mut root = vec![0.0; FEATURES * FEATURES];
    for (value, vector) in values.iter().zip(vectors.chunks_exact(FEATURES)) {
        let value = value.max(0.0).sqrt();
        for (row, x) in root.chunks_exact_mut(FEATURES).zip(vector) {
            row.iter_mut().zip(vector).for_each(|(sum, y)| *sum += value * x * y);
        }
    }
    root
}

/// Eigenvalues and eigenvectors, one a row, of a symmetric matrix: cyclic Jacobi rotations (Golub and
/// Van Loan, "Matrix Computations", section 8.5).
fn eigen(matrix: &[f64]) -> (Vec<f64>, Vec<f64>) {
    const SWEEPS: usize = 30;
    let mut a = matrix.to_vec();
    let mut vectors = vec![0.0; FEATURES * FEATURES];
    (0..FEATURES).for_each(|i| vectors[i * FEATURES + i] = 1.0);
    let norm: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..FEATURES * FEATURES).filter(|i| i / FEATURES != i % FEATURES).map(|i| a[i] * a[i]).sum();
        if off <= 1e-26 * norm {
            break;
        }
        for p in 0..FEATURES {
            for q in p + 1..FEATURES {
                let apq = a[p * FEATURES + q];
                if apq == 0.0 {
                    continue;
                }
                let tau = (a[q * FEATURES + q] - a[p * FEATURES + p]) / (2.0 * apq);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = t * c;
                for i in 0..FEATURES {
                    rotate(&mut a, i * FEATURES + p, i * FEATURES + q, c, s);
                }
                for i in 0..FEATURES {
                    rotate(&mut a, p * FEATURES + i, q * FEATURES + i, c, s);
                    rotate(&mut vectors, p * FEATURES + i, q * FEATURES + i, c, s);
                }
            }
        }
    }
    ((0..FEATURES).map(|i| a[i * FEATURES + i]).collect(), vectors)
}

fn rotate(values: &mut [f64], p: usize, q: usize, c: f64, s: f64) {
    let (x, y) = (values[p], values[q]);
    (values[p], values[q]) = (c * x - s * y, s * x + c * y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::random::Random;

    fn set(seed: u64, shift: f64, scale: f64) -> Vec<Vec<f64>> {
        let mut random = Random::new(seed);
        (0..200).map(|_| (0..FEATURES).map(|_| shift + scale * random.normal()).collect()).collect()
    }

    #[test]
    fn features_are_colour_and_contrast() {
        let size = 8;
        let mut image = vec![0.5f32; 3 * size * size];
        image[0] = -0.5; // one red pixel of the four of the first cell
        let features = features(&image, size);
        assert_eq!(features.len(), FEATURES);
        assert_eq!(features[..3], [0.25, 0.5, 0.5]);
        // The cell's greys are 1/6 once and 1/2 three times.
        let deviation = (1.0f64 / 3.0) * (3.0f64 / 16.0).sqrt();
        assert!((features[3] - deviation).abs() < 1e-7, "{} {deviation}", features[3]);
        assert_eq!(features[4..8], [0.5, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn distance_of_a_set_to_itself_is_zero() {
        let normal = Normal::fit(&set(1, 0.0, 1.0)).unwrap();
        assert!(normal.frechet(&normal) < 1e-9);
    }

    #[test]
    fn distance_is_that_of_the_definition() {
        let values = set(2, 0.0, 1.0);
        let normal = Normal::fit(&values).unwrap();
        let shifted: Vec<Vec<f64>> = values.iter().map(|x| x.iter().map(|x| x + 0.5).collect()).collect();
        let distance = normal.frechet(&Normal::fit(&shifted).unwrap());
        assert!((distance - 0.25 * FEATURES as f64).abs() < 1e-6, "{distance}");
        // Twice as wide: C₂ = 4 C₁, so the trace of C₁ + 4 C₁ − 2 · 2 C₁ remains.
        let wider: Vec<Vec<f64>> = values.iter().map(|x| x.iter().map(|x| 2.0 * x).collect()).collect();
        let wider = Normal::fit(&wider).unwrap();
        let trace: f64 = (0..FEATURES).map(|i| normal.covariance[i * FEATURES + i]).sum();
        let mean: f64 = normal.mean.iter().map(|x| x * x).sum();
        assert!((normal.frechet(&wider) - trace - mean).abs() < 1e-6);
        assert!((wider.frechet(&normal) - trace - mean).abs() < 1e-6);
    }

    #[test]
    fn one_image_is_no_distribution() {
        assert!(matches!(Normal::fit(&set(1, 0.0, 1.0)[..1]), Err(ModelError::TooFewImages { images: 1, .. })));
    }
}
