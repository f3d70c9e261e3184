//! How far two images are apart. Images are red, green and blue planes of f32, −1 to 1, as models draw
//! them; what lies outside is clamped, as on a screen.

/// Window of [`ssim`], in pixels of a side.
const WINDOW: usize = 11;

/// A value of a model, −1 to 1, as brightness 0 to 1.
fn brightness(value: f32) -> f64 {
    (f64::from(value).clamp(-1.0, 1.0) + 1.0) / 2.0
}

/// A value of a model as a byte of a picture.
///
/// ```
/// use sage_attn::models::picture::byte;
/// assert!(byte(-1.0) < byte(0.0) && byte(0.0) < byte(1.0));
/// ```
pub fn byte(value: f32) -> u8 {
    (brightness(value) * 255.0).round() as u8
}

/// Peak signal-to-noise ratio in decibels; infinite for equal images.
///
/// # Panics
///
/// If the lengths differ.
///
/// ```
/// use sage_attn::models::picture::psnr;
/// assert!(psnr(&[0.1, 0.2], &[0.1, 0.2]) > psnr(&[0.1, 0.3], &[0.1, 0.2]));
/// ```
pub fn psnr(image: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(image.len(), reference.len(), "images of different sizes");
    let squares: f64 = image.iter().zip(reference).map(|(&a, &b)| (brightness(a) - brightness(b)).powi(2)).sum();
    -10.0 * (squares / image.len() as f64).log10()
}

/// Structural similarity (Wang, Bovik, Sheikh and Simoncelli, 2004): Gaussian window of 11 pixels with
/// deviation 1.5, constants 0.01 and 0.03, mean over the three colours and all whole windows. 1 for equal
/// images.
///
/// # Panics
///
/// If the images are not three planes of `size` by `size`, at least 11 by 11.
///
/// ```
/// use sage_attn::models::picture::ssim;
/// let image: Vec<f32> = (0..3 * 16 * 16).map(|i| (i as f32 * 0.1).sin()).collect();
/// assert!((ssim(&image, &image, 16) - 1.0).abs() < 1e-9);
/// ```
pub fn ssim(image: &[f32], reference: &[f32], size: usize) -> f64 {
    assert!(size >= WINDOW, "an image of {size} pixels is smaller than the window");
    assert_eq!((image.len(), reference.len()), (3 * size * size, 3 * size * size), "not three planes");
    let weights = window();
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    let places = size - WINDOW + 1;
    let mut total = 0.0;
    for plane in 0..3 {
        for (top, left) in (0..places * places).map(|place| (place / places, place % places)) {
            let [mut a, mut b, mut aa, mut bb, mut ab] = [0.0f64; 5];
            for (index, weight) in weights.iter().enumerate() {
                let (y, x) = (top + index / WINDOW, left + index % WINDOW);
                let at = (plane * size + y) * size + x;
                let (p, r) = (brightness(image[at]), brightness(reference[at]));
                a += weight * p;
                b += weight * r;
                aa += weight * p * p;
                bb += weight * r * r;
                ab += weight * p * r;
            }
            let (variance_a, variance_b, covariance) = (aa - a * a, bb - b * b, ab - a * b);
            total +=
                (2.0 * a * b + c1) * (2.0 * covariance + c2) / ((a * a + b * b + c1) * (variance_a + variance_b + c2));
        }
    }
    total / (3 * places * places) as f64
}

/// Weights of the window, which sum to one.
fn window() -> Vec<f64> {
    let centre = (WINDOW / 2) as f64;
    let weight = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * 1.5 * 1.5)).exp();
    let weights: Vec<f64> = (0..WINDOW * WINDOW).map(|i| weight(i / WINDOW) * weight(i % WINDOW)).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(size: usize) -> Vec<f32> {
        (0..3 * size * size).map(|i| (i % size) as f32 / size as f32 * 2.0 - 1.0).collect()
    }

    #[test]
    fn equal_images_are_equal() {
        let image = ramp(16);
        assert_eq!(psnr(&image, &image), f64::INFINITY);
        assert!((ssim(&image, &image, 16) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn figures_are_the_definitions() {
        // One tenth of full scale off everywhere: 20 dB.
        let image = vec![0.0f32; 3 * 16 * 16];
        let lighter = vec![0.2f32; 3 * 16 * 16];
        assert!((psnr(&lighter, &image) - 20.0).abs() < 1e-5);
        // Without variance, SSIM is its term of brightness alone.
        let expected = (2.0 * 0.5 * 0.6 + 1e-4) / (0.5f64.powi(2) + 0.6f64.powi(2) + 1e-4);
        assert!((ssim(&lighter, &image, 16) - expected).abs() < 1e-6);
    }

    #[test]
    fn structure_counts() {
        let image = ramp(16);
        let mirrored: Vec<f32> = image.iter().map(|x| -x).collect();
        assert!(ssim(&mirrored, &image, 16) < 0.1);
    }

    #[test]
    fn bytes_round_and_clamp() {
        assert_eq!([-2.0, -1.0, 0.0, 1.0, 3.0].map(byte), [0, 0, 128, 255, 255]);
    }
}
