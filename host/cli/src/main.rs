//! The command line, `sage-attn`: its commands, their options, and how they end.
//!
//! Exit status 0 is success, 2 is bad input (one sentence on stderr), 1 is any other failure.
//! Results go to stdout; notes and progress to stderr.

// Documentation of options is the help text, where <PREFIX> is a placeholder.
#![allow(rustdoc::invalid_html_tags)]

mod accuracy;
mod bench;
mod calibrate;
mod compare;
mod completions;
mod diffuse;
mod doctor;
mod file;
mod lm;
mod modifiers;
mod numerics;
mod options;
mod plan;
mod plot;
mod record;
mod results;
mod run;
mod terminal;
mod variant;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sage_attn::Error;
use serde::Serialize;

/// What `--help` says after the commands.
const ABOUT_RUNS: &str = "\
Results go to standard output, notes and progress to standard error; progress and emphasis appear on terminals
only.

Exit status:
  0  success
  1  the device failed, or a result could not be written
  2  the file or an option is at fault; standard error says what would be right

Environment:
  NO_COLOR           if not empty, no emphasis on terminals either
  RAYON_NUM_THREADS  threads of the CPU path (default: one for each core)

Examples:
  sage-attn doctor
  sage-attn run layer.safetensors --compare
  sage-attn run layer.safetensors --precision int4 --smooth q,k --out out.safetensors
  sage-attn accuracy layer.safetensors --prefix layer7. --json
  sage-attn bench --seqlen 1024,4096 --svg bench.svg
  sage-attn completions bash > ~/.local/share/bash-completion/completions/sage-attn";

/// Quantized attention (SageAttention2): INT4/INT8 Q Kᵀ and FP8 P V, on NVIDIA GPUs and on the CPU.
///
/// Computes softmax(Q Kᵀ · scale) V with Q and K in 4 or 8 bits and P and V in FP8 (FP16 before compute
/// capability 8.9), after subtracting the means that make tensors hard to quantize. Without an NVIDIA driver
/// everything runs on the CPU.
#[derive(Parser)]
#[command(name = "sage-attn", version, max_term_width = 100, after_long_help = ABOUT_RUNS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute attention on the q, k and v of a safetensors file.
    ///
    /// The file holds tensors named q, k and v, of f16, bf16 or f32, perhaps several triples behind prefixes such
    /// as layer0. Their axes are batch, heads, tokens and features; the file's metadata may say "layout": "nhd" and
    /// "causal": "true". Prints one row for each triple: the kernel, the device, milliseconds of attention and of
    /// everything, and with --compare how far the result is from exact attention in f64.
    Run(run::RunOptions),
    /// Measure the error of every precision, granularity and smoothing on a file's tensors.
    ///
    /// Dump q, k and v of a model's layers to a safetensors file, then see here what INT4 and INT8 cost on them.
    /// Errors are against exact attention in f64: cosine similarity, relative L1 distance, root mean square, and
    /// the relative L1 distance of the worst row. The figures are those of a GPU's kernels: without a GPU the
    /// reference follows their arithmetic.
    Accuracy(accuracy::AccuracyOptions),
    /// Measure how fast attention is on this machine, by precision and number of tokens.
    Bench(bench::BenchOptions),
    /// Draw results files as an SVG chart: operations per second by number of tokens, kernels and peers.
    Plot(plot::PlotOptions),
    /// Evaluate or run a language model (RustLM) under each precision of attention.
    Lm(lm::LmOptions),
    /// Measure precisions on a language model (RustLM) layer by layer and write a precision plan.
    Calibrate(calibrate::CalibrateOptions),
    /// Draw images with a diffusion transformer (Emoji DiT) under each precision of attention.
    Diffuse(diffuse::DiffuseOptions),
    /// Show a precision plan, or make one from measurements.
    Plan(plan::PlanOptions),
    /// Show which devices there are, which kernels this build has, and what would be used.
    ///
    /// Opens every device, loads the kernels for a typical problem on it, and says what --device auto would use
    /// and, if that is not a GPU, why. Include its output in reports of problems.
    Doctor(doctor::DoctorOptions),
    /// Write a completion script for a shell to standard output.
    Completions(completions::CompletionsOptions),
}

/// Why a command failed.
pub enum Failure {
    /// The user's file or options are at fault: exit status 2.
    Input(String),
    /// Anything else: exit status 1.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(message) | Failure::Other(message) => f.write_str(message),
        }
    }
}

impl Failure {
    /// The failure of an attention call on the tensors called `prefix`.
    pub fn attention(prefix: &str, error: Error) -> Failure {
        let message = if prefix.is_empty() { error.to_string() } else { format!("{prefix}: {error}") };
        match error {
            Error::Invalid(_) | Error::Modifier(_) | Error::Unsupported(_) | Error::Plan(_) => Failure::Input(message),
            _ => Failure::Other(message),
        }
    }

    /// The failure to write results.
    pub fn stdout(error: io::Error) -> Failure {
        Failure::Other(format!("cannot write the results: {error}"))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse(); // exits with status 2 on bad options
    let result = match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Accuracy(options) => accuracy::accuracy(&options),
        Command::Bench(options) => bench::bench(&options),
        Command::Calibrate(options) => calibrate::calibrate(&options),
        Command::Lm(options) => lm::lm(&options),
        Command::Diffuse(options) => diffuse::diffuse(&options),
        Command::Plot(options) => plot::plot(&options),
        Command::Plan(options) => plan::plan(&options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Completions(options) => completions::completions(&options, Cli::command()),
    };
    match result.and_then(|()| io::stdout().flush().map_err(Failure::stdout)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If even stderr is gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "error: {failure}");
            match failure {
                Failure::Input(_) => ExitCode::from(2),
                Failure::Other(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints a line of results.
pub fn print(line: impl fmt::Display) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(Failure::stdout)
}

/// Prints a line of JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::Other(format!("cannot write JSON: {error}")))?;
    print(line)
}

/// Prints a note to stderr, where it does not mix with results.
pub fn note(line: impl fmt::Display) {
    // A note that cannot be written is not worth failing for.
    let _ = writeln!(io::stderr(), "note: {line}");
}

/// A progress bar on stderr; hidden for JSON, and by indicatif where stderr is no terminal.
pub fn progress(len: usize, hidden: bool) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let progress = ProgressBar::with_draw_target(Some(len as u64), target);
    match ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}") {
        Ok(style) => progress.with_style(style),
        Err(_) => progress, // the default style does as well
    }
}
