//! Ring attention over two ranks, simulated by two threads: each rank holds half of the tokens, keys and
//! values travel around the ring, and partial results are merged by their log-sum-exp.
//!
//! ```sh
//! cargo run --release --example ring_merge
//! ```

use std::sync::mpsc;
use std::thread;

use sage_attn::{Attention, Error, Layout, Merged, TensorView, merge};

const HEADS: usize = 4;
const TOKENS: usize = 256; // of each rank
const HEAD_DIM: usize = 64;
const RANKS: usize = 2;

/// A rank's share of the tokens: queries, keys and values `[1, HEADS, TOKENS, HEAD_DIM]`.
struct Shard {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn shard(rank: usize) -> Shard {
    let values = |seed: usize| -> Vec<f32> {
        (0..HEADS * TOKENS * HEAD_DIM).map(|i| ((i * 31 + rank * 7919 + seed) as f32 * 0.61).sin()).collect()
    };
    Shard { q: values(1), k: values(2), v: values(3) }
}

/// Attention of all queries of `q` over all keys of one shard. Across shards there is no causal mask to worry
/// about: a rank asks for shards before its own as a whole, for its own with the mask, and for none after.
fn part(q: &[f32], k: &[f32], v: &[f32], causal: bool) -> Result<Merged, Error> {
    let view = |x| TensorView::new(x, &[1, HEADS, TOKENS, HEAD_DIM], Layout::Hnd);
    let attention = Attention::new().causal(causal).return_lse(true);
    let output = attention.forward(&view(q)?, &view(k)?, &view(v)?)?;
    Ok(Merged { out: output.out, lse: output.lse.unwrap_or_default() })
}

/// What a rank does: attend to its own keys, pass them on, and merge what arrives.
fn rank(
    rank: usize,
    own: &Shard,
    next: &mpsc::Sender<(Vec<f32>, Vec<f32>)>,
    previous: &mpsc::Receiver<(Vec<f32>, Vec<f32>)>,
) -> Result<Merged, Error> {
    let mut so_far = part(&own.q, &own.k, &own.v, true)?;
    let mut travelling = (own.k.clone(), own.v.clone());
    for step in 1..RANKS {
        if next.send(travelling).is_err() {
            break; // the other rank failed and reports it
        }
        let Ok(arrived) = previous.recv() else { break };
        let owner = (rank + RANKS - step) % RANKS;
        if owner < rank {
            let new = part(&own.q, &arrived.0, &arrived.1, false)?;
            so_far = merge(&so_far.out.view()?, &so_far.lse, &new.out.view()?, &new.lse)?;
        }
        travelling = arrived;
    }
    Ok(so_far)
}

fn main() -> Result<(), Error> {
    let shards: Vec<Shard> = (0..RANKS).map(shard).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..RANKS).map(|_| mpsc::channel()).unzip();
    let results = thread::scope(|scope| {
        let ranks: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(index, previous)| {
                let (own, next) = (&shards[index], senders[(index + 1) % RANKS].clone());
                scope.spawn(move || rank(index, own, &next, &previous))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect::<Result<Vec<_>, Error>>()
    })?;

    // The same on one machine, all tokens at once.
    let gather = |of: fn(&Shard) -> &Vec<f32>| -> Vec<f32> {
        let heads = (0..HEADS).flat_map(|head| {
            shards.iter().flat_map(move |shard| of(shard)[head * TOKENS * HEAD_DIM..][..TOKENS * HEAD_DIM].iter())
        });
        heads.copied().collect()
    };
    let (q, k, v) = (gather(|shard| &shard.q), gather(|shard| &shard.k), gather(|shard| &shard.v));
    let view = |x| TensorView::new(x, &[1, HEADS, RANKS * TOKENS, HEAD_DIM], Layout::Hnd);
    let whole = Attention::new().causal(true).forward(&view(&q)?, &view(&k)?, &view(&v)?)?.out.to_f32();

    for (index, result) in results.iter().enumerate() {
        let ring = result.out.to_f32();
        let (mut error, mut total) = (0.0, 0.0);
        for (row, values) in ring.chunks(HEAD_DIM).enumerate() {
            let (head, token) = (row / TOKENS, index * TOKENS + row % TOKENS);
            let expected = &whole[(head * RANKS * TOKENS + token) * HEAD_DIM..][..HEAD_DIM];
            error += values.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
            total += expected.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        }
        let relative = error / total;
        println!("rank {index}: relative L1 distance to attention over all tokens {relative:.4}");
        assert!(relative < 0.08, "beyond what quantization costs either side");
    }
    Ok(())
}
