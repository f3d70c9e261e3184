//! Help, completions, and what terminals get that pipes do not.

use std::process::Command;

use crate::support::{SAMPLE, sage_attn};

#[test]
fn help_says_how_commands_end_and_shows_examples() {
    let help = sage_attn(["--help"]);
    help.success();
    for words in ["Exit status:", "NO_COLOR", "Examples:", "completions", "doctor", "standard error"] {
        assert!(help.stdout.contains(words), "{words} is not in\n{}", help.stdout);
    }
    // Every command explains itself, and every option has a sentence.
    for command in ["run", "accuracy", "bench", "plot", "doctor", "completions"] {
        let help = sage_attn([command, "--help"]);
        help.success();
        assert!(help.stdout.len() > 300, "{}", help.stdout);
        let lines: Vec<&str> = help.stdout.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("--")) {
            // The sentence is on the same line or, in long help, on the next.
            let same = line.trim_start().split_once("  ").is_some_and(|(_, sentence)| !sentence.trim().is_empty());
            let explained = same || lines.get(i + 1).is_some_and(|next| next.starts_with("          "));
            assert!(explained, "{command}: no sentence for {line}");
        }
    }
    let short = sage_attn(["-h"]);
    assert!(short.stdout.len() < help.stdout.len() && !short.stdout.contains("Exit status:"));
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = sage_attn(["completions", shell]);
        script.success();
        for word in ["sage-attn", "accuracy", "plot", "doctor", "completions", "precision"] {
            assert!(script.stdout.contains(word), "{shell}: {word} is missing");
        }
    }
    sage_attn(["completions", "dos"]).fails(2);
}

#[test]
fn the_bash_script_completes() {
    let script = sage_attn(["completions", "bash"]).stdout;
    // `complete` would register the function for an interactive shell; here its name is kept and called.
    let register = r#"complete() { while [ $# -gt 1 ]; do if [ "$1" = -F ]; then name=$2; fi; shift; done; }"#;
    let ask = "COMP_WORDS=(sage-attn do); COMP_CWORD=1; $name sage-attn do sage-attn; printf '%s\\n' ${COMPREPLY[@]}";
    let text = format!("{register}\n{script}\n{ask}\n");
    let output = match Command::new("bash").args(["--norc", "-c", &text]).output() {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: bash cannot be run: {error}"),
    };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "doctor", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn pipes_get_neither_emphasis_nor_progress() {
    for arguments in [
        vec!["run", SAMPLE, "--prefix", "layer0.", "--device", "cpu"],
        vec!["accuracy", SAMPLE, "--prefix", "layer0.", "--device", "cpu"],
        vec!["--help"],
    ] {
        let run = sage_attn(&arguments);
        run.success();
        assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'), "{arguments:?}");
    }
}

#[test]
fn terminals_get_a_bold_header() {
    // `script` of util-linux runs a command on a terminal of its own.
    let command = format!("{} run {SAMPLE} --prefix layer0. --device cpu", env!("CARGO_BIN_EXE_sage-attn"));
    let run = |no_color: &str| {
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", &command, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", "xterm");
        script.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (coloured, plain) = match (run(""), run("1")) {
        (Ok(coloured), Ok(plain)) => (coloured, plain),
        (error, _) => return println!("SKIPPED: script cannot be run: {error:?}"),
    };
    assert!(coloured.contains("\x1b[1m"), "{coloured:?}");
    assert!(plain.contains("relative L1") && !plain.contains("\x1b[1m"), "{plain:?}");
}
