//! The diffusion model on the command line.

use crate::support::{Folder, Run, lines, sage_attn};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/emoji_dit.safetensors");
const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/emoji_dit/features.json");

/// Draws two images in two steps on the CPU.
fn diffuse(more: &[&str]) -> Run {
    let common = ["diffuse", "--model", MODEL, "--device", "cpu", "--steps", "2", "--classes", "heart", "time"];
    sage_attn(common.iter().chain(more))
}

#[test]
fn diffuse_compares_precisions_and_writes_a_picture() {
    let folder = Folder::new("diffuse");
    let picture = folder.path("picture.png");
    let options = ["--precision", "exact", "int8", "--reference", REAL, "--out", &picture, "--zoom", "2", "--json"];
    let run = diffuse(&options);
    run.success();
    let records = lines(&run.stdout);
    assert_eq!(records.len(), 2);
    let [exact, int8] = &records[..] else { unreachable!() };
    assert!(exact["psnr"].is_null() && exact["frechet_to_first"].is_null(), "{exact}");
    assert_eq!((&int8["precision"], &int8["images"]), (&"int8/thread/k".into(), &2.into()));
    let figure = |record: &serde_json::Value, key: &str| record[key].as_f64().unwrap();
    assert!((30.0..90.0).contains(&figure(int8, "psnr")), "{int8}");
    assert!((0.9..1.0).contains(&figure(int8, "ssim_min")), "{int8}");
    assert!((0.0..0.1).contains(&figure(int8, "frechet_to_first")), "{int8}");
    assert!(figure(exact, "frechet_to_reference") > 1.0, "two images are not like all: {exact}");

    let file = std::fs::File::open(picture).unwrap();
    let info = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    assert_eq!((info.info().width, info.info().height), (2 * 2 * 64, 2 * 2 * 64));
}

#[test]
fn measurements_of_diffuse_make_a_plan_that_it_follows() {
    let folder = Folder::new("diffuse-plan");
    let [measured, plan] = ["measured.jsonl", "plan.json"].map(|name| folder.path(name));
    let options = ["--measure", &measured, "--heads", "1", "--query-blocks", "1"];
    let first = diffuse(&options);
    first.success();
    assert!(first.stdout.contains("32 measurements"), "{}", first.stdout); // 8 layers, 2 steps, 2 images
    let again = diffuse(&options);
    again.success();
    assert!(again.stderr.contains("holds 32 measurements already"), "{}", again.stderr);

    sage_attn(["plan", "make", &measured, "--out", &plan, "--percent", "25"]).success();
    let run = diffuse(&["--precision", "auto", "--plan", &plan, "--json"]);
    run.success();
    assert_eq!(lines(&run.stdout)[0]["int4_share"], 0.75);
}

#[test]
fn bad_input_is_explained() {
    let unknown = sage_attn(["diffuse", "--model", MODEL, "--classes", "nonsense"]);
    unknown.fails(2);
    assert!(unknown.stderr.contains("no class \"nonsense\"") && unknown.stderr.contains("cat-face"));
    let none = sage_attn(["diffuse", "--model", MODEL, "--classes", "heart", "--steps", "0"]);
    none.fails(2);
    assert!(none.stderr.contains("at least one step"), "{}", none.stderr);
    let other = sage_attn(["diffuse", "--model", MODEL, "--classes", "heart", "--reference", MODEL]);
    other.fails(2);
    let language = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/rustlm.safetensors");
    sage_attn(["diffuse", "--model", language]).fails(2);
}
