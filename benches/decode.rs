//! Times attention over the quantized cache, and filling it, in bytes that must be moved against the device's own copy
//! bandwidth, and against a copy that moves as many bytes: where a launch takes as long as the reading, a copy does not
//! reach its bandwidth either.
//!
//! Figures are medians of rounds of launches back to back. Small caches are timed on several copies in turn, so that
//! none is left in the L2 cache. The last sequence of the shortest context is compared with the CPU reference, and a
//! difference ends the run.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::result::memcpy_dtod_async;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use sage_attn::device::{AppendArgs, DecodeArgs, DeviceCache, DeviceMemory, DeviceTensor, Gpu};
use sage_attn::error::Operand;
use sage_attn::plan::{DecodeRequest, plan_decode};
use sage_attn::problem::{DType, Layout, TensorSpec};
use sage_attn::reference::{self, Data, DecodeOptions, HostCache, HostTensor};
use sage_spec::Precision;
use sage_spec::cache::{CacheShape, PAGE_TOKENS, PageLayout};
use serde_json::{Value, json};

/// What is timed.
pub struct Cases<'a> {
    /// Sequences.
    pub batches: &'a [usize],
    /// Tokens of each.
    pub contexts: &'a [usize],
    /// Query heads.
    pub heads_q: usize,
    /// Key/value heads.
    pub heads_kv: usize,
    /// Query tokens.
    pub seqlen_q: usize,
    /// Features.
    pub head_dim: usize,
    /// Pages of a split; the plan's choice if `None`.
    pub split_pages: Option<usize>,
}

/// Tokens that are appended at once.
const CHUNK: usize = 1024;
/// Bytes that are more than the L2 cache holds, several times.
const BEYOND_CACHE: usize = 400 << 20;
const ROUNDS: usize = 5;
/// Launches of a graph; a multiple of the copies of small caches that matter.
const IN_GRAPH: usize = 24;

/// Median milliseconds of a launch, of rounds of about 20 ms. The launches are replayed from a graph, as an engine does
/// it: the host's part is not timed.
fn time(
    stream: &Arc<CudaStream>,
    mut launch: impl FnMut(usize) -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    // Loads the kernel.
    launch(0)?;
    stream.synchronize()?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    (0..IN_GRAPH).try_for_each(&mut launch)?;
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("the capture is empty")?;
    let round = |replays: usize| -> Result<f64, Box<dyn Error>> {
        let begin = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        (0..replays).try_for_each(|_| graph.launch())?;
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        stream.synchronize()?;
        Ok(f64::from(begin.elapsed_ms(&end)?) / (replays * IN_GRAPH) as f64)
    };
    round(1)?;
    let replays = (20.0 / round(1)? / IN_GRAPH as f64).clamp(1.0, 50.0) as usize;
    let mut times = (0..ROUNDS).map(|_| round(replays)).collect::<Result<Vec<f64>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn zeros(gpu: &Gpu, stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, Box<dyn Error>> {
    let mut memory = gpu.alloc(stream, bytes)?;
    stream.memset_zeros(&mut memory)?;
    Ok(memory)
}

/// All cases; `bandwidth` is that of a copy, in bytes per second.
pub fn run(
    gpu: &Arc<Gpu>,
    stream: &Arc<CudaStream>,
    cases: &Cases<'_>,
    bandwidth: f64,
    upload: &dyn Fn(usize, u64) -> Result<CudaSlice<u8>, Box<dyn Error>>,
) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut figures = Vec::new();
    let largest = cases.batches.iter().max().copied().unwrap_or(0);
    let chunk_elems = largest * cases.heads_kv * CHUNK * cases.head_dim;
    let q_elems = largest * cases.heads_q * cases.seqlen_q * cases.head_dim;
    let [k, v, q] = [upload(chunk_elems, 1)?, upload(chunk_elems, 2)?, upload(q_elems, 3)?];
    for precision in [Precision::Int8, Precision::Int4] {
        for (index, &context) in cases.contexts.iter().enumerate() {
            for &batch in cases.batches {
                let case = Case { gpu, stream, cases, precision, context, batch, check: index == 0 };
                let figure = case.run([&k, &v, &q], bandwidth)?;
                println!(
                    "{} B={batch:<3} N={context:<7} {:9.1} us  {:6.0} GB/s  {:5.1} % of copy  copy of as much {:9.1} us  {} splits of {} pages, append {:5.0} GB/s",
                    precision.name(),
                    figure["ms"].as_f64().unwrap_or(f64::NAN) * 1e3,
                    figure["gb_per_s"].as_f64().unwrap_or(f64::NAN),
                    figure["share_of_copy"].as_f64().unwrap_or(f64::NAN) * 100.0,
                    figure["copy_of_same_bytes_ms"].as_f64().unwrap_or(f64::NAN) * 1e3,
                    figure["splits"],
                    figure["split_pages"],
                    figure["append_gb_per_s"].as_f64().unwrap_or(f64::NAN),
                );
                figures.push(figure);
            }
        }
    }
    Ok(figures)
}

struct Case<'a> {
    gpu: &'a Arc<Gpu>,
    stream: &'a Arc<CudaStream>,
    cases: &'a Cases<'a>,
    precision: Precision,
    context: usize,
    batch: usize,
    check: bool,
}

impl Case<'_> {
    fn run(&self, [k, v, q]: [&CudaSlice<u8>; 3], bandwidth: f64) -> Result<Value, Box<dyn Error>> {
        let Case { gpu, stream, cases, batch, context, .. } = *self;
        let layout = PageLayout { precision: self.precision, head_dim: cases.head_dim };
        let pages_per_sequence = context.div_ceil(PAGE_TOKENS);
        let shape = CacheShape { layout, batch, num_heads_kv: cases.heads_kv, pages_per_sequence };
        let bytes = shape.bytes(batch * pages_per_sequence);
        let copies = BEYOND_CACHE.div_ceil(bytes).max(1);
        let memory = zeros(gpu, stream, bytes * copies)?;
        let ptr = |memory: &CudaSlice<u8>| memory.device_ptr(stream).0;
        let caches: Vec<DeviceCache> = (0..copies)
            .map(|copy| DeviceCache {
                shape,
                pages: DeviceMemory { ptr: ptr(&memory) + (copy * bytes) as u64, bytes },
                k_mean: None,
                block_table: None,
            })
            .collect();
        // A word for each sequence: one row of lengths for each chunk, then one for the whole.
        let chunk = CHUNK.min(context);
        let starts: Vec<usize> = (0..context).step_by(chunk).collect();
        let rows = starts.iter().map(|start| start.to_owned()).chain([context]);
        let words: Vec<u8> = rows.flat_map(|length| (length as u32).to_le_bytes().repeat(batch)).collect();
        let mut lengths = gpu.alloc(stream, words.len())?;
        stream.memcpy_htod(&words, &mut lengths)?;
        let kv =
            TensorSpec::new(Operand::K, DType::BF16, &[batch, cases.heads_kv, chunk, cases.head_dim], Layout::Hnd)?;
        // Taken before any capture, which cudarc's bookkeeping of uses would end.
        let (k, v, q_ptr, lengths_ptr, ptr_of_caches) = (ptr(k), ptr(v), ptr(q), ptr(&lengths), ptr(&memory));
        let row = |row: usize| lengths_ptr + (row * batch * 4) as u64;
        let append = |copy: usize, chunk: usize| -> Result<(), Box<dyn Error>> {
            let args = AppendArgs {
                cache: caches[copy],
                k: DeviceTensor { ptr: k, spec: kv },
                v: DeviceTensor { ptr: v, spec: kv },
                lengths: row(chunk),
            };
            // SAFETY: all memory was allocated above or by the caller in this context, is used on this stream only
            // and outlives the last wait.
            Ok(unsafe { gpu.cache_append(&args, stream.cu_stream()) }?)
        };
        for copy in 0..copies {
            starts.iter().enumerate().try_for_each(|(chunk, _)| append(copy, chunk))?;
        }
        let append_ms = time(stream, |i| append(i % copies, i / copies % starts.len()))?;
        let append_bytes = batch * cases.heads_kv * chunk * (4 * cases.head_dim + layout.group_bytes() / 16);

        let spec = TensorSpec::new(
            Operand::Q,
            DType::BF16,
            &[batch, cases.heads_q, cases.seqlen_q, cases.head_dim],
            Layout::Hnd,
        )?;
        let request =
            DecodeRequest { split_pages: cases.split_pages, ..DecodeRequest::new(shape, spec, spec, context) };
        let plan = plan_decode(&request, gpu.capability())?;
        let out_bytes = spec.span_elems(Operand::Out)? * 2;
        let out = gpu.alloc(stream, out_bytes)?;
        let workspace = gpu.alloc(stream, plan.workspace_bytes())?;
        let counters = zeros(gpu, stream, plan.counter_bytes())?;
        let (out_ptr, workspace_ptr, counters_ptr) = (ptr(&out), ptr(&workspace), ptr(&counters));
        let decode = |copy: usize| -> Result<(), Box<dyn Error>> {
            let args = DecodeArgs {
                cache: caches[copy],
                q: DeviceTensor { ptr: q_ptr, spec },
                out: DeviceTensor { ptr: out_ptr, spec },
                lse: None,
                lengths: row(starts.len()),
                workspace: DeviceMemory { ptr: workspace_ptr, bytes: plan.workspace_bytes() },
                counters: DeviceMemory { ptr: counters_ptr, bytes: plan.counter_bytes() },
            };
            // SAFETY: as above; the counters are zero before the first launch, and launches follow each other.
            Ok(unsafe { gpu.decode(&plan, &args, stream.cu_stream()) }?)
        };
        decode(0)?;
        let difference =
            if self.check { Some(self.difference(&memory, bytes, shape, q, &out, plan.split_pages())?) } else { None };
        let ms = time(stream, |i| decode(i % copies))?;
        let needed = plan.cache_bytes(batch * context) + 2 * out_bytes;
        let rate = needed as f64 / (ms * 1e-3);
        // A copy within each cache that reads and writes as many bytes as attention must: what a small cache takes at
        // least. Last, for it destroys them.
        let half = needed.min(bytes) / 32 * 16;
        let copy_ms = time(stream, |i| {
            let from = ptr_of_caches + (i % copies * bytes) as u64;
            // SAFETY: both halves are in the memory of the caches, which outlives the last wait.
            Ok(unsafe { memcpy_dtod_async(from + half as u64, from, half, stream.cu_stream()) }?)
        })?;
        Ok(json!({
            "kernel": plan.entry().symbol, "precision": self.precision.name(), "batch": batch, "context": context,
            "heads": cases.heads_q, "heads_kv": cases.heads_kv, "seqlen_q": cases.seqlen_q, "head_dim": cases.head_dim,
            "ms": ms, "bytes": needed, "gb_per_s": rate / 1e9, "share_of_copy": rate / bandwidth,
            "copy_of_same_bytes_ms": copy_ms, "share_of_copy_of_same_bytes": copy_ms / ms,
            "splits": plan.splits(), "split_pages": plan.split_pages(), "copies": copies,
            "append_tokens": batch * chunk, "append_ms": append_ms,
            "append_gb_per_s": append_bytes as f64 / (append_ms * 1e-3) / 1e9,
            "rel_l1_against_reference": difference,
        }))
    }

    /// Relative L1 distance of the last sequence's output from the reference.
    fn difference(
        &self,
        memory: &CudaSlice<u8>,
        bytes: usize,
        shape: CacheShape,
        q: &CudaSlice<u8>,
        out: &CudaSlice<u8>,
        split_pages: usize,
    ) -> Result<f64, Box<dyn Error>> {
        let Case { stream, cases, batch, context, .. } = *self;
        let one = CacheShape { batch: 1, ..shape };
        let of_one = bytes / batch;
        let pages = stream.clone_dtoh(&memory.slice(bytes - of_one..bytes))?;
        let row_bytes = cases.heads_q * cases.seqlen_q * cases.head_dim * 2;
        let last = |memory: &CudaSlice<u8>| -> Result<Vec<half::bf16>, Box<dyn Error>> {
            let bytes = stream.clone_dtoh(&memory.slice((batch - 1) * row_bytes..batch * row_bytes))?;
            Ok(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]])).collect())
        };
        let (q, actual) = (last(q)?, last(out)?);
        let cache = HostCache { shape: one, pages: &pages, block_table: None, k_mean: None };
        let q = HostTensor::contiguous(Data::BF16(&q), cases.heads_q, cases.seqlen_q, cases.head_dim);
        let options = DecodeOptions {
            num_heads_q: cases.heads_q,
            seqlen_q: cases.seqlen_q,
            sm_scale: 1.0 / (cases.head_dim as f32).sqrt(),
            causal: true,
            split_pages,
        };
        let expected = reference::decode(&cache, &q, &[context], &options).out;
        let distance: f64 = actual.iter().zip(&expected).map(|(a, b)| f64::from((a.to_f32() - b).abs())).sum();
        let difference = distance / expected.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        if difference.is_nan() || difference > 0.01 {
            return Err(format!("B={batch} N={context}: relative L1 {difference} against the reference").into());
        }
        Ok(difference)
    }
}
