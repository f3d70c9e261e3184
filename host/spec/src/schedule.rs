//! Order in which the quantizer's CTAs take their tiles.
//!
//! K's mean and V's scales depend on all tokens of a head, so K and V are read twice. A CTA draws a *ticket*
//! from a counter and does the work of that number; a ticket depends only on smaller ones, so whoever holds it
//! may wait: the work it waits for is running or done. Results of a tile are [`posted`]; whoever begins the last tile of a head
//! reduces them, when all have come: the others are running, and wait for smaller tickets only. Statistics run `lookahead` heads before the codes that
//! need them. That is long enough for them to be there in time, and short enough that the second read of K and
//! V finds them in the L2 cache.
//!
//! Tickets of `H = heads`, `L = lookahead`: statistics of heads `0 .. L`; then for each `h` in `L .. H`
//! statistics of head `h`, then codes of head `h − L`; then codes of heads `H − L .. H`.

use crate::Dims;
use crate::tiling::QUANTIZE_TILE;

/// What a CTA does with a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sums of K's tokens.
    KStatistics,
    /// Extremes, and sums if V is smoothed, of V's channels.
    VStatistics,
    /// Codes of Q.
    Q,
    /// Codes of K.
    K,
    /// Codes of V.
    V,
}

/// The work of one ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// What to do.
    pub role: Role,
    /// Flattened (batch, kv head).
    pub head_kv: u32,
    /// Tile of 128 tokens of that head; for Q `head in the group · query blocks + query block`.
    pub tile: u32,
}

/// Division by a number that is known before the launch: a product and a shift, where a thread would take twenty instructions
/// that wait for each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Divisor {
    /// 2^(31 + shift) over the divisor, rounded up.
    factor: u32,
    /// The divisor's base-2 logarithm, rounded up.
    shift: u32,
}

impl Divisor {
    /// By `by`, at most 2³¹, or by 1 if that is 0.
    pub const fn new(by: u32) -> Divisor {
        let by = if by == 0 { 1 } else { by };
        let shift = 32 - (by - 1).leading_zeros();
        // At most 2³² − 1: `by` exceeds half of 2^shift unless it is 2^shift.
        Divisor { factor: (1u64 << (31 + shift)).div_ceil(by as u64) as u32, shift }
    }

    /// Of `a`, below 2³¹: rounding up adds less than `a` over 2^(31 + shift), too little to reach the next multiple.
    #[inline(always)]
    pub const fn quotient(&self, a: u32) -> u32 {
        (((2 * a) as u64 * self.factor as u64) >> 32) as u32 >> self.shift
    }
}

/// The tickets of one problem.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// B · Hkv.
    pub heads: u32,
    /// Heads between statistics and codes, `0 ..= heads`.
    pub lookahead: u32,
    /// Tiles of K, and of V, of a head.
    pub tiles_kv: u32,
    /// Tiles of Q of all query heads that share a kv head.
    pub tiles_q: u32,
    /// Tickets of statistics of a head: `tiles_kv`, twice if K is smoothed.
    pub statistics: u32,
    /// By `statistics`.
    by_statistics: Divisor,
    /// By the tickets of the codes of a head.
    by_codes: Divisor,
    /// By both.
    by_both: Divisor,
    /// By Hkv.
    pub by_heads_kv: Divisor,
    /// By the query blocks of a head.
    pub by_query_blocks: Divisor,
}

impl Schedule {
    /// The schedule of `dims`, whose tickets must fit a `u32` ([`tickets`]), for a device that runs about
    /// `resident` CTAs at a time, each of which has drawn up to three tickets, and whose cache keeps K and V of
    /// `cached_heads` heads.
    pub const fn new(dims: &Dims, smooth_k: bool, resident: usize, cached_heads: usize) -> Schedule {
        let tiles_kv = dims.seqlen_kv_padded() / QUANTIZE_TILE;
        let statistics = if smooth_k { 2 * tiles_kv } else { tiles_kv };
        let tiles_q = dims.num_query_blocks() * dims.gqa_group();
        let heads = dims.batch * dims.num_heads_kv;
        // Between the last statistics of a head and its first codes at least the tickets that are worked on and
        // next, and those after them where the cache bears it.
        let tickets = statistics + tiles_q + 2 * tiles_kv;
        let (near, far) = (1 + 2 * resident / tickets, 1 + 3 * resident / tickets);
        let lookahead = if cached_heads < near {
            near
        } else if cached_heads < far {
            cached_heads
        } else {
            far
        };
        Schedule {
            heads: heads as u32,
            lookahead: (if lookahead < heads { lookahead } else { heads }) as u32,
            tiles_kv: tiles_kv as u32,
            tiles_q: tiles_q as u32,
            statistics: statistics as u32,
            by_statistics: Divisor::new(statistics as u32),
            by_codes: Divisor::new((tickets - statistics) as u32),
            by_both: Divisor::new(tickets as u32),
            by_heads_kv: Divisor::new(dims.num_heads_kv as u32),
            by_query_blocks: Divisor::new(dims.num_query_blocks() as u32),
        }
    }

    /// Tickets of the codes of a head.
    const fn codes(&self) -> u32 {
        self.tiles_q + 2 * self.tiles_kv
    }

    /// The work of `ticket`; `None` if there is none left.
    #[inline(always)]
    pub fn work(&self, ticket: u32) -> Option<Work> {
        let ahead = self.lookahead * self.statistics;
        if ticket < ahead {
            let head = self.by_statistics.quotient(ticket);
            return Some(self.statistics_work(head, ticket - head * self.statistics));
        }
        let ticket = ticket - ahead;
        let both = self.statistics + self.codes();
        let paired = self.heads - self.lookahead;
        if ticket < paired * both {
            let head = self.by_both.quotient(ticket);
            let rest = ticket - head * both;
            return Some(if rest < self.statistics {
                self.statistics_work(head + self.lookahead, rest)
            } else {
                self.codes_work(head, rest - self.statistics)
            });
        }
        let ticket = ticket - paired * both;
        if ticket >= self.lookahead * self.codes() {
            return None;
        }
        let head = self.by_codes.quotient(ticket);
        Some(self.codes_work(head + paired, ticket - head * self.codes()))
    }

    #[inline(always)]
    fn statistics_work(&self, head_kv: u32, rest: u32) -> Work {
        // V first: without smoothed K there is nothing else.
        if rest < self.tiles_kv {
            Work { role: Role::VStatistics, head_kv, tile: rest }
        } else {
            Work { role: Role::KStatistics, head_kv, tile: rest - self.tiles_kv }
        }
    }

    #[inline(always)]
    fn codes_work(&self, head_kv: u32, rest: u32) -> Work {
        // Q first: it hardly waits for statistics.
        if rest < self.tiles_q {
            return Work { role: Role::Q, head_kv, tile: rest };
        }
        let rest = rest - self.tiles_q;
        if rest < self.tiles_kv {
            Work { role: Role::V, head_kv, tile: rest }
        } else {
            Work { role: Role::K, head_kv, tile: rest - self.tiles_kv }
        }
    }
}

/// Tickets of `dims`, saturating: a launch needs at most [`crate::limits::MAX_GRID`].
pub const fn tickets(dims: &Dims, smooth_k: bool) -> u128 {
    let tiles_kv = (dims.seqlen_kv_padded() / QUANTIZE_TILE) as u128 * if smooth_k { 4 } else { 3 };
    let tiles_q = dims.num_query_blocks() as u128 * dims.num_heads_q as u128;
    let kv = tiles_kv.saturating_mul(dims.num_heads_kv as u128);
    kv.saturating_add(tiles_q).saturating_mul(dims.batch as u128)
}

/// What the CTAs of a grid count together: u32 words, all zero before the launch.
pub struct Progress;

impl Progress {
    /// Word of the next ticket.
    pub const TICKET: usize = 0;
    /// Word of the next work item of the attention kernel for Hopper. It leaves its words as it found them, zero.
    pub const ATTENTION_NEXT: usize = 8;
    /// Word that counts its CTAs that have found no item left.
    pub const ATTENTION_DONE: usize = 16;
    /// First of the counters, in another cache line than the ticket: K's and V's of head 0 and that of V's codes, of head 1, ...
    const COUNTERS: usize = 32;
    /// Counters of a head.
    const COUNTERS_OF_HEAD: usize = 3;

    /// Bytes for `heads` (batch, kv head) pairs.
    pub const fn bytes(heads: usize) -> usize {
        (Self::COUNTERS + Self::COUNTERS_OF_HEAD * heads) * 4
    }

    /// Word that counts the tiles of a head that are begun in `role`, if the role's tiles are reduced; else 0.
    pub const fn counter(role: Role, head_kv: u32) -> u32 {
        let counter = match role {
            Role::KStatistics => 0,
            Role::VStatistics => 1,
            Role::V => 2,
            Role::Q | Role::K => return 0,
        };
        Self::COUNTERS as u32 + Self::COUNTERS_OF_HEAD as u32 * head_kv + counter
    }
}

/// A head's statistics, by their rows of `QuantizeParams::statistics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Token mean of K.
    KMean,
    /// Channel mean of V.
    VMean,
    /// Scale of V's channels.
    VScale,
    /// Its reciprocal.
    VInverseScale,
}

impl Statistic {
    /// Rows of a head.
    pub const ROWS: usize = 4;

    /// The row of a flattened (batch, kv head).
    pub const fn row(self, head_kv: u32) -> u64 {
        head_kv as u64 * Self::ROWS as u64 + self as u64
    }
}

/// The word that a CTA *posts* for others to find: they know that `x` is there because no posted word is zero, which is what they
/// read before. So no fence waits for a CTA's other stores.
///
/// The bits of minus `x`, where −0 counts as +0.
#[inline(always)]
pub fn posted(x: f32) -> u32 {
    (-(x + 0.0)).to_bits()
}

/// The number that was [`posted`].
#[inline(always)]
pub fn received(word: u32) -> f32 {
    -f32::from_bits(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_those_of_the_division() {
        let numbers = |most: u32| {
            let near = (0..32).flat_map(|bit| [-1, 0, 1].map(|x| ((1i64 << bit) + x) as u32));
            let some = (1..200u32).map(|i| i.wrapping_mul(2_654_435_769) >> (i % 31));
            near.chain(some).filter(move |x| *x <= most)
        };
        for by in numbers(1 << 31).filter(|by| *by > 0) {
            let divisor = Divisor::new(by);
            let multiples = (0..50u32).flat_map(|i| [(i * 40_503).wrapping_mul(by), (i * 40_503 + 1).wrapping_mul(by)]);
            for a in numbers(i32::MAX as u32).chain(multiples.flat_map(|a| [a.wrapping_sub(1), a, a + 1])) {
                if a <= i32::MAX as u32 {
                    assert_eq!(divisor.quotient(a), a / by, "{a} / {by}");
                }
            }
        }
    }

    #[test]
    fn no_posted_word_is_zero() {
        let smallest = f32::from_bits(1);
        for x in [0.0, -0.0, smallest, -smallest, 1.5, f32::MAX, f32::INFINITY, f32::NEG_INFINITY] {
            assert_ne!(posted(x), 0, "{x}");
            assert_eq!(received(posted(x)).to_bits(), (x + 0.0).to_bits(), "{x}");
        }
        for nan in [f32::NAN, -f32::NAN] {
            assert!(posted(nan) != 0 && received(posted(nan)).is_nan());
        }
    }

    /// Every tile once, and nothing before what it depends on.
    #[test]
    fn tickets_cover_every_tile_and_depend_on_smaller_ones() {
        for (batch, heads_kv, group, m, n) in
            [(1, 1, 1, 1, 1), (2, 3, 2, 300, 500), (1, 8, 1, 128, 128), (1, 1, 4, 5000, 100), (4, 2, 1, 0, 700)]
        {
            let dims = Dims {
                batch,
                num_heads_q: heads_kv * group,
                num_heads_kv: heads_kv,
                seqlen_q: m,
                seqlen_kv: n,
                head_dim: 64,
                head_dim_v: 64,
            };
            for smooth_k in [false, true] {
                for resident in [1, 7, 40, 1000] {
                    for cached_heads in [0, 5, 100] {
                        check(&dims, smooth_k, &Schedule::new(&dims, smooth_k, resident, cached_heads));
                    }
                }
            }
        }
    }

    fn check(dims: &Dims, smooth_k: bool, schedule: &Schedule) {
        let total = tickets(dims, smooth_k) as u32;
        assert!(schedule.work(total).is_none() && schedule.work(u32::MAX / 2).is_none());
        let count = |role: Role, head_kv: u32, before: u32| {
            (0..before).filter_map(|t| schedule.work(t)).filter(|w| w.role == role && w.head_kv == head_kv).count()
        };
        for head in 0..schedule.heads {
            let expected = [
                (Role::VStatistics, schedule.tiles_kv),
                (Role::KStatistics, if smooth_k { schedule.tiles_kv } else { 0 }),
                (Role::Q, schedule.tiles_q),
                (Role::K, schedule.tiles_kv),
                (Role::V, schedule.tiles_kv),
            ];
            for (role, tiles) in expected {
                assert_eq!(count(role, head, total), tiles as usize, "{role:?}");
                for tile in 0..tiles {
                    let work = Work { role, head_kv: head, tile };
                    assert_eq!((0..total).filter(|&t| schedule.work(t) == Some(work)).count(), 1, "{work:?}");
                }
            }
        }
        for ticket in 0..total {
            let work = schedule.work(ticket).expect("a ticket below the total");
            if matches!(work.role, Role::Q | Role::K | Role::V) {
                assert_eq!(count(Role::VStatistics, work.head_kv, ticket), schedule.tiles_kv as usize);
                let k = if smooth_k { schedule.tiles_kv } else { 0 };
                assert_eq!(count(Role::KStatistics, work.head_kv, ticket), k as usize);
            }
        }
    }
}
