//! Problems for `compute-sanitizer`, see `sanitize.sh`: many tails, buffers of exactly the bytes that are needed, and
//! no values in memory that nobody has written.

use sage_spec::symbol::STEMS;
use sage_tests::case::{Case, Limits};
use sage_tests::side::Side;

use crate::harness::{gpu, number, run_bare};

/// Small problems with many tails: a tool is hundreds of times slower than the GPU.
const LIMITS: Limits = Limits { batch: 2, num_heads_kv: 2, gqa_groups: &[1, 1, 3], tokens: 260 };

#[test]
#[ignore = "takes minutes under compute-sanitizer, which tests/gpu/sanitize.sh runs it under"]
fn problems_for_a_tool() {
    let Some(gpu) = gpu() else { return };
    let capability = gpu.capability();
    let cases = number("SAGE_SANITIZE_CASES", 64);
    let (mut problems, mut stems) = (0, 0);
    for stem in STEMS.into_iter().filter(|stem| stem.arch.loads_on(capability.major, capability.minor)) {
        stems += 1;
        for seed in 0..cases {
            let mut case = Case::random_for(stem, 0xc5 + seed, LIMITS);
            // Every fourth problem has modifiers.
            let side = (seed % 4 == 3).then(|| Side::random(&mut case, seed));
            run_bare(&gpu, &case, side.as_ref());
            problems += 1;
        }
    }
    println!("sanitized: {problems} problems of {stems} kernels");
}
