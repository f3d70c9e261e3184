//! Every kernel, run on the CPU by the executor, against the reference. `docs/testing.md` says what that
//! proves and how a failure is repeated.

mod device;
mod faults;
mod kernels;
mod merge;
mod modifiers;
mod packed;
mod pairs;
mod reference;
mod relations;
mod tails;
