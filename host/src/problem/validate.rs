//! The rules a request must satisfy: one rule, one error.

use sage_spec::Dims;
use sage_spec::limits::{MAX_HEAD_DIM, MAX_SEQLEN};

use super::{Request, TensorSpec};
use crate::error::{Error, Invalid, ModifierError, Operand, Unsupported};

/// Extents of `request`, after checking all that concerns its tensors.
pub fn dims(request: &Request) -> Result<Dims, Error> {
    let Request { q, k, v, out, .. } = request;
    head_dim(request)?;
    for (tensor, spec) in [(Operand::K, k), (Operand::V, v), (Operand::Out, out)] {
        if spec.shape[0] != q.shape[0] {
            return Err(Invalid::BatchMismatch { tensor, batch: spec.shape[0], expected: q.shape[0] }.into());
        }
    }
    heads(q, k, v, out)?;
    tokens(q, k, v, out)?;
    for (tensor, spec) in [(Operand::K, k), (Operand::V, v)] {
        if spec.dtype != q.dtype {
            return Err(Invalid::DTypeMismatch { tensor, dtype: spec.dtype, expected: q.dtype }.into());
        }
    }
    for (tensor, spec) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
        spec.check(tensor, false)?;
    }
    out.check(Operand::Out, true)?;
    let [batch, num_heads_q, seqlen_q, head_dim] = q.shape;
    let (num_heads_kv, seqlen_kv, head_dim_v) = (k.shape[1], k.shape[2], v.shape[3]);
    Ok(Dims { batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v })
}

/// Checks the modifiers of `request`, and its sequences if they are packed.
pub fn modifiers(request: &Request, dims: &Dims) -> Result<(), ModifierError> {
    let Some(sequences) = &request.sequences else {
        return request.modifiers.check(dims, [dims.batch, dims.seqlen_q, dims.seqlen_kv]);
    };
    if dims.batch != 1 {
        return Err(ModifierError::PackedBatch { batch: dims.batch });
    }
    let ends = sequences.tokens();
    for (tensor, end, tokens) in [(Operand::Q, ends[0], dims.seqlen_q), (Operand::K, ends[1], dims.seqlen_kv)] {
        if end != tokens {
            return Err(ModifierError::SequencesEnd { tensor, end, tokens });
        }
    }
    let [rows, keys] = sequences.longest();
    request.modifiers.check(dims, [sequences.len(), rows, keys])
}

fn head_dim(request: &Request) -> Result<(), Error> {
    let Request { q, k, v, out, .. } = request;
    for (tensor, spec, of, expected) in [(Operand::K, k, Operand::Q, q), (Operand::Out, out, Operand::V, v)] {
        let (head_dim, expected) = (spec.shape[3], expected.shape[3]);
        if head_dim != expected {
            return Err(Invalid::HeadDimMismatch { tensor, head_dim, of, expected }.into());
        }
    }
    for (tensor, head_dim) in [(Operand::Q, q.shape[3]), (Operand::V, v.shape[3])] {
        match head_dim {
            0 => return Err(Invalid::HeadDimZero { tensor, max: MAX_HEAD_DIM }.into()),
            1..=MAX_HEAD_DIM => {}
            _ => return Err(Unsupported::HeadDim { tensor, head_dim, max: MAX_HEAD_DIM }.into()),
        }
    }
    Ok(())
}

fn heads(q: &TensorSpec, k: &TensorSpec, v: &TensorSpec, out: &TensorSpec) -> Result<(), Invalid> {
    let (heads_q, heads_kv) = (q.shape[1], k.shape[1]);
    if v.shape[1] != heads_kv {
        return Err(Invalid::KvHeadsMismatch { heads: v.shape[1], expected: heads_kv });
    }
    if out.shape[1] != heads_q {
        return Err(Invalid::OutHeadsMismatch { heads: out.shape[1], expected: heads_q });
    }
    match (heads_q, heads_kv) {
        (0, _) => Ok(()), // nothing to compute
        (_, 0) => Err(Invalid::NoKvHeads { heads_q }),
        _ if heads_q % heads_kv != 0 => Err(Invalid::HeadsNotDivisible { heads_q, heads_kv }),
        _ => Ok(()),
    }
}

fn tokens(q: &TensorSpec, k: &TensorSpec, v: &TensorSpec, out: &TensorSpec) -> Result<(), Error> {
    if v.shape[2] != k.shape[2] {
        return Err(Invalid::SeqlenKvMismatch { seqlen: v.shape[2], expected: k.shape[2] }.into());
    }
    if out.shape[2] != q.shape[2] {
        return Err(Invalid::OutSeqlenMismatch { seqlen: out.shape[2], expected: q.shape[2] }.into());
    }
    for (tensor, spec) in [(Operand::Q, q), (Operand::K, k)] {
        if spec.shape[2] > MAX_SEQLEN {
            return Err(Unsupported::Seqlen { tensor, seqlen: spec.shape[2], max: MAX_SEQLEN }.into());
        }
    }
    Ok(())
}

/// The softmax scale, by default `1 / sqrt(head_dim)`. Zero is allowed: it weighs all keys alike.
pub fn sm_scale(given: Option<f32>, head_dim: usize) -> Result<f32, Invalid> {
    match given {
        None => Ok(1.0 / (head_dim as f32).sqrt()),
        Some(sm_scale) if !sm_scale.is_finite() => Err(Invalid::SmScaleNotFinite { sm_scale }),
        Some(sm_scale) if sm_scale < 0.0 => Err(Invalid::SmScaleNegative { sm_scale }),
        Some(sm_scale) => Ok(sm_scale),
    }
}
