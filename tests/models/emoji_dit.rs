//! Emoji DiT against what PyTorch computed, and under quantized attention.

use std::path::Path;

use safetensors::SafeTensors;
use sage_attn::adaptive::{Calibrator, Choice, Rule, Sampling as Measured, Site, Speeds};
use sage_attn::metrics::Metrics;
use sage_attn::models::ModelError;
use sage_attn::models::emoji_dit::{EmojiDit, LAYERS, Sampling, VALUES, noise};
use sage_attn::{Attention, Device, Error, Tensor, TensorView};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/emoji_dit.safetensors");
const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/emoji_dit_parity.safetensors");

fn model() -> EmojiDit {
    EmojiDit::load(Path::new(MODEL)).unwrap()
}

fn attention(choice: Choice) -> Attention {
    choice.apply(Attention::new().device(Device::Cpu))
}

/// Attention under one choice in every layer.
fn attend(choice: Choice) -> impl FnMut(usize, [&TensorView<'_>; 3]) -> Result<Tensor, Error> {
    let attention = attention(choice);
    move |_, [q, k, v]| Ok(attention.forward(q, k, v)?.out)
}

/// Inputs and outputs of the forward pass in PyTorch, in f32: two images, the second without a class.
struct Parity {
    images: Vec<f32>,
    t: Vec<f32>,
    classes: Vec<i64>,
    velocity: Vec<f32>,
}

fn parity() -> Parity {
    let bytes = std::fs::read(PARITY).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let f32s = |name: &str| {
        let bytes = file.tensor(name).unwrap().data().chunks_exact(4);
        bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let classes = file.tensor("classes").unwrap();
    let classes = classes.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
    Parity { images: f32s("images"), t: f32s("t"), classes: classes.collect(), velocity: f32s("velocity") }
}

/// Metrics of the velocities under a choice beside PyTorch's, per image.
fn against_pytorch(choice: Choice) -> Vec<Metrics> {
    let (model, parity) = (model(), parity());
    let compare = |index: usize| {
        let image = index * VALUES..(index + 1) * VALUES;
        let class = usize::try_from(parity.classes[index]).ok().filter(|&class| class < model.classes().len());
        let (t, images) = (parity.t[index], &parity.images[image.clone()]);
        let actual = model.velocity(images, t, &[class], &mut attend(choice)).unwrap();
        let expected: Vec<f64> = parity.velocity[image].iter().copied().map(f64::from).collect();
        Metrics::compare(&actual, &expected, VALUES)
    };
    (0..parity.t.len()).map(compare).collect()
}

#[test]
fn exact_attention_gives_pytorchs_velocity() {
    let metrics = against_pytorch(Choice::EXACT);
    assert_eq!(metrics.len(), 2);
    for metrics in metrics {
        assert!(metrics.rel_l1 < 2e-5 && metrics.max_abs < 1e-3, "{metrics:?}");
    }
}

#[test]
fn quantized_attention_comes_close_and_int4_less_so() {
    let (int8, int4) = (against_pytorch(Choice::INT8), against_pytorch(Choice::INT4));
    for (int8, int4) in int8.iter().zip(&int4) {
        assert!(int8.cosine > 0.999 && int8.rel_l1 < 0.03, "INT8: {int8:?}");
        assert!(int4.cosine > 0.99, "INT4: {int4:?}");
        assert!(int4.rel_l1 > int8.rel_l1 && int8.rel_l1 > 1e-4, "INT8: {int8:?}, INT4: {int4:?}");
    }
}

#[test]
fn images_of_a_batch_do_not_see_each_other() {
    let (model, noise) = (model(), noise(3, 2));
    let classes = [Some(0), Some(5)];
    let both = model.velocity(&noise, 0.7, &classes, &mut attend(Choice::EXACT)).unwrap();
    let second = model.velocity(&noise[VALUES..], 0.7, &classes[1..], &mut attend(Choice::EXACT)).unwrap();
    let furthest = both[VALUES..].iter().zip(&second).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-4, "{furthest}");
}

#[test]
fn sampling_asks_for_every_layer_of_every_step_and_a_plan_can_be_made_of_it() {
    let model = model();
    let exact = attention(Choice::EXACT);
    // A fraction of the heads and rows: this tests the way, not the figures.
    let measured = Measured { heads: Some(1), query_blocks: Some(1), ..Measured::default() };
    let mut calibrator = Calibrator::new(vec![Choice::INT4, Choice::INT8], measured).unwrap();
    let mut done = Vec::new();
    let sampling = Sampling { steps: 2, guidance: 1.0 };
    let images = model
        .sample(
            &noise(1, 1),
            &[3],
            sampling,
            &mut |layer, timestep, [q, k, v]: [&TensorView<'_>; 3]| {
                let out = exact.forward(q, k, v)?.out;
                let site = Site { layer, timestep, sample: 0 };
                assert!(calibrator.observe_with_exact(site, &exact, [q, k, v], &out)?);
                Ok(out)
            },
            &mut |step| done.push(step),
        )
        .unwrap();
    assert_eq!((images.len(), done), (VALUES, vec![1, 2]));
    let plan = Rule::percentile(50.0).plan(calibrator.measurements(), &Speeds::unmeasured()).unwrap();
    assert_eq!((plan.timesteps(), plan.layers().len(), plan.int4_share()), (2, LAYERS, 0.5));
}

#[test]
fn noise_depends_on_seed_and_index_only() {
    assert_eq!(noise(1, 3)[..2 * VALUES], noise(1, 2));
    assert_ne!(noise(1, 1), noise(2, 1));
    let many = noise(9, 20);
    let mean = many.iter().map(|&x| f64::from(x)).sum::<f64>() / many.len() as f64;
    assert!(mean.abs() < 0.01, "{mean}");
}

#[test]
fn bad_input_is_an_error() {
    let model = model();
    let mut never = |_: usize, _: [&TensorView<'_>; 3]| -> Result<Tensor, Error> { panic!("must not be reached") };
    let classes = model.classes().len();
    let result = model.velocity(&[0.0; 5], 0.5, &[None], &mut never);
    assert_eq!(result, Err(ModelError::Images { values: 5, classes: 1, each: VALUES }));
    assert!(matches!(model.velocity(&[], 0.5, &[], &mut never), Err(ModelError::Images { .. })));
    let result = model.velocity(&vec![0.0; VALUES], 0.5, &[Some(classes)], &mut never);
    assert_eq!(result, Err(ModelError::Class { class: classes, classes }));
    for sampling in [Sampling { steps: 0, guidance: 1.0 }, Sampling { steps: 9, guidance: f32::NAN }] {
        let mut never = |_: usize, _: usize, _: [&TensorView<'_>; 3]| -> Result<Tensor, Error> { panic!() };
        let result = model.sample(&vec![0.0; VALUES], &[0], sampling, &mut never, &mut |_| {});
        assert!(matches!(result, Err(ModelError::Sampling { .. })), "{result:?}");
    }
    let other = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/rustlm.safetensors"));
    assert!(matches!(EmojiDit::load(other), Err(ModelError::Metadata { key: "format", .. })));
}
