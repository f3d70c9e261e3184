//! Times attention on the CPU, by instruction set, and against candle and PyTorch.
//!
//! `cargo bench -p sage-benches --bench cpu -- --peer "python3 benches/peers/cpu_peers.py" --json results.json`, whose
//! paths are from the root of the workspace.
//! The contestants take turns, so that whatever else the machine does falls on all of them; figures are minima
//! and medians over the rounds. Before each turn the machine rests, because threads that wait for more work spin
//! (OpenMP's for milliseconds) and would take the time of the next contestant. Besides the wall clock there is the CPU time of all threads (on Linux), which
//! other programs hardly change; with one thread it is the time on an idle machine.

mod candle;
mod contestant;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use contestant::{Contestant, Peer, time};
use sage_attn::cpu::{self, OutputMut, Path};
use sage_attn::reference::{Data, HostTensor, Options as Quantization};
use sage_attn::{PvFormat, ScaleGranularity};
use sage_spec::{Dims, Precision};
use serde_json::{Value, json};

/// Times attention on the CPU.
#[derive(Parser)]
struct Options {
    /// Heads.
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Key and value heads if they are fewer.
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Head dimension.
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Tokens.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096])]
    seqlen: Vec<usize>,
    /// Query tokens if they are fewer.
    #[arg(long)]
    queries: Option<usize>,
    /// Starts this program with `--serve` as another contestant (see benches/peers/cpu_peers.py).
    #[arg(long)]
    peer: Option<String>,
    /// Leaves out candle.
    #[arg(long)]
    no_candle: bool,
    /// Threads; all by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Rounds; as many as fit ten seconds by default.
    #[arg(long)]
    rounds: Option<usize>,
    /// Instruction sets; the best by default.
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Longer than OpenMP's threads spin.
const REST: Duration = Duration::from_millis(30);

/// Roughly normal values.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            let mut sum = 0.0f32;
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 40) as f32 / (1u64 << 24) as f32;
            }
            (sum - 2.0) * 1.732
        })
        .collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.bench {
        // `cargo bench` starts programs in the folder of their package; the paths it was given are from the root.
        std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    }
    // Of the whole process: candle does not know other pools.
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = options.threads {
        pool = pool.num_threads(threads);
    }
    pool.build_global()?;
    let threads = rayon::current_num_threads();
    let heads = [options.heads, options.kv_heads.unwrap_or(options.heads)];
    let start = |command: &String| Peer::start(command, heads, options.head_dim, threads);
    let mut peer = options.peer.as_ref().map(start).transpose()?;
    let named = |path: &Path| options.paths.iter().any(|name| name == path.name());
    let paths: Vec<Path> = match options.paths.is_empty() {
        true => vec![Path::best()],
        false => Path::available().into_iter().filter(named).collect(),
    };
    let mut cases = Vec::new();
    for &seqlen in &options.seqlen {
        for causal in [false, true] {
            cases.push(case(&options, &paths, peer.as_mut(), seqlen, causal)?);
        }
    }
    if let Some(path) = options.json {
        std::fs::write(path, format!("{:#}\n", json!({ "cpu": cpu_name(), "threads": threads, "cases": cases })))?;
    }
    Ok(())
}

/// Name, family and model of the CPU, where the system tells; the name alone may hide the generation.
fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    let name = value("model name")?;
    match (value("cpu family"), value("model")) {
        (Some(family), Some(model)) => Some(format!("{name} (family {family} model {model})")),
        _ => Some(name.to_owned()),
    }
}

fn case(
    options: &Options,
    paths: &[Path],
    peer: Option<&mut Peer>,
    seqlen: usize,
    causal: bool,
) -> Result<Value, Box<dyn Error>> {
    let (heads, head_dim) = (options.heads, options.head_dim);
    let kv_heads = options.kv_heads.unwrap_or(heads);
    let seqlen_q = options.queries.unwrap_or(seqlen);
    let dims = Dims {
        batch: 1,
        num_heads_q: heads,
        num_heads_kv: kv_heads,
        seqlen_q,
        seqlen_kv: seqlen,
        head_dim,
        head_dim_v: head_dim,
    };
    let random = |heads: usize, tokens: usize, seed| values(heads * tokens * head_dim, seed);
    let data = [random(heads, seqlen_q, 1), random(kv_heads, seqlen, 2), random(kv_heads, seqlen, 3)];
    let tensor = |x, heads, tokens| HostTensor::contiguous(Data::F32(x), heads, tokens, head_dim);
    let q = &tensor(&data[0], heads, seqlen_q);
    let (k, v) = (&tensor(&data[1], kv_heads, seqlen), &tensor(&data[2], kv_heads, seqlen));
    let sm_scale = 1.0 / (head_dim as f32).sqrt();
    let quantization = Quantization {
        causal,
        sm_scale,
        precision: Precision::Int8,
        granularity: ScaleGranularity::PerThread,
        pv: PvFormat::Fp8,
        smooth_q: false,
        smooth_k: true,
        smooth_v: false,
    };
    let mut contestants = match options.no_candle {
        true => Vec::new(),
        false => candle::contestants(&dims, [&data[0], &data[1], &data[2]], causal, sm_scale)?,
    };
    for &path in paths {
        let room = || vec![0.0; heads * seqlen_q * head_dim];
        let mut out = room();
        let exact = move || {
            let out = OutputMut::F32(&mut out);
            Ok(time(|| cpu::attention_exact(path, &dims, [q, k, v], causal, sm_scale, out)).0)
        };
        contestants.push(Contestant::new(format!("exact {}", path.name()), exact));
        let quantized = cpu::quantize(path, &dims, [q, k, v], &quantization);
        let mut out = room();
        let attention = move || {
            let out = OutputMut::F32(&mut out);
            Ok(time(|| cpu::attention_quantized(path, &dims, &quantized, k, &quantization, out)).0)
        };
        contestants.push(Contestant::new(format!("int8 {} without quantizing", path.name()), attention));
        let mut out = room();
        let all = move || {
            let out = OutputMut::F32(&mut out);
            let work = || {
                let quantized = cpu::quantize_kv(path, &dims, [q, k, v], &quantization);
                cpu::attention_with_queries(path, &dims, &quantized, [q, k], &quantization, out)
            };
            Ok(time(work).0)
        };
        contestants.push(Contestant::new(format!("int8 {}", path.name()), all));
    }
    if let Some(peer) = peer {
        contestants.push(Contestant::new(peer.name.clone(), move || peer.run(seqlen_q, seqlen, causal)));
    }
    let pairs = match causal {
        true => seqlen_q as f64 * (seqlen as f64 - (seqlen_q as f64 - 1.0) / 2.0),
        false => seqlen_q as f64 * seqlen as f64,
    };
    let gflop = 4.0 * heads as f64 * head_dim as f64 * pairs / 1e9;
    let begin = Instant::now();
    let enough = |rounds: usize| match options.rounds {
        Some(wanted) => rounds >= wanted,
        None => rounds >= 3 && begin.elapsed().as_secs_f64() > 10.0,
    };
    let mut rounds = 0;
    while !enough(rounds) {
        for contestant in &mut contestants {
            std::thread::sleep(REST);
            let times = (contestant.run)()?;
            contestant.times.push(times);
        }
        rounds += 1;
    }
    let mask = if causal { " causal" } else { "" };
    println!("\nB=1 H={heads} D={head_dim} M={seqlen_q} N={seqlen}{mask}, {rounds} rounds");
    let mut results = Vec::new();
    for contestant in &contestants {
        let (wall, median) = contestant.sorted(|times| times.wall);
        let (cpu, cpu_median) = contestant.sorted(|times| times.cpu);
        println!(
            "  {:40} {wall:9.2} ms (median {median:9.2}), CPU {cpu:9.2} ms (median {cpu_median:9.2}), {:6.1} GFLOP/s of CPU time",
            contestant.name,
            gflop / cpu * 1e3
        );
        results.push(json!({
            "name": contestant.name, "min_ms": wall, "median_ms": median,
            "min_cpu_ms": cpu, "median_cpu_ms": cpu_median, "gflop_per_cpu_s": gflop / cpu * 1e3,
        }));
    }
    let ratios = ratios(&contestants);
    for (name, ratio) in &ratios {
        println!("  {name:40} {ratio:9.2}x");
    }
    Ok(json!({
        "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "seqlen_q": seqlen_q, "seqlen_kv": seqlen,
        "causal": causal, "rounds": rounds, "results": results, "speedups": ratios,
    }))
}

/// How many times as fast as each library ours are, by the shortest wall clock of each; of candle's forms the
/// faster counts.
fn ratios(contestants: &[Contestant]) -> BTreeMap<String, f64> {
    let wall = |contestant: &Contestant| contestant.sorted(|times| times.wall).0;
    let shortest = |library: &str| {
        let of_library = contestants.iter().filter(|contestant| contestant.name.starts_with(library));
        of_library.map(wall).min_by(f64::total_cmp)
    };
    let mut ratios = BTreeMap::new();
    for (library, theirs) in ["candle", "torch"].map(|library| (library, shortest(library))) {
        for ours in contestants.iter().filter(|ours| ours.name.starts_with("exact") || ours.name.starts_with("int8")) {
            if let Some(theirs) = theirs {
                ratios.insert(format!("{} over {library}", ours.name), theirs / wall(ours));
            }
        }
    }
    ratios
}
