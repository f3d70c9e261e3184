//! Caches to fill and to attend to, and the judgement of kernels that do.

use sage_attn::device::{AppendArgs, DecodeArgs, DeviceCache, DeviceMemory, DeviceTensor};
use sage_attn::error::Operand;
use sage_attn::plan::{Capability, DecodePlan, DecodeRequest, plan_decode};
use sage_attn::problem::TensorSpec;
use sage_attn::reference::{self, Data, DecodeOptions, HostCache, HostTensor};
use sage_attn::{DType, Layout};
use sage_spec::cache::{CacheShape, HEAD_DIMS, PageLayout};
use sage_spec::quant::qk_scale;
use sage_spec::{Dims, Precision};

use crate::case::Tensor;
use crate::generate::Random;
use crate::judge::{f32s, gather};

/// Tokens that are appended at once.
pub struct Chunk {
    /// `[B, Hkv, n, D]`.
    pub k: Tensor,
    /// `[B, Hkv, n, D]`.
    pub v: Tensor,
    /// Tokens before them. Fewer than there are means that the rest is given up.
    pub lengths: Vec<usize>,
}

/// A cache's life: chunks are appended, then queries attend.
pub struct CacheCase {
    /// What it was made from.
    pub seed: u64,
    /// Extents.
    pub shape: CacheShape,
    /// Pages of all sequences.
    pub pages: usize,
    /// Absent if pages follow each other.
    pub table: Option<Vec<u32>>,
    /// Whether the mean of the first chunk is subtracted from K.
    pub smooth: bool,
    /// What is appended.
    pub chunks: Vec<Chunk>,
    /// Tokens in the end.
    pub lengths: Vec<usize>,
    /// Queries.
    pub q: Tensor,
    /// What is asked.
    pub request: DecodeRequest,
}

/// A device that a case runs on.
pub trait Machine {
    /// What plans need to know.
    fn capability(&self) -> Capability;
    /// New memory with these bytes.
    fn upload(&mut self, name: &str, bytes: &[u8]) -> u64;
    /// New memory that nothing has written.
    fn alloc(&mut self, name: &str, bytes: usize) -> u64;
    /// What memory holds.
    fn read(&mut self, address: u64, bytes: usize) -> Vec<u8>;
    /// Appends.
    fn append(&mut self, args: &AppendArgs);
    /// Computes the mean of keys.
    fn mean(&mut self, k: &DeviceTensor, mean: u64);
    /// Attends.
    fn decode(&mut self, plan: &DecodePlan, args: &DecodeArgs);
}

/// How far a case was from what it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheFigures {
    /// Largest difference from the reference, relative to the sum of magnitudes.
    pub against_reference: f64,
    /// Relative L1 distance from exact attention over what the cache holds.
    pub against_exact: f64,
}

/// 0..n.
fn below(random: &mut Random, n: usize) -> usize {
    (random.bits() % n as u64) as usize
}

/// A tensor `[B, H, n, D]` with gaps of `gap` elements between its rows.
fn spec(dtype: DType, shape: [usize; 4], gap: usize) -> TensorSpec {
    let [_, heads, tokens, head_dim] = shape;
    let token = (head_dim + gap) as i64;
    let strides = [heads as i64 * tokens as i64 * token, tokens as i64 * token, token, 1];
    TensorSpec::new(Operand::Tensor, dtype, &shape, Layout::Strides(strides)).expect("a small tensor")
}

impl CacheCase {
    /// A random case with sequences of up to `max_pages` pages.
    pub fn random(seed: u64, max_pages: usize) -> CacheCase {
        let random = &mut Random(seed);
        let precision = [Precision::Int8, Precision::Int4][below(random, 2)];
        let layout = PageLayout { precision, head_dim: HEAD_DIMS[below(random, 2)] };
        let (batch, num_heads_kv) = (1 + below(random, 2), 1 + below(random, 2));
        let shape = CacheShape { layout, batch, num_heads_kv, pages_per_sequence: 1 + below(random, max_pages) };
        let group = [1, 2, 3, 4, 7, 16][below(random, 6)];
        let seqlen_q = [1, 1, 2, 3, 16][below(random, 5)];
        let types = [DType::F16, DType::BF16, DType::F32];
        let (dtype, q_type, out_type) = (types[below(random, 3)], types[below(random, 3)], types[below(random, 3)]);
        let table = (below(random, 2) == 0).then(|| permutation(random, batch * shape.pages_per_sequence));

        // Every chunk but the first may begin before the end of the one before.
        let mut chunks = Vec::new();
        let mut lengths = vec![0; batch];
        for index in 0..1 + below(random, 3) {
            if index > 0 {
                lengths.iter_mut().for_each(|length| *length -= below(random, (*length).min(40) + 1));
            }
            let room = shape.capacity() - lengths.iter().max().copied().unwrap_or(0);
            let tokens = if index == 0 { below(random, room + 1) } else { below(random, room.min(40) + 1) };
            let gap = [0, 0, 8, 3][below(random, 4)];
            let kv = spec(dtype, [batch, num_heads_kv, tokens, layout.head_dim], gap);
            let offsets = random.normals(num_heads_kv * layout.head_dim);
            let k = Tensor::fill(kv, |head, _, d| {
                random.normal() + 4.0 * offsets[head % num_heads_kv * layout.head_dim + d]
            });
            let mut magnitude = 1.0;
            let v = Tensor::fill(kv, |_, _, d| {
                if d == 0 {
                    magnitude = (below(random, 9) as f32 - 4.0).exp2();
                }
                magnitude * random.normal()
            });
            chunks.push(Chunk { k, v, lengths: lengths.clone() });
            lengths.iter_mut().for_each(|length| *length += tokens);
        }
        let gap = [0, 8][below(random, 2)];
        let q_shape = [batch, num_heads_kv * group, seqlen_q, layout.head_dim];
        let q = Tensor::fill(spec(q_type, q_shape, gap), |_, _, _| 1.5 * random.normal());
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let mut request = DecodeRequest::new(shape, q.spec, spec(out_type, q_shape, gap), longest);
        request.causal = below(random, 4) > 0;
        request.return_lse = below(random, 2) == 0;
        request.split_pages = (below(random, 3) > 0).then(|| 1 + below(random, max_pages));
        let (smooth, pages) = (below(random, 3) > 0 && chunks[0].k.spec.shape[2] > 0, batch * shape.pages_per_sequence);
        CacheCase { seed, shape, pages, table, smooth, chunks, lengths, q, request }
    }

    /// What identifies the case.
    pub fn describe(&self) -> String {
        let appended: Vec<_> = self.chunks.iter().map(|chunk| (&chunk.lengths, chunk.k.spec.shape[2])).collect();
        format!(
            "seed {} {:?} table {:?} smooth {} appended {appended:?} lengths {:?} q {:?}",
            self.seed, self.shape, self.table, self.smooth, self.lengths, self.request
        )
    }

    /// Mean of the first chunk.
    fn mean(&self) -> Option<Vec<f32>> {
        let k = &self.chunks[0].k;
        let [batch, heads, tokens, head_dim] = k.spec.shape;
        self.smooth.then(|| reference::cache_mean(&k.host(), batch, heads, tokens, head_dim))
    }
}

/// 0..n in some order.
fn permutation(random: &mut Random, n: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    (1..n).for_each(|i| all.swap(i, below(random, i + 1)));
    all
}

/// Words as bytes.
pub fn words(x: impl IntoIterator<Item = usize>) -> Vec<u8> {
    x.into_iter().flat_map(|x| (x as u32).to_le_bytes()).collect()
}

/// A cache that has been filled.
pub struct Filled {
    /// Where it is.
    pub cache: DeviceCache,
    /// The same on the host.
    pub pages: Vec<u8>,
    /// What was subtracted from K.
    pub mean: Option<Vec<f32>>,
}

/// Appends the chunks, on the machine and in the reference, and compares every byte.
pub fn fill(case: &CacheCase, machine: &mut impl Machine) -> Filled {
    let shape = case.shape;
    let mut pages = vec![0u8; shape.bytes(case.pages)];
    let mean = case.mean();
    let mut cache = DeviceCache {
        shape,
        pages: DeviceMemory { ptr: machine.upload("pages", &pages), bytes: pages.len() },
        k_mean: None,
        block_table: case
            .table
            .as_ref()
            .map(|table| machine.upload("table", &words(table.iter().map(|&x| x as usize)))),
    };
    for (index, chunk) in case.chunks.iter().enumerate() {
        let mut upload = |name: &str, tensor: &Tensor| DeviceTensor {
            ptr: machine.upload(name, &tensor.bytes()),
            spec: tensor.spec,
        };
        let (k, v) = (upload("k", &chunk.k), upload("v", &chunk.v));
        let lengths = machine.upload("lengths", &words(chunk.lengths.iter().copied()));
        if let (0, Some(mean)) = (index, &mean) {
            let ptr = machine.alloc("mean", mean.len() * 4);
            machine.mean(&k, ptr);
            let actual = f32s(&machine.read(ptr, mean.len() * 4));
            assert!(actual.iter().zip(mean).all(|(a, b)| a.to_bits() == b.to_bits()), "{}: mean", case.describe());
            cache.k_mean = Some(ptr);
        }
        machine.append(&AppendArgs { cache, k, v, lengths });
        let (k, v) = (chunk.k.host(), chunk.v.host());
        let tokens = chunk.k.spec.shape[2];
        reference::cache_append(
            &shape,
            &mut pages,
            case.table.as_deref(),
            mean.as_deref(),
            &k,
            &v,
            tokens,
            &chunk.lengths,
        );
        let actual = machine.read(cache.pages.ptr, pages.len());
        let different = actual.iter().zip(&pages).position(|(a, b)| a != b);
        assert_eq!(different, None, "{}: pages after chunk {index}", case.describe());
    }
    Filled { cache, pages, mean }
}

/// Output `[B, Hq, M, D]` and log-sum-exp of the case's queries, if it asks for it.
pub fn attend(
    case: &CacheCase,
    filled: &Filled,
    plan: &DecodePlan,
    machine: &mut impl Machine,
) -> (Vec<f32>, Vec<f32>) {
    let request = plan.request();
    let [batch, heads, tokens, _] = request.q.shape;
    let out_bytes = request.out.span_elems(Operand::Out).expect("span") * request.out.dtype.bytes();
    let lse_bytes = batch * heads * tokens * 4;
    let counters = machine.upload("counters", &vec![0; plan.counter_bytes()]);
    let lengths = machine.upload("lengths", &words(case.lengths.iter().copied()));
    let args = DecodeArgs {
        cache: filled.cache,
        q: DeviceTensor { ptr: machine.upload("q", &case.q.bytes()), spec: case.q.spec },
        out: DeviceTensor { ptr: machine.alloc("out", out_bytes), spec: request.out },
        lse: request.return_lse.then(|| machine.alloc("lse", lse_bytes)),
        lengths,
        workspace: DeviceMemory {
            ptr: machine.alloc("workspace", plan.workspace_bytes().max(4)),
            bytes: plan.workspace_bytes(),
        },
        counters: DeviceMemory { ptr: counters, bytes: plan.counter_bytes() },
    };
    machine.decode(plan, &args);
    let left = machine.read(counters, plan.counter_bytes());
    assert!(left.iter().all(|&x| x == 0), "{}: counters {left:?}", case.describe());
    let out = gather(&request.out, &machine.read(args.out.ptr, out_bytes), "out");
    (out, args.lse.map_or(Vec::new(), |lse| f32s(&machine.read(lse, lse_bytes))))
}

/// Runs a case and compares it with the reference and with exact attention over what the cache holds.
pub fn check(case: &CacheCase, machine: &mut impl Machine) -> CacheFigures {
    let filled = fill(case, machine);
    let plan = plan_decode(&case.request, &machine.capability()).unwrap_or_else(|error| panic!("{error}"));
    let (out, lse) = attend(case, &filled, &plan, machine);
    judge(case, &filled, &plan, &out, &lse)
}

/// Compares an output with what it should be.
pub fn judge(case: &CacheCase, filled: &Filled, plan: &DecodePlan, out: &[f32], lse: &[f32]) -> CacheFigures {
    let request = plan.request();
    let [batch, heads_q, seqlen_q, head_dim] = request.q.shape;
    let host = HostCache {
        shape: case.shape,
        pages: &filled.pages,
        block_table: case.table.as_deref(),
        k_mean: filled.mean.as_deref(),
    };
    let options = DecodeOptions {
        num_heads_q: heads_q,
        seqlen_q,
        sm_scale: plan.sm_scale(),
        causal: request.causal,
        split_pages: plan.split_pages(),
    };
    let expected = reference::decode(&host, &case.q.host(), &case.lengths, &options);
    let unit = match request.out.dtype {
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        DType::F32 => 1e-6,
    };
    let (mut worst, mut distance, mut total) = (0.0f64, 0.0, 0.0);
    for b in 0..batch {
        let [exact, magnitude] = exact(case, filled, plan, b);
        let first = b * heads_q * seqlen_q;
        for (i, (exact, magnitude)) in exact.out.iter().zip(&magnitude.out).enumerate() {
            let at = first * head_dim + i;
            let (actual, reference) = (f64::from(out[at]), f64::from(expected.out[at]));
            let error = (actual - reference).abs();
            let allowed = 1e-3 * magnitude + unit * reference.abs() + 1e-30;
            assert!(error <= allowed, "{}: {actual} for {reference} at {at}, allowed {allowed}", case.describe());
            worst = worst.max(error / (magnitude + 1e-30));
            distance += (actual - exact).abs();
            total += exact.abs();
        }
        for (i, exact) in exact.lse.iter().enumerate().filter(|_| request.return_lse) {
            let (actual, reference) = (f64::from(lse[first + i]), f64::from(expected.lse[first + i]));
            let close = |x: f64, y: f64, by: f64| x == y || (x - y).abs() <= by * (1.0 + y.abs());
            assert!(close(actual, reference, 1e-5), "{}: lse {actual} for {reference}", case.describe());
            assert!(close(actual, *exact, 1e-4), "{}: lse {actual} for exact {exact}", case.describe());
        }
    }
    let against_exact = if total > 0.0 { distance / total } else { 0.0 };
    assert!(against_exact <= 5e-3 + unit, "{}: relative L1 {against_exact} against exact", case.describe());
    CacheFigures { against_reference: worst, against_exact }
}

/// Exact attention of sequence `b`, with Q quantized as the kernel does it, over what the cache holds, and over the
/// magnitudes of V.
fn exact(case: &CacheCase, filled: &Filled, plan: &DecodePlan, b: usize) -> [reference::OutputF64; 2] {
    let (request, shape, length) = (plan.request(), case.shape, case.lengths[b]);
    let [_, heads_q, seqlen_q, head_dim] = request.q.shape;
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for head in 0..shape.num_heads_kv {
        let [keys, values] = reference::cache_read(&shape, &filled.pages, case.table.as_deref(), (b, head), length);
        k.extend(keys);
        v.extend(values);
    }
    let mut q = vec![0.0; heads_q * seqlen_q * head_dim];
    let mut mean_scores = vec![0.0; heads_q * seqlen_q];
    for (row, q) in q.chunks_mut(head_dim).enumerate() {
        let head = row / seqlen_q;
        case.q.host().row(b, head, row % seqlen_q, q);
        if let Some(mean) = &filled.mean {
            let mean = &mean[(b * shape.num_heads_kv + head / (heads_q / shape.num_heads_kv)) * head_dim..];
            let score: f64 = q.iter().zip(mean).map(|(&q, &mean)| f64::from(q) * f64::from(mean)).sum();
            mean_scores[row] = score * f64::from(plan.sm_scale());
        }
        let scale = qk_scale(q.iter().fold(0.0, |max: f32, x| max.max(x.abs())), 127.0);
        q.iter_mut().for_each(|x| *x = f32::from(reference::convert::int_code(*x, 1.0 / scale, 127.0)) * scale);
    }
    let dims = Dims {
        batch: 1,
        num_heads_q: heads_q,
        num_heads_kv: shape.num_heads_kv,
        seqlen_q,
        seqlen_kv: length,
        head_dim,
        head_dim_v: head_dim,
    };
    let magnitudes: Vec<f32> = v.iter().map(|x| x.abs()).collect();
    let q = HostTensor::contiguous(Data::F32(&q), heads_q, seqlen_q, head_dim);
    let kv = |x| HostTensor::contiguous(Data::F32(x), shape.num_heads_kv, length, head_dim);
    let sm_scale = f64::from(plan.sm_scale());
    [&v, &magnitudes].map(|v| {
        let mut output = reference::attention_f64(&dims, &q, &kv(&k), &kv(v), request.causal, sm_scale);
        output.lse.iter_mut().zip(&mean_scores).for_each(|(lse, score)| *lse += score);
        output
    })
}

/// Appends the first chunk `tokens` tokens at a time, without a mean; compares nothing.
pub fn in_pieces(case: &CacheCase, tokens: usize, machine: &mut impl Machine) -> Filled {
    let shape = case.shape;
    let pages = vec![0u8; shape.bytes(case.pages)];
    let cache = DeviceCache {
        shape,
        pages: DeviceMemory { ptr: machine.upload("pages", &pages), bytes: pages.len() },
        k_mean: None,
        block_table: case
            .table
            .as_ref()
            .map(|table| machine.upload("table", &words(table.iter().map(|&x| x as usize)))),
    };
    let Chunk { k, v, .. } = &case.chunks[0];
    let all = k.spec.shape[2];
    for first in (0..all).step_by(tokens.max(1)) {
        let count = tokens.min(all - first);
        let mut part = |tensor: &Tensor| {
            let [batch, heads, _, head_dim] = tensor.spec.shape;
            let mut row = vec![0.0; head_dim];
            let piece = spec(tensor.spec.dtype, [batch, heads, count, head_dim], 0);
            let piece = Tensor::fill(piece, |head, token, d| {
                if d == 0 {
                    tensor.host().row(head / heads, head % heads, first + token, &mut row);
                }
                row[d]
            });
            DeviceTensor { ptr: machine.upload("piece", &piece.bytes()), spec: piece.spec }
        };
        let (k, v) = (part(k), part(v));
        let lengths = machine.upload("lengths", &words(vec![first; shape.batch]));
        machine.append(&AppendArgs { cache, k, v, lengths });
    }
    let pages = machine.read(cache.pages.ptr, pages.len());
    Filled { cache, pages, mean: None }
}
