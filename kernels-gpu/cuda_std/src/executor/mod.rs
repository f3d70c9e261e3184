//! A machine that runs kernels on the CPU, thread by thread, for tests.
//!
//! A kernel's source is compiled for the host and called once per thread of the launch, each call on a
//! stack of its own ([`Launch::run`]). A thread runs until an instruction makes it wait for others; then a
//! seeded scheduler picks the next, so one seed gives one order of events, and another seed another.
//! Nothing is approximated but `ex2`, `lg2`, `rcp` and the order in which tensor cores add floating-point
//! products; what those differ by on a GPU is measured by the conformance tests.
//!
//! The machine is stricter than hardware. Whatever PTX leaves undefined, or defines but no kernel means,
//! ends the run with a [`Fault`] that names the kernel, the CTA, the thread and the line:
//!
//! * addresses outside an allocation or the CTA's shared memory, and misaligned ones;
//! * reads of bytes that nobody wrote ([`Memory::alloc`] and shared memory start undefined);
//! * two accesses of a shared word by different threads, one a write, that no barrier orders (vector
//!   clocks, as in FastTrack, Flanagan and Freund 2009);
//! * accesses to bytes that an asynchronous copy is writing, and reads through the constant path
//!   (`ld.global.nc`) of bytes that the launch writes;
//! * lanes of a warp that meet in different collectives, or at different lines;
//! * bulk copies and `wgmma` operands that were written by ordinary stores without `fence.proxy.async`;
//! * accumulators used, and operands overwritten, before their `wait_group`;
//! * arrivals an mbarrier does not expect, and waits for a phase that the thread has waited for already;
//! * threads that wait for something that can no longer happen.
//!
//! One to four CTAs of a launch run at a time, as the seed says; a thread that looks at a word of global memory
//! with acquire semantics lets the others go on first.
// Words in brackets are chapters of the PTX ISA.
#![allow(rustdoc::broken_intra_doc_links)]

pub(crate) mod barrier;
pub(crate) mod bulk;
mod clocks;
pub(crate) mod context;
pub(crate) mod copies;
mod fault;
mod fiber;
pub(crate) mod grid;
mod launch;
mod machine;
pub(crate) mod memory;
pub mod numeric;
pub(crate) mod phases;
pub(crate) mod products;
mod shadow;
pub(crate) mod shared;
pub(crate) mod tensor;
pub(crate) mod warp;

pub use bulk::TensorMap;
pub use fault::{Access, Actor, Fault, FaultKind, Site, Space, Waiting};
pub use launch::Launch;
pub use memory::Memory;
