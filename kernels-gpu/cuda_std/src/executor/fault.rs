//! What ends a run.

use std::fmt;
use std::panic::Location;
use std::string::String;
use std::vec::Vec;

/// A place in a kernel's source.
#[derive(Clone, Copy)]
pub struct Site(pub(super) &'static Location<'static>);

impl Site {
    /// Path of the source file, as the compiler was given it.
    pub fn file(&self) -> &'static str {
        self.0.file()
    }

    /// Line, from 1.
    pub fn line(&self) -> u32 {
        self.0.line()
    }
}

impl PartialEq for Site {
    /// The same place may be compiled more than once.
    fn eq(&self, other: &Site) -> bool {
        std::ptr::eq(self.0, other.0) || *self.0 == *other.0
    }
}

impl Eq for Site {}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.0.file(), self.0.line(), self.0.column())
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Device memory.
    Global,
    /// The CTA's memory.
    Shared,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Global => "global",
            Space::Shared => "shared",
        })
    }
}

/// What an instruction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

/// Who accesses shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A thread, by its index in the CTA.
    Thread(u32),
    /// A bulk copy.
    Copy,
    /// An asynchronous product of a warpgroup, by its index in the CTA.
    Warpgroup(u32),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Thread(thread) => write!(f, "thread {thread}"),
            Actor::Copy => f.write_str("a bulk copy, started"),
            Actor::Warpgroup(warpgroup) => write!(f, "wgmma of warpgroup {warpgroup}"),
        }
    }
}

/// A thread that waits, in [`FaultKind::Deadlock`].
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// Its index in the CTA.
    pub thread: u32,
    /// What it waits for.
    pub what: String,
    /// Where.
    pub at: Site,
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// Part of the access lies outside every allocation, or outside the CTA's shared memory.
    OutOfBounds {
        /// Memory.
        space: Space,
        /// Kind of access.
        access: Access,
        /// First byte.
        address: u64,
        /// Length.
        bytes: usize,
        /// What lies near.
        hint: String,
    },
    /// The address is not a multiple of the access's size.
    Misaligned {
        /// Memory.
        space: Space,
        /// First byte.
        address: u64,
        /// Required alignment in bytes.
        align: usize,
    },
    /// A byte that nobody wrote is read.
    Uninitialised {
        /// Memory.
        space: Space,
        /// The first such byte.
        address: u64,
        /// What lies there.
        hint: String,
    },
    /// A byte is touched that an asynchronous copy is still writing.
    InFlight {
        /// Kind of access.
        access: Access,
        /// The first such byte, in shared memory.
        address: u32,
    },
    /// Two threads touch the same byte of shared memory, at least one writes it, and no barrier orders them.
    Race {
        /// Kind of this access.
        access: Access,
        /// The byte, in shared memory.
        address: u32,
        /// Kind of the earlier access.
        other: Access,
        /// Whose access that was.
        by: Actor,
        /// Where it was.
        other_at: Site,
    },
    /// A bulk copy or an asynchronous product touches a byte that a thread has written, and no
    /// `fence.proxy.async` lies between.
    Unfenced {
        /// Kind of this access.
        access: Access,
        /// The byte, in shared memory.
        address: u32,
        /// The thread that wrote it.
        writer: u32,
        /// Where it did.
        written_at: Site,
    },
    /// Ordinary instructions touch an mbarrier.
    Object {
        /// Kind of access.
        access: Access,
        /// The first byte of it.
        address: u32,
    },
    /// An mbarrier is used other than its state allows.
    Barrier {
        /// Its address.
        barrier: u32,
        /// What is wrong.
        what: String,
    },
    /// A thread waits for a phase of an mbarrier that it has waited for already: the parity is wrong.
    Parity {
        /// The mbarrier's address.
        barrier: u32,
        /// The parity asked for.
        parity: u32,
        /// Phases that the barrier has completed.
        completed: u64,
    },
    /// The registers of a product are used, or changed, before its `wait_group`.
    Unfinished {
        /// What happened to them.
        what: String,
        /// The product.
        product_at: Site,
    },
    /// Threads touch the same byte of global memory in one launch, at least one writes it, and nothing orders
    /// them, or the reader took it for constant.
    GlobalConflict {
        /// Kind of this access.
        access: Access,
        /// The byte.
        address: u64,
        /// What lies there.
        hint: String,
    },
    /// Lanes of a warp meet in different instructions.
    Divergent {
        /// What this lane executes.
        here: String,
        /// What another lane waits in.
        there: String,
        /// That lane's thread index in the CTA.
        other_thread: u32,
        /// Where it waits.
        other_at: Site,
    },
    /// No thread can go on.
    Deadlock {
        /// One waiting thread for each place and reason, with the number of threads like it.
        waiting: Vec<(Waiting, usize)>,
        /// Threads that have ended.
        finished: usize,
    },
    /// A thread ended with copies under way that nobody waited for.
    Unawaited {
        /// What is under way.
        what: String,
    },
    /// The kernel panicked; on a GPU it may not even be able to.
    Panic(String),
    /// An operand or a launch that the instruction set does not allow.
    Illegal(String),
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::OutOfBounds { space, access, address, bytes, hint } => {
                write!(f, "{access} of {bytes} bytes at {space} address {address:#x} is out of bounds ({hint})")
            }
            FaultKind::Misaligned { space, address, align } => {
                write!(f, "{space} address {address:#x} is not a multiple of {align}")
            }
            FaultKind::Uninitialised { space, address, hint } => {
                write!(f, "read of uninitialised {space} memory at {address:#x} ({hint})")
            }
            FaultKind::InFlight { access, address } => {
                write!(f, "{access} of shared address {address:#x}, which an asynchronous copy is still writing")
            }
            FaultKind::Race { access, address, other, by, other_at } => {
                write!(f, "{access} of shared address {address:#x} races with the {other} of {by} at {other_at}")
            }
            FaultKind::Unfenced { access, address, writer, written_at } => write!(
                f,
                "asynchronous {access} of shared address {address:#x}, which thread {writer} wrote at {written_at} \
                 without a fence.proxy.async since"
            ),
            FaultKind::Object { access, address } => {
                write!(f, "ordinary {access} of shared address {address:#x}, which belongs to an mbarrier")
            }
            FaultKind::Barrier { barrier, what } => write!(f, "mbarrier {barrier:#x}: {what}"),
            FaultKind::Parity { barrier, parity, completed } => write!(
                f,
                "wait for parity {parity} of mbarrier {barrier:#x}, which has completed {completed} phases: this \
                 thread has waited for that phase already"
            ),
            FaultKind::Unfinished { what, product_at } => {
                write!(f, "{what} before the wait_group of the wgmma at {product_at}")
            }
            FaultKind::GlobalConflict { access, address, hint } => write!(
                f,
                "{access} of global address {address:#x} conflicts with another access in this launch ({hint})"
            ),
            FaultKind::Divergent { here, there, other_thread, other_at } => {
                write!(f, "{here}, while thread {other_thread} of the same warp is in {there} at {other_at}")
            }
            FaultKind::Deadlock { waiting, finished } => {
                write!(f, "no thread can go on; {finished} have ended")?;
                for (Waiting { thread, what, at }, count) in waiting {
                    write!(f, "; {count} like thread {thread} wait for {what} at {at}")?;
                }
                Ok(())
            }
            FaultKind::Unawaited { what } => write!(f, "the thread ends although {what}"),
            FaultKind::Panic(message) => write!(f, "the kernel panicked: {message}"),
            FaultKind::Illegal(what) => f.write_str(what),
        }
    }
}

/// Why a run ended early, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Name of the launch.
    pub kernel: String,
    /// Seed of the launch's scheduler.
    pub seed: u64,
    /// Index of the CTA in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the CTA.
    pub thread: u32,
    /// The instruction; absent if the launch itself is at fault.
    pub at: Option<Site>,
    /// What was wrong.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "kernel {} (seed {}), CTA ({x}, {y}, {z}), thread {}", self.kernel, self.seed, self.thread)?;
        if let Some(at) = self.at {
            write!(f, ", {at}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for Fault {}
