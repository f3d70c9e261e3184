//! Continuing a prompt.

use std::io::{self, Write};

use sage_attn::models::rustlm::Sampler;
use serde::Serialize;

use super::attend::Planned;
use super::{LmOptions, Variant, failure};
use crate::{Failure, note, print_json};

/// A continuation as JSON has it. The keys are stable.
#[derive(Serialize)]
struct Record<'a> {
    precision: &'a str,
    device: &'a str,
    /// The continuation; bytes that are no UTF-8 are replaced.
    text: String,
    prompt_bytes: usize,
    bytes: usize,
    prefill_ms: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    int4_share: f64,
}

/// Continues `prompt` under every precision: as text on stdout, or as JSON.
pub fn generate(options: &LmOptions, variants: &[Variant], prompt: &str) -> Result<(), Failure> {
    let model = options.source.model()?;
    for variant in variants {
        let mut planned = Planned::new(&variant.plan, options.source.device);
        // The prompt is printed with the first byte, so that a prompt that is refused prints nothing.
        let mut lead = prompt.as_bytes();
        let mut written = Ok(());
        let mut sampler = Sampler::new(options.temperature, options.seed);
        let generation = model
            .generate(
                prompt.as_bytes(),
                options.tokens,
                &mut sampler,
                &mut |layer, tensors| planned.attend(layer, tensors),
                &mut |byte| {
                    if !options.json && written.is_ok() {
                        let mut stdout = io::stdout();
                        let lead = std::mem::take(&mut lead);
                        written = stdout
                            .write_all(lead)
                            .and_then(|()| stdout.write_all(&[byte]))
                            .and_then(|()| stdout.flush());
                    }
                },
            )
            .map_err(failure)?;
        written.map_err(Failure::stdout)?;
        let decoded = generation.bytes.len().saturating_sub(1) as f64;
        let prefill = generation.prefill.as_secs_f64();
        let record = Record {
            precision: &variant.name,
            device: &planned.device,
            text: String::from_utf8_lossy(&generation.bytes).into_owned(),
            prompt_bytes: prompt.len(),
            bytes: generation.bytes.len(),
            prefill_ms: prefill * 1e3,
            prefill_tokens_per_s: prompt.len() as f64 / prefill,
            decode_tokens_per_s: if decoded > 0.0 { decoded / generation.decode.as_secs_f64() } else { 0.0 },
            int4_share: planned.int4_share(),
        };
        if options.json {
            print_json(&record)?;
        } else {
            crate::print("")?;
            note(format_args!(
                "{} on {}: prompt of {} bytes in {:.1} ms, then {:.1} bytes/s",
                record.precision, record.device, record.prompt_bytes, record.prefill_ms, record.decode_tokens_per_s
            ));
            if generation.bytes.len() < options.tokens {
                note("the model's context is full");
            }
        }
    }
    Ok(())
}
