//! Attention on host tensors: options in, output out, on whichever device there is.

mod attention;
mod cpu;
mod gpu;
mod kv_cache;
mod merge;
mod report;
mod side;
mod tensor;

pub use attention::{Attention, Device, Output, Summary};
pub use kv_cache::{Attend, Attended, KvCache, KvCacheOptions};
pub use merge::{Merged, merge, merge_into};
pub use report::Report;
pub use side::{BiasView, MaskView, SideInputs, alibi_slopes};
pub use tensor::{Tensor, TensorView, TensorViewMut};
