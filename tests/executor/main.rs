//! Every kernel, run on the CPU by the executor, against the reference. `docs/testing.md` says what that
//! proves and how a failure is repeated.

mod cache;
mod chunks;
mod conversions;
mod device;
mod edges;
mod far;
mod faults;
mod kernels;
mod merge;
mod modifiers;
mod packed;
mod pairs;
mod plain;
mod reference;
mod relations;
mod ring;
mod schedules;
mod tails;
