//! The C interface of `sage-attn`. C programs include `include/sage_attn.h`, which is generated from this
//! crate, and link `libsage_attn_capi`; `examples/attention.c` is a whole program.
//!
//! Conventions: every function that can fail returns a status, [`SAGE_OK`] or one of the other codes, and
//! leaves a sentence for [`sage_last_error`] on the calling thread. Objects are opaque, made by `_new` or
//! `_open` and freed by `_free`, which accepts null. No function unwinds: should the library have a bug
//! that panics, the status is [`SAGE_PANIC`]. Objects may be used from several threads at once as long as
//! none changes or frees them.

mod attention;
mod gpu;
mod merge;
mod status;
mod tensor;

pub use attention::*;
pub use gpu::*;
pub use merge::*;
pub use status::*;
pub use tensor::*;
