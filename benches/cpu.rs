//! Times attention on the CPU, by instruction set, and against PyTorch.
//!
//! `cargo bench -p sage-benches --bench cpu -- --peer "python3 benches/peers/cpu_peers.py" --json results.json`.
//! The contestants take turns, so that whatever else the machine does falls on all of them; figures are minima
//! and medians over the rounds. Besides the wall clock there is the CPU time of all threads (on Linux), which
//! other programs hardly change; with one thread it is the time on an idle machine.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use clap::Parser;
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

/// Milliseconds of one call.
#[derive(Clone, Copy)]
struct Times {
    wall: f64,
    /// Of all threads; NaN if it cannot be told.
    cpu: f64,
}

/// A way to compute attention.
struct Contestant<'a> {
    name: String,
    run: Box<dyn FnMut() -> Result<Times, Box<dyn Error>> + 'a>,
    times: Vec<Times>,
}

/// Milliseconds that the threads of this process have run.
fn cpu_ms() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let ns = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.map(|task| ns(task).unwrap_or(f64::NAN)).sum::<f64>() / 1e6
}

/// Times `work`.
fn time(work: impl FnOnce()) -> Times {
    let (cpu, start) = (cpu_ms(), Instant::now());
    work();
    Times { wall: start.elapsed().as_secs_f64() * 1e3, cpu: cpu_ms() - cpu }
}

/// Another program that computes attention when told to.
struct Peer {
    name: String,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    child: Child,
}

impl Peer {
    fn start(command: &str, options: &Options, threads: usize) -> Result<Peer, Box<dyn Error>> {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().ok_or("--peer is empty")?)
            .args(words)
            .args(["--serve", "--heads", &options.heads.to_string(), "--head-dim", &options.head_dim.to_string()])
            .args(["--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take().ok_or("no pipe to the peer")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no pipe from the peer")?);
        let mut name = String::new();
        answers.read_line(&mut name)?;
        Ok(Peer { name: name.trim().to_owned(), ask, answers, child })
    }

    fn run(&mut self, seqlen_q: usize, seqlen: usize, causal: bool) -> Result<Times, Box<dyn Error>> {
        writeln!(self.ask, "{seqlen_q} {seqlen} {}", i32::from(causal))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut numbers = line.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(wall)), Some(Ok(cpu))) => Ok(Times { wall, cpu }),
            _ => Err(format!("the peer answered {line:?} instead of two times").into()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = options.threads {
        pool = pool.num_threads(threads);
    }
    let pool = pool.build()?;
    let threads = pool.current_num_threads();
    let mut peer = options.peer.as_ref().map(|command| Peer::start(command, &options, threads)).transpose()?;
    let named = |path: &Path| options.paths.iter().any(|name| name == path.name());
    let paths: Vec<Path> = match options.paths.is_empty() {
        true => vec![Path::best()],
        false => Path::available().into_iter().filter(named).collect(),
    };
    let mut cases = Vec::new();
    for &seqlen in &options.seqlen {
        for causal in [false, true] {
            let peer = peer.as_mut();
            cases.push(pool.install(|| case(&options, &paths, peer, seqlen, causal).map_err(|e| e.to_string()))?);
        }
    }
    if let Some(path) = options.json {
        std::fs::write(path, format!("{:#}\n", json!({ "cpu": cpu_name(), "threads": threads, "cases": cases })))?;
    }
    Ok(())
}

/// The model name of the CPU, where the system tells.
fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn case(
    options: &Options,
    paths: &[Path],
    peer: Option<&mut Peer>,
    seqlen: usize,
    causal: bool,
) -> Result<Value, Box<dyn Error>> {
    let (heads, head_dim) = (options.heads, options.head_dim);
    let seqlen_q = options.queries.unwrap_or(seqlen);
    let dims = Dims {
        batch: 1,
        num_heads_q: heads,
        num_heads_kv: heads,
        seqlen_q,
        seqlen_kv: seqlen,
        head_dim,
        head_dim_v: head_dim,
    };
    let random = |tokens: usize, seed| values(heads * tokens * head_dim, seed);
    let (q, k, v) = (random(seqlen_q, 1), random(seqlen, 2), random(seqlen, 3));
    let tensor = |x, tokens| HostTensor::contiguous(Data::F32(x), heads, tokens, head_dim);
    let (q, k, v) = (&tensor(&q, seqlen_q), &tensor(&k, seqlen), &tensor(&v, seqlen));
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
    let mut contestants = Vec::new();
    let mut add = |name: String, run| contestants.push(Contestant { name, run, times: Vec::new() });
    for &path in paths {
        let mut out = vec![0.0; heads * seqlen_q * head_dim];
        let exact = move || {
            let mut attend =
                || cpu::attention_exact(path, &dims, [q, k, v], causal, sm_scale, OutputMut::F32(&mut out));
            Ok(time(|| drop(attend())))
        };
        add(format!("exact {}", path.name()), Box::new(exact) as Box<dyn FnMut() -> Result<Times, Box<dyn Error>>>);
        let quantized = cpu::quantize(path, &dims, [q, k, v], &quantization);
        let mut out = vec![0.0; heads * seqlen_q * head_dim];
        let attention = move || {
            let out = OutputMut::F32(&mut out);
            Ok(time(|| drop(cpu::attention_quantized(path, &dims, &quantized, k, &quantization, out))))
        };
        add(format!("int8 {} without quantizing", path.name()), Box::new(attention));
        let mut out = vec![0.0; heads * seqlen_q * head_dim];
        let all = move || {
            Ok(time(|| {
                let quantized = cpu::quantize(path, &dims, [q, k, v], &quantization);
                cpu::attention_quantized(path, &dims, &quantized, k, &quantization, OutputMut::F32(&mut out));
            }))
        };
        add(format!("int8 {}", path.name()), Box::new(all));
    }
    if let Some(peer) = peer {
        add(peer.name.clone(), Box::new(move || peer.run(seqlen_q, seqlen, causal)));
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
            let times = (contestant.run)()?;
            contestant.times.push(times);
        }
        rounds += 1;
    }
    let mask = if causal { " causal" } else { "" };
    println!("\nB=1 H={heads} D={head_dim} M={seqlen_q} N={seqlen}{mask}, {rounds} rounds");
    let mut results = Vec::new();
    for contestant in &contestants {
        let sorted = |of: fn(&Times) -> f64| {
            let mut times: Vec<f64> = contestant.times.iter().map(of).collect();
            times.sort_by(f64::total_cmp);
            (times[0], times[times.len() / 2])
        };
        let ((wall, median), (cpu, cpu_median)) = (sorted(|times| times.wall), sorted(|times| times.cpu));
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
    Ok(json!({
        "heads": heads, "head_dim": head_dim, "seqlen_q": seqlen_q, "seqlen_kv": seqlen, "causal": causal,
        "rounds": rounds, "results": results,
    }))
}
