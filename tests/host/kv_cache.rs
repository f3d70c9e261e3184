//! The cache through the public interface, on the CPU, and its errors.

use proptest::prelude::*;
use sage_attn::device::{DeviceCache, DeviceMemory};
use sage_attn::error::{CacheError, Invalid, Operand, PlanError};
use sage_attn::plan::{Capability, DecodeRequest, plan_decode};
use sage_attn::problem::TensorSpec;
use sage_attn::spec::Precision;
use sage_attn::spec::cache::{CacheShape, PageLayout};
use sage_attn::{
    Attend, Attention, DType, Device, Error, KvCache, KvCacheOptions, Layout, Precision as Of, TensorView,
};
use sage_tests::generate::{Random, config};

const D: usize = 64;

fn cache(batch: usize, heads: usize, capacity: usize) -> KvCacheOptions {
    KvCacheOptions::new(batch, heads, D, capacity).device(Device::Cpu)
}

fn view<'a>(x: &'a [f32], heads: usize, tokens: usize) -> TensorView<'a> {
    let batch = x.len() / (heads * tokens * D).max(1);
    TensorView::new(x, &[batch, heads, tokens, D], Layout::Hnd).unwrap()
}

/// Appends `tokens` tokens of random keys (around an offset) and values; returns them.
fn append(cache: &mut KvCache, random: &mut Random, tokens: usize) -> [Vec<f32>; 2] {
    let (batch, heads) = (cache.shape().batch, cache.shape().num_heads_kv);
    let mut k = random.normals(batch * heads * tokens * D);
    k.iter_mut().enumerate().for_each(|(i, x)| *x += (i % D) as f32 / 8.0);
    let v = random.normals(k.len());
    cache.append(&view(&k, heads, tokens), &view(&v, heads, tokens)).unwrap();
    [k, v]
}

fn error(result: Result<impl std::fmt::Debug, Error>) -> CacheError {
    match result.unwrap_err() {
        Error::Cache(error) => error,
        error => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(config(24))]

    /// A prompt and then token by token: as close to exact attention as INT8 is, and the same bits in pages.
    #[test]
    fn decoding_is_attention_over_all_tokens(seed: u64, prompt in 1..150usize, steps in 1..6usize, group in 1..5usize) {
        let mut random = Random(seed);
        let (batch, heads) = (2, 2);
        let mut plain = cache(batch, heads, 200).build().unwrap();
        let mut paged = cache(batch, heads, 200).paged(batch * 4).build().unwrap();
        let mut parts: Vec<[Vec<f32>; 2]> = Vec::new();
        for step in 0..=steps {
            let tokens = if step == 0 { prompt } else { 1 };
            let mut same = Random(random.0);
            parts.push(append(&mut plain, &mut random, tokens));
            append(&mut paged, &mut same, tokens);
        }
        let total = prompt + steps;
        prop_assert_eq!(plain.lengths(), [total, total]);
        // [B, H, N, D] from the parts.
        let join = |which: usize| -> Vec<f32> {
            (0..batch * heads)
                .flat_map(|head| parts.iter().flat_map(move |part| {
                    let tokens = part[which].len() / (batch * heads * D);
                    part[which][head * tokens * D..(head + 1) * tokens * D].to_vec()
                }))
                .collect()
        };
        let (k, v) = (join(0), join(1));
        let q = random.normals(batch * heads * group * D);
        let q = view(&q, heads * group, 1);
        let options = Attend { return_lse: true, ..Attend::default() };
        let attended = plain.attend(&q, &options).unwrap();
        let exact = Attention::new().precision(Of::Exact).return_lse(true).forward(&q, &view(&k, heads, total), &view(&v, heads, total)).unwrap();
        let (actual, expected) = (attended.out.to_f32(), exact.out.to_f32());
        let distance: f32 = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
        let norm: f32 = expected.iter().map(|x| x.abs()).sum();
        prop_assert!(distance / norm < 0.05, "relative L1 {}", distance / norm);
        for (a, b) in attended.lse.as_deref().unwrap().iter().zip(exact.lse.as_deref().unwrap()) {
            prop_assert!((a - b).abs() < 0.05, "lse {a} for {b}");
        }
        let again = paged.attend(&q, &options).unwrap();
        prop_assert_eq!(again.out.to_f32(), actual);
        prop_assert_eq!(again.lse, attended.lse);
        prop_assert_eq!(paged.free_pages(), Some(batch * (4 - total.div_ceil(64))));
    }
}

#[test]
fn a_truncated_sequence_attends_to_what_is_left() {
    let mut random = Random(4);
    let mut long = cache(2, 1, 300).paged(10).build().unwrap();
    let [k, v] = append(&mut long, &mut random, 150);
    long.truncate(1, 70).unwrap();
    assert_eq!((long.lengths(), long.free_pages()), (&[150, 70][..], Some(10 - 3 - 2)));
    let q = random.normals(2 * 2 * D);
    let out = long.attend(&view(&q, 2, 1), &Attend::default()).unwrap().out.to_f32();

    let mut short = cache(1, 1, 100).build().unwrap();
    // The same mean as the long one's second sequence has: all that was appended to it.
    short.set_mean(&long.mean().unwrap()[D..]).unwrap();
    short.append(&view(&k[150 * D..][..70 * D], 1, 70), &view(&v[150 * D..][..70 * D], 1, 70)).unwrap();
    let alone = short.attend(&view(&q[2 * D..], 2, 1), &Attend::default()).unwrap().out.to_f32();
    assert_eq!(out[2 * D..], alone);
}

#[test]
fn smoothing_keys_makes_four_bits_usable() {
    let distance = |smooth: bool| {
        let mut random = Random(9);
        let mut cache = cache(1, 1, 500).precision(Precision::Int4).smooth_k(smooth).build().unwrap();
        let [k, v] = append(&mut cache, &mut random, 500);
        let q = random.normals(D);
        let q = view(&q, 1, 1);
        let out = cache.attend(&q, &Attend::default()).unwrap().out.to_f32();
        let exact = Attention::new().precision(Of::Exact).forward(&q, &view(&k, 1, 500), &view(&v, 1, 500)).unwrap();
        let exact = exact.out.to_f32();
        let sum = |x: &mut dyn Iterator<Item = f32>| x.map(f32::abs).sum::<f32>();
        sum(&mut out.iter().zip(&exact).map(|(a, b)| a - b)) / sum(&mut exact.iter().copied())
    };
    let (with, without) = (distance(true), distance(false));
    assert!(with < 0.3 && with < 0.7 * without, "{with} with, {without} without");
}

#[test]
fn every_bad_call_has_its_error_and_changes_nothing() {
    assert_eq!(
        error(KvCacheOptions::new(1, 1, 96, 10).device(Device::Cpu).build()),
        CacheError::HeadDim { head_dim: 96 }
    );
    let too_many = error(KvCacheOptions::new(70_000, 1, 64, 10).device(Device::Cpu).build());
    assert!(matches!(too_many, CacheError::TooLarge { what: "batch * heads", value: 70_000, .. }));

    let mut cache = cache(2, 2, 100).paged(3).build().unwrap();
    let x = vec![1.0f32; 2 * 2 * 200 * D];
    let kv = |tokens: usize| view(&x[..2 * 2 * tokens * D], 2, tokens);
    let shape = error(cache.append(&view(&x[..2 * 3 * D], 3, 1), &kv(1)));
    assert!(matches!(shape, CacheError::Shape { tensor: Operand::K, shape: [2, 3, 1, 64], .. }));
    let lengths = cache.append(&kv(2), &kv(1)).unwrap_err();
    assert_eq!(lengths, Invalid::SeqlenKvMismatch { seqlen: 1, expected: 2 }.into());
    let exceeded = error(cache.append(&kv(129), &kv(129)));
    assert_eq!(exceeded, CacheError::CapacityExceeded { sequence: 0, length: 0, tokens: 129, capacity: 128 });
    assert_eq!(error(cache.append(&kv(65), &kv(65))), CacheError::PagesExhausted { needed: 4, free: 3, pages: 3 });
    assert_eq!((cache.lengths(), cache.free_pages()), (&[0, 0][..], Some(3)));
    assert_eq!(error(cache.set_mean(&[0.0; 3])), CacheError::MeanLength { len: 3, expected: 256 });
    cache.append(&kv(64), &kv(64)).unwrap();
    assert_eq!(cache.free_pages(), Some(1));
    assert_eq!(error(cache.set_mean(&[0.0; 256])), CacheError::MeanTooLate { sequence: 0, length: 64 });
    assert_eq!(error(cache.truncate(2, 0)), CacheError::NoSequence { sequence: 2, batch: 2 });
    assert_eq!(error(cache.truncate(0, 65)), CacheError::Length { sequence: 0, length: 65, max: 64 });

    let attend = |cache: &mut KvCache, heads: usize, tokens: usize| {
        cache.attend(&view(&x[..2 * heads * tokens * D], heads, tokens), &Attend::default())
    };
    assert_eq!(error(attend(&mut cache, 2, 17)), CacheError::SeqlenQ { seqlen_q: 17, max: 16 });
    let heads = attend(&mut cache, 3, 1).unwrap_err();
    assert_eq!(heads, Invalid::HeadsNotDivisible { heads_q: 3, heads_kv: 2 }.into());
    let scale = Attend { sm_scale: Some(f32::NAN), ..Attend::default() };
    let q = view(&x[..2 * 2 * D], 2, 1);
    assert!(matches!(cache.attend(&q, &scale), Err(Error::Invalid(Invalid::SmScaleNotFinite { .. }))));
    assert!(attend(&mut cache, 4, 16).is_ok());
}

#[test]
fn an_empty_sequence_gives_zeros() {
    let mut cache = cache(1, 1, 10).build().unwrap();
    let q = vec![1.0f32; D];
    let options = Attend { return_lse: true, ..Attend::default() };
    let attended = cache.attend(&view(&q, 1, 1), &options).unwrap();
    assert_eq!((attended.out.to_f32(), attended.lse), (vec![0.0; D], Some(vec![f32::NEG_INFINITY])));
}

#[test]
fn a_block_table_is_checked_against_the_pages() {
    let layout = PageLayout { precision: Precision::Int8, head_dim: 128 };
    let shape = CacheShape { layout, batch: 2, num_heads_kv: 1, pages_per_sequence: 2 };
    let pages = DeviceMemory { ptr: 0x1000, bytes: shape.bytes(3) };
    let cache = DeviceCache { shape, pages, k_mean: None, block_table: Some(0x1000) };
    assert_eq!(cache.check_block_table(&[0, 1, 2, 99], &[128, 64]), Ok(()));
    let out_of_range = CacheError::PageOutOfRange { sequence: 1, entry: 1, page: 99, pages: 3 };
    assert_eq!(cache.check_block_table(&[0, 1, 2, 99], &[128, 65]), Err(out_of_range));
    let long = CacheError::Length { sequence: 0, length: 129, max: 128 };
    assert_eq!(cache.check_block_table(&[0, 1, 2, 99], &[129, 0]), Err(long));
    assert!(matches!(cache.check_block_table(&[0], &[0, 0]), Err(CacheError::TooSmall { bytes: 4, needed: 16, .. })));
}

#[test]
fn a_plan_says_what_a_device_lacks() {
    let layout = PageLayout { precision: Precision::Int4, head_dim: 64 };
    let shape = CacheShape { layout, batch: 1, num_heads_kv: 2, pages_per_sequence: 8 };
    let q = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 1, 64], Layout::Hnd).unwrap();
    let request = DecodeRequest::new(shape, q, q, 512);
    let capability = |major, minor| Capability { major, minor, sm_count: 108, smem_opt_in: 166_912 };
    let old = plan_decode(&request, &capability(8, 0)).unwrap_err();
    assert!(matches!(old, Error::Plan(PlanError::KernelNeeds { major: 8, minor: 0, .. })), "{old}");
    let plan = plan_decode(&request, &capability(8, 9)).unwrap();
    assert_eq!((plan.arch().target(), plan.entry().symbol.as_str()), ("sm_89", "decode_int4_d64"));
    assert_eq!(plan.cache_bytes(512), 512 * 2 * (32 + 64 + 4));
    let long = plan_decode(&DecodeRequest { max_length: 513, ..request }, &capability(9, 0)).unwrap_err();
    assert_eq!(long, CacheError::Length { sequence: 0, length: 513, max: 512 }.into());
    let split = plan_decode(&DecodeRequest { split_pages: Some(3), ..request }, &capability(9, 0)).unwrap();
    assert_eq!((split.splits(), split.grid(), split.counter_bytes()), (3, [3, 2], 8));
    // Three splits of two tiles of four rows, 64 features and two numbers each.
    assert_eq!(split.workspace_bytes(), 3 * 2 * 4 * (64 + 2) * 4);
}
