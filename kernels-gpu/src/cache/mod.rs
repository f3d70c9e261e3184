//! The quantized cache of keys and values, and attention over it. [`append`] fills it, [`decode`] reads it; what
//! lies where is in `sage_spec::cache`.

pub mod append;
mod combine;
pub mod decode;
mod keys;
pub mod mean;
mod query;

use sage_spec::Precision;
use sage_spec::cache::{CacheArg, PageLayout};

/// The pages of these kernels.
pub const fn layout<const HEAD_DIM: u32, const INT4: bool>() -> PageLayout {
    PageLayout { precision: if INT4 { Precision::Int4 } else { Precision::Int8 }, head_dim: HEAD_DIM as usize }
}

/// Where a page of a head begins.
#[inline(always)]
pub fn page_address<const HEAD_DIM: u32, const INT4: bool>(cache: &CacheArg, page: u32, head_kv: u32) -> u64 {
    let bytes = const { layout::<HEAD_DIM, INT4>().page_bytes() as u64 };
    cache.pages + (page as u64 * cache.num_heads_kv as u64 + head_kv as u64) * bytes
}
