//! What a launch left behind, against the reference: quantized bytes, ΔS and integer scores bit for bit,
//! attention row by row against what rounding P costs the reference itself.

use sage_attn::plan::{Plan, Slot};
use sage_attn::problem::{DType, TensorSpec};
use sage_attn::reference::{
    Modifiers, attention_quantized_sm90_with, attention_quantized_with, attention_unrounded_p_with, delta_s,
    in_storage, quantize, scores,
};
use sage_spec::symbol::Arch;

use crate::case::Case;

/// Byte that memory holds before a launch. As f32, f16, bf16 and E4M3 it is NaN, as INT8 it is −1.
pub const POISON: u8 = 0xff;

/// The same for the case `seed`: [`POISON`], or 0x80, the one INT8 code that no value has. (The gaps of a tensor's own
/// strides are NaN of its type.)
pub fn poison(seed: u64) -> u8 {
    if seed.is_multiple_of(2) { POISON } else { 0x80 }
}

/// What a launch left behind.
pub struct Outcome {
    /// `[B, Hq, M, D]` widened to f32.
    pub out: Vec<f32>,
    /// `[B, Hq, M]`.
    pub lse: Option<Vec<f32>>,
    /// The workspace of `plan`.
    pub workspace: Vec<u8>,
    /// What was launched.
    pub plan: Plan,
    /// i32 `[B, Hq, Mp, Np]` of the kernel's own QK path.
    pub scores: Option<Vec<i32>>,
}

impl Outcome {
    /// Contents of all buffers of the workspace that quantization fills, one after the other.
    pub fn slot_bytes(&self) -> Vec<u8> {
        let quantized = Slot::ALL.into_iter().filter(|slot| *slot != Slot::Progress);
        quantized.filter_map(|slot| self.slot(slot)).flatten().copied().collect()
    }

    /// Contents of a workspace buffer.
    pub fn slot(&self, slot: Slot) -> Option<&[u8]> {
        let buffer = self.plan.workspace().get(slot)?;
        Some(&self.workspace[buffer.offset_bytes..buffer.offset_bytes + buffer.bytes])
    }
}

/// f32 values of `bytes`.
pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// [`gather_between`] of [`POISON`].
pub fn gather(spec: &TensorSpec, bytes: &[u8], name: &str) -> Vec<f32> {
    gather_between(spec, bytes, name, POISON)
}

/// The elements of a tensor, widened; fails if a gap between rows does not hold `poison` any more.
pub fn gather_between(spec: &TensorSpec, bytes: &[u8], name: &str, poison: u8) -> Vec<f32> {
    let size = spec.dtype.bytes();
    let [batch, heads, tokens, head_dim] = spec.shape;
    let mut gaps = vec![true; bytes.len()];
    let mut values = Vec::with_capacity(spec.shape.iter().product());
    for b in 0..batch {
        for h in 0..heads {
            for n in 0..tokens {
                let row = b as i64 * spec.strides[0] + h as i64 * spec.strides[1] + n as i64 * spec.strides[2];
                for d in 0..head_dim {
                    let at = (row as usize + d) * size;
                    let element = &bytes[at..at + size];
                    gaps[at..at + size].fill(false);
                    values.push(match spec.dtype {
                        DType::F16 => half::f16::from_le_bytes([element[0], element[1]]).to_f32(),
                        DType::BF16 => half::bf16::from_le_bytes([element[0], element[1]]).to_f32(),
                        DType::F32 => f32s(element)[0],
                    });
                }
            }
        }
    }
    assert!(gaps.iter().zip(bytes).all(|(gap, byte)| !gap || *byte == poison), "{name}: written between its rows");
    values
}

/// Rounding to the output type, half an ulp of a row's largest values.
fn output_rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
        DType::F32 => 1.0 / 8_388_608.0,
    }
}

/// What the FP8 accumulator of Hopper's tensor cores costs: it keeps 13 mantissa bits of a sum's largest term, where
/// the reference adds in f32 (SageAttention2, section 3.4). Largest measured over 2,000 problems: 0.8 of this.
fn accumulator_error(arch: Arch) -> f64 {
    match arch {
        Arch::Sm90a => 1.0 / 1024.0,
        Arch::Sm80 | Arch::Sm89 => 0.0,
    }
}

/// The same for the log of a row sum, which is made in that accumulator: each of a tile's 128 terms may lose a
/// unit of the 13th bit.
fn accumulator_lse_error(arch: Arch) -> f64 {
    match arch {
        Arch::Sm90a => 128.0 / 8192.0,
        Arch::Sm80 | Arch::Sm89 => 0.0,
    }
}

/// Distance of `a` and `b` as sequences of bits; NaNs are alike.
fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}

/// Largest figures seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Rows of output compared.
    pub rows: u64,
    /// Largest row error, as a multiple of half of what is allowed.
    pub worst_ratio: f64,
    /// Largest error of an LSE.
    pub worst_lse: f64,
}

/// Compares what `case` left behind with the reference.
///
/// # Errors
///
/// The first difference, in words.
pub fn judge(case: &Case, outcome: &Outcome) -> Result<Figures, String> {
    judge_with(case, &Modifiers::default(), outcome)
}

/// [`judge`] with modifiers.
///
/// # Errors
///
/// The first difference, in words.
pub fn judge_with(case: &Case, modifiers: &Modifiers<'_>, outcome: &Outcome) -> Result<Figures, String> {
    let dims = case.problem.dims();
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
        (Slot::VOffset, quantized.v_offset.as_ref()),
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
        Arch::Sm90a => {
            attention_quantized_sm90_with(dims, &quantized, &k, &case.options, case.stem.exponential, modifiers)
        }
        Arch::Sm80 | Arch::Sm89 => attention_quantized_with(dims, &quantized, &k, &case.options, modifiers),
    };
    let ideal = attention_unrounded_p_with(dims, &quantized, &k, &case.options, modifiers);
    // A soft-cap's tanh may be off by two units of its last place, of `softcap · log2 e` octaves.
    let capping = modifiers.softcap.map_or(0.0, |cap| f64::from(cap) * std::f64::consts::LOG2_E * 2f64.powi(-22));
    let rounding = output_rounding(case.problem.out().dtype) + accumulator_error(case.stem.arch) + capping;
    // Half of FP16's smallest number; the other types reach further than any weight.
    let smallest = if case.problem.out().dtype == DType::F16 { 2f64.powi(-25) } else { 0.0 };
    let mut seen = Figures::default();
    let width = dims.head_dim_v;
    for (row, ideal) in ideal.out.chunks(width).enumerate() {
        let range = row * width..(row + 1) * width;
        let distance = |x: &[f32]| -> f64 { x.iter().zip(ideal).map(|(x, ideal)| (f64::from(*x) - ideal).abs()).sum() };
        let (actual, own) = (distance(&outcome.out[range.clone()]), distance(&reference.out[range.clone()]));
        let size: f64 = ideal.iter().map(|x| x.abs()).sum();
        // The reference's own rounding of P, plus what storing the output costs anyone.
        let allowed = 2.0 * own + size * (rounding + 2e-6) + width as f64 * smallest + 1e-30;
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
            // Where a window or a mask may hide most keys, 32 are taken to be left.
            let keys = if case.problem.is_plain() { dims.seqlen_kv } else { dims.seqlen_kv.min(32) };
            let tie = 2.0 / keys.max(2) as f64 / 16.0;
            let allowed = 2.0 * own + tie + accumulator_lse_error(case.stem.arch) + 1e-4 + 2e-6 * ideal.abs();
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
