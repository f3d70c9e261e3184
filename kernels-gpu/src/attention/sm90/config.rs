//! What varies between the kernels, every number derived from it, and the named shared-memory plan.

use sage_spec::sm90::{self, Exponential, Q_BUFFERS, STAGES, SmemPlan};

/// A kernel.
pub trait Config {
    /// Padded head dimension, 64 or 128.
    const HEAD_DIM: u32;
    /// How scores become codes.
    const EXPONENTIAL: Exponential;
    /// Whether scores get ΔS of smooth-Q, or may: then it has room beside K's tiles, and scores are biased
    /// ([`super::scores::Scores`]).
    const DELTA_S: bool;
    /// Consumer warpgroups.
    const WARPGROUPS: usize;

    /// Query rows of a work item.
    const BLOCK_Q: u32 = sm90::block_q(Self::WARPGROUPS) as u32;
    /// Threads of a CTA.
    const THREADS: u32 = sm90::threads(Self::WARPGROUPS) as u32;
    /// Warps of the consumer warpgroups; each signals for itself.
    const CONSUMER_WARPS: u32 = 4 * Self::WARPGROUPS as u32;
    /// Where everything lies in shared memory.
    const SMEM: SmemPlan = SmemPlan::new(Self::HEAD_DIM as usize, Self::BLOCK_Q as usize, Self::DELTA_S);
}

/// Registers of a producer thread; the consumers get what it leaves: 32 · 128 + 160 · 384 = 65,536.
pub const PRODUCER_REGISTERS: u32 = 32;
/// Registers of a thread of three consumer warpgroups.
pub const CONSUMER_REGISTERS: u32 = 160;
/// Registers of a thread of four: 32 · 128 + 112 · 512 = 61,440, all that 640 threads of 96 start with.
pub const CONSUMER_REGISTERS_OF_FOUR: u32 = 112;
/// Registers of a thread of two: 32 · 128 + 232 · 256 = 63,488 of the 64,512 that 384 threads start with.
pub const CONSUMER_REGISTERS_OF_TWO: u32 = 232;

/// Barriers of the CTA, by role. A *full* barrier completes when the copy has landed, an *empty* one when
/// all consumers have finished with the buffer.
#[derive(Clone, Copy)]
pub struct Barriers {
    first: u32,
}

impl Barriers {
    /// The barriers of a CTA whose shared memory starts at `smem`.
    #[inline(always)]
    pub fn new<C: Config>(smem: u32) -> Self {
        Barriers { first: smem + const { C::SMEM.barrier_offset as u32 } }
    }

    /// The tiles of K and V of stage `stage` have landed.
    #[inline(always)]
    pub fn full(self, stage: u32) -> u32 {
        self.first + stage * 8
    }

    /// Nobody reads the tiles of stage `stage`.
    #[inline(always)]
    pub fn empty(self, stage: u32) -> u32 {
        self.first + STAGES as u32 * 8 + stage * 8
    }

    /// Q's buffer `buffer` has landed.
    #[inline(always)]
    pub fn full_q(self, buffer: u32) -> u32 {
        self.first + 2 * STAGES as u32 * 8 + buffer * 8
    }

    /// Nobody reads Q's buffer `buffer`.
    #[inline(always)]
    pub fn empty_q(self, buffer: u32) -> u32 {
        self.first + (2 * STAGES + Q_BUFFERS) as u32 * 8 + buffer * 8
    }
}

/// Position in a ring of `LENGTH` buffers: which buffer, and the parity of its barriers' phase.
#[derive(Clone, Copy)]
pub struct Ring<const LENGTH: u32> {
    /// Buffer.
    pub index: u32,
    /// 0 in even rounds, 1 in odd ones: the phase that a full barrier completes in this round. The empty
    /// barrier's phase of the previous round has the other parity, which is also the parity that a fresh
    /// barrier passes at once.
    pub parity: u32,
}

impl<const LENGTH: u32> Ring<LENGTH> {
    /// The first buffer of the first round.
    #[inline(always)]
    pub fn start() -> Self {
        Ring { index: 0, parity: 0 }
    }

    /// Moves to the next buffer.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.index += 1;
        if self.index == LENGTH {
            self.index = 0;
            self.parity ^= 1;
        }
    }
}

/// Ring of the stages of K and V.
pub type TileRing = Ring<{ STAGES as u32 }>;
/// Ring of Q's buffers.
pub type QueryRing = Ring<{ Q_BUFFERS as u32 }>;
