//! Random problems.

use proptest::prelude::*;
use sage_attn::reference::{
    Data, HostTensor, Options, Output, OutputF64, Quantized, attention_f64, attention_quantized, quantize,
};
use sage_spec::{Dims, Precision, PvFormat, ScaleGranularity};

/// Extents, options and a seed: everything needed to rebuild the tensors.
#[derive(Clone, Debug)]
pub struct Problem {
    pub dims: Dims,
    pub options: Options,
    pub seed: u64,
}

/// Contiguous operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensors {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// Small problems of every shape, with all options.
pub fn problems() -> impl Strategy<Value = Problem> {
    // One in four is wide; v is as wide as q and k but for one in four.
    let head_dim = || prop_oneof![3 => 1..129usize, 1 => 129..257usize];
    let head_dims = (head_dim(), prop::option::weighted(0.25, head_dim()));
    let extents = (1..3usize, 1..3usize, 1..3usize, 1..200usize, 1..200usize, head_dims);
    (extents, all_options(), any::<u64>()).prop_map(|(extents, options, seed)| {
        let (batch, num_heads_kv, group, seqlen_q, seqlen_kv, (head_dim, head_dim_v)) = extents;
        let head_dim_v = head_dim_v.unwrap_or(head_dim);
        let num_heads_q = num_heads_kv * group;
        let dims = Dims { batch, num_heads_q, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v };
        let sm_scale = 1.0 / (head_dim as f32).sqrt();
        Problem { dims, options: Options { sm_scale, ..options }, seed }
    })
}

fn all_options() -> impl Strategy<Value = Options> {
    let precision = prop_oneof![Just(Precision::Int4), Just(Precision::Int8)];
    let granularity = prop_oneof![
        Just(ScaleGranularity::PerBlock),
        Just(ScaleGranularity::PerWarp),
        Just(ScaleGranularity::PerThread)
    ];
    let pv = prop_oneof![Just(PvFormat::Fp8), Just(PvFormat::F16)];
    (any::<[bool; 4]>(), precision, granularity, pv).prop_map(|(flags, precision, granularity, pv)| {
        let [causal, smooth_q, smooth_k, smooth_v] = flags;
        Options { causal, sm_scale: 1.0, precision, granularity, pv, smooth_q, smooth_k, smooth_v }
    })
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal with variance 1.
    pub fn normal(&mut self) -> f32 {
        let uniform = |x: u64| (x >> 40) as f32 / (1u64 << 24) as f32;
        let sum: f32 = (0..12).map(|_| uniform(self.next())).sum();
        sum - 6.0
    }
}

impl Problem {
    /// Normal values around channel offsets, as real Q and K have them.
    pub fn tensors(&self) -> Tensors {
        let d = &self.dims;
        let mut random = Random::new(self.seed);
        let mut tensor = |heads: usize, tokens: usize, width: usize, offset: f32| {
            let offsets: Vec<f32> = (0..width).map(|_| offset * random.normal()).collect();
            let rows = d.batch * heads * tokens;
            (0..rows * width).map(|i| offsets[i % width] + random.normal()).collect()
        };
        Tensors {
            q: tensor(d.num_heads_q, d.seqlen_q, d.head_dim, 1.0),
            k: tensor(d.num_heads_kv, d.seqlen_kv, d.head_dim, 1.0),
            v: tensor(d.num_heads_kv, d.seqlen_kv, d.head_dim_v, 0.5),
        }
    }

    pub fn f64(&self, t: &Tensors) -> OutputF64 {
        let scale = f64::from(self.options.sm_scale);
        attention_f64(&self.dims, &t.q(&self.dims), &t.k(&self.dims), &t.v(&self.dims), self.options.causal, scale)
    }

    pub fn quantize(&self, t: &Tensors) -> Quantized {
        let d = &self.dims;
        quantize(d, &t.q(d), &t.k(d), &t.v(d), &self.options)
    }

    pub fn attend(&self, t: &Tensors) -> Output {
        attention_quantized(&self.dims, &self.quantize(t), &t.k(&self.dims), &self.options)
    }

    /// The same with keys and values of its own for every query head.
    pub fn with_repeated_heads(&self, t: &Tensors) -> (Problem, Tensors) {
        let d = &self.dims;
        let repeat = |x: &[f32], width: usize| -> Vec<f32> {
            x.chunks(d.seqlen_kv * width).flat_map(|x| x.repeat(d.gqa_group())).collect()
        };
        let repeated = Tensors { q: t.q.clone(), k: repeat(&t.k, d.head_dim), v: repeat(&t.v, d.head_dim_v) };
        (Problem { dims: Dims { num_heads_kv: d.num_heads_q, ..*d }, ..self.clone() }, repeated)
    }

    /// A few tokens of `ratio` query heads to each of `num_heads_kv` others.
    pub fn of_ratio(ratio: usize, num_heads_kv: usize, options: Options) -> Problem {
        let num_heads_q = num_heads_kv * ratio;
        let dims = Dims { batch: 1, num_heads_q, num_heads_kv, seqlen_q: 3, seqlen_kv: 5, head_dim: 8, head_dim_v: 8 };
        Problem { dims, options, seed: ratio as u64 }
    }
}

impl Tensors {
    pub fn q(&self, d: &Dims) -> HostTensor<'_> {
        HostTensor::contiguous(Data::F32(&self.q), d.num_heads_q, d.seqlen_q, d.head_dim)
    }

    pub fn k(&self, d: &Dims) -> HostTensor<'_> {
        HostTensor::contiguous(Data::F32(&self.k), d.num_heads_kv, d.seqlen_kv, d.head_dim)
    }

    pub fn v(&self, d: &Dims) -> HostTensor<'_> {
        HostTensor::contiguous(Data::F32(&self.v), d.num_heads_kv, d.seqlen_kv, d.head_dim_v)
    }
}
