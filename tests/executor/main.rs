//! Every kernel, run on the CPU by the executor, against the reference. `docs/testing.md` says what that
//! proves and how a failure is repeated.

mod cache;
mod device;
mod faults;
mod kernels;
mod modifiers;
mod packed;
mod reference;
mod relations;
mod tails;
