//! Filling the cache, and attention over it.

use cuda_std::executor::Memory;
use proptest::prelude::*;
use sage_attn::device::{AppendArgs, DecodeArgs, DeviceTensor};
use sage_attn::plan::{Capability, DecodePlan, DecodeRequest, plan_decode};
use sage_spec::cache::{MEAN_CTA, MEAN_SYMBOL, MeanParams, PAGE_TOKENS};
use sage_tests::cache::{CacheCase, Machine, attend, check, fill};
use sage_tests::generate::config;

use crate::device::{CAPABILITY, launch};
use crate::kernels;

/// The executor as a machine for caches.
struct Executor {
    memory: Memory,
    seed: u64,
}

impl Executor {
    fn new(seed: u64) -> Executor {
        Executor { memory: Memory::new(), seed }
    }
}

impl Machine for Executor {
    fn capability(&self) -> Capability {
        CAPABILITY
    }

    fn upload(&mut self, name: &str, bytes: &[u8]) -> u64 {
        self.memory.upload(name, bytes)
    }

    fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        self.memory.alloc(name, bytes)
    }

    fn read(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        self.memory.read(address, bytes).to_vec()
    }

    fn append(&mut self, args: &AppendArgs) {
        if args.k.spec.is_empty() {
            return;
        }
        let (entry, grid) = args.launch();
        let thread = kernels::cache_append(&entry.symbol, args.params().unwrap()).unwrap();
        launch(&mut self.memory, &entry.symbol, entry.cta, grid.map(|x| x as u32), self.seed, thread)
            .unwrap_or_else(|fault| panic!("seed {}: {fault}", self.seed));
    }

    fn mean(&mut self, k: &DeviceTensor, mean: u64) {
        let [batch, heads, tokens, head_dim] = k.spec.shape;
        let [stride_batch, stride_head, stride_token, _] = k.spec.strides;
        let params = MeanParams {
            k: sage_spec::params::TensorArg { ptr: k.ptr, stride_batch, stride_head, stride_token },
            mean,
            num_tokens: tokens as u32,
            num_heads_kv: heads as u32,
            head_dim: head_dim as u32,
            dtype: k.spec.dtype.code(),
        };
        let grid = [(batch * heads) as u32, 1];
        launch(&mut self.memory, MEAN_SYMBOL, MEAN_CTA, grid, self.seed, kernels::cache_mean(params))
            .unwrap_or_else(|fault| panic!("seed {}: {fault}", self.seed));
    }

    fn decode(&mut self, plan: &DecodePlan, args: &DecodeArgs) {
        let entry = plan.entry();
        let thread = kernels::decode(&entry.symbol, args.params(plan).unwrap()).unwrap();
        launch(&mut self.memory, &entry.symbol, entry.cta, plan.grid().map(|x| x as u32), self.seed, thread)
            .unwrap_or_else(|fault| panic!("seed {}: {fault}", self.seed));
    }
}

proptest! {
    #![proptest_config(config(48))]

    /// Appended bytes are the reference's, whatever is appended when and whereto; so is attention over them, for any
    /// number of splits, within rounding.
    #[test]
    fn caches_hold_and_give_what_the_reference_does(seed: u64) {
        check(&CacheCase::random(seed, 4), &mut Executor::new(seed));
    }

    /// What is in the cache does not depend on how many tokens came at a time, and a block table changes no bit of
    /// the result.
    #[test]
    fn pieces_are_the_whole_and_pages_are_interchangeable(seed: u64, pieces in 1..40usize) {
        let mut case = CacheCase::random(seed, 3);
        case.chunks.truncate(1);
        case.smooth = false;
        let tokens = case.chunks[0].k.spec.shape[2];
        case.lengths = vec![tokens; case.shape.batch];
        case.request.max_length = tokens;
        case.table = None;
        let mut machine = Executor::new(seed);
        let whole = fill(&case, &mut machine);
        let plan = plan_decode(&case.request, &CAPABILITY).unwrap();
        let (out, lse) = attend(&case, &whole, &plan, &mut machine);
        sage_tests::cache::judge(&case, &whole, &plan, &out, &lse);

        // Backwards through the pool.
        let last = case.pages as u32 - 1;
        case.table = Some((0..=last).rev().collect());
        let mut machine = Executor::new(!seed);
        let in_pieces = sage_tests::cache::in_pieces(&case, pieces, &mut machine);
        let (paged_out, paged_lse) = attend(&case, &in_pieces, &plan, &mut machine);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&out), bits(&paged_out));
        prop_assert_eq!(bits(&lse), bits(&paged_lse));
    }
}

/// Every length of the last page, alone and behind a full one.
#[test]
fn every_length_of_the_last_page() {
    for seed in 0..3 {
        let base = CacheCase::random(seed * 7 + 1, 2);
        for length in (0..=base.lengths[0]).rev().step_by(3) {
            let mut case = CacheCase::random(seed * 7 + 1, 2);
            // The cache holds more; what is beyond the length must not be seen.
            case.lengths = vec![length; case.shape.batch];
            case.lengths.iter_mut().zip(&base.lengths).for_each(|(length, &most)| *length = (*length).min(most));
            case.request.max_length = length;
            check(&case, &mut Executor::new(seed));
        }
    }
}

/// A warp holds 32 entries of the block table at a time; these splits need them three times.
#[test]
fn a_split_of_many_pages_finds_all_of_them() {
    // INT8 with 64 features and INT4 with 128, found by trying.
    for seed in [1441, 4001] {
        let mut case = CacheCase::random(seed, 80);
        let longest = case.lengths.iter().max().copied().unwrap_or(0);
        assert!(case.table.is_some() && longest > 66 * PAGE_TOKENS, "{}", case.describe());
        case.request.split_pages = Some(case.shape.pages_per_sequence);
        check(&case, &mut Executor::new(seed));
    }
}

/// One plan serves shorter sequences too, as a captured graph needs it.
#[test]
fn a_plan_for_long_sequences_serves_short_ones() {
    let mut case = CacheCase::random(5, 4);
    case.request = DecodeRequest { max_length: case.shape.capacity(), split_pages: Some(1), ..case.request };
    check(&case, &mut Executor::new(5));
}

/// A token that is not a number reaches every row that sees it, and none that does not.
#[test]
fn what_is_not_a_number_is_seen_where_it_is() {
    use sage_tests::case::Tensor;
    for poison_v in [false, true] {
        let mut case = CacheCase::random(12, 2);
        case.chunks.truncate(1);
        case.smooth = false;
        let kv = case.chunks[0].k.spec;
        let tokens = kv.shape[2];
        assert!(tokens > 20, "{}", case.describe());
        let bad = tokens - 1;
        let fill_with = |poisoned: bool| {
            Tensor::fill(kv, |_, n, d| if poisoned && n == bad && d == 5 { f32::NAN } else { (n + d) as f32 / 64.0 })
        };
        case.chunks[0].k = fill_with(!poison_v);
        case.chunks[0].v = fill_with(poison_v);
        let mut machine = Executor::new(12);
        let filled = sage_tests::cache::in_pieces(&case, tokens, &mut machine);
        for (length, poisoned) in [(tokens, true), (bad, false)] {
            case.lengths = vec![length; case.shape.batch];
            case.request = DecodeRequest { max_length: tokens, causal: false, ..case.request };
            let plan = plan_decode(&case.request, &CAPABILITY).unwrap();
            let (out, _) = attend(&case, &filled, &plan, &mut machine);
            assert!(out.iter().all(|x| x.is_nan() == poisoned), "{length} of {tokens}, v {poison_v}");
        }
    }
}
