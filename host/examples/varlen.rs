//! A batch of sequences of different lengths, packed one after the other without padding, as inference engines
//! hold them: `cu_seqlens` says where each begins. Every sequence attends to itself only, and is smoothed by itself.
//!
//! ```sh
//! cargo run --release --example varlen
//! ```

use sage_attn::{Attention, Error, Layout, Sequences, SideInputs, TensorView};

const HEADS: usize = 4;
const HEADS_KV: usize = 2;
const HEAD_DIM: usize = 64;

/// `[1, tokens, heads, HEAD_DIM]`, token-major.
fn values(tokens: usize, heads: usize, seed: usize) -> Vec<f32> {
    (0..tokens * heads * HEAD_DIM).map(|i| ((i * 29 + seed * 7919) as f32 * 0.57).sin()).collect()
}

fn main() -> Result<(), Error> {
    // Cumulative lengths. The second sequence has keys cached from before, so it has fewer queries than keys.
    let (cu_q, cu_kv) = ([0, 17, 49, 249], [0, 17, 149, 349]);
    let (tokens_q, tokens_kv) = (cu_q[3], cu_kv[3]);
    let (q, k, v) = (values(tokens_q, HEADS, 1), values(tokens_kv, HEADS_KV, 2), values(tokens_kv, HEADS_KV, 3));
    let q = TensorView::new(&q, &[1, tokens_q, HEADS, HEAD_DIM], Layout::Nhd)?;
    let k = TensorView::new(&k, &[1, tokens_kv, HEADS_KV, HEAD_DIM], Layout::Nhd)?;
    let v = TensorView::new(&v, &[1, tokens_kv, HEADS_KV, HEAD_DIM], Layout::Nhd)?;

    let sequences = Sequences::new(&cu_q, &cu_kv)?;
    let packed = SideInputs::new().sequences(&sequences);
    let output = Attention::new().causal(true).forward_with(&q, &k, &v, &packed)?;

    // [1, heads, tokens, features], the tokens of all sequences along one axis.
    let out = output.out.to_f32();
    println!("{} on {}", output.report.kernel, output.report.device);
    for index in 0..sequences.len() {
        let (rows, keys) = (sequences.q(index), sequences.kv(index));
        let first = &out[rows.start * HEAD_DIM..][..3];
        println!("sequence {index}: {} queries of {} keys, first row {first:.3?}", rows.len(), keys.len());
    }
    // The first query of the first sequence sees one key; of whatever else is packed it sees nothing.
    let expected = &values(tokens_kv, HEADS_KV, 3)[..HEAD_DIM];
    let largest = out.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("first row against the only value it sees: {largest:.4} apart");
    assert!(largest < 0.1, "beyond what quantization costs");
    Ok(())
}
