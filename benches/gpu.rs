//! Times every step of the quantized attention on a GPU, against the device's own copy bandwidth.
//!
//! `cargo run --release -p sage-benches --bin gpu -- --json results.json`. Each step is timed with CUDA
//! events around it; inputs are larger than the L2 cache; figures are medians. The last query blocks of
//! some heads of the timed output are compared with the CPU reference, and a difference ends the run.

mod decode;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use rayon::prelude::*;
use sage_attn::Window;
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs, driver_version};
use sage_attn::error::Operand;
use sage_attn::metrics::Metrics;
use sage_attn::plan::{Plan, plan};
use sage_attn::problem::{DType, Layout, Modifiers, Precision, Problem, Request, Smoothing, TensorSpec};
use sage_attn::reference::{self, Data, HostTensor};
use sage_spec::Dims;
use sage_spec::symbol::Arch;
use sage_spec::tiling::BLOCK_Q;
use serde_json::{Value, json};

/// Times the GPU kernels.
#[derive(Parser)]
struct Options {
    /// Batch size.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Query and key/value heads.
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// Tokens.
    #[arg(long, default_value_t = 8192)]
    seqlen: usize,
    /// Head dimensions.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 64])]
    head_dim: Vec<usize>,
    /// Kernels (stems); all by default.
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Times windows and soft-caps in place of the rest.
    #[arg(long)]
    modifiers: bool,
    /// Times attention over a quantized cache in place of the rest.
    #[arg(long)]
    decode: bool,
    /// Sequences, with --decode.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    decode_batch: Vec<usize>,
    /// Tokens of each sequence, with --decode.
    #[arg(long, value_delimiter = ',', default_values_t = [8192, 32768, 131_072])]
    decode_context: Vec<usize>,
    /// Query heads and key/value heads, with --decode.
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [32, 8])]
    decode_heads: Vec<usize>,
    /// Pages of a split, with --decode; chosen by the plan if absent.
    #[arg(long)]
    decode_split_pages: Option<usize>,
    /// Query tokens of each sequence, with --decode.
    #[arg(long, default_value_t = 1)]
    decode_tokens: usize,
    /// Timed launches of each configuration.
    #[arg(long, default_value_t = 10)]
    repeats: usize,
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is timed of each kernel.
#[derive(Clone, Copy)]
struct Masking {
    /// How it is called; nothing if every key is visible.
    name: &'static str,
    causal: bool,
    modifiers: Modifiers,
}

/// With and without the causal mask.
fn plain() -> Vec<Masking> {
    let modifiers = Modifiers::default();
    vec![Masking { name: "", causal: false, modifiers }, Masking { name: "causal", causal: true, modifiers }]
}

/// What models use: a sliding window of 1,024 keys, and scores capped at 50.
fn modified() -> Vec<Masking> {
    let window = Window { left: Some(1023), right: Some(0) };
    let window = Modifiers { window, ..Modifiers::default() };
    let softcap = Modifiers { softcap: Some(50.0), ..Modifiers::default() };
    vec![
        Masking { name: "window 1024", causal: true, modifiers: window },
        Masking { name: "causal softcap 50", causal: true, modifiers: softcap },
    ]
}

/// Normal-like bf16 values of block `block`, different for every block and seed.
fn values(count: usize, seed: u64, block: usize) -> Vec<half::bf16> {
    let mut state = (seed << 40 | block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..count)
        .map(|_| {
            let mut sum = 0.0f32;
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 40) as f32 / (1u64 << 24) as f32;
            }
            half::bf16::from_f32((sum - 2.0) * 1.732)
        })
        .collect()
}

fn upload(gpu: &Gpu, stream: &Arc<CudaStream>, elems: usize, seed: u64) -> Result<CudaSlice<u8>, Box<dyn Error>> {
    const BLOCK: usize = 1 << 16;
    const COPY: usize = 64 << 20;
    let mut memory = gpu.alloc(stream, elems * 2)?;
    for first in (0..elems).step_by(COPY) {
        let blocks = first / BLOCK..elems.min(first + COPY).div_ceil(BLOCK);
        let bytes: Vec<u8> = blocks
            .into_par_iter()
            .flat_map_iter(|block| values(BLOCK.min(elems - block * BLOCK), seed, block))
            .flat_map_iter(|x| x.to_le_bytes())
            .collect();
        stream.memcpy_htod(&bytes, &mut memory.slice_mut(first * 2..first * 2 + bytes.len()))?;
    }
    Ok(memory)
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Clock in MHz and power in W that the driver's tool reads at this moment; NaN where there is no tool.
fn clock_and_power() -> [f64; 2] {
    let output = std::process::Command::new("nvidia-smi")
        .args(["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "--id=0"])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut fields = text.trim().split(',').map(|field| field.trim().parse().unwrap_or(f64::NAN));
    [(); 2].map(|()| fields.next().unwrap_or(f64::NAN))
}

/// Bytes per second of a device-to-device copy, read and written bytes counted.
fn copy_bandwidth(gpu: &Gpu, stream: &Arc<CudaStream>) -> Result<f64, Box<dyn Error>> {
    let bytes = 2usize << 30;
    let from = gpu.alloc(stream, bytes)?;
    let mut to = gpu.alloc(stream, bytes)?;
    let mut ms = Vec::new();
    for _ in 0..10 {
        let start = stream.record_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        stream.memcpy_dtod(&from, &mut to)?;
        let end = stream.record_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        stream.synchronize()?;
        ms.push(f64::from(start.elapsed_ms(&end)?));
    }
    Ok(2.0 * bytes as f64 / (median(ms) * 1e-3))
}

/// Bytes a step must move: inputs read once (K and V a second time, from the L2 cache), outputs written once.
/// `None` for attention itself, which is not
/// bound by memory, and for steps too small to time.
fn bytes(plan: &Plan, symbol: &str) -> Option<f64> {
    let problem = plan.problem();
    let dims = problem.dims();
    let element = problem.input_dtype().bytes();
    let q = dims.batch * dims.num_heads_q * dims.seqlen_q;
    let kv = dims.batch * dims.num_heads_kv * dims.seqlen_kv;
    let depth = dims.head_dim_padded();
    if !symbol.starts_with("quantize") {
        return None;
    }
    let code = plan.stem().storage().bytes(depth);
    let read = (q + 2 * kv) * dims.head_dim * element;
    let bytes = read + (q + kv) * code + kv * depth * plan.stem().pv.bytes();
    Some(bytes as f64)
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let gpu = Gpu::shared(0)?;
    let stream = gpu.context().new_stream()?;
    let bandwidth = copy_bandwidth(&gpu, &stream)?;
    println!("{}, copy {:.0} GB/s", gpu.name(), bandwidth / 1e9);
    if options.decode {
        return decode_all(&gpu, &stream, &options, bandwidth);
    }
    let mut cases = Vec::new();
    for &head_dim in &options.head_dim {
        let elems = options.batch * options.heads * options.seqlen * head_dim;
        let [q, k, v] = [1, 2, 3].map(|seed| upload(&gpu, &stream, elems, seed));
        let (q, k, v) = (q?, k?, v?);
        for stem in sage_spec::symbol::STEMS {
            if !options.kernels.is_empty() && !options.kernels.iter().any(|name| name == stem.name) {
                continue;
            }
            for masking in if options.modifiers { modified() } else { plain() } {
                let case = run(&gpu, &stream, &options, head_dim, &stem, masking, [&q, &k, &v], bandwidth)?;
                cases.push(case);
            }
        }
    }
    let report = json!({
        "device": gpu.name(),
        "driver": driver_version()?,
        "copy_gb_per_s": bandwidth / 1e9,
        "batch": options.batch, "heads": options.heads, "seqlen": options.seqlen, "dtype": "bf16",
        "cases": cases,
    });
    if let Some(path) = options.json {
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(())
}

/// Attention over caches, of every head dimension.
fn decode_all(
    gpu: &Arc<Gpu>,
    stream: &Arc<CudaStream>,
    options: &Options,
    bandwidth: f64,
) -> Result<(), Box<dyn Error>> {
    let &[heads_q, heads_kv] = &options.decode_heads[..] else {
        return Err("--decode-heads takes two numbers, of query and of key/value heads".into());
    };
    let mut figures = Vec::new();
    for &head_dim in &options.head_dim {
        println!("\nattention over a cache, {heads_q} query heads, {heads_kv} key/value heads, D={head_dim}");
        let cases = decode::Cases {
            batches: &options.decode_batch,
            contexts: &options.decode_context,
            heads_q,
            heads_kv,
            seqlen_q: options.decode_tokens,
            head_dim,
            split_pages: options.decode_split_pages,
        };
        figures.extend(decode::run(gpu, stream, &cases, bandwidth, &|elems, seed| upload(gpu, stream, elems, seed))?);
    }
    let report = json!({
        "device": gpu.name(),
        "driver": driver_version()?,
        "copy_gb_per_s": bandwidth / 1e9,
        "dtype": "bf16",
        "decode": figures,
    });
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn run(
    gpu: &Arc<Gpu>,
    stream: &Arc<CudaStream>,
    options: &Options,
    head_dim: usize,
    stem: &sage_spec::symbol::Stem,
    masking: Masking,
    [q, k, v]: [&CudaSlice<u8>; 3],
    bandwidth: f64,
) -> Result<Value, Box<dyn Error>> {
    let shape = [options.batch, options.heads, options.seqlen, head_dim];
    let spec = TensorSpec::new(Operand::Tensor, DType::BF16, &shape, Layout::Hnd)?;
    let mut request = Request::new(spec, spec, spec, spec);
    request.causal = masking.causal;
    request.modifiers = masking.modifiers;
    request.kernel = Some(stem.name.into());
    request.precision = match stem.qk {
        sage_spec::Precision::Int4 => Precision::Int4,
        sage_spec::Precision::Int8 => Precision::Int8,
    };
    request.smoothing = Some(Smoothing { q: stem.qk == sage_spec::Precision::Int4, k: true, v: false });
    let problem = Problem::new(request)?;
    let plan = plan(&problem, gpu.capability())?;
    let out = gpu.alloc(stream, spec.span_elems(Operand::Out)? * 2)?;
    let workspace = gpu.alloc(stream, plan.workspace().total_bytes())?;
    let tensor = |memory: &CudaSlice<u8>| DeviceTensor { ptr: memory.device_ptr(stream).0, spec };
    let args = LaunchArgs {
        q: tensor(q),
        k: tensor(k),
        v: tensor(v),
        out: tensor(&out),
        lse: None,
        workspace: DeviceMemory { ptr: workspace.device_ptr(stream).0, bytes: plan.workspace().total_bytes() },
    };
    gpu.prepare(&plan)?;
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let event = || stream.record_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT));
    let mut totals = Vec::new();
    for repeat in 0..options.repeats + 2 {
        // An untimed launch first, without waiting: the timed one then starts on a busy device.
        // SAFETY: all buffers were allocated above for this problem in this context, are used on this
        // stream only, and outlive the calls, of which the last waits.
        let (total, steps) = unsafe {
            gpu.launch(&plan, &args, stream.cu_stream())?;
            let begin = event()?;
            gpu.launch(&plan, &args, stream.cu_stream())?;
            let end = event()?;
            let steps = gpu.launch_timed_steps(&plan, &args, stream)?;
            (f64::from(begin.elapsed_ms(&end)?), steps)
        };
        if repeat < 2 {
            continue;
        }
        totals.push(total);
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for step in steps {
            *sums.entry(step.symbol).or_default() += step.ms;
        }
        for (symbol, ms) in sums {
            times.entry(symbol).or_default().push(ms);
        }
    }
    let [difference, rel_l1, cosine] = differences(stream, &problem, [q, k, v], &out)?;
    if difference.is_nan() || difference >= 0.02 {
        return Err(format!("{} D={head_dim}: relative L1 {difference} against the reference", stem.name).into());
    }
    let total = median(totals);
    // One second of launches back to back: what a card at its power limit sustains.
    let launches = (1e3 / total).clamp(10.0, 2000.0) as u32;
    let begin = event()?;
    for _ in 0..launches {
        // SAFETY: as above; the wait is below.
        unsafe { gpu.launch(&plan, &args, stream.cu_stream())? };
    }
    let end = event()?;
    let [clock, power] = clock_and_power();
    stream.synchronize()?;
    let sustained = f64::from(begin.elapsed_ms(&end)?) / f64::from(launches);
    let mut steps = Vec::new();
    println!("\n{} D={head_dim} {}", stem.name, masking.name);
    let mut attention_ms = 0.0;
    for (symbol, ms) in times {
        let ms = median(ms);
        let moved = bytes(&plan, &symbol);
        let share = moved.map(|bytes| bytes / (ms * 1e-3) / bandwidth);
        let share_text = share.map_or(String::new(), |share| format!("{:5.1} % of copy", share * 100.0));
        println!("  {symbol:32} {ms:9.4} ms  {share_text}");
        if symbol.starts_with(stem.symbol) || symbol.contains("_general_") {
            attention_ms = ms;
        }
        steps.push(json!({ "kernel": symbol, "ms": ms, "bytes": moved, "share_of_copy": share }));
    }
    let tops = |ms: f64| problem.flops() / (ms * 1e-3) / 1e12;
    println!("  against exact attention: relative L1 {rel_l1:.4}, cosine {cosine:.5}");
    println!(
        "  attention {:.1} TOPS, end to end {total:.3} ms = {:.1} TOPS, sustained {:.1} TOPS at {clock} MHz, {power} W",
        tops(attention_ms),
        tops(total),
        tops(sustained),
    );
    Ok(json!({
        "kernel": stem.name, "head_dim": head_dim, "causal": masking.causal, "masking": masking.name, "steps": steps,
        "rel_l1_against_reference": difference, "rel_l1": rel_l1, "cosine": cosine, "ms": attention_ms, "tops": tops(attention_ms), "e2e_ms": total, "e2e_tops": tops(total),
        "sustained_e2e_ms": sustained, "sustained_e2e_tops": tops(sustained), "sm_clock_mhz": clock, "power_w": power,
    }))
}

/// Heads whose last query block is compared, one batch entry and head after the other, as far apart as there are.
const HEADS_COMPARED: usize = 32;

/// Of the last query blocks of some heads: relative L1 distance from the CPU reference, then relative L1 distance and
/// cosine against exact attention in f64. (The last, because bottom-right causal alignment then makes it a problem of
/// its own.)
fn differences(
    stream: &Arc<CudaStream>,
    problem: &Problem,
    [q, k, v]: [&CudaSlice<u8>; 3],
    out: &CudaSlice<u8>,
) -> Result<[f64; 3], Box<dyn Error>> {
    let dims = *problem.dims();
    let rows = (dims.seqlen_q - 1) % BLOCK_Q + 1;
    let heads = dims.batch * dims.num_heads_q;
    let compared = HEADS_COMPARED.min(heads);
    // The last tokens of head `end - 1`.
    let tail = |memory: &CudaSlice<u8>, end: usize, tokens: usize| -> Result<Vec<half::bf16>, Box<dyn Error>> {
        let end = memory.len() / heads * end;
        let bytes = stream.clone_dtoh(&memory.slice(end - tokens * dims.head_dim * 2..end))?;
        Ok(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]])).collect())
    };
    let one = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: rows, ..dims };
    let smoothing = problem.smoothing();
    let stem = problem.kernel().ok_or("a benchmark names its kernel")?;
    let options = reference::Options {
        causal: problem.causal(),
        sm_scale: problem.sm_scale(),
        precision: stem.qk,
        granularity: problem.granularity(),
        pv: stem.pv,
        smooth_q: smoothing.q,
        smooth_k: smoothing.k,
        smooth_v: smoothing.v,
    };
    let &Modifiers { alignment, window, softcap, .. } = problem.modifiers();
    let modifiers = reference::Modifiers { alignment, window, softcap, ..reference::Modifiers::default() };
    fn tensor(x: &[half::bf16], depth: usize) -> HostTensor<'_> {
        HostTensor::contiguous(Data::BF16(x), 1, x.len() / depth, depth)
    }
    let (causal, sm_scale) = (options.causal, f64::from(options.sm_scale));
    let (mut actual, mut expected, mut exact) = (Vec::new(), Vec::new(), Vec::new());
    for end in (1..=compared).map(|i| i * heads / compared) {
        let (q, k, v) = (tail(q, end, rows)?, tail(k, end, dims.seqlen_kv)?, tail(v, end, dims.seqlen_kv)?);
        let [q, k, v] = [&q, &k, &v].map(|x| tensor(x, dims.head_dim));
        let quantized = reference::quantize(&one, &q, &k, &v, &options);
        let reference = match stem.arch {
            Arch::Sm90a => {
                reference::attention_quantized_sm90_with(&one, &quantized, &k, &options, stem.exponential, &modifiers)
            }
            Arch::Sm80 | Arch::Sm89 => reference::attention_quantized_with(&one, &quantized, &k, &options, &modifiers),
        };
        expected.extend(reference.out.iter().map(|&x| f64::from(x)));
        exact.extend(reference::attention_f64_with(&one, &q, &k, &v, causal, sm_scale, &modifiers).out);
        actual.extend(tail(out, end, rows)?.iter().map(|x| x.to_f32()));
    }
    let against_exact = Metrics::compare(&actual, &exact, dims.head_dim);
    let against_reference = Metrics::compare(&actual, &expected, dims.head_dim);
    Ok([against_reference.rel_l1, against_exact.rel_l1, against_exact.cosine])
}
