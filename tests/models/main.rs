//! Models on top of the library's attention.

mod emoji_dit;
mod rustlm;
