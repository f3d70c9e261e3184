//! Numbers at which arithmetic breaks, and numbers at which kernels change their ways.

use sage_spec::limits::{MAX_HEAD_DIM, MAX_SEQLEN};

use crate::bytes::Bytes;

/// Extents that are good, most of them at the edges of tiles.
pub const TOKENS: [usize; 16] = [0, 1, 2, 9, 63, 64, 65, 127, 128, 129, 255, 503, 1001, 4096, 100_001, 1 << 20];

/// Head dimensions that are good.
pub const HEAD_DIMS: [usize; 8] = [1, 8, 40, 63, 64, 65, 80, MAX_HEAD_DIM];

const EXTENTS: [usize; 22] = [
    0,
    1,
    2,
    3,
    7,
    MAX_HEAD_DIM,
    MAX_HEAD_DIM + 1,
    65_535,
    65_536,
    MAX_SEQLEN - 1,
    MAX_SEQLEN,
    MAX_SEQLEN + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX as usize,
    1 << 63,
    usize::MAX - 1,
    usize::MAX,
];

const STRIDES: [i64; 18] = [
    i64::MIN,
    i64::MIN + 1,
    -(1 << 32),
    -1,
    0,
    1,
    2,
    63,
    64,
    127,
    128,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 61,
    i64::MAX / 2,
    i64::MAX - 1,
    i64::MAX,
];

const FLOATS: [f32; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.125,
    f32::MIN_POSITIVE,
    1e-45,
    -1e-45,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    30.0,
];

/// An extent that may be bad.
pub fn extent(bytes: &mut Bytes<'_>) -> usize {
    match bytes.below(4) {
        0 => (bytes.word() >> bytes.below(64)) as usize,
        1 => bytes.pick(&TOKENS),
        _ => bytes.pick(&EXTENTS),
    }
}

/// A stride that may be bad.
pub fn stride(bytes: &mut Bytes<'_>) -> i64 {
    match bytes.below(4) {
        0 => bytes.word() as i64 >> bytes.below(64),
        _ => bytes.pick(&STRIDES),
    }
}

/// A number that may be bad.
pub fn float(bytes: &mut Bytes<'_>) -> f32 {
    if bytes.once_in(4) { bytes.float() } else { bytes.pick(&FLOATS) }
}
