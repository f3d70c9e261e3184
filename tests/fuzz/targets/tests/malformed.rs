//! Random requests, good and malformed, through validation, planning and the check of a launch: an answer, and
//! never a panic or an overflow. `SAGE_MALFORMED=N` takes another number than the usual one.

use std::collections::BTreeMap;

use sage_fuzz_targets::mutate::Random;
use sage_fuzz_targets::outcome::check_message;
use sage_fuzz_targets::{outcome::Outcome, planning};

/// The usual number of requests.
const REQUESTS: u64 = 200_000;

/// Requests of a seed. Threads share the blocks, so that their number changes nothing.
const BLOCK: u64 = 10_000;

/// Every error that a request by itself can meet.
const ERRORS: [&str; 40] = [
    "Invalid::BatchMismatch",
    "Invalid::KvHeadsMismatch",
    "Invalid::OutHeadsMismatch",
    "Invalid::NoKvHeads",
    "Invalid::HeadsNotDivisible",
    "Invalid::SeqlenKvMismatch",
    "Invalid::OutSeqlenMismatch",
    "Invalid::HeadDimMismatch",
    "Invalid::HeadDimZero",
    "Invalid::DTypeMismatch",
    "Invalid::ElementsOverflow",
    "Invalid::FeatureStride",
    "Invalid::ZeroStride",
    "Invalid::NegativeStride",
    "Invalid::StrideBelowRow",
    "Invalid::OutputOverlap",
    "Invalid::SpanOverflow",
    "Invalid::SmScaleNotFinite",
    "Invalid::SmScaleNegative",
    "Invalid::UnknownKernel",
    "Invalid::KernelConflict",
    "Unsupported::HeadDim",
    "Unsupported::Seqlen",
    "Unsupported::ExactOnGpu",
    "Modifier::Softcap",
    "Modifier::AlibiShape",
    "Modifier::SinksLength",
    "Modifier::PairShape",
    "Modifier::PairStride",
    "Modifier::PairOverflow",
    "Modifier::SequencesEnd",
    "Modifier::PackedBatch",
    "Modifier::NotPacked",
    "Plan::CapabilityTooLow",
    "Plan::KernelNeeds",
    "Plan::Modifiers",
    "Plan::PackedSequences",
    "Plan::GridTooLarge",
    "Plan::SharedMemory",
    "Planned",
];

/// Runs the requests of a block; what became of them.
fn block(number: u64, requests: u64) -> BTreeMap<String, u64> {
    let mut random = Random::new(number);
    let mut outcomes = BTreeMap::new();
    let mut data = [0u8; 160];
    for index in 0..requests {
        random.fill(&mut data);
        let result = std::panic::catch_unwind(|| planning::outcome(&data));
        let outcome = result.unwrap_or_else(|_| panic!("request {index} of block {number}: {data:?}"));
        if let Outcome::Good(error) | Outcome::Refused(error) = &outcome {
            check_message(error);
        }
        *outcomes.entry(outcome.name()).or_default() += 1;
    }
    outcomes
}

#[test]
fn requests_are_answered() {
    let requests = std::env::var("SAGE_MALFORMED").map_or(REQUESTS, |n| n.parse().expect("a number"));
    let blocks = requests.div_ceil(BLOCK);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let all: Vec<BTreeMap<String, u64>> = std::thread::scope(|scope| {
        let of_thread = |thread| move || (thread..blocks).step_by(threads as usize).map(run_block(requests)).collect();
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(of_thread(thread))).collect();
        let results = handles.into_iter().map(|handle| handle.join());
        results.flat_map(|result: Result<Vec<_>, _>| result.expect("no request panics")).collect()
    });
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    all.iter().flatten().for_each(|(name, count)| *outcomes.entry(name.clone()).or_default() += count);
    println!("{requests} requests: {outcomes:#?}");
    assert_eq!(outcomes.values().sum::<u64>(), requests);
    let missing: Vec<&str> = ERRORS.into_iter().filter(|name| !outcomes.contains_key(*name)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
    let planned = outcomes["Planned"] as f64 / requests as f64;
    assert!((0.2..0.8).contains(&planned), "{planned} of the requests were planned");
}

fn run_block(requests: u64) -> impl Fn(u64) -> BTreeMap<String, u64> {
    move |number| block(number, BLOCK.min(requests - number * BLOCK))
}
