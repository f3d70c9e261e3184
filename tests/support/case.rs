//! Random problems for kernels, each rebuilt from one number.

use half::{bf16, f16};
use sage_attn::error::Operand;
use sage_attn::problem::{DType, Layout, Precision, Problem, Request, Smoothing, TensorSpec};
use sage_attn::reference::{Data, HostTensor, Options};
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_spec::{PvFormat, ScaleGranularity};

use crate::generate::Random;

/// A tensor's bytes, from its first element to its last, and how they are laid out.
pub struct Tensor {
    /// Type, shape and strides.
    pub spec: TensorSpec,
    elements: Elements,
}

enum Elements {
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Tensor {
    /// `value(head, token, feature)` where the tensor has elements, NaN in the gaps of its strides.
    pub fn fill(spec: TensorSpec, mut value: impl FnMut(usize, usize, usize) -> f32) -> Tensor {
        let span = spec.span_elems(Operand::Tensor).expect("test extents are small");
        let mut x = vec![f32::NAN; span];
        let [batch, heads, tokens, head_dim] = spec.shape;
        for b in 0..batch {
            for h in 0..heads {
                for n in 0..tokens {
                    let row = b as i64 * spec.strides[0] + h as i64 * spec.strides[1] + n as i64 * spec.strides[2];
                    for d in 0..head_dim {
                        x[row as usize + d] = value(b * heads + h, n, d);
                    }
                }
            }
        }
        Tensor::of(spec, x)
    }

    /// The elements from the first to the last, gaps included, rounded to the tensor's type.
    pub fn of(spec: TensorSpec, x: Vec<f32>) -> Tensor {
        let elements = match spec.dtype {
            DType::F16 => Elements::F16(x.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => Elements::BF16(x.into_iter().map(bf16::from_f32).collect()),
            DType::F32 => Elements::F32(x),
        };
        Tensor { spec, elements }
    }

    /// As the reference takes it.
    pub fn host(&self) -> HostTensor<'_> {
        let data = match &self.elements {
            Elements::F16(x) => Data::F16(x),
            Elements::BF16(x) => Data::BF16(x),
            Elements::F32(x) => Data::F32(x),
        };
        let [stride_batch, stride_head, stride_token, _] = self.spec.strides;
        HostTensor { data, stride_batch, stride_head, stride_token }
    }

    /// As memory holds it.
    pub fn bytes(&self) -> Vec<u8> {
        /// A loop that the compiler turns into a copy.
        fn all<T: Copy, const BYTES: usize>(x: &[T], bytes_of: impl Fn(T) -> [u8; BYTES]) -> Vec<u8> {
            let mut bytes = vec![0; x.len() * BYTES];
            bytes.chunks_exact_mut(BYTES).zip(x).for_each(|(to, &x)| to.copy_from_slice(&bytes_of(x)));
            bytes
        }
        match &self.elements {
            Elements::F16(x) => all(x, f16::to_le_bytes),
            Elements::BF16(x) => all(x, bf16::to_le_bytes),
            Elements::F32(x) => all(x, f32::to_le_bytes),
        }
    }
}

/// A problem with its operands.
pub struct Case {
    /// What it was made from.
    pub seed: u64,
    /// The attention kernel that solves it.
    pub stem: Stem,
    /// The problem.
    pub problem: Problem,
    /// The same for the reference.
    pub options: Options,
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

/// How large random problems get.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest batch.
    pub batch: usize,
    /// Most key/value heads.
    pub num_heads_kv: usize,
    /// Query heads of a key/value head, one of which is picked.
    pub gqa_groups: &'static [usize],
    /// Most tokens of a sequence, about.
    pub tokens: usize,
}

impl Limits {
    /// For a GPU: to about four query blocks.
    pub const GPU: Limits = Limits { batch: 2, num_heads_kv: 3, gqa_groups: &[1, 1, 2, 3, 5], tokens: 500 };
    /// For kernels that run on the CPU: to two query blocks and a few key blocks.
    pub const EXECUTOR: Limits = Limits { batch: 2, num_heads_kv: 2, gqa_groups: &[1, 1, 1, 3], tokens: 160 };
}

impl Case {
    /// The problem of `seed`: any stem, extents within `limits` with many tails, all layouts and options,
    /// keys and queries with channel offsets as real ones have.
    pub fn random(seed: u64, limits: Limits) -> Case {
        Case::new(seed, limits, None)
    }

    /// [`Case::random`], but for the attention kernel `stem`.
    pub fn random_for(stem: Stem, seed: u64, limits: Limits) -> Case {
        Case::new(seed, limits, Some(stem))
    }

    fn new(seed: u64, limits: Limits, stem: Option<Stem>) -> Case {
        let mut random = Random(seed);
        let pick = |random: &mut Random, n: usize| (random.bits() % n as u64) as usize;
        let any_stem = STEMS[pick(&mut random, STEMS.len())];
        let stem = stem.unwrap_or(any_stem);
        let batch = 1 + pick(&mut random, limits.batch);
        let num_heads_kv = 1 + pick(&mut random, limits.num_heads_kv);
        let num_heads_q = num_heads_kv * limits.gqa_groups[pick(&mut random, limits.gqa_groups.len())];
        let narrow = |random: &mut Random| match pick(random, 4) {
            0 => 64,
            1 | 2 => 128,
            _ => 1 + pick(random, 128),
        };
        // One in four has values of another width; one in four is wide where there are kernels for that.
        let mut head_dim = narrow(&mut random);
        let mut head_dim_v = if pick(&mut random, 4) == 0 { narrow(&mut random) } else { head_dim };
        if stem.arch != Arch::Sm90a && pick(&mut random, 4) == 0 {
            (head_dim, head_dim_v) = match pick(&mut random, 6) {
                0 => (256, 256),
                1 => (192, 128),
                2 => (160, 160),
                3 => (128, 256),
                4 => (1 + pick(&mut random, 256), 129 + pick(&mut random, 128)),
                _ => (129 + pick(&mut random, 128), 1 + pick(&mut random, 128)),
            };
        }
        let wide = head_dim.max(head_dim_v) > 128;
        let tokens = |random: &mut Random| match pick(random, 8) {
            0 => pick(random, 4),
            1 => 64 * (1 + pick(random, (limits.tokens / 125).max(2))),
            2 => 127 + pick(random, 3),
            3 => 1 + pick(random, 64),
            _ => 1 + pick(random, limits.tokens),
        };
        let (seqlen_q, seqlen_kv) = (tokens(&mut random), tokens(&mut random));
        let seqlen_q = if pick(&mut random, 3) == 0 { seqlen_kv } else { seqlen_q };
        let dtype = [DType::F16, DType::BF16, DType::F32][pick(&mut random, if wide { 2 } else { 3 })];
        let mut spec = |heads: usize, tokens: usize, head_dim: usize| {
            let layout = match pick(&mut random, 4) {
                0 => Layout::Nhd,
                1 => {
                    // Gaps: any multiple of eight keeps the fast path, anything else takes the other.
                    let step = [1, 8][pick(&mut random, 2)];
                    let pad = |x: usize, random: &mut Random| x + step * pick(random, 4);
                    let token = if step == 8 { head_dim.next_multiple_of(8) } else { head_dim };
                    let token = pad(token, &mut random);
                    let head = pad(token * tokens.max(1), &mut random);
                    let batch = pad(head * heads, &mut random);
                    Layout::Strides([batch as i64, head as i64, token as i64, 1])
                }
                _ => Layout::Hnd,
            };
            let shape = match layout {
                Layout::Nhd => [batch, tokens, heads, head_dim],
                _ => [batch, heads, tokens, head_dim],
            };
            TensorSpec::new(Operand::Tensor, dtype, &shape, layout).expect("valid layout")
        };
        let (q, k) = (spec(num_heads_q, seqlen_q, head_dim), spec(num_heads_kv, seqlen_kv, head_dim));
        let v = spec(num_heads_kv, seqlen_kv, head_dim_v);
        let mut out = spec(num_heads_q, seqlen_q, head_dim_v);
        out.dtype = [DType::F16, DType::BF16, DType::F32][pick(&mut random, 3)];
        let granularity =
            [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread][pick(&mut random, 3)];
        let flags = random.bits();
        let smoothing = Smoothing { q: flags & 1 != 0, k: flags & 2 != 0, v: flags & 4 != 0 };
        let mut request = Request::new(q, k, v, out);
        request.causal = flags & 8 != 0;
        request.precision = match stem.qk {
            sage_spec::Precision::Int4 => Precision::Int4,
            sage_spec::Precision::Int8 => Precision::Int8,
        };
        request.granularity = granularity;
        request.smoothing = Some(smoothing);
        request.pv = Some(stem.pv);
        request.kernel = Some(stem.name.into());
        request.return_lse = flags & 16 != 0;
        // Sharp and flat attention; one in sixteen with score steps too coarse to fold.
        let sharpness = [0.3, 1.0, 1.0, 3.0][pick(&mut random, 4)] * if flags & 0x1e0 == 0 { 40.0 } else { 1.0 };
        let problem = Problem::new(request).expect("a valid request");
        let options = Options {
            causal: problem.causal(),
            sm_scale: problem.sm_scale(),
            precision: stem.qk,
            granularity,
            pv: stem.pv,
            smooth_q: smoothing.q,
            smooth_k: smoothing.k,
            smooth_v: smoothing.v,
        };
        let mut tensor = |spec: TensorSpec, scale: f32, offset: f32| {
            let offsets = random.normals(spec.shape[3]);
            // Some whole heads and channels are zero: their scales are the floor.
            let (zero_head, zero_channel) = (pick(&mut random, 12), pick(&mut random, 256));
            Tensor::fill(spec, |head, _, d| {
                let x = scale * (offset * offsets[d] + random.normal());
                if head == zero_head || d == zero_channel { 0.0 } else { x }
            })
        };
        let q = tensor(q, sharpness, 1.0);
        let k = tensor(k, 1.0, 3.0);
        let v = tensor(v, 1.0, 0.5);
        Case { seed, stem, problem, options, q, k, v }
    }

    /// The stem and the seed that [`Case::repeat`] has put into the environment variable `SAGE_CASE`.
    ///
    /// # Panics
    ///
    /// If the variable is something else.
    pub fn of_environment() -> Option<(Stem, u64)> {
        let text = std::env::var("SAGE_CASE").ok()?;
        let parts = text
            .split_once(':')
            .and_then(|(name, seed)| Some((STEMS.into_iter().find(|stem| stem.name == name)?, seed.parse().ok()?)));
        Some(parts.unwrap_or_else(|| panic!("SAGE_CASE is stem:seed, not {text:?}")))
    }

    /// The command that runs this problem alone, by `test` of the test binary `executor`.
    pub fn repeat(&self, test: &str) -> String {
        let (stem, seed) = (self.stem.name, self.seed);
        format!("SAGE_CASE={stem}:{seed} cargo test --release -p sage-tests --test executor {test}")
    }

    /// Puts other elements into the same tensors.
    pub fn refill(&mut self, seed: u64) {
        let mut random = Random(seed);
        for tensor in [&mut self.q, &mut self.k, &mut self.v] {
            *tensor = Tensor::fill(tensor.spec, |_, _, _| random.normal());
        }
    }

    /// One line that says what the problem is.
    pub fn describe(&self) -> String {
        let d = self.problem.dims();
        format!(
            "seed {} {} B{} H{}/{} M{} N{} D{}/{} {:?} {:?}{}{}",
            self.seed,
            self.stem.name,
            d.batch,
            d.num_heads_q,
            d.num_heads_kv,
            d.seqlen_q,
            d.seqlen_kv,
            d.head_dim,
            d.head_dim_v,
            self.problem.input_dtype(),
            self.options,
            if self.stem.pv == PvFormat::Fp8 { "" } else { " f16" },
            if self.problem.return_lse() { " lse" } else { "" },
        )
    }
}
