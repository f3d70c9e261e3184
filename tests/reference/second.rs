//! A second reference: attention with every modifier, term by term as `docs/semantics.md` writes it, in f64 and without
//! the usual subtraction of the maximum. It shares nothing with the first but the extents and the data.

use sage_attn::reference::attention_f64_with;
use sage_spec::{Alignment, Dims, Precision, PvFormat, ScaleGranularity, Window};

use crate::modifiers::{Case, Owned, broadcast};
use crate::problem::{Problem, Random};

/// Output and log-sum-exp.
fn attention(case: &Case, owned: &Owned) -> (Vec<f64>, Vec<f64>) {
    let (d, o, t) = (&case.problem.dims, &case.problem.options, &owned.tensors);
    let at = |shared: [bool; 3], b: usize, h: usize, i: usize, j: usize| {
        let [batch, head, row] = broadcast(d, shared).1;
        (b as i64 * batch + h as i64 * head + i as i64 * row) as usize + j
    };
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for b in 0..d.batch {
        for h in 0..d.num_heads_q {
            let h_kv = h * d.num_heads_kv / d.num_heads_q;
            let (q, kv) = (b * d.num_heads_q + h, b * d.num_heads_kv + h_kv);
            for i in 0..d.seqlen_q {
                let position = match case.alignment {
                    Alignment::BottomRight => i as i128 + d.seqlen_kv as i128 - d.seqlen_q as i128,
                    Alignment::TopLeft => i as i128,
                };
                let sink = case.sinks.then(|| f64::from(owned.sinks[h]).exp());
                let mut denominator = sink.unwrap_or(0.0);
                let mut numerator = vec![0.0; d.head_dim_v];
                for j in 0..d.seqlen_kv {
                    let distance = j as i128 - position;
                    let hidden = o.causal && distance > 0
                        || case.window.left.is_some_and(|left| -distance > left as i128)
                        || case.window.right.is_some_and(|right| distance > right as i128)
                        || case.mask.is_some_and(|shared| !owned.mask[at(shared, b, h, i, j)]);
                    if hidden {
                        continue;
                    }
                    let product = |c: usize| {
                        let q = t.q[(q * d.seqlen_q + i) * d.head_dim + c];
                        f64::from(q) * f64::from(t.k[(kv * d.seqlen_kv + j) * d.head_dim + c])
                    };
                    let mut s = (0..d.head_dim).map(product).sum::<f64>() * f64::from(o.sm_scale);
                    if let Some(cap) = case.softcap.map(f64::from) {
                        s = cap * (s / cap).tanh();
                    }
                    if case.alibi {
                        s -= f64::from(owned.alibi[h]) * distance.abs() as f64;
                    }
                    if let Some(shared) = case.bias {
                        s += f64::from(owned.bias[at(shared, b, h, i, j)]);
                    }
                    denominator += s.exp();
                    for (c, sum) in numerator.iter_mut().enumerate() {
                        *sum += s.exp() * f64::from(t.v[(kv * d.seqlen_kv + j) * d.head_dim_v + c]);
                    }
                }
                out.extend(numerator.iter().map(|sum| if denominator == 0.0 { 0.0 } else { sum / denominator }));
                lse.push(denominator.ln());
            }
        }
    }
    (out, lse)
}

/// Problem number `index`: tiny, any shape, each modifier in about half of them.
fn case(index: u64) -> Case {
    let mut random = Random::new(index);
    let mut below = |n: usize| ((random.normal().abs() * 1e6) as usize) % n;
    let (batch, num_heads_kv, group) = (1 + below(2), 1 + below(2), 1 + below(3));
    let (seqlen_q, seqlen_kv) = (1 + below(12), 1 + below(14));
    let (head_dim, head_dim_v) = (1 + below(9), 1 + below(9));
    let num_heads_q = num_heads_kv * group;
    let dims = Dims { batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v };
    let options = sage_attn::reference::Options {
        causal: below(2) == 0,
        sm_scale: [0.25, 0.5, 1.0][below(3)],
        precision: Precision::Int8,
        granularity: ScaleGranularity::PerBlock,
        pv: PvFormat::Fp8,
        smooth_q: false,
        smooth_k: false,
        smooth_v: false,
    };
    let mut bound = || [None, Some(below(5)), Some(below(20)), Some(usize::MAX)][below(4)];
    let window = Window { left: bound(), right: bound() };
    let mut shared = || [below(2), below(2), below(2)].map(|x| x == 0);
    let [bias, mask] = [shared(), shared()];
    Case {
        problem: Problem { dims, options, seed: index },
        alignment: [Alignment::BottomRight, Alignment::TopLeft][below(2)],
        window,
        softcap: (below(2) == 0).then_some([0.5, 5.0, 30.0][below(3)]),
        alibi: below(2) == 0,
        bias: (below(2) == 0).then_some(bias),
        mask: (below(2) == 0).then_some(mask),
        sinks: below(2) == 0,
    }
}

#[test]
fn two_references_agree_on_ten_thousand_problems() {
    let mut worst = 0.0f64;
    for index in 0..10_000 {
        let case = case(index);
        let owned = case.owned();
        let (d, o, t) = (&case.problem.dims, &case.problem.options, &owned.tensors);
        let scale = f64::from(o.sm_scale);
        let first = attention_f64_with(d, &t.q(d), &t.k(d), &t.v(d), o.causal, scale, &case.modifiers(&owned));
        let (out, lse) = attention(&case, &owned);
        assert_eq!((first.out.len(), first.lse.len()), (out.len(), lse.len()));
        for (a, b) in first.out.iter().zip(&out).chain(first.lse.iter().zip(&lse)) {
            let far = if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1.0) };
            assert!(far <= 1e-12, "problem {index}: {a} and {b}\n{case:?}");
            worst = worst.max(far);
        }
    }
    println!("10,000 problems, at most {worst:e} apart");
}
