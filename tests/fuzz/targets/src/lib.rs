//! What fuzzing checks, as plain functions of bytes: they panic where a promise is broken. `tests/fuzz` hands them
//! to cargo-fuzz; the tests of this crate run them for a few seconds with inputs of their own making ([`mutate`]).

pub mod bench;
pub mod bytes;
pub mod edges;
pub mod mutate;
pub mod outcome;
pub mod planning;
pub mod precision_plan;
pub mod problem;
pub mod request;
pub mod safetensors;
pub mod sequences;

/// A function that panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("problem", problem::run),
    ("planning", planning::run),
    ("sequences", sequences::run),
    ("safetensors", safetensors::run),
    ("precision_plan", precision_plan::run),
    ("bench", bench::run),
];
