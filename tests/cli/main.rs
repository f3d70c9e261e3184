//! The command line, run as users run it.

mod diffuse;
mod help;
mod input;
mod lm;
mod plot;
mod support;

use serde_json::Value;
use support::{Folder, SAMPLE, lines, sage_attn};

/// Runs on the CPU, so that results do not depend on the machine.
const CPU: [&str; 2] = ["--device", "cpu"];

#[test]
fn the_command_of_the_readme_works() {
    let run = sage_attn(["run", SAMPLE, "--compare"]);
    run.success();
    for words in ["layer0.*", "layer4.*", "layer7.*", "cosine", "relative L1", "worst row"] {
        assert!(run.stdout.contains(words), "{words} is not in\n{}", run.stdout);
    }
    assert!(run.stderr.contains("causal mask is on"), "{}", run.stderr);
}

#[test]
fn json_has_one_object_per_line_with_the_documented_keys() {
    let run = sage_attn(["run", SAMPLE, "--compare", "--json"].into_iter().chain(CPU));
    run.success();
    let records = lines(&run.stdout);
    assert_eq!(records.len(), 3);
    for (record, prefix) in records.iter().zip(["layer0.", "layer4.", "layer7."]) {
        assert_eq!(record["prefix"], prefix);
        assert_eq!(record["kernel"], "cpu_int8_fp8_fwd");
        assert_eq!(record["device"], "cpu");
        assert_eq!(record["precision"], "int8");
        for key in ["cosine", "rel_l1", "rmse", "max_abs", "ms", "tops", "e2e_ms", "e2e_tops"] {
            assert!(record[key].is_f64(), "{key} in {record}");
        }
        assert!(record["cosine"].as_f64().unwrap() > 0.9995, "{record}");
        assert!(record["rel_l1"].as_f64().unwrap() < 0.03, "{record}");
    }
}

#[test]
fn without_compare_the_figures_are_null() {
    let run = sage_attn(["run", SAMPLE, "--prefix", "layer0.", "--json"].into_iter().chain(CPU));
    run.success();
    assert_eq!(lines(&run.stdout)[0]["cosine"], Value::Null);
}

#[test]
fn options_reach_the_computation() {
    let arguments = ["run", SAMPLE, "--prefix=layer4.", "--precision=int4", "--granularity=warp", "--smooth=none"];
    let run = sage_attn(arguments.into_iter().chain(["--causal=false", "--compare", "--json"]).chain(CPU));
    run.success();
    let record = &lines(&run.stdout)[0];
    assert_eq!(record["kernel"], "cpu_int4_fp8_fwd");
    assert_eq!(record["granularity"], "warp");
    assert_eq!(record["smoothing"], "none");
    assert_eq!(record["causal"], false);
    assert!(!run.stderr.contains("causal"), "{}", run.stderr);
    let exact = sage_attn(["run", SAMPLE, "--prefix=layer4.", "--precision=exact", "--compare", "--json"]);
    let record = &lines(&exact.stdout)[0];
    assert_eq!(record["kernel"], "cpu_exact_fwd");
    // bf16 output: half a unit in the eighth place.
    assert!(record["rel_l1"].as_f64().unwrap() < 0.003, "{record}");
}

#[test]
fn layers_all_is_the_default_and_excludes_prefix() {
    let all = sage_attn(["run", SAMPLE, "--layers", "all", "--json"].into_iter().chain(CPU));
    assert_eq!(lines(&all.stdout).len(), 3);
    sage_attn(["run", SAMPLE, "--layers", "all", "--prefix", "layer0."]).fails(2);
}

#[test]
fn the_output_file_holds_the_output_and_nothing_is_left_beside_it() {
    let folder = Folder::new("out");
    let out = folder.path("o.safetensors");
    std::fs::write(&out, "what was there before").unwrap();
    let run = sage_attn(["run", SAMPLE, "--out", &out].into_iter().chain(CPU));
    run.success();
    let bytes = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let output = file.tensor("layer4.out").unwrap();
    assert_eq!(output.shape(), [1, 4, 1024, 128]);
    assert_eq!(output.dtype(), safetensors::Dtype::BF16);
    assert_eq!(file.tensor("layer4.lse").unwrap().shape(), [1, 4, 1024]);
    assert_eq!(file.len(), 6);
    assert_eq!(folder.names(), ["o.safetensors"]);
}

#[test]
fn a_failed_run_leaves_the_old_output_alone() {
    let folder = Folder::new("keep");
    let out = folder.path("o.safetensors");
    std::fs::write(&out, "what was there before").unwrap();
    sage_attn(["run", SAMPLE, "--prefix", "layer9.", "--out", &out]).fails(2);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "what was there before");
    assert_eq!(folder.names(), ["o.safetensors"]);
}

#[test]
fn an_output_that_cannot_be_written_is_not_bad_input() {
    let run = sage_attn(["run", SAMPLE, "--prefix=layer0.", "--out", "/nowhere/at/all/o.safetensors"]);
    run.fails(1);
    assert!(run.stderr.contains("/nowhere/at/all/o.safetensors"), "{}", run.stderr);
}

#[test]
fn accuracy_measures_every_combination() {
    let run = sage_attn(["accuracy", SAMPLE, "--prefix", "layer7.", "--json"].into_iter().chain(CPU));
    run.success();
    let records = lines(&run.stdout);
    assert_eq!(records.len(), 2 * 3 * 4);
    let cosine = |precision: &str, smoothing: &str| {
        let matches =
            |r: &&Value| r["precision"] == precision && r["granularity"] == "thread" && r["smoothing"] == smoothing;
        records.iter().find(matches).unwrap()["cosine"].as_f64().unwrap()
    };
    // What smoothing is for.
    assert!(cosine("int4", "k") > cosine("int4", "none"));
    assert!(cosine("int4", "q,k") > cosine("int4", "k"));
    assert!(cosine("int8", "k") > cosine("int4", "q,k"));
    assert!(!run.stderr.contains('█'), "progress must be hidden: {}", run.stderr);
}

#[test]
fn accuracy_prints_a_table_and_says_whose_arithmetic_it_shows() {
    let accuracy = |more: &[&str]| {
        let run = sage_attn(["accuracy", SAMPLE, "--prefix=layer0."].iter().chain(more).copied().chain(CPU));
        run.success();
        run.stdout
    };
    let table = accuracy(&[]);
    assert!(table.contains("granularity") && table.contains("q,k,v"), "{table}");
    assert!(table.starts_with("layer0.*: arithmetic of the sm90 kernels, by the reference, on cpu\n"), "{table}");
    let table = accuracy(&["--kernel=cpu"]);
    assert!(table.starts_with("layer0.*: the CPU's own arithmetic on cpu\n"), "{table}");
    assert!(table.contains("cpu_int4_fp8_fwd") && !table.contains("sm90"), "{table}");
    let table = accuracy(&["--kernel=sm80_int8_f16_fwd"]);
    assert!(table.contains("sm80_int8_f16_fwd") && !table.contains("int4"), "{table}");
    let unknown = sage_attn(["accuracy", SAMPLE, "--kernel=sm70"]);
    unknown.fails(2);
    assert!(unknown.stderr.contains("sm80, sm89, sm90"), "{}", unknown.stderr);
    sage_attn(["accuracy", SAMPLE, "--kernel=cpu", "--device=cuda:0"]).fails(2);
}

#[test]
fn accuracy_without_a_gpu_has_the_figures_of_a_gpu() {
    let results = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/results/h200_tests.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(results).unwrap()).unwrap();
    let run = sage_attn(["accuracy", SAMPLE, "--json"].into_iter().chain(CPU));
    run.success();
    let records = lines(&run.stdout);
    let rows = recorded["real_data"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6, "three layers, two precisions");
    for row in rows {
        let precision = row["precision"].as_str().unwrap().to_lowercase();
        let prefix = format!("layer{}.", row["layer"]);
        let matches = |r: &&Value| {
            let [of, at] = [&r["prefix"], &r["precision"]].map(|value| value.as_str().unwrap());
            (of, at) == (&prefix, &precision) && r["granularity"] == "thread" && r["smoothing"] == "q,k"
        };
        let record = records.iter().find(matches).unwrap();
        assert_eq!(record["kernel"], format!("sm90_{precision}_fp8_fwd"));
        // Three digits; what is left is the accumulator of the GPU's tensor cores.
        for (figure, allowed) in [("cosine", 1e-5), ("rel_l1", 5e-5)] {
            let [here, there] = [&record[figure], &row["gpu"][figure]].map(|value| value.as_f64().unwrap());
            assert!((here - there).abs() < allowed, "{prefix} {precision} {figure}: {here} here, {there} on the GPU");
        }
    }
}

#[test]
fn run_takes_the_arithmetic_of_a_kernel_to_the_cpu() {
    let kernel = "--kernel=sm89_int4_fp8_fwd";
    let run = sage_attn(["run", SAMPLE, "--prefix=layer4.", kernel, "--compare", "--json"].into_iter().chain(CPU));
    run.success();
    let record = &lines(&run.stdout)[0];
    assert_eq!((&record["kernel"], &record["device"]), (&"sm89_int4_fp8_fwd".into(), &"cpu".into()));
    assert_eq!(record["precision"], "int4");
    sage_attn(["run", SAMPLE, kernel, "--precision=int8"].into_iter().chain(CPU)).fails(2);
}

#[test]
fn doctor_always_answers() {
    let run = sage_attn(["doctor"]);
    run.success();
    assert!(run.stdout.contains("uses"), "{}", run.stdout);
    let json = sage_attn(["doctor", "--json"]);
    json.success();
    let findings = &lines(&json.stdout)[0];
    assert!(findings["uses"].is_string());
    let path = findings["cpu"]["path"].as_str().unwrap();
    assert_eq!(findings["cpu"]["paths"][0], path);
    assert!(run.stdout.contains(&format!("attention through {path}")), "{}", run.stdout);
}

#[test]
fn bench_measures_and_draws() {
    let folder = Folder::new("bench");
    let svg = folder.path("b.svg");
    let small = ["bench", "--seqlen=64,128", "--heads=2", "--seconds=0", "--svg", &svg];
    let run = sage_attn(small.into_iter().chain(CPU));
    run.success();
    assert!(run.stdout.contains("cpu_exact_fwd") && run.stdout.contains("tokens/s"), "{}", run.stdout);
    let chart = std::fs::read_to_string(&svg).unwrap();
    assert_eq!(chart.matches("<polyline").count(), 4, "two precisions, with and without mask");

    let run = sage_attn(small.into_iter().chain(["--json", "--queries=1", "--precision=int4"]).chain(CPU));
    run.success();
    let records = lines(&run.stdout);
    assert_eq!(records.len(), 4);
    for record in &records {
        assert_eq!((&record["kernel"], &record["seqlen_q"]), (&"cpu_int4_fp8_fwd".into(), &1.into()));
        for key in ["ms", "e2e_ms", "median_e2e_ms", "gflops", "tokens_per_s"] {
            assert!(record[key].as_f64().unwrap() > 0.0, "{key} in {record}");
        }
    }
}

#[test]
fn bench_explains_bad_input() {
    for arguments in [["--seconds=-1", "--heads=2"], ["--heads=3", "--kv-heads=2"], ["--head-dim=0", "--heads=1"]] {
        sage_attn(["bench", "--seqlen=64"].into_iter().chain(arguments).chain(CPU)).fails(2);
    }
}

#[test]
fn modifiers_reach_the_computation() {
    let run = |more: &[&str]| {
        let base = ["run", SAMPLE, "--prefix=layer4.", "--precision=exact", "--compare", "--json"];
        let run = sage_attn(base.iter().chain(more).copied().chain(CPU));
        run.success();
        lines(&run.stdout)[0]["rel_l1"].as_f64().unwrap()
    };
    // bf16 output: half a unit in the eighth place, whatever is asked for.
    for more in [
        &["--window=128,0"][..],
        &["--window", "-1,5", "--causal=false"],
        &["--softcap=20"],
        &["--alibi"],
        &["--alibi=0.5,0.25,0,1"],
        &["--causal-align=top-left", "--window=3,-1", "--softcap=5", "--alibi"],
    ] {
        let rel_l1 = run(more);
        assert!(rel_l1 < 0.003, "{more:?}: {rel_l1}");
    }
}

#[test]
fn bad_modifiers_say_what_would_be_right() {
    for (option, words) in [
        ("--window=5", "1024,0"),
        ("--window=a,0", "-1"),
        ("--softcap=0", "positive"),
        ("--alibi=0.5", "[1, 4]"),
        ("--alibi=x", "0.5,0.25"),
        ("--causal-align=left", "top-left"),
    ] {
        let run = sage_attn(["run", SAMPLE, "--prefix=layer4.", option].into_iter().chain(CPU));
        run.fails(2);
        assert!(run.stderr.contains(words), "{option}: {}", run.stderr);
    }
}
