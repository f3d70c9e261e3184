//! Decoding with a quantized cache: a prompt, then tokens one by one, compared with exact attention over everything.
//!
//! ```sh
//! cargo run --release --example decode
//! ```

use sage_attn::{Attend, Attention, Error, KvCacheOptions, Layout, Precision, TensorView};

const HEADS: usize = 8;
const HEADS_KV: usize = 2;
const HEAD_DIM: usize = 128;

/// `[1, heads, tokens, D]` of a pseudo-random walk, with a feature-dependent offset as real keys have it.
fn values(heads: usize, tokens: usize, offset: f32, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..heads * tokens * HEAD_DIM).map(|i| 2.0 * next() + offset * ((i % HEAD_DIM) as f32 * 0.7).sin()).collect()
}

fn view(x: &[f32], heads: usize, tokens: usize) -> Result<TensorView<'_>, Error> {
    TensorView::new(x, &[1, heads, tokens, HEAD_DIM], Layout::Hnd)
}

fn main() -> Result<(), Error> {
    let mut cache = KvCacheOptions::new(1, HEADS_KV, HEAD_DIM, 4096).build()?;
    println!("{} KiB on {} for {} tokens", cache.bytes() >> 10, cache.device(), cache.shape().capacity());

    let prompt = 700;
    let (mut k, mut v) = (values(HEADS_KV, prompt, 3.0, 1), values(HEADS_KV, prompt, 0.0, 2));
    cache.append(&view(&k, HEADS_KV, prompt)?, &view(&v, HEADS_KV, prompt)?)?;

    for step in 0..4 {
        let (new_k, new_v) = (values(HEADS_KV, 1, 3.0, 10 + step), values(HEADS_KV, 1, 0.0, 20 + step));
        cache.append(&view(&new_k, HEADS_KV, 1)?, &view(&new_v, HEADS_KV, 1)?)?;
        (k, v) = (joined(&k, &new_k), joined(&v, &new_v));
        let tokens = cache.lengths()[0];

        let q = values(HEADS, 1, 1.0, 30 + step);
        let q = view(&q, HEADS, 1)?;
        let attended = cache.attend(&q, &Attend::default())?;
        let attention = Attention::new().precision(Precision::Exact);
        let exact = attention.forward(&q, &view(&k, HEADS_KV, tokens)?, &view(&v, HEADS_KV, tokens)?)?;

        let (actual, exact) = (attended.out.to_f32(), exact.out.to_f32());
        let distance: f32 = actual.iter().zip(&exact).map(|(a, b)| (a - b).abs()).sum();
        let norm: f32 = exact.iter().map(|x| x.abs()).sum();
        println!("{tokens} tokens, {} KiB read: relative L1 {:.4}", attended.bytes >> 10, distance / norm);
    }
    Ok(())
}

/// The tokens of each head, and one more.
fn joined(old: &[f32], new: &[f32]) -> Vec<f32> {
    let per_head = old.len() / HEADS_KV;
    old.chunks(per_head).zip(new.chunks(HEAD_DIM)).flat_map(|(old, new)| [old, new].concat()).collect()
}
