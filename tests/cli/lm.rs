//! The language model and the calibration on the command line.

use std::io::Write;

use crate::support::{Folder, lines, sage_attn};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/rustlm.safetensors");

/// Rust of the project's own, several times as long as what is read of it.
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/src/quant.rs");

/// Runs a command on the model and the first bytes of the text, on the CPU.
fn on_text<'a>(command: &'a str, bytes: &'a str, more: &[&'a str]) -> crate::support::Run {
    let common = [command, "--model", MODEL, "--text", TEXT, "--bytes", bytes, "--device", "cpu"];
    sage_attn(common.iter().chain(more))
}

#[test]
fn lm_prints_bits_per_byte_and_the_error_of_every_layer() {
    let run = on_text("lm", "600", &["--context", "400", "--precision", "exact", "int8", "int4/block/none", "--json"]);
    run.success();
    let records = lines(&run.stdout);
    assert_eq!(records.len(), 3);
    for (record, precision) in records.iter().zip(["exact", "int8/thread/k", "int4/block/none"]) {
        assert_eq!((&record["precision"], &record["bytes"]), (&precision.into(), &600.into()));
        assert_eq!(record["device"], "cpu");
        assert_eq!(record["int4_share"], if precision.starts_with("int4") { 1.0 } else { 0.0 });
        assert!(record["tokens_per_s"].as_f64().unwrap() > 0.0);
        let layers = record["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 8);
        for layer in layers {
            let error = layer["rel_l1"].as_f64().unwrap();
            let expected = match precision {
                "exact" => 0.0..1e-9,
                "int8/thread/k" => 0.005..0.05,
                _ => 0.03..0.7,
            };
            assert!(expected.contains(&error), "{precision}: {layer}");
        }
    }
    let bits = |index: usize| records[index]["bits_per_byte"].as_f64().unwrap();
    assert!((0.5..3.0).contains(&bits(0)), "{}", bits(0));
    assert!((bits(1) / bits(0) - 1.0).abs() < 0.01 && bits(2) > bits(0), "{records:?}");
    let difference = records[2]["difference_percent"].as_f64().unwrap();
    assert!((difference - (bits(2) / bits(0) - 1.0) * 100.0).abs() < 1e-9);
}

#[test]
fn lm_continues_a_prompt() {
    let prompt = "use std::collections::HashMap;\n\n/// Returns the number of";
    let generate = |more: &[&str]| {
        let common = ["lm", "--model", MODEL, "--device", "cpu", "--precision", "int8", "--generate", prompt];
        let run = sage_attn(common.iter().chain(more));
        run.success();
        run
    };
    let text = generate(&["--tokens", "12"]);
    let continuation = text.stdout.strip_prefix(prompt).unwrap();
    assert_eq!(continuation.trim_end_matches('\n').len(), 12, "{continuation:?}");
    assert!(text.stderr.contains("bytes/s"), "{}", text.stderr);
    let json = lines(&generate(&["--tokens", "12", "--json"]).stdout);
    assert_eq!(json[0]["text"], continuation.trim_end_matches('\n'));
    assert_eq!((&json[0]["bytes"], &json[0]["prompt_bytes"]), (&12.into(), &prompt.len().into()));
    let drawn = |seed| generate(&["--tokens", "12", "--temperature", "2", "--seed", seed]).stdout;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn calibrate_writes_a_plan_that_lm_follows_and_goes_on_where_it_stopped() {
    let folder = Folder::new("calibrate");
    let [plan, journal, svg] = ["plan.json", "plan.json.measurements.jsonl", "errors.svg"].map(|n| folder.path(n));
    let options = ["--context", "200", "--percent", "50", "--out", &plan, "--svg", &svg];
    let run = on_text("calibrate", "400", &options);
    run.success();
    for words in ["INT8 for the worst 50 %, from 2 samples", "INT4: 50 % of layers", "relative L1", "int4/thread/q,k"] {
        assert!(run.stdout.contains(words), "{words} is not in\n{}", run.stdout);
    }
    let names = folder.names();
    assert_eq!(names, ["errors.svg", "plan.json", "plan.json.measurements.jsonl"]);
    let svg = std::fs::read_to_string(&svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.matches("<circle").count() == 8, "{svg}");

    // Interrupted after the sixth call, in the middle of writing the seventh.
    let complete = std::fs::read_to_string(&journal).unwrap();
    let decided = std::fs::read_to_string(&plan).unwrap();
    assert_eq!(complete.lines().count(), 1 + 2 * 8);
    let six: Vec<&str> = complete.lines().take(7).collect();
    std::fs::write(&journal, format!("{}\n{{\"layer\":6,", six.join("\n"))).unwrap();
    let run = on_text("calibrate", "400", &options);
    run.success();
    assert!(run.stderr.contains("holds 6 measurements already"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(&journal).unwrap(), complete);
    assert_eq!(std::fs::read_to_string(&plan).unwrap(), decided);

    let run = on_text("lm", "300", &["--precision", "auto", "--plan", &plan, "--json"]);
    run.success();
    let record = &lines(&run.stdout)[0];
    assert_eq!((&record["precision"], &record["int4_share"]), (&"auto".into(), &0.5.into()));
    let int4 = record["layers"].as_array().unwrap().iter().filter(|layer| layer["precision"] == "int4").count();
    assert_eq!(int4, 4);

    let run = sage_attn(["plan", "show", &plan]);
    run.success();
    assert!(run.stdout.contains("model: rustlm") && run.stdout.contains("others"), "{}", run.stdout);
    let run = sage_attn(["plan", "show", &plan, "--json"]);
    assert_eq!(run.stdout, decided);

    let run = sage_attn(["plan", "make", &journal, "--out", &plan, "--percent", "0", "--speedup", "1.0"]);
    run.success();
    assert!(run.stdout.contains("gain nothing") && run.stdout.contains("INT4: 0 %"), "{}", run.stdout);
    // Trials go to the same file, and are not repeated.
    let by_loss = ["--context", "200", "--max-loss", "50", "--out", &plan];
    let run = on_text("calibrate", "400", &by_loss);
    run.success();
    assert!(
        run.stdout.contains("loss with int8/thread/k everywhere") && run.stdout.contains("INT4: 100 %"),
        "{}",
        run.stdout
    );
    assert_eq!(std::fs::read_to_string(&journal).unwrap().lines().count(), 1 + 2 * 8 + 1 + 8);
    assert_eq!(on_text("calibrate", "400", &by_loss).stdout, run.stdout);

    // Other text: the measurements are not its own.
    let run = on_text("calibrate", "401", &options);
    run.fails(2);
    assert!(run.stderr.contains("subject"), "{}", run.stderr);
}

/// Asserts status 2 and one sentence that contains `words`.
fn rejected(arguments: &[&str], words: &str) {
    let run = sage_attn(arguments);
    run.fails(2);
    let message = run.stderr.trim_end();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(words), "{message:?} does not say {words:?}");
}

#[test]
fn bad_input_ends_with_one_sentence() {
    let folder = Folder::new("lm-input");
    let [empty, text, plan, weights] = ["empty", "text", "plan", "weights"].map(|name| folder.path(name));
    std::fs::write(&empty, b"").unwrap();
    std::fs::write(&text, b"fn main() {}").unwrap();
    std::fs::write(&plan, b"{\"format\": \"sage-attn precision plan\", \"version\": 9}").unwrap();
    let model = std::fs::read(MODEL).unwrap();
    std::fs::File::create(&weights).unwrap().write_all(&model[..model.len() / 2]).unwrap();
    let lm = |more: &[&str], words: &str| {
        rejected(&["lm", "--model", MODEL, "--device", "cpu"].iter().chain(more).copied().collect::<Vec<_>>(), words);
    };
    lm(&[], "there is no text");
    lm(&["--text", "/nowhere.rs"], "/nowhere.rs: cannot read the file");
    lm(&["--text", &empty], "the text has 0 bytes; it must have at least 2");
    lm(&["--text", &text, "--context", "5000"], "context of 4096");
    lm(&["--text", &text, "--plan", &plan], "version 9");
    lm(&["--text", &text, "--plan", "/nowhere.json"], "cannot read /nowhere.json");
    lm(&["--text", &text, "--plan", &plan, "--precision", "int8"], "--plan is for --precision auto");
    lm(&["--generate", ""], "the prompt has 0 bytes");
    lm(&["--generate", &"x".repeat(4097)], "4097 tokens do not fit");
    rejected(&["lm", "--model", &weights, "--text", &text], "weights: not a safetensors file");
    rejected(&["lm", "--model", "/nowhere", "--text", &text], "/nowhere: cannot read the file");
    let calibrate = |more: &[&str], words: &str| {
        let common = ["calibrate", "--model", MODEL, "--text", &text, "--device", "cpu", "--out", "/tmp/never-written"];
        rejected(&common.iter().chain(more).copied().collect::<Vec<_>>(), words);
    };
    calibrate(&["--percent", "101"], "percent is 101; it must be between 0 and 100");
    calibrate(&["--budget", "0"], "the budget is 0; it must be positive");
    calibrate(&["--measurements", &text], "line 1: not a measurement");
    calibrate(&["--max-loss", "0"], "the loss is 0; it must be positive");
    calibrate(&["--every", "0"], "samples is 0; it must be at least 1");
    rejected(&["plan", "show", &plan], "version 9; this build reads version 1");
    rejected(&["plan", "make", &text, "--out", "/tmp/never-written"], "line 1: not a measurement");
    for bad in ["int2", "int4/row", "int4/thread/x"] {
        let run = sage_attn(["lm", "--model", MODEL, "--text", &text, "--precision", bad]);
        run.fails(2);
        assert!(run.stderr.contains("is not a precision"), "{}", run.stderr);
    }
}
