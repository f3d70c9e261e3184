//! Cumulative lengths of packed sequences are taken or refused, and never become an index.

use sage_attn::error::ModifierError;
use sage_attn::problem::{Problem, Request, Sequences, TensorSpec};
use sage_attn::{Attention, DType, Device, Layout, SideInputs, TensorView};

use crate::bytes::Bytes;
use crate::edges::{extent, stride};
use crate::outcome::check_message;

/// The target.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let cumulative = |bytes: &mut Bytes<'_>| -> Vec<usize> {
        let count = bytes.below(8);
        let mut lengths: Vec<usize> =
            (0..count).map(|_| if bytes.once_in(8) { extent(bytes) } else { bytes.below(24) }).collect();
        if !bytes.once_in(4) {
            lengths.sort_unstable();
        }
        if !bytes.once_in(8) {
            lengths.insert(0, 0);
        }
        lengths
    };
    let (q, kv) = (cumulative(&mut bytes), cumulative(&mut bytes));
    let sequences = match Sequences::new(&q, &kv) {
        Ok(sequences) => sequences,
        Err(error) => {
            check_refusal(&q, &kv, &error);
            return check_message(&error.into());
        }
    };
    check_ranges(&sequences, &q, &kv);
    let [rows, keys] = [&q, &kv].map(|ends| ends.last().copied().unwrap_or(0));
    if rows <= 64 && keys <= 64 {
        attend(&sequences, rows, keys, &mut bytes);
    }
}

/// A refusal has a reason.
fn check_refusal(q: &[usize], kv: &[usize], error: &ModifierError) {
    let bad = |ends: &[usize]| ends.first() != Some(&0) || ends.windows(2).any(|pair| pair[0] > pair[1]);
    assert!(q.len() != kv.len() || bad(q) || bad(kv), "{q:?} and {kv:?}: {error}");
}

fn check_ranges(sequences: &Sequences, q: &[usize], kv: &[usize]) {
    assert_eq!(sequences.len() + 1, q.len());
    assert_eq!(sequences.is_empty(), q.len() == 1);
    for index in 0..sequences.len() {
        assert_eq!((sequences.q(index), sequences.kv(index)), (q[index]..q[index + 1], kv[index]..kv[index + 1]));
    }
}

/// Attention over the sequences, with numbers of tokens that may be others, and strides that may be anything where
/// nothing is strided over.
fn attend(sequences: &Sequences, rows: usize, keys: usize, bytes: &mut Bytes<'_>) {
    let wrong = |tokens: usize, bytes: &mut Bytes<'_>| if bytes.once_in(8) { bytes.below(64) } else { tokens };
    let (rows, keys) = (wrong(rows, bytes), wrong(keys, bytes));
    let elements = vec![0.25f32; 2 * 64 * 8];
    let view = |tokens: usize, bytes: &mut Bytes<'_>| {
        let mut strides = [1024, 8, 16, 1];
        if bytes.once_in(4) {
            strides[bytes.below(3)] = stride(bytes);
        }
        TensorView::new(&elements, &[1, 2, tokens, 8], Layout::Strides(strides))
    };
    let (Ok(q), Ok(k), Ok(v)) = (view(rows, bytes), view(keys, bytes), view(keys, bytes)) else { return };
    let side = SideInputs::new().sequences(sequences);
    let attention = Attention::new().device(Device::Cpu).causal(bytes.once_in(2)).return_lse(true);
    match attention.forward_with(&q, &k, &v, &side) {
        Ok(output) => {
            assert!(output.out.to_f32().iter().all(|x| x.is_finite()));
            assert_eq!(output.lse.map(|lse| lse.len()), Some(2 * rows));
        }
        Err(error) => check_message(&error),
    }
    let spec = |tokens: usize| TensorSpec { dtype: DType::F32, shape: [1, 2, tokens, 8], strides: [1024, 8, 16, 1] };
    let request = Request::new(spec(rows), spec(keys), spec(keys), spec(rows));
    if let Ok(problem) = Problem::new(Request { sequences: Some(sequences.clone()), ..request }) {
        let parts = (0..sequences.len()).filter_map(|index| problem.sequence(index));
        assert_eq!(parts.map(|part| part.dims().seqlen_q).sum::<usize>(), rows);
        assert!(problem.sequence(sequences.len()).is_none());
    }
}
