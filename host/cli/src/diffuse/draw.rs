//! The same noise under each precision.

use std::path::Path;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::TensorView;
use sage_attn::models::distribution::{Normal, features};
use sage_attn::models::emoji_dit::{EmojiDit, SIZE, VALUES, noise};
use sage_attn::models::picture::{psnr, ssim};
use serde::Serialize;

use super::{DiffuseOptions, attention};
use crate::lm::failure;
use crate::variant::Variant;
use crate::{Failure, print_json, progress, terminal};

/// What was drawn under one precision.
struct Drawn {
    /// `[images, 3, SIZE, SIZE]`.
    images: Vec<f32>,
    time: Duration,
    device: String,
}

/// The result under one precision, as JSON has it. The keys are stable; figures beside the first precision
/// are null for itself, and PSNR is null where images are equal.
#[derive(Serialize)]
struct Record {
    precision: String,
    device: String,
    images: usize,
    steps: usize,
    int4_share: f64,
    seconds: f64,
    /// Mean and lowest PSNR beside the first precision, decibels.
    psnr: Option<f64>,
    psnr_min: Option<f64>,
    /// Mean and lowest SSIM.
    ssim: Option<f64>,
    ssim_min: Option<f64>,
    /// Fréchet distance of the images to those of the first precision.
    frechet_to_first: Option<f64>,
    /// Fréchet distance of the images to real ones.
    frechet_to_reference: Option<f64>,
}

/// Draws the images under every precision and compares them with those of the first.
pub fn draw(options: &DiffuseOptions, model: &EmojiDit, classes: &[usize]) -> Result<(), Failure> {
    let variants = options.precisions.variants()?;
    let reference = options.reference.as_deref().map(load_reference).transpose()?;
    let batches = classes.len().div_ceil(usize::from(options.batch));
    let progress = progress(variants.len() * batches * options.steps, options.json);
    let mut drawn: Vec<Drawn> = Vec::new();
    let mut records = Vec::new();
    for variant in &variants {
        let this = run(options, variant, model, classes, &mut || progress.inc(1))?;
        let record = compare(options, variant, &this, drawn.first(), reference.as_ref());
        drawn.push(this);
        if options.json {
            print_json(&record)?;
        }
        records.push(record);
    }
    progress.finish_and_clear();
    if let Some(path) = &options.out {
        let rows: Vec<&[f32]> = drawn.iter().map(|drawn| drawn.images.as_slice()).collect();
        super::png::write(path, &rows, usize::from(options.zoom))?;
    }
    if options.json { Ok(()) } else { terminal::table(&table(&records)) }
}

fn run(
    options: &DiffuseOptions,
    variant: &Variant,
    model: &EmojiDit,
    classes: &[usize],
    step: &mut dyn FnMut(),
) -> Result<Drawn, Failure> {
    let batch = usize::from(options.batch);
    let noise = noise(options.seed, classes.len());
    let mut drawn = Drawn { images: Vec::new(), time: Duration::ZERO, device: String::new() };
    let start = Instant::now();
    for (classes, noise) in classes.chunks(batch).zip(noise.chunks(batch * VALUES)) {
        let mut attend = |layer, step, [q, k, v]: [&TensorView<'_>; 3]| {
            let output = attention(variant.plan.at(layer, step), options.device).forward(q, k, v)?;
            drawn.device = output.report.device;
            Ok(output.out)
        };
        let images = model.sample(noise, classes, options.sampling(), &mut attend, &mut |_| step()).map_err(failure)?;
        drawn.images.extend(images);
    }
    drawn.time = start.elapsed();
    Ok(drawn)
}

/// `drawn` beside what was drawn under the first precision.
fn compare(
    options: &DiffuseOptions,
    variant: &Variant,
    drawn: &Drawn,
    first: Option<&Drawn>,
    reference: Option<&Normal>,
) -> Record {
    // One image has no distribution.
    let normal = |drawn: &Drawn| {
        let set: Vec<_> = drawn.images.chunks_exact(VALUES).map(|image| features(image, SIZE)).collect();
        Normal::fit(&set).ok()
    };
    let own = normal(drawn);
    let figures = |figure: &dyn Fn(&[f32], &[f32]) -> f64| {
        let pairs = drawn.images.chunks_exact(VALUES).zip(first?.images.chunks_exact(VALUES));
        Some(pairs.map(|(image, first)| figure(image, first)).collect::<Vec<f64>>())
    };
    let (psnr, ssim) = (figures(&psnr), figures(&|image, first| ssim(image, first, SIZE)));
    let mean = |figures: &Option<Vec<f64>>| figures.as_ref().map(|f| f.iter().sum::<f64>() / f.len() as f64);
    let min = |figures: &Option<Vec<f64>>| figures.as_ref().map(|f| f.iter().copied().fold(f64::INFINITY, f64::min));
    Record {
        precision: variant.name.clone(),
        device: drawn.device.clone(),
        images: drawn.images.len() / VALUES,
        steps: options.steps,
        int4_share: variant.plan.int4_share(),
        seconds: drawn.time.as_secs_f64(),
        psnr: mean(&psnr),
        psnr_min: min(&psnr),
        ssim: mean(&ssim),
        ssim_min: min(&ssim),
        frechet_to_first: own.as_ref().zip(first.and_then(normal)).map(|(own, first)| own.frechet(&first)),
        frechet_to_reference: own.as_ref().zip(reference).map(|(own, reference)| own.frechet(reference)),
    }
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "precision",
        "INT4 share",
        "PSNR: mean, lowest",
        "SSIM: mean, lowest",
        "Fréchet to the first",
        "to real images",
        "seconds",
    ]);
    for record in records {
        let pair = |a: Option<f64>, b: Option<f64>, digits: usize| {
            a.zip(b).map_or_else(|| "-".into(), |(a, b)| format!("{a:.digits$}, {b:.digits$}"))
        };
        let distance = |figure: Option<f64>| figure.map_or_else(|| "-".into(), |figure| format!("{figure:.4}"));
        table.add_row([
            record.precision.clone(),
            format!("{:.0} %", record.int4_share * 100.0),
            pair(record.psnr, record.psnr_min, 1),
            pair(record.ssim, record.ssim_min, 4),
            distance(record.frechet_to_first),
            distance(record.frechet_to_reference),
            format!("{:.1}", record.seconds),
        ]);
    }
    table
}

/// Mean and covariance from a file.
fn load_reference(path: &Path) -> Result<Normal, Failure> {
    let wrong = |what: String| Failure::Input(format!("{}: {what}", path.display()));
    let json = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot read the file: {error}")))?;
    let normal: Normal = serde_json::from_str(&json).map_err(|error| wrong(error.to_string()))?;
    match normal.is_valid() {
        true => Ok(normal),
        false => Err(wrong("mean and covariance must have 64 and 64 x 64 finite numbers".into())),
    }
}
