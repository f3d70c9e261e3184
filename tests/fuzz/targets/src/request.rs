//! Requests made of bytes: good ones, with a few fields changed to anything.

use sage_attn::error::Operand;
use sage_attn::problem::{BiasSpec, Modifiers, PairSpec, Request, Sequences, TensorSpec};
use sage_attn::{Alignment, DType, Layout, Precision, PvFormat, ScaleGranularity, Smoothing, Window};

use crate::bytes::Bytes;
use crate::edges::{HEAD_DIMS, TOKENS, extent, float, stride};

const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

const KERNELS: [&str; 8] = [
    "sm80_int8_f16_fwd",
    "sm80_int4_f16_fwd",
    "sm89_int8_fp8_fwd",
    "sm89_int4_fp8_fwd",
    "sm90_int8_fp8_fwd",
    "sm90_int4_fp8_fwd",
    "sm70_int8_f16_fwd",
    "",
];

/// A request. Half of them are good; the others are good but for one to eight fields.
pub fn request(bytes: &mut Bytes<'_>) -> Request {
    let mut request = good(bytes);
    for _ in 0..bytes.pick(&[0, 0, 0, 0, 1, 1, 2, 8]) {
        change(&mut request, bytes);
    }
    request
}

/// A request that is good unless a shape is too large.
fn good(bytes: &mut Bytes<'_>) -> Request {
    let (batch, heads_kv) = (bytes.pick(&[1, 1, 2, 3, 17, 0]), bytes.pick(&[1, 2, 8, 3, 128, 0]));
    let heads_q = heads_kv * bytes.pick(&[1, 1, 4, 7]);
    let (rows, keys) = (bytes.pick(&TOKENS), bytes.pick(&TOKENS));
    let head_dim = bytes.pick(&HEAD_DIMS);
    let dtype = bytes.pick(&DTYPES);
    let spec = |dtype, heads: usize, tokens: usize, nhd: bool| {
        let [h, n, d] = [heads, tokens, head_dim].map(|extent| extent as i64);
        let strides = if nhd { [n * h * d, d, h * d, 1] } else { [h * n * d, n * d, d, 1] };
        TensorSpec { dtype, shape: [batch, heads, tokens, head_dim], strides }
    };
    let mut nhd = || bytes.once_in(2);
    let (q, k) = (spec(dtype, heads_q, rows, nhd()), spec(dtype, heads_kv, keys, nhd()));
    let (v, out) = (spec(dtype, heads_kv, keys, nhd()), spec(dtype, heads_q, rows, nhd()));
    let mut request = Request::new(q, k, v, TensorSpec { dtype: bytes.pick(&DTYPES), ..out });
    request.causal = bytes.once_in(2);
    request.return_lse = bytes.once_in(2);
    request.precision = bytes.pick(&[Precision::Auto, Precision::Auto, Precision::Int8, Precision::Int4]);
    request.granularity =
        bytes.pick(&[ScaleGranularity::PerThread, ScaleGranularity::PerWarp, ScaleGranularity::PerBlock]);
    if bytes.once_in(2) {
        request.smoothing = Some(smoothing(bytes));
    }
    if bytes.once_in(4) {
        modify(&mut request, bytes, [batch, heads_q, rows, keys]);
    }
    request
}

fn smoothing(bytes: &mut Bytes<'_>) -> Smoothing {
    Smoothing { q: bytes.once_in(2), k: bytes.once_in(2), v: bytes.once_in(2) }
}

/// Modifiers that fit the extents `[B, Hq, M, N]`.
fn modify(request: &mut Request, bytes: &mut Bytes<'_>, pairs: [usize; 4]) {
    let [batch, heads, rows, _] = pairs;
    let modifiers = &mut request.modifiers;
    let optional = |extent: usize, bytes: &mut Bytes<'_>| if bytes.once_in(2) { 1 } else { extent };
    let shape =
        |bytes: &mut Bytes<'_>| [optional(batch, bytes), optional(heads, bytes), optional(rows, bytes), pairs[3]];
    let contiguous = |shape| PairSpec::contiguous(Operand::Bias, shape).ok();
    modifiers.softcap = bytes.once_in(2).then_some(30.0);
    modifiers.alibi = bytes.once_in(3).then(|| [optional(batch, bytes), heads]);
    modifiers.sinks = bytes.once_in(3).then_some(heads);
    if bytes.once_in(3) {
        let dtype = bytes.pick(&DTYPES);
        modifiers.bias = contiguous(shape(bytes)).map(|pairs| BiasSpec { dtype, pairs });
    }
    if bytes.once_in(3) {
        modifiers.mask = contiguous(shape(bytes));
    }
    if bytes.once_in(8) {
        let pairs = [modifiers.bias.as_mut().map(|bias| &mut bias.pairs), modifiers.mask.as_mut()];
        let axis = bytes.below(4);
        pairs.into_iter().flatten().for_each(|pairs| pairs.strides[axis] = stride(bytes));
    }
    modifiers.window = window(bytes);
}

fn window(bytes: &mut Bytes<'_>) -> Window {
    let mut side = || bytes.once_in(2).then(|| extent(bytes));
    Window { left: side(), right: side() }
}

/// Changes a field to anything.
fn change(request: &mut Request, bytes: &mut Bytes<'_>) {
    let Request { q, k, v, out, .. } = request;
    match bytes.below(20) {
        0..4 => {
            let axis = bytes.below(4);
            let tensor = [q, k, v, out].into_iter().nth(bytes.below(4));
            tensor.into_iter().for_each(|tensor| tensor.shape[axis] = extent(bytes));
        }
        4..7 => {
            let axis = bytes.below(4);
            let tensor = [q, k, v, out].into_iter().nth(bytes.below(4));
            tensor.into_iter().for_each(|tensor| tensor.strides[axis] = stride(bytes));
        }
        7 => {
            // The same for all, so that it is not the mismatch that is noticed.
            let (axis, extent) = (bytes.below(4), extent(bytes));
            [q, k, v, out].into_iter().for_each(|tensor| tensor.shape[axis] = extent);
        }
        8 => {
            let extent = extent(bytes);
            let axis = 1 + bytes.below(2);
            [k, v].into_iter().for_each(|tensor| tensor.shape[axis] = extent);
        }
        9 => {
            // Much in little memory: heads and tokens that overlap.
            let d = q.shape[3] as i64;
            [q, k, v].into_iter().for_each(|tensor| tensor.strides = [d, d, d, 1]);
            let axis = bytes.below(3);
            let big = 1usize << bytes.below(40);
            [&mut request.q, &mut request.k, &mut request.v, &mut request.out]
                .into_iter()
                .for_each(|tensor| tensor.shape[axis] = big);
            if let Ok(dense) = TensorSpec::new(Operand::Out, request.out.dtype, &request.out.shape, Layout::Hnd) {
                request.out = dense;
            }
        }
        10 => [q, k, v, out][bytes.below(4)].dtype = bytes.pick(&DTYPES),
        11 => request.sm_scale = Some(float(bytes)),
        12 => request.precision = bytes.pick(&[Precision::Exact, Precision::Int4, Precision::Int8]),
        13 => request.kernel = Some(bytes.pick(&KERNELS).to_owned()),
        14 => request.pv = Some(bytes.pick(&[PvFormat::F16, PvFormat::Fp8])),
        15 => request.modifiers = modifiers(bytes),
        16 => request.modifiers.alignment = Alignment::TopLeft,
        17 => request.modifiers.softcap = Some(float(bytes)),
        18 => request.sequences = sequences(bytes, request.q.shape[2], request.k.shape[2]),
        _ => {
            let [batch, heads, rows, _] = request.q.shape;
            let pairs = [batch, heads, rows, request.k.shape[2]];
            modify(request, bytes, pairs);
        }
    }
}

/// Modifiers of any shape.
fn modifiers(bytes: &mut Bytes<'_>) -> Modifiers {
    let pairs = |bytes: &mut Bytes<'_>| PairSpec {
        shape: std::array::from_fn(|_| extent(bytes)),
        strides: std::array::from_fn(|_| stride(bytes)),
    };
    Modifiers {
        alignment: bytes.pick(&[Alignment::BottomRight, Alignment::TopLeft]),
        window: window(bytes),
        softcap: bytes.once_in(2).then(|| float(bytes)),
        alibi: bytes.once_in(2).then(|| [extent(bytes), extent(bytes)]),
        bias: bytes.once_in(2).then(|| BiasSpec { dtype: bytes.pick(&DTYPES), pairs: pairs(bytes) }),
        mask: bytes.once_in(2).then(|| pairs(bytes)),
        sinks: bytes.once_in(2).then(|| extent(bytes)),
    }
}

/// Sequences, mostly of `rows` and `keys` tokens in all.
pub fn sequences(bytes: &mut Bytes<'_>, rows: usize, keys: usize) -> Option<Sequences> {
    let count = bytes.below(9);
    let mut cumulative = |total: usize| -> Vec<usize> {
        let mut ends: Vec<usize> = (0..count).map(|_| total / 8 * bytes.below(9)).collect();
        ends.sort_unstable();
        std::iter::once(0).chain(ends).chain([total]).collect()
    };
    let (q, kv) = (cumulative(rows), cumulative(keys));
    Sequences::new(&q, &kv).ok()
}
