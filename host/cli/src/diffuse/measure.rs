//! Measuring candidates while drawing.

use std::path::Path;

use sage_attn::adaptive::{Calibrator, Choice, Sampling, Site};
use sage_attn::models::emoji_dit::{EmojiDit, LAYERS, VALUES, noise};
use sage_attn::{Device, TensorView};

use super::{DiffuseOptions, attention};
use crate::lm::failure;
use crate::plan::adaptive;
use crate::{Failure, note, print, progress};

/// Draws one image after the other in full precision and measures the candidates on every attention call;
/// a sample is an image.
pub fn measure(options: &DiffuseOptions, model: &EmojiDit, classes: &[usize], path: &Path) -> Result<(), Failure> {
    let names: Vec<&str> = classes.iter().map(|&class| model.classes()[class].as_str()).collect();
    let subject = format!(
        "emoji_dit {}, {} steps, guidance {}, seed {}, classes {}",
        model.fingerprint(),
        options.steps,
        options.guidance,
        options.seed,
        names.join(" ")
    );
    let sampling = Sampling { heads: options.heads, query_blocks: options.query_blocks, ..Sampling::default() };
    let mut calibrator = Calibrator::resume(path, &subject, options.candidates.clone(), sampling).map_err(adaptive)?;
    let done = calibrator.measurements().records().len();
    if done > 0 {
        note(format_args!("{} holds {done} measurements already; they are not made again", path.display()));
    }

    let site = |layer, timestep, sample| Site { layer, timestep, sample };
    let total = LAYERS * options.steps * classes.len();
    let progress = progress(total - done.min(total), options.json);
    let exact = attention(Choice::EXACT, Device::Cpu);
    let quantized = attention(Choice::INT8, options.device);
    let noise = noise(options.seed, classes.len());
    for (sample, (class, noise)) in classes.iter().zip(noise.chunks_exact(VALUES)).enumerate() {
        let calls = (0..LAYERS * options.steps).map(|call| site(call % LAYERS, call / LAYERS, sample));
        // Later steps need the earlier ones, so an image is drawn as far as something is left to measure.
        if !calls.into_iter().any(|site| calibrator.wants(site)) {
            continue;
        }
        let mut attend = |layer, step, [q, k, v]: [&TensorView<'_>; 3]| {
            let out = exact.forward(q, k, v)?.out;
            if calibrator.observe_with_exact(site(layer, step, sample), &quantized, [q, k, v], &out)? {
                progress.inc(1);
            }
            Ok(out)
        };
        model.sample(noise, &[*class], options.sampling(), &mut attend, &mut |_| {}).map_err(failure)?;
    }
    progress.finish_and_clear();
    print(format_args!(
        "{}: {} measurements; make a plan of them with `sage-attn plan make`",
        path.display(),
        calibrator.measurements().records().len()
    ))
}
