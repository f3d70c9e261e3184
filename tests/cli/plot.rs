//! Charts of results files.

use crate::support::{Folder, sage_attn};

const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/results");

/// The names of the lines of a chart, in order, and how many points there are.
fn contents(svg: &str) -> (Vec<String>, usize) {
    let legend = svg.split("stroke-linecap=\"round\"/><text").skip(1);
    let names = legend.map(|text| text.split(['>', '<']).nth(1).unwrap().to_owned()).collect();
    (names, svg.matches("<circle").count())
}

#[test]
fn the_chart_of_the_readme_is_made_of_the_committed_results() {
    let files = ["h200_bench.json", "h200_lengths.json"].map(|name| format!("{RESULTS}/{name}"));
    let only = "--only=sm90_int8_fp8_fwd,cudnn,flash_attention_2,xformers_cutlass";
    let run = sage_attn(["plot", &files[0], &files[1], only]);
    run.success();
    let committed = std::fs::read_to_string(format!("{RESULTS}/../../docs/plots/h200_tops.svg")).unwrap();
    assert!(run.stdout == committed, "docs/plots/h200_tops.svg is not what `sage-attn plot` draws");
    let (names, points) = contents(&run.stdout);
    assert_eq!(names, ["sm90_int8_fp8_fwd", "flash_attention_2", "xformers_cutlass", "cudnn"]);
    assert_eq!(points, 4 * 5, "five lengths of each");
    assert!(run.stdout.contains("NVIDIA H200") && run.stdout.contains(">TOPS<"), "{}", run.stdout);
}

#[test]
fn the_curve_of_errors_is_made_of_the_committed_results() {
    let run = sage_attn(["plot", &format!("{RESULTS}/h200_accuracy.json"), "--figure=error"]);
    run.success();
    let committed = std::fs::read_to_string(format!("{RESULTS}/../../docs/plots/h200_error.svg")).unwrap();
    assert!(run.stdout == committed, "docs/plots/h200_error.svg is not what `sage-attn plot` draws");
    let (names, points) = contents(&run.stdout);
    assert_eq!(names, ["sm90_int8_fp8_fwd", "sm90_int8_fp8_exp2_fwd"]);
    assert_eq!(points, 2 * 5, "five lengths of each");
    // There are no rates in that file, and the reports of the benchmark have both.
    sage_attn(["plot", &format!("{RESULTS}/h200_accuracy.json")]).fails(2);
    sage_attn(["plot", &format!("{RESULTS}/h200_lengths.json"), "--figure=error"]).success();
}

#[test]
fn every_results_file_with_times_can_be_drawn() {
    let folder = Folder::new("plot");
    for (name, kernels) in [("h200_mma_sync.json", 4), ("cpu_attention.json", 1), ("h200_bench.json", 6)] {
        let svg = folder.path("p.svg");
        let file = format!("{RESULTS}/{name}");
        let run = sage_attn(["plot", &file, "--causal", "--figure=attention", "--svg", &svg]);
        run.success();
        assert_eq!(run.stdout, "");
        let (names, points) = contents(&std::fs::read_to_string(&svg).unwrap());
        assert!(names.len() >= kernels && points >= names.len(), "{name}: {names:?}");
    }
    assert_eq!(folder.names(), ["p.svg"]);
}

#[test]
fn bench_json_is_a_results_file_and_overlays_one() {
    let folder = Folder::new("overlay");
    let (results, svg) = (folder.path("r.jsonl"), folder.path("b.svg"));
    let bench = ["bench", "--seqlen=64,128", "--heads=1", "--head-dim=32", "--seconds=0", "--device=cpu"];
    let measured = sage_attn(bench.into_iter().chain(["--json", "--precision=int4"]));
    measured.success();
    std::fs::write(&results, &measured.stdout).unwrap();
    let drawn = sage_attn(["plot", &results, "--head-dim=32"]);
    drawn.success();
    assert_eq!(contents(&drawn.stdout), (vec!["cpu_int4_fp8_fwd".to_owned()], 2));

    let overlay = ["--causal=false", "--precision=int8", "--svg", &svg, "--overlay", &results];
    sage_attn(bench.into_iter().chain(overlay)).success();
    let (names, points) = contents(&std::fs::read_to_string(&svg).unwrap());
    assert_eq!((names, points), (vec!["cpu_int8_fp8_fwd".to_owned(), "cpu_int4_fp8_fwd (cpu)".to_owned()], 4));
}

#[test]
fn bad_files_and_empty_choices_say_what_would_be_right() {
    let folder = Folder::new("bad");
    let file = format!("{RESULTS}/h200_bench.json");
    let none = sage_attn(["plot", &file, "--head-dim=96"]);
    none.fails(2);
    assert!(none.stderr.contains("sm90_int8_fp8_fwd at 128 causal"), "{}", none.stderr);
    for (text, words) in [("{\"x\": 1}", "bench --json"), ("{\"cases\": [", "not JSON"), ("", "no result")] {
        let path = folder.path("r.json");
        std::fs::write(&path, text).unwrap();
        let run = sage_attn(["plot", &path]);
        run.fails(2);
        assert!(run.stderr.contains(words) && run.stderr.contains("r.json"), "{}", run.stderr);
        sage_attn(["bench", "--seqlen=64", "--svg", &folder.path("b.svg"), "--overlay", &path]).fails(2);
    }
    sage_attn(["plot", &folder.path("absent.json")]).fails(2);
    assert_eq!(folder.names(), ["r.json"]);
}
