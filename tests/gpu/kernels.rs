//! Every kernel on random problems: quantized bytes, ΔS and integer scores bit for bit, attention row by
//! row against what rounding P costs the reference itself.

use std::collections::BTreeMap;

use sage_attn::plan::Slot;
use sage_attn::problem::DType;
use sage_attn::reference::{
    attention_quantized, attention_quantized_sm90, attention_unrounded_p, delta_s, in_storage, quantize, scores,
};
use sage_spec::symbol::Arch;
use serde_json::json;

use crate::case::Case;
use crate::harness::{f32s, gpu, record, run, seeds};

/// Rounding to the output type, half an ulp of a row's largest values.
fn output_rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
        DType::F32 => 1.0 / 8_388_608.0,
    }
}

/// What the FP8 accumulator of Hopper's tensor cores costs: it keeps 13 mantissa bits of a sum's largest term, where
/// the reference adds in f32 (SageAttention2, section 3.4).
fn accumulator_error(arch: Arch) -> f64 {
    match arch {
        Arch::Sm90a => 1.0 / 4096.0,
        Arch::Sm80 | Arch::Sm89 => 0.0,
    }
}

/// The same for the log of a row sum, which is made in that accumulator: each of a tile's 128 terms may lose half a
/// unit of the 13th bit.
fn accumulator_lse_error(arch: Arch) -> f64 {
    match arch {
        Arch::Sm90a => 128.0 / 16384.0,
        Arch::Sm80 | Arch::Sm89 => 0.0,
    }
}

/// Distance of `a` and `b` as sequences of bits; NaNs are alike.
fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}

/// Largest figures seen for a kernel.
#[derive(Default)]
struct Figures {
    problems: u64,
    rows: u64,
    worst_ratio: f64,
    worst_lse: f64,
}

#[test]
fn kernels_agree_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    let seeds = seeds();
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    let mut failures = Vec::new();
    for seed in seeds.clone() {
        let case = Case::random(seed);
        let capability = gpu.capability();
        if !case.stem.arch.loads_on(capability.major, capability.minor) {
            continue;
        }
        let problem = std::panic::catch_unwind(|| check(&gpu, &case)).unwrap_or_else(|_| Err("panicked".into()));
        match problem {
            Ok(seen) => {
                let figures = figures.entry(case.stem.name).or_default();
                figures.problems += 1;
                figures.rows += seen.rows;
                figures.worst_ratio = figures.worst_ratio.max(seen.worst_ratio);
                figures.worst_lse = figures.worst_lse.max(seen.worst_lse);
            }
            Err(what) => failures.push(format!("{}: {what}", case.describe())),
        }
    }
    let kernels: serde_json::Map<String, serde_json::Value> = figures
        .iter()
        .map(|(name, f)| {
            let figures = json!({
                "problems": f.problems,
                "rows": f.rows,
                "worst_row_error_over_reference_rounding": f.worst_ratio,
                "worst_lse_error": f.worst_lse,
            });
            ((*name).to_string(), figures)
        })
        .collect();
    record(
        "gpu_kernels",
        &json!({
            "device": gpu.name(),
            "driver": sage_attn::device::driver_version().unwrap_or_default(),
            "problems": seeds.end - seeds.start,
            "failures": failures.len(),
            "bit_equal": ["codes", "scales", "means", "delta_s", "integer scores"],
            "kernels": kernels,
        }),
    );
    let shown = failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        failures.is_empty(),
        "{} of {} problems fail; repeat one with SAGE_GPU_SEED=seed SAGE_GPU_CASES=1\n{shown}",
        failures.len(),
        seeds.end - seeds.start
    );
}

fn check(gpu: &std::sync::Arc<sage_attn::device::Gpu>, case: &Case) -> Result<Figures, String> {
    let dims = case.problem.dims();
    let outcome = run(gpu, case);
    let (q, k, v) = (case.q.host(), case.k.host(), case.v.host());
    let quantized = quantize(dims, &q, &k, &v, &case.options);

    let stored = |codes| in_storage(codes, case.options.precision, case.stem.storage());
    let bytes = [
        (Slot::QCodes, &stored(&quantized.q_codes)),
        (Slot::KCodes, &stored(&quantized.k_codes)),
        (Slot::VCodes, &quantized.v_codes),
    ];
    for (slot, expected) in bytes {
        if let Some(actual) = outcome.slot(slot)
            && let Some(at) = actual.iter().zip(expected).position(|(a, b)| a != b)
        {
            return Err(format!("{} differ at byte {at}: {} for {}", slot.name(), actual[at], expected[at]));
        }
    }
    let floats = [
        (Slot::KMean, quantized.k_mean.as_ref()),
        (Slot::QMean, quantized.q_mean.as_ref()),
        (Slot::VMean, quantized.v_mean.as_ref()),
        (Slot::QScale, Some(&quantized.q_scale)),
        (Slot::KScale, Some(&quantized.k_scale)),
        (Slot::VScale, Some(&quantized.v_scale)),
        (Slot::QkMean, quantized.qk_mean.as_ref()),
    ];
    for (slot, expected) in floats {
        if let (Some(actual), Some(expected)) = (outcome.slot(slot), expected) {
            let actual = f32s(actual);
            if let Some(at) = first_difference(&actual, expected) {
                return Err(format!("{} differ at {at}: {} for {}", slot.name(), actual[at], expected[at]));
            }
        }
    }
    if let Some(actual) = outcome.slot(Slot::DeltaS)
        && outcome.plan.chunks().count() == 1
    {
        let (actual, expected) = (f32s(actual), delta_s(dims, &quantized, &k, &case.options));
        if let Some(at) = first_difference(&actual, &expected) {
            return Err(format!("delta_s differ at {at}: {} for {}", actual[at], expected[at]));
        }
    }
    if let Some(actual) = &outcome.scores {
        let expected = scores(dims, &quantized, case.options.precision);
        if let Some(at) = actual.iter().zip(&expected).position(|(a, b)| a != b) {
            return Err(format!("scores differ at {at}: {} for {}", actual[at], expected[at]));
        }
    }

    let reference = match case.stem.arch {
        Arch::Sm90a => attention_quantized_sm90(dims, &quantized, &k, &case.options, case.stem.exponential),
        Arch::Sm80 | Arch::Sm89 => attention_quantized(dims, &quantized, &k, &case.options),
    };
    let ideal = attention_unrounded_p(dims, &quantized, &k, &case.options);
    let rounding = output_rounding(case.problem.out().dtype) + accumulator_error(case.stem.arch);
    let mut seen = Figures::default();
    let width = dims.head_dim;
    for (row, ideal) in ideal.out.chunks(width).enumerate() {
        let range = row * width..(row + 1) * width;
        let distance = |x: &[f32]| -> f64 { x.iter().zip(ideal).map(|(x, ideal)| (f64::from(*x) - ideal).abs()).sum() };
        let (actual, own) = (distance(&outcome.out[range.clone()]), distance(&reference.out[range.clone()]));
        let size: f64 = ideal.iter().map(|x| x.abs()).sum();
        // The reference's own rounding of P, plus what storing the output costs anyone.
        let allowed = 2.0 * own + size * (rounding + 2e-6) + 1e-30;
        if actual.is_nan() || actual > allowed {
            return Err(format!(
                "row {row}: error {actual:.3e}, allowed {allowed:.3e} (reference {own:.3e}, size {size:.3e})"
            ));
        }
        seen.rows += 1;
        seen.worst_ratio = seen.worst_ratio.max(actual / allowed * 2.0);
    }
    if let Some(lse) = &outcome.lse {
        for (row, (actual, own)) in lse.iter().zip(&reference.lse).enumerate() {
            let ideal = ideal.lse[row];
            let distance = |x: f32| if f64::from(x) == ideal { 0.0 } else { (f64::from(x) - ideal).abs() };
            let (error, own) = (distance(*actual), distance(*own));
            // One tie of P that rounds the other way moves the sum by up to a sixteenth of that key's
            // weight: allowed for a key of twice the average weight.
            let tie = 2.0 / dims.seqlen_kv.max(2) as f64 / 16.0;
            let accumulator = accumulator_lse_error(case.stem.arch);
            let allowed = 2.0 * own + tie + accumulator + 1e-4 + 2e-6 * ideal.abs();
            if error.is_nan() || error > allowed {
                return Err(format!(
                    "lse of row {row}: {actual}, off by {error:.2e} where the reference is off by {own:.2e}"
                ));
            }
            seen.worst_lse = seen.worst_lse.max(error);
        }
    }
    Ok(seen)
}
