//! The integer scores are the same numbers on every instruction set.

use proptest::prelude::*;
use sage_attn::cpu::{self, Path};
use sage_attn::reference::{Quantized, scores};
use sage_spec::Precision;
use sage_tests::generate::config;

use crate::problem::{Problem, Tensors, problems};

/// Compares every path with the reference.
fn check(problem: &Problem, t: &Tensors, quantized: &Quantized) -> Result<(), String> {
    let (d, o) = (&problem.dims, &problem.options);
    let expected = scores(d, quantized, o.precision);
    let (rows, keys) = (d.seqlen_q_padded(), d.seqlen_kv_padded());
    for path in Path::available() {
        let actual = cpu::scores(path, d, quantized, &t.k(d), o);
        for (index, &score) in actual.iter().enumerate() {
            let (row, key) = (index / d.seqlen_kv, index % d.seqlen_kv);
            let (head, row) = (row / d.seqlen_q, row % d.seqlen_q);
            let reference = expected[(head * rows + row) * keys + key];
            if score != reference {
                let place = format!("head {head} row {row} key {key}");
                return Err(format!("{}: {place} is {score} and not {reference}", path.name()));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn integer_scores_are_those_of_the_reference_on_every_path(problem in problems()) {
        let t = problem.tensors();
        check(&problem, &t, &problem.quantize(&t)).map_err(TestCaseError::fail)?;
    }

    /// Any codes, the largest too, whose products overflow 16 bits in pairs.
    #[test]
    fn integer_scores_of_extreme_codes(problem in problems(), all_extreme in any::<bool>()) {
        let t = problem.tensors();
        let mut quantized = problem.quantize(&t);
        let largest: [u8; 2] = match problem.options.precision {
            Precision::Int8 => [127u8, (-127i8) as u8],
            Precision::Int4 => [0x77, 0x99],
        };
        let codes = quantized.q_codes.iter_mut().chain(&mut quantized.k_codes);
        for (index, code) in codes.enumerate() {
            if all_extreme || index % 7 != 0 {
                *code = largest[usize::from(index % 5 == 0)];
            }
        }
        check(&problem, &t, &quantized).map_err(TestCaseError::fail)?;
    }
}

/// A build that chooses nothing would have the portable path only; a CPU has what it says.
#[test]
fn paths_are_those_of_the_cpu() {
    let names: Vec<&str> = Path::available().into_iter().map(Path::name).collect();
    assert_eq!(names.last(), Some(&"portable"));
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
        assert_eq!(names.contains(&"avx2"), avx2);
        assert_eq!(names.contains(&"avx-vnni"), avx2 && std::is_x86_feature_detected!("avxvnni"));
        let avx512 = std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vnni");
        assert_eq!(names.contains(&"avx512-vnni"), avx512);
        let bf16 = avx512 && std::is_x86_feature_detected!("avx512bf16");
        assert_eq!(names.contains(&"avx512-vnni-bf16"), bf16);
        // What the CPU says of AMX is not all: the system must permit it.
        assert!(names[0] == "amx" || !names.contains(&"amx"));
    }
    #[cfg(target_arch = "aarch64")]
    assert!(names.contains(&"neon"));
}
