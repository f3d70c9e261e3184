//! Many tiles: rings that go round, maxima that rise, scales that differ from block to block and head to head.

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
