//! The command line, `sage-attn`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
