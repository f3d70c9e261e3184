//! Conversions to INT8, INT4 and E4M3 on the executor: every place where rounding changes, and a million patterns
//! spread over all. `tests/gpu/conversions.rs` has every pattern there is.

use cuda_std::executor::Memory;
use sage_attn::device::{DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::plan::{Slot, plan};
use sage_spec::symbol::STEMS;
use sage_tests::patterns::{COUNT, COUNT_AT_SCALE_ONE, Patterns, edges, len, stratified};

use crate::device::{CAPABILITY, launch_steps, upload, workspace};

/// The quantizers of 8 bits, of 4 packed bits, and of 4 bits in bytes.
const STEMS_BY_CODES: [&str; 3] = ["sm89_int8_fp8_fwd", "sm89_int4_fp8_fwd", "sm90_int4_fp8_fwd"];

fn convert(tokens: usize, reach: f32, pattern: impl Fn(u64) -> u32) -> u64 {
    let mut converted = 0;
    for stem in STEMS.into_iter().filter(|stem| STEMS_BY_CODES.contains(&stem.name)) {
        let patterns = Patterns { stem, tokens, reach, pattern: &pattern };
        let case = patterns.case();
        let plan = plan(&case.problem, &CAPABILITY).unwrap();
        let memory = &mut Memory::new();
        let [q, k, v] = [("q", &case.q), ("k", &case.k), ("v", &case.v)].map(|(name, x)| upload(memory, name, x));
        let out = DeviceTensor { ptr: memory.alloc("out", 128 * 4), spec: *case.problem.out() };
        let args = LaunchArgs { q, k, v, out, lse: None, workspace: workspace(memory, &plan) };
        launch_steps(memory, &plan, &args, &SideArgs::default(), 3, plan.setup_steps())
            .unwrap_or_else(|fault| panic!("{fault}"));
        let slot = |slot| {
            let buffer = plan.workspace().get(slot).expect("it is used");
            memory.read(args.workspace.ptr + buffer.offset_bytes as u64, buffer.bytes)
        };
        let checked = patterns.check(slot(Slot::KCodes), slot(Slot::VCodes));
        converted += checked.unwrap_or_else(|what| panic!("{}: {what}", stem.name));
    }
    converted
}

#[test]
fn every_edge_is_rounded_as_by_the_reference() {
    let edges = edges();
    let tokens = edges.len().div_ceil(63 * 128) * 64;
    convert(tokens, 0.0, |i| edges[i as usize % edges.len()]);
}

#[test]
fn a_million_patterns_are_rounded_as_by_the_reference() {
    const TOKENS: usize = 2048;
    let (parts, len) = (4, len(TOKENS));
    let choose = stratified(parts * len, COUNT_AT_SCALE_ONE);
    let converted: u64 = (0..parts).map(|part| convert(TOKENS, 0.0, |i| choose(part * len + i))).sum();
    assert!(converted >= 3 * 2 * 1_000_000, "{converted}");
}

#[test]
fn patterns_of_large_numbers_are_rounded_as_by_the_reference() {
    const TOKENS: usize = 128;
    // Just below the largest number, and around a power of two: scales of 2^k, and one that is none.
    for magnitude in [f32::MAX, 1e9, 131_072.0] {
        let first = 2 * u64::from(magnitude.to_bits()) - len(TOKENS);
        let choose = |i: u64| sage_tests::patterns::pattern((first + i).min(COUNT - 1));
        convert(TOKENS, magnitude, choose);
    }
    let choose = stratified(len(TOKENS), COUNT);
    convert(TOKENS, f32::MAX, choose);
}
