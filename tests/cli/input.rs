//! Bad files: each ends with exit status 2 and one sentence that says what is wrong.

use crate::support::{Folder, SAMPLE, sage_attn};

/// A file with this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Header and data length of a q, k and v with these types and shapes.
fn header(tensors: [(&str, &[usize]); 3]) -> (String, usize) {
    let mut end = 0;
    let entries: Vec<String> = ["q", "k", "v"]
        .iter()
        .zip(tensors)
        .map(|(name, (dtype, shape))| {
            let begin = end;
            let bytes = match dtype {
                "F64" | "I64" => 8,
                "F32" => 4,
                "U8" => 1,
                _ => 2,
            };
            end += shape.iter().product::<usize>() * bytes;
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    (format!("{{{}}}", entries.join(",")), end)
}

/// Runs every command on a file of these bytes; the message must contain `words`.
fn rejected(name: &str, bytes: &[u8], words: &[&str]) {
    let folder = Folder::new(name);
    let path = folder.path("input.safetensors");
    std::fs::write(&path, bytes).unwrap();
    for command in ["run", "accuracy"] {
        let run = sage_attn([command, &path, "--device", "cpu"]);
        run.fails(2);
        let message = run.stderr.trim_end();
        assert_eq!(message.lines().count(), 1, "{message}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

#[test]
fn a_missing_file() {
    let run = sage_attn(["run", "/nowhere/x.safetensors"]);
    run.fails(2);
    assert!(run.stderr.contains("/nowhere/x.safetensors: cannot open"), "{}", run.stderr);
}

#[test]
fn an_empty_and_a_tiny_file() {
    rejected("empty", b"", &["shorter than the 8 bytes"]);
    rejected("tiny", b"abc", &["shorter than the 8 bytes"]);
}

#[test]
fn a_header_larger_than_allowed() {
    rejected("huge", &u64::MAX.to_le_bytes(), &["header claims 18446744073709551615 bytes"]);
    rejected("large", &(1u64 << 30).to_le_bytes(), &["header claims 1073741824 bytes"]);
}

#[test]
fn a_header_longer_than_the_file() {
    rejected("long", &1000u64.to_le_bytes(), &["damaged", "8 bytes"]);
}

#[test]
fn a_header_that_is_not_json() {
    rejected("garbage", &file("this is not JSON", 0), &["damaged", "JSON"]);
    rejected("utf8", &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), &["damaged", "UTF-8"]);
}

#[test]
fn a_file_cut_short() {
    let sample = std::fs::read(SAMPLE).unwrap();
    rejected("cut", &sample[..sample.len() - 1], &["damaged"]);
    rejected("cut-header", &sample[..100], &["damaged"]);
}

#[test]
fn no_tensors_of_these_names() {
    rejected("none", &file("{}", 0), &["no tensors named q, k and v"]);
    let only_q = r#"{"a.q":{"dtype":"F16","shape":[1,1,1,2],"data_offsets":[0,4]}}"#;
    rejected("only-q", &file(only_q, 4), &["no tensors named q, k and v"]);
}

#[test]
fn a_prefix_that_is_not_there() {
    let run = sage_attn(["run", SAMPLE, "--prefix", "layer1."]);
    run.fails(2);
    assert!(run.stderr.contains("no tensor layer1.q; the file has layer0.k"), "{}", run.stderr);
}

#[test]
fn a_wrong_type() {
    let shape: &[usize] = &[1, 1, 4, 8];
    let (text, len) = header([("F16", shape), ("I64", shape), ("F16", shape)]);
    rejected("type", &file(&text, len), &["tensor k is I64", "F16, BF16 or F32"]);
    let (text, len) = header([("F16", shape), ("BF16", shape), ("F16", shape)]);
    rejected("mixed", &file(&text, len), &["k is bf16, but q is f16"]);
}

#[test]
fn a_wrong_shape() {
    let shape: &[usize] = &[1, 1, 4, 8];
    let (text, len) = header([("F16", &[1, 4, 8]), ("F16", shape), ("F16", shape)]);
    rejected("rank", &file(&text, len), &["tensor q of shape [1, 4, 8]", "3 axes", "must have 4"]);
    let (text, len) = header([("F16", shape), ("F16", &[1, 1, 4, 16]), ("F16", shape)]);
    rejected("head-dim", &file(&text, len), &["k has head_dim 16, but q has 8"]);
    let (text, len) = header([("F16", &[1, 3, 4, 8]), ("F16", &[1, 2, 4, 8]), ("F16", &[1, 2, 4, 8])]);
    rejected("heads", &file(&text, len), &["q has 3 heads", "2 heads of k"]);
    let wide: &[usize] = &[1, 1, 2, 257];
    let (text, len) = header([("F16", wide), ("F16", wide), ("F16", wide)]);
    rejected("wide", &file(&text, len), &["head_dim of q is 257; supported are 1 to 256"]);
    let none: &[usize] = &[1, 1, 4, 0];
    let (text, len) = header([("F16", none), ("F16", none), ("F16", none)]);
    rejected("zero", &file(&text, len), &["head_dim of q is 0"]);
}

#[test]
fn offsets_that_lie() {
    let beyond = r#"{"q":{"dtype":"F16","shape":[1,1,1,2],"data_offsets":[0,400]}}"#;
    rejected("beyond", &file(beyond, 4), &["damaged"]);
    let shape = r#"{"q":{"dtype":"F16","shape":[18446744073709551615,2,2,2],"data_offsets":[0,4]}}"#;
    rejected("overflow", &file(shape, 4), &["damaged"]);
}

#[test]
fn bad_options() {
    for arguments in [
        &["run", SAMPLE, "--precision", "int2"][..],
        &["run", SAMPLE, "--granularity", "row"],
        &["run", SAMPLE, "--smooth", "q,x"],
        &["run", SAMPLE, "--smooth", ""],
        &["run", SAMPLE, "--device", "gpu"],
        &["run", SAMPLE, "--layout", "bhsd"],
        &["run", SAMPLE, "--causal=maybe"],
        &["run"],
        &["fly"],
        &["run", SAMPLE, "--kernel", "sm70_int8_f16_fwd", "--device", "cpu"],
        &["run", SAMPLE, "--kernel", "sm90_int8_fp8_fwd", "--softcap", "0", "--device", "cpu"],
        &["run", SAMPLE, "--kernel", "sm80_int8_f16_fwd", "--precision", "int4"],
    ] {
        sage_attn(arguments).fails(2);
    }
}

#[test]
fn files_without_output_are_fine() {
    let folder = Folder::new("empty-tensors");
    let path = folder.path("input.safetensors");
    let (text, len) = header([("F16", &[1, 2, 0, 8]), ("F16", &[1, 1, 4, 8]), ("F16", &[1, 1, 4, 8])]);
    std::fs::write(&path, file(&text, len)).unwrap();
    sage_attn(["run", &path, "--compare", "--device", "cpu"]).success();
    let (text, len) = header([("F16", &[1, 2, 3, 8]), ("F16", &[1, 1, 0, 8]), ("F16", &[1, 1, 0, 8])]);
    std::fs::write(&path, file(&text, len)).unwrap();
    sage_attn(["run", &path, "--compare", "--device", "cpu"]).success();
}
