//! Combining attention over two parts of the keys, one kernel for all types and head dimensions. A row is
//! worked on by neighbouring threads, eight features each.

use crate::launch::Cta;
use crate::params::TensorArg;

/// Exported name. The kernel is in the module that every device loads, `sm_80`.
pub const SYMBOL: &str = "merge_parts";

/// Threads of a CTA.
pub const THREADS: usize = 256;

/// Features that a thread works on at a time.
pub const FEATURES_PER_THREAD: usize = 8;

/// Most threads of a row; a longer row makes them go around.
pub const MAX_ROW_THREADS: usize = 32;

/// `merge_parts`. All three tensors are `[B, H, M, D]`, and nothing written overlaps anything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MergeParams {
    /// Attention over the first part of the keys.
    pub o1: TensorArg,
    /// Attention over the second part of the keys.
    pub o2: TensorArg,
    /// Out: attention over both.
    pub out: TensorArg,
    /// f32 `[B, H, M]`: natural-log log-sum-exp of the first part; −∞ where it has no key, and then that row
    /// of `o1` is not read.
    pub lse1: u64,
    /// The same of the second part.
    pub lse2: u64,
    /// Out, nullable: f32 `[B, H, M]`, of both parts.
    pub lse: u64,
    /// B · H · M.
    pub rows: u32,
    /// H.
    pub num_heads: u32,
    /// M.
    pub seqlen: u32,
    /// D.
    pub head_dim: u32,
    /// Binary logarithm of [`row_threads`].
    pub row_threads_log2: u32,
    /// Type of `o1`: 0 f16, 1 bf16, 2 f32.
    pub dtype1: u32,
    /// Type of `o2`.
    pub dtype2: u32,
    /// Type of `out`.
    pub out_dtype: u32,
    /// 1 if base addresses and strides of all three tensors are multiples of 16 bytes and D of 8.
    pub vectorized: u32,
}

/// Threads of a row of `head_dim` features, a power of two.
pub const fn row_threads(head_dim: usize) -> usize {
    let needed = head_dim.div_ceil(FEATURES_PER_THREAD).next_power_of_two();
    if needed < MAX_ROW_THREADS { needed } else { MAX_ROW_THREADS }
}

/// Geometry of a CTA.
pub const CTA: Cta = Cta { threads: THREADS, smem_bytes: 0 };

/// CTAs for `rows` rows of `head_dim` features.
pub const fn grid(rows: usize, head_dim: usize) -> usize {
    rows.div_ceil(THREADS / row_threads(head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_threads() {
        assert_eq!([1, 8, 9, 64, 80, 128, 256, 1000].map(row_threads), [1, 1, 2, 8, 16, 16, 32, 32]);
        assert_eq!(grid(0, 64), 0);
        assert_eq!(grid(33, 64), 2); // 32 rows of 8 threads in a CTA
        assert_eq!(grid(33, 256), 5);
    }
}
