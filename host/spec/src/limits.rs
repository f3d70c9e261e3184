//! Limits that hold for every kernel.

/// Largest head dimension of q and k, and of v.
pub const MAX_HEAD_DIM: usize = crate::tiling::WIDE_HEAD_DIM;
/// Largest sequence length: token indices must fit 31 bits with room for padding.
pub const MAX_SEQLEN: usize = (1 << 31) - 1 - 256;
/// Largest number of CTAs in a launch: the grid's x extent (CUDA C++ Programming Guide, compute
/// capabilities table).
pub const MAX_GRID: usize = (1 << 31) - 1;
/// Largest grid extent along y; chunks hold at most this many heads.
pub const MAX_GRID_Y: usize = 65_535;
/// Alignment of every workspace buffer, in bytes.
pub const WORKSPACE_ALIGN: usize = 256;
/// Bytes one vector access moves; base pointers and strides that are multiples of it take the fast path.
pub const VECTOR_BYTES: usize = 16;
