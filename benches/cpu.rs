//! Times attention on the CPU: every instruction set this CPU has.
//!
//! `cargo bench -p sage-benches --bench cpu -- --json results.json`. The contestants take turns, so that whatever
//! else the machine does falls on all of them; figures are minima and medians over the rounds.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use sage_attn::cpu::{self, OutputMut, Path};
use sage_attn::reference::{self, Data, HostTensor, Options as Quantization};
use sage_attn::{PvFormat, ScaleGranularity};
use sage_spec::{Dims, Precision};
use serde_json::json;

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

/// A way to compute attention; returns milliseconds of the attention proper and of everything.
struct Contestant<'a> {
    name: String,
    run: Box<dyn FnMut() -> Result<(f64, f64), Box<dyn Error>> + 'a>,
    times: Vec<(f64, f64)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let paths: Vec<Path> = Path::available()
        .into_iter()
        .enumerate()
        .filter(|(i, path)| match options.paths.is_empty() {
            true => *i == 0,
            false => options.paths.iter().any(|name| name == path.name()),
        })
        .map(|(_, path)| path)
        .collect();
    let mut cases = Vec::new();
    for &seqlen in &options.seqlen {
        for causal in [false, true] {
            cases.push(case(&options, &paths, seqlen, causal)?);
        }
    }
    if let Some(path) = options.json {
        std::fs::write(path, format!("{:#}\n", json!({ "cases": cases })))?;
    }
    Ok(())
}

fn case(options: &Options, paths: &[Path], seqlen: usize, causal: bool) -> Result<serde_json::Value, Box<dyn Error>> {
    let (heads, head_dim) = (options.heads, options.head_dim);
    let seqlen_q = options.queries.unwrap_or(seqlen);
    let dims = Dims { batch: 1, num_heads_q: heads, num_heads_kv: heads, seqlen_q, seqlen_kv: seqlen, head_dim };
    let (q, k, v) = (
        values(heads * seqlen_q * head_dim, 1),
        values(heads * seqlen * head_dim, 2),
        values(heads * seqlen * head_dim, 3),
    );
    let tensor = |x, tokens| HostTensor::contiguous(Data::F32(x), heads, tokens, head_dim);
    let (q, k, v) = (tensor(&q, seqlen_q), tensor(&k, seqlen), tensor(&v, seqlen));
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
    for &path in paths {
        let (q, k, v) = (&q, &k, &v);
        let mut out = vec![0.0; heads * seqlen_q * head_dim];
        contestants.push(Contestant {
            name: format!("exact {}", path.name()),
            run: Box::new(move || {
                let start = Instant::now();
                cpu::attention_exact(path, &dims, [q, k, v], causal, sm_scale, OutputMut::F32(&mut out));
                let ms = start.elapsed().as_secs_f64() * 1e3;
                Ok((ms, ms))
            }),
            times: Vec::new(),
        });
        let mut out = vec![0.0; heads * seqlen_q * head_dim];
        contestants.push(Contestant {
            name: format!("int8 {}", path.name()),
            run: Box::new(move || {
                let start = Instant::now();
                let quantized = reference::quantize(&dims, q, k, v, &quantization);
                let attended = Instant::now();
                cpu::attention_quantized(path, &dims, &quantized, k, &quantization, OutputMut::F32(&mut out));
                Ok((attended.elapsed().as_secs_f64() * 1e3, start.elapsed().as_secs_f64() * 1e3))
            }),
            times: Vec::new(),
        });
    }
    let pairs = if causal {
        seqlen_q as f64 * (seqlen as f64 - (seqlen_q as f64 - 1.0) / 2.0)
    } else {
        seqlen_q as f64 * seqlen as f64
    };
    let gflop = 4.0 * heads as f64 * head_dim as f64 * pairs / 1e9;
    let begin = Instant::now();
    let mut round = 0;
    while round < options.rounds.unwrap_or(usize::MAX)
        && (round < 2 || options.rounds.is_some() || begin.elapsed().as_secs_f64() < 10.0)
    {
        for contestant in &mut contestants {
            let times = (contestant.run)()?;
            if round > 0 {
                contestant.times.push(times);
            }
        }
        round += 1;
    }
    println!(
        "\nB=1 H={heads} D={head_dim} M={seqlen_q} N={seqlen}{}: {} rounds",
        if causal { " causal" } else { "" },
        round - 1
    );
    let mut results = Vec::new();
    for contestant in &mut contestants {
        contestant.times.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (min, median) = (contestant.times[0], contestant.times[contestant.times.len() / 2]);
        println!(
            "  {:24} min {:9.2} ms (attention {:9.2}) {:7.1} GFLOP/s, median {:9.2} ms",
            contestant.name,
            min.1,
            min.0,
            gflop / min.1 * 1e3,
            median.1
        );
        results.push(json!({ "name": contestant.name, "min_ms": min.1, "min_attention_ms": min.0, "median_ms": median.1, "gflops": gflop / min.1 * 1e3 }));
    }
    Ok(
        json!({ "heads": heads, "head_dim": head_dim, "seqlen_q": seqlen_q, "seqlen_kv": seqlen, "causal": causal, "results": results }),
    )
}
