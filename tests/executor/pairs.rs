//! Every pair of a number of queries and a number of keys that a tile of the smallest configuration can have, 128 by
//! 64, with and without the causal mask: 16,384 launches of the attention kernel.
//!
//! A row's result depends on nothing but the keys it sees. So there are 64 results to a row; each of them is held to
//! exact attention over the same codes, and all pairs to them, bit for bit. Quantization needs no pairs: its CTAs
//! hold queries or keys, never both (`tails` has every number of either).

use std::sync::LazyLock;

use cuda_std::executor::Memory;
use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::plan::{Kernel, Plan, Slot, plan};
use sage_attn::problem::{Smoothing, TensorSpec};
use sage_spec::tiling::{BLOCK_KV, BLOCK_Q};
use sage_spec::{Dims, ScaleGranularity};
use sage_tests::case::Case;
use sage_tests::judge::f32s;
use sage_tests::setup::{Setup, stem};

use crate::device::{self, CAPABILITY, launch_steps};

const HEAD_DIM: usize = 16;
/// Features of a row in the workspace.
const DEPTH: usize = 64;
/// What unused rows of codes hold: the one INT8 code that no value has.
const UNUSED: u8 = 0x80;

fn case(seqlen_q: usize, seqlen_kv: usize, causal: bool) -> Case {
    let dims = Dims {
        batch: 1,
        num_heads_q: 1,
        num_heads_kv: 1,
        seqlen_q,
        seqlen_kv,
        head_dim: HEAD_DIM,
        head_dim_v: HEAD_DIM,
    };
    let setup =
        Setup { causal, granularity: ScaleGranularity::PerBlock, ..Setup::new(stem("sm80_int8_f16_fwd"), dims) };
    Setup { smoothing: Smoothing { q: false, k: false, v: false }, ..setup }.noisy()
}

/// Bits of a row's output and LSE.
type Row = ([u32; HEAD_DIM], u32);

/// A whole tile of quantized queries and keys, and what rows see of it.
struct Tile {
    workspace: Vec<u8>,
    plan: Plan,
    /// By number of keys, up to all of the tile's, and row.
    rows: Vec<Vec<Row>>,
}

static TILE: LazyLock<Tile> = LazyLock::new(|| {
    let whole = case(BLOCK_Q, BLOCK_KV, false);
    let outcome = device::run(&whole, 1).unwrap_or_else(|fault| panic!("{fault}"));
    let mut tile = Tile { workspace: outcome.workspace, plan: outcome.plan, rows: Vec::new() };
    let unseen: Row = ([0; HEAD_DIM], f32::NEG_INFINITY.to_bits());
    tile.rows.push(vec![unseen; BLOCK_Q]);
    for keys in 1..=BLOCK_KV {
        let rows = tile.attend(BLOCK_Q, keys, false);
        tile.rows.push(rows);
    }
    tile
});

impl Tile {
    /// Bytes of a buffer of the workspace.
    fn range(&self, slot: Slot) -> std::ops::Range<usize> {
        let buffer = self.plan.workspace().get(slot).expect("every plan has it");
        buffer.offset_bytes..buffer.offset_bytes + buffer.bytes
    }

    /// Attention of the first queries over the first keys; nobody has quantized the others.
    fn attend(&self, seqlen_q: usize, seqlen_kv: usize, causal: bool) -> Vec<Row> {
        let case = case(seqlen_q, seqlen_kv, causal);
        let plan = plan(&case.problem, &CAPABILITY).unwrap_or_else(|error| panic!("{error}"));
        for slot in [Slot::QCodes, Slot::QScale, Slot::KCodes, Slot::KScale, Slot::VCodes] {
            assert_eq!(plan.workspace().get(slot), self.plan.workspace().get(slot), "padding makes them alike");
        }
        let mut bytes = self.workspace.clone();
        bytes[self.range(Slot::QCodes)][seqlen_q * DEPTH..].fill(UNUSED);
        bytes[self.range(Slot::KCodes)][seqlen_kv * DEPTH..].fill(UNUSED);
        // The quantizer promises zeros here: no weight hides a NaN.
        bytes[self.range(Slot::VCodes)][seqlen_kv * DEPTH * 2..].fill(0);
        let memory = &mut Memory::poisoned(UNUSED);
        let workspace = DeviceMemory { ptr: memory.upload("workspace", &bytes), bytes: bytes.len() };
        // The kernel reads codes and scales only: nothing has a value here.
        let mut unread = |spec: TensorSpec| DeviceTensor { ptr: memory.alloc("unread", 4 * BLOCK_Q * HEAD_DIM), spec };
        let [q, k, v] = [case.q.spec, case.k.spec, case.v.spec].map(&mut unread);
        let out = memory.alloc("out", seqlen_q * HEAD_DIM * 4);
        let lse = memory.alloc("lse", seqlen_q * 4);
        let args = LaunchArgs {
            q,
            k,
            v,
            out: DeviceTensor { ptr: out, spec: *case.problem.out() },
            lse: Some(lse),
            workspace,
        };
        let seed = (seqlen_q * 67 + seqlen_kv) as u64;
        let attention = plan.steps().filter(|step| step.entry.kernel == Kernel::Attention);
        launch_steps(memory, &plan, &args, &SideArgs::default(), seed, attention)
            .unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
        assert_eq!(memory.first_undefined(out, seqlen_q * HEAD_DIM * 4), None, "{}", case.describe());
        assert_eq!(memory.first_undefined(lse, seqlen_q * 4), None, "{}", case.describe());
        let out = f32s(memory.read(out, seqlen_q * HEAD_DIM * 4));
        let lse = f32s(memory.read(lse, seqlen_q * 4));
        let row = |(out, lse): (&[f32], &f32)| (std::array::from_fn(|d| out[d].to_bits()), lse.to_bits());
        out.chunks_exact(HEAD_DIM).zip(&lse).map(row).collect()
    }

    /// Fails unless row by row the result is that of the keys the row sees.
    fn check(&self, seqlen_q: usize, seqlen_kv: usize, causal: bool) {
        for (row, actual) in self.attend(seqlen_q, seqlen_kv, causal).iter().enumerate() {
            let visible =
                if causal { (row + 1 + seqlen_kv).saturating_sub(seqlen_q).min(seqlen_kv) } else { seqlen_kv };
            let expected = &self.rows[visible][row];
            // A tile that some of its rows see in part is computed without folding scales into scores
            // (docs/kernels/mma_sync.md): rows that see all of it may differ in a rounding of P.
            let alike = match causal && visible == BLOCK_KV {
                true => near(actual, expected),
                false => actual == expected,
            };
            assert!(alike, "M{seqlen_q} N{seqlen_kv} causal {causal}: row {row} sees {visible} keys");
        }
    }
}

fn near(a: &Row, b: &Row) -> bool {
    let value = |bits: u32| f32::from_bits(bits);
    let largest = b.0.iter().fold(0.0f32, |max, &x| max.max(value(x).abs()));
    let same = |(&x, &y): (&u32, &u32)| (value(x) - value(y)).abs() <= largest / 512.0;
    a.0.iter().zip(&b.0).all(same) && (value(a.1) - value(b.1)).abs() < 1e-3
}

/// The results that pairs are held to, against attention in f64 over the same codes.
#[test]
fn rows_are_attention_over_the_keys_they_see() {
    let tile = &*TILE;
    let codes = |slot| tile.workspace[tile.range(slot)].iter().map(|&x| f64::from(x as i8)).collect::<Vec<_>>();
    let (q, k) = (codes(Slot::QCodes), codes(Slot::KCodes));
    let scale = |slot| f64::from(f32s(&tile.workspace[tile.range(slot)])[0]);
    let scale = scale(Slot::QScale) * scale(Slot::KScale) * 0.125;
    let half = |bytes: &[u8]| f64::from(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
    let v: Vec<f64> = tile.workspace[tile.range(Slot::VCodes)].chunks_exact(2).map(half).collect();
    let v_scale = f32s(&tile.workspace[tile.range(Slot::VScale)]);
    for (keys, rows) in tile.rows.iter().enumerate().skip(1) {
        for (row, (out, lse)) in rows.iter().enumerate() {
            let query = &q[row * DEPTH..][..DEPTH];
            let score = |key: &[f64]| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() * scale;
            let weights: Vec<f64> = k.chunks_exact(DEPTH).take(keys).map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let expected = |d: usize| {
                let products = weights.iter().zip(v.chunks_exact(DEPTH)).map(|(weight, v)| weight * v[d]);
                products.sum::<f64>() / sum * f64::from(v_scale[d])
            };
            let expected: Vec<f64> = (0..HEAD_DIM).map(expected).collect();
            let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for (x, expected) in out.iter().zip(expected) {
                let error = (f64::from(f32::from_bits(*x)) - expected).abs();
                assert!(error <= largest / 256.0, "{keys} keys, row {row}: off by {error} of {largest}");
            }
            let error = (f64::from(f32::from_bits(*lse)) - sum.ln()).abs();
            assert!(error <= 1e-3, "{keys} keys, row {row}: an LSE off by {error}");
        }
    }
}

#[test]
fn every_pair_of_lengths() {
    for seqlen_q in 1..=BLOCK_Q {
        (1..=BLOCK_KV).for_each(|seqlen_kv| TILE.check(seqlen_q, seqlen_kv, false));
    }
}

#[test]
fn every_pair_of_lengths_causal() {
    for seqlen_q in 1..=BLOCK_Q {
        (1..=BLOCK_KV).for_each(|seqlen_kv| TILE.check(seqlen_q, seqlen_kv, true));
    }
}
