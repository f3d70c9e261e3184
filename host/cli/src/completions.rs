//! `completions`: what shells need to complete commands and options.

use std::io::{self, Write};

use clap::Args;
use clap_complete::Shell;

use super::Failure;

/// Options of `completions`.
#[derive(Args)]
#[command(after_long_help = "Examples:
  sage-attn completions bash > ~/.local/share/bash-completion/completions/sage-attn
  sage-attn completions zsh > ~/.zfunc/_sage-attn        (a folder of $fpath)
  sage-attn completions fish > ~/.config/fish/completions/sage-attn.fish")]
pub struct CompletionsOptions {
    /// Shell to write the script for
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script for `command` to stdout.
pub fn completions(options: &CompletionsOptions, mut command: clap::Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, name, &mut script);
    io::stdout().write_all(&script).map_err(Failure::stdout)
}
