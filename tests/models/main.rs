//! Models on top of the library's attention.

mod rustlm;
