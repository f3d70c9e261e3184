//! The C example, compiled with the system's compiler against the checked-in header, linked and run.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of test executables, where Cargo leaves the library in all its forms.
fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn compile(compiler: &str, arguments: &[&str], folder: &Path) -> Option<()> {
    let include = format!("-I{}", root().join("include").display());
    let output = Command::new(compiler).args(WARNINGS).arg(include).args(arguments).current_dir(folder).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: {compiler} cannot be run: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
fn the_c_example_compiles_and_runs() {
    let folder = std::env::temp_dir().join(format!("sage-attn-capi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = root().join("examples/attention.c");
    let search = format!("-L{}", libraries().display());
    let run_path = format!("-Wl,-rpath,{}", libraries().display());
    let arguments =
        ["-std=c11", source.to_str().unwrap(), "-o", "example", &search, &run_path, "-lsage_attn_capi", "-lm"];
    if compile("cc", &arguments, &folder).is_none() {
        return;
    }
    let output = Command::new(folder.join("example")).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        stdout,
        "cpu_exact_fwd on cpu\n\
         two parts differ from the whole by less than 1e-5\n\
         status 1: v has 40 tokens, but k has 7; they must be equal\n"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_header_is_also_cpp() {
    let folder = std::env::temp_dir();
    let header = root().join("include/sage_attn.h");
    compile("c++", &["-std=c++11", "-x", "c++", "-fsyntax-only", header.to_str().unwrap()], &folder);
}
