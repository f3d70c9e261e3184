//! RustLM against what its training framework computed, and under quantized attention.

use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView as Stored};
use sage_attn::adaptive::Choice;
use sage_attn::metrics::Metrics;
use sage_attn::models::ops::{Linear, RmsNorm};
use sage_attn::models::rustlm::{KvCache, RustLm, Sampler, Windows};
use sage_attn::models::{ModelError, Weights};
use sage_attn::{Attention, Device, Error, Tensor, TensorView};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/rustlm.safetensors");
const QKV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/rustlm_qkv.safetensors");

fn model() -> RustLm {
    RustLm::load(Path::new(MODEL)).unwrap()
}

/// Attention under one choice in every layer.
fn attend(choice: Choice) -> impl FnMut(usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> {
    let attention = choice.apply(Attention::new().causal(true).device(Device::Cpu));
    move |_, [q, k, v]| Ok(attention.forward(q, k, v)?.out)
}

/// A tensor `[1, heads, 1024, 128]` of the dump.
fn dumped(file: &SafeTensors, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap().data().chunks_exact(2);
    bytes.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// The text the dump was made of, read back from it: a value of layer 0 depends on its byte alone.
fn text(file: &SafeTensors) -> Vec<u8> {
    let weights = Weights::open(Path::new(MODEL)).unwrap();
    let embed = weights.tensor("embed.weight", &[256, 256]).unwrap();
    let normed = RmsNorm::load(&weights, "layers.0.attn_norm", 256, 1e-6).unwrap().forward(&embed);
    let values = Linear::load(&weights, "layers.0.v_proj", [256, 256], true).unwrap().forward(&normed);
    let dump = dumped(file, "layer0.v");
    let byte = |token: usize| {
        let value = |i: usize| dump[(i / 128 * 1024 + token) * 128 + i % 128];
        let distance = |byte: usize| (0..256).map(|i| (values[byte * 256 + i] - value(i)).powi(2)).sum::<f32>();
        (0..256).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap() as u8
    };
    (0..1024).map(byte).collect()
}

#[test]
fn queries_keys_and_values_are_those_of_the_training_framework() {
    let bytes = std::fs::read(QKV).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let text = text(&file);
    assert!(String::from_utf8_lossy(&text).contains("impl core::ops::Deref for R {"));
    let mut exact = attend(Choice::EXACT);
    let mut compared = 0;
    let mut record = |layer: usize, tensors: [&TensorView<'_>; 3]| {
        for (name, tensor) in ["q", "k", "v"].iter().zip(tensors) {
            let Ok(_) = file.tensor(&format!("layer{layer}.{name}")) else { continue };
            let expected = dumped(&file, &format!("layer{layer}.{name}"));
            let [_, heads, tokens, features] = tensor.spec().shape;
            let mut actual = vec![0.0; heads * tokens * features];
            for (index, row) in actual.chunks_exact_mut(features).enumerate() {
                tensor.host().row(0, index / tokens, index % tokens, row);
            }
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            let metrics = Metrics::compare(&actual, &expected, features);
            // The dump is bf16: its rounding alone is 0.0014.
            assert!(metrics.rel_l1 < 0.002 && metrics.worst_row_rel_l1 < 0.01, "layer {layer} {name}: {metrics:?}");
            compared += 1;
        }
        exact(layer, tensors)
    };
    let hidden = model().forward(&text, &mut KvCache::new(1024).unwrap(), &mut record).unwrap();
    assert_eq!((compared, hidden.len()), (9, 1024 * 256));

    // Bits per byte, as a separate implementation has them (numpy, f64 softmax): 0.714232.
    let windows = Windows::new(&text, 4096).unwrap();
    let bits = |choice| model().evaluate(&windows, &mut attend(choice), &mut |_| {}).unwrap().bits_per_byte();
    let exact = bits(Choice::EXACT);
    assert!((exact - 0.714_232).abs() < 1e-4, "{exact}");
    let (int8, int4) = (bits(Choice::INT8), bits(Choice::INT4));
    println!("bits per byte: exact {exact:.5}, INT8 {int8:.5}, INT4 {int4:.5}");
    assert!((int8 / exact - 1.0).abs() < 0.004, "{int8}");
    assert!((0.002..0.06).contains(&(int4 / exact - 1.0)), "{int4}");
}

#[test]
fn decoding_with_a_cache_is_the_same_as_reading_at_once() {
    let model = model();
    let text = b"pub fn sum(values: &[f32]) -> f32 {\n    values.iter().sum()\n}\n";
    for (choice, bound) in [(Choice::EXACT, 1e-4), (Choice::INT8, 0.12)] {
        let mut cache = KvCache::new(text.len()).unwrap();
        let whole = model.forward(text, &mut cache, &mut attend(choice)).unwrap();
        let whole = model.logits(&whole);
        let mut cache = KvCache::new(text.len()).unwrap();
        let mut parts = model.forward(&text[..20], &mut cache, &mut attend(choice)).unwrap();
        parts.extend(model.forward(&text[20..37], &mut cache, &mut attend(choice)).unwrap());
        for byte in &text[37..] {
            parts.extend(model.forward(&[*byte], &mut cache, &mut attend(choice)).unwrap());
        }
        assert_eq!(cache.len(), text.len());
        let expected: Vec<f64> = whole.iter().copied().map(f64::from).collect();
        let metrics = Metrics::compare(&model.logits(&parts), &expected, 256);
        // Quantized, the two differ: scales and means are those of the keys there are so far.
        assert!(metrics.rel_l1 < bound, "{choice}: {metrics:?}");
    }
}

#[test]
fn generation_is_what_reading_predicts() {
    let model = model();
    let prompt = b"//! A module of functions.\n\nuse std::collections::HashMap;\n\n/// Returns the number of";
    let mut seen = Vec::new();
    let generation = model
        .generate(prompt, 24, &mut Sampler::new(0.0, 0), &mut attend(Choice::EXACT), &mut |byte| seen.push(byte))
        .unwrap();
    assert_eq!((generation.bytes.len(), &generation.bytes), (24, &seen));
    let mut text = prompt.to_vec();
    text.extend(&generation.bytes);
    let hidden = model.forward(&text, &mut KvCache::new(200).unwrap(), &mut attend(Choice::EXACT)).unwrap();
    let logits = model.logits(&hidden);
    for (index, &byte) in generation.bytes.iter().enumerate() {
        let row = &logits[(prompt.len() - 1 + index) * 256..][..256];
        let best = (0..256).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        assert_eq!(best, usize::from(byte), "byte {index}");
    }
    assert!(String::from_utf8(generation.bytes).unwrap().starts_with(" "));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let model = model();
    let mut exact = attend(Choice::EXACT);
    assert!(matches!(KvCache::new(4097), Err(ModelError::Context { tokens: 4097, context: 4096 })));
    let mut cache = KvCache::new(3).unwrap();
    model.forward(b"ab", &mut cache, &mut exact).unwrap();
    let error = model.forward(b"cd", &mut cache, &mut exact).unwrap_err();
    assert_eq!((error, cache.len()), (ModelError::Context { tokens: 4, context: 3 }, 2));
    let mut greedy = Sampler::new(0.0, 0);
    let mut generate = |prompt: &[u8]| model.generate(prompt, 1, &mut greedy, &mut exact, &mut |_| {}).map(drop);
    assert!(matches!(generate(b""), Err(ModelError::TooShort { .. })));
    assert!(matches!(generate(&[b' '; 4097]), Err(ModelError::Context { tokens: 4097, .. })));
    let mut wrong = |_: usize, [_, k, _]: [&TensorView<'_>; 3]| Tensor::zeros(sage_attn::DType::F32, k.spec().shape);
    cache.clear();
    let error = model.forward(b"ab", &mut cache, &mut wrong).unwrap_err();
    assert!(matches!(error, ModelError::Attended { shape: [1, 2, 2, 128], .. }), "{error}");
}

/// The weights with something changed, in a file of its own.
fn changed(name: &str, change: impl Fn(&str, &mut Vec<usize>, &mut Dtype, &mut Vec<u8>) -> bool) -> PathBuf {
    let bytes = std::fs::read(MODEL).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, tensor) in file.tensors() {
        let (mut shape, mut dtype, mut data) = (tensor.shape().to_vec(), tensor.dtype(), tensor.data().to_vec());
        if change(&name, &mut shape, &mut dtype, &mut data) {
            tensors.push((name, shape, dtype, data));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, dtype, data)| (name.as_str(), Stored::new(*dtype, shape.clone(), data).unwrap()));
    let path = std::env::temp_dir().join(format!("sage-attn-models-{}-{name}", std::process::id()));
    safetensors::serialize_to_file(views, metadata.metadata().clone(), &path).unwrap();
    path
}

#[test]
fn malformed_weights_are_errors() {
    let load = |path: PathBuf| {
        let error = RustLm::load(&path).map(drop).unwrap_err();
        let _ = std::fs::remove_file(&path);
        error
    };
    const DOWN: &str = "layers.3.down_proj.weight";
    let error = load(changed("missing", |name, _, _, _| name != DOWN));
    assert!(matches!(&error, ModelError::Missing { name, .. } if name == DOWN), "{error}");
    let error = load(changed("shape", |name, shape, _, _| {
        if name == DOWN {
            shape.reverse();
        }
        true
    }));
    assert!(error.to_string().contains("has shape [704, 256]; it must be [256, 704]"), "{error}");
    let error = load(changed("dtype", |name, _, dtype, _| {
        if name == DOWN {
            *dtype = Dtype::U16;
        }
        true
    }));
    assert!(matches!(error, ModelError::DType { .. }), "{error}");
    let error = load(changed("nan", |name, _, _, data| {
        if name == DOWN {
            data[100..102].copy_from_slice(&bf16::NAN.to_le_bytes());
        }
        true
    }));
    assert!(matches!(error, ModelError::NotFinite { .. }), "{error}");
    let error = RustLm::load(Path::new(QKV)).map(drop).unwrap_err();
    assert!(matches!(error, ModelError::Metadata { key: "arch", .. }), "{error}");
    let path = std::env::temp_dir().join(format!("sage-attn-models-{}-bytes", std::process::id()));
    for bytes in [&b""[..], b"1234567", &u64::MAX.to_le_bytes(), b"\x02\0\0\0\0\0\0\0[]"] {
        std::fs::write(&path, bytes).unwrap();
        let error = load(path.clone());
        assert!(matches!(error, ModelError::Format { .. }), "{error}");
    }
    assert!(matches!(load(path), ModelError::File { .. }));
}
