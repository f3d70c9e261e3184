//! `run`, `accuracy` and `doctor`: their options, and how they end.
//!
//! Exit status 0 is success, 2 is bad input (one sentence on stderr), 1 is any other failure.
//! Results go to stdout; notes and progress to stderr.

mod accuracy;
mod compare;
mod doctor;
mod file;
mod modifiers;
mod options;
mod record;
mod run;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sage_attn::Error;

/// Quantized attention (SageAttention2): INT4/INT8 Q Kᵀ and FP8 P V, on NVIDIA GPUs and on the CPU.
#[derive(Parser)]
#[command(name = "sage-attn", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute attention on the q, k and v of a safetensors file.
    Run(run::RunOptions),
    /// Measure the error of every precision, granularity and smoothing on a file's tensors.
    Accuracy(accuracy::AccuracyOptions),
    /// Show which devices there are, which kernels this build has, and what would be used.
    Doctor(doctor::DoctorOptions),
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

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse(); // exits with status 2 on bad options
    let result = match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Accuracy(options) => accuracy::accuracy(&options),
        Command::Doctor(options) => doctor::doctor(&options),
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

/// Prints a note to stderr, where it does not mix with results.
pub fn note(line: impl fmt::Display) {
    // A note that cannot be written is not worth failing for.
    let _ = writeln!(io::stderr(), "note: {line}");
}
