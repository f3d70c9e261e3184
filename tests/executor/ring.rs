//! Many tiles: rings that go round, maxima that rise, scales that differ from block to block and head to head.

use sage_attn::problem::Smoothing;
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_spec::{Dims, ScaleGranularity};
use sage_tests::case::Case;
use sage_tests::setup::{Setup, noise, noisy_k, noisy_q, noisy_v};

use crate::device::judged;

/// Nine tiles of 128 keys and a bit, so that a ring of four goes round twice.
const DIMS: Dims =
    Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 70, seqlen_kv: 1183, head_dim: 64, head_dim_v: 64 };

/// [`DIMS`], or fewer keys for kernels that have two stages of 64 keys.
fn dims(stem: Stem) -> Dims {
    if stem.arch == Arch::Sm90a { DIMS } else { Dims { seqlen_kv: 333, ..DIMS } }
}

fn check(case: &Case) {
    judged(case, 4);
}

#[test]
fn the_ring_goes_round() {
    for stem in STEMS {
        check(&Setup { causal: true, ..Setup::new(stem, dims(stem)) }.noisy());
    }
}

#[test]
fn later_keys_may_be_larger() {
    for stem in STEMS {
        // Every fourth row looks along a direction in which keys grow with their number.
        let q = |h, n: usize, d| if n.is_multiple_of(4) { 1.0 } else { 0.0 } + 0.3 * noise(1, h, n, d);
        let k = |h, n: usize, d| n as f32 / 150.0 + 0.3 * noise(2, h, n, d);
        check(&Setup::new(stem, dims(stem)).case(&q, &k, &noisy_v));
    }
}

/// The kernels for Hopper go on with the references of an even first tile. Here one key of a later tile, then two of another,
/// weigh more than all before in some rows of one warp, so that codes are clamped and the tile has to be done again.
#[test]
fn one_key_may_outweigh_all_before() {
    for stem in STEMS {
        for smoothing in [Smoothing { q: false, k: false, v: false }, Smoothing { q: true, k: true, v: false }] {
            let q = |h, n: usize, d| if n % 8 == 5 && n < 64 { 0.5 } else { 0.0 } + 0.3 * noise(1, h, n, d);
            let is_heavy = |n: usize| [300, 811, 812].contains(&n);
            let k = |h, n: usize, d| if is_heavy(n) { 2.0 } else { 0.0 } + 0.3 * noise(2, h, n, d);
            check(&Setup { smoothing, ..Setup::new(stem, dims(stem)) }.case(&q, &k, &noisy_v));
        }
    }
}

/// The same with items of three warpgroups, of which one has such a row.
#[test]
fn the_last_key_may_outweigh_all_before() {
    for stem in STEMS.into_iter().filter(|stem| stem.arch == Arch::Sm90a) {
        let dims = Dims { seqlen_q: 192, seqlen_kv: 640, head_dim: 128, head_dim_v: 128, ..DIMS };
        let q = |h, n: usize, d| if n == 191 { 0.5 } else { 0.0 } + 0.3 * noise(1, h, n, d);
        let k = |h, n: usize, d| if n == 511 { 2.0 } else { 0.0 } + 0.3 * noise(2, h, n, d);
        check(&Setup::new(stem, dims).case(&q, &k, &noisy_v));
    }
}

/// The same without a clamped code: from the third tile on all keys weigh twenty times as much, from the sixth four hundred.
#[test]
fn sums_may_outgrow_every_reference() {
    for stem in STEMS {
        let q = |h, n: usize, d| 0.5 + 0.1 * noise(1, h, n, d);
        let k = |h, n: usize, d| (n / 128).min(5) as f32 / 3.0 * 0.25 + 0.1 * noise(2, h, n, d);
        let smoothing = Smoothing { q: false, k: false, v: false };
        check(&Setup { smoothing, ..Setup::new(stem, dims(stem)) }.case(&q, &k, &noisy_v));
    }
}

#[test]
fn every_granularity_in_every_head() {
    for stem in STEMS {
        for granularity in [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread] {
            // Each block and each head has another magnitude.
            let size = |h: usize, n: usize| (1 + (h + n / 64 + n / 32) % 3) as f32;
            let q = |h, n, d| size(h, n) * noisy_q(h, n, d);
            let k = |h, n, d| size(h, n) * noisy_k(h, n, d) / 2.0;
            let dims = Dims { num_heads_q: 2, num_heads_kv: 2, seqlen_q: 130, seqlen_kv: 300, ..DIMS };
            check(&Setup { granularity, ..Setup::new(stem, dims) }.case(&q, &k, &noisy_v));
        }
    }
}

/// A CTA of the Hopper kernel keeps two work items and their queries: here it has four and more.
#[test]
fn many_heads_share_a_cta() {
    for stem in STEMS.into_iter().filter(|stem| stem.arch == Arch::Sm90a) {
        let dims = Dims { num_heads_q: 18, num_heads_kv: 6, seqlen_q: 20, seqlen_kv: 70, ..DIMS };
        check(&Setup::new(stem, dims).noisy());
    }
}
