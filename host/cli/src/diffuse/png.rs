//! Pictures as PNG files.

use std::path::Path;

use sage_attn::models::emoji_dit::{SIZE, VALUES};
use sage_attn::models::picture::byte;

use crate::Failure;
use crate::file::replace;

/// Most images of a row.
const COLUMNS: usize = 16;

/// Writes the first 16 images of each row, `zoom` pixels for each of theirs.
pub fn write(path: &Path, rows: &[&[f32]], zoom: usize) -> Result<(), Failure> {
    let columns = rows.iter().map(|row| row.len() / VALUES).max().unwrap_or(0).min(COLUMNS);
    let (width, height) = (columns * SIZE * zoom, rows.len() * SIZE * zoom);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for (y, x) in (0..width * height).map(|pixel| (pixel / width / zoom, pixel % width / zoom)) {
        let image = &rows[y / SIZE][x / SIZE * VALUES..][..VALUES];
        pixels.extend((0..3).map(|plane| byte(image[(plane * SIZE + y % SIZE) * SIZE + x % SIZE])));
    }
    let failed = |error: png::EncodingError| Failure::Other(format!("cannot encode {}: {error}", path.display()));
    let mut file = Vec::new();
    // At most 16 by a few rows of images, so the sides fit.
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).map_err(failed)?;
    replace(path, &file)
}
