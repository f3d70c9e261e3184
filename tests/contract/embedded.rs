//! The embedded kernels against the contract: each takes exactly the parameter struct the launcher
//! passes, and allows the threads the planner launches. A mismatch would not fail at launch; the kernel
//! would read garbage.

use sage_attn::device::MODULES;
use sage_attn::error::Operand;
use sage_attn::plan::{Capability, Entry, Kernel, plan};
use sage_attn::problem::{Modifiers, Problem, Request, TensorSpec};
use sage_attn::{DType, Layout, Smoothing};
use sage_spec::Precision;
use sage_spec::cache::{APPEND_THREADS, AppendParams, HEAD_DIMS, MEAN_SYMBOL, MEAN_THREADS, MeanParams, PageLayout};
use sage_spec::decode::{self, DecodeParams};
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::{AttentionParams, DeltaSParams, QuantizeParams};
use sage_spec::sm90::{Sm90AttentionParams, Sm90GeneralParams};
use sage_spec::symbol::{Arch, STEMS};

/// Bytes of the struct that the launcher passes to `kernel` of module `arch`.
fn param_bytes(arch: Arch, kernel: Kernel) -> usize {
    match kernel {
        Kernel::Quantize => size_of::<QuantizeParams>(),
        Kernel::DeltaS => size_of::<DeltaSParams>(),
        Kernel::Attention if arch == Arch::Sm90a => size_of::<Sm90AttentionParams>(),
        Kernel::Attention => size_of::<AttentionParams>(),
        Kernel::General if arch == Arch::Sm90a => size_of::<Sm90GeneralParams>(),
        Kernel::General => size_of::<GeneralAttentionParams>(),
    }
}

/// What the PTX says about a kernel.
#[derive(Debug, PartialEq)]
struct Declared {
    /// Bytes of each parameter.
    params: Vec<usize>,
    /// Largest CTA.
    max_threads: usize,
}

/// The declaration of `symbol` in `ptx`.
fn declared(ptx: &str, symbol: &str) -> Option<Declared> {
    let start = ptx.find(&format!(".entry {symbol}("))?;
    let header = &ptx[start..start + ptx[start..].find('{')?];
    let params = header
        .lines()
        .filter(|line| line.contains(".param"))
        .map(|line| line.split(['[', ']']).nth(1).and_then(|bytes| bytes.parse().ok()))
        .collect::<Option<_>>()?;
    let bound = header.lines().find_map(|line| line.trim().strip_prefix(".maxntid "))?;
    Some(Declared { params, max_threads: bound.split(',').next()?.trim().parse().ok()? })
}

/// Every entry that a plan can have.
fn entries() -> Vec<(Arch, Entry)> {
    let device = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
    let mut entries = Vec::new();
    for stem in STEMS {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for head_dim in [64, 128, 256] {
                let wide = head_dim > 128;
                if wide && (stem.arch == Arch::Sm90a || dtype == DType::F32) {
                    continue;
                }
                let spec = TensorSpec::new(Operand::Q, dtype, &[1, 2, 100, head_dim], Layout::Hnd).unwrap();
                let request = Request {
                    kernel: Some(stem.name.into()),
                    smoothing: Some(Smoothing { q: true, k: true, v: true }),
                    ..Request::new(spec, spec, spec, spec)
                };
                let mut add = |request| {
                    let plan = plan(&Problem::new(request).unwrap(), &device).unwrap();
                    entries.extend(plan.entries().iter().map(|entry| (plan.arch(), entry.clone())));
                };
                if !wide {
                    let modifiers = Modifiers { softcap: Some(1.0), ..Modifiers::default() };
                    add(Request { modifiers, ..request.clone() });
                }
                add(request);
            }
        }
    }
    entries
}

#[test]
fn every_planned_kernel_is_there_with_its_parameters_and_threads() {
    for (arch, entry) in entries() {
        let module = MODULES.iter().find(|module| module.target == arch.target()).unwrap();
        let expected = Declared { params: vec![param_bytes(arch, entry.kernel)], max_threads: entry.cta.threads };
        assert_eq!(declared(module.ptx, &entry.symbol), Some(expected), "{}", entry.symbol);
    }
}

#[test]
fn the_merge_kernel_is_in_the_module_that_every_device_loads() {
    let module = MODULES.iter().find(|module| module.target == "sm_80").unwrap();
    let expected =
        Declared { params: vec![size_of::<sage_spec::merge::MergeParams>()], max_threads: sage_spec::merge::THREADS };
    assert_eq!(declared(module.ptx, sage_spec::merge::SYMBOL), Some(expected));
}

#[test]
fn the_kernels_of_the_cache_are_in_both_modules_that_can_convert_to_fp8() {
    for arch in [Arch::Sm89, Arch::Sm90a] {
        let module = MODULES.iter().find(|module| module.target == arch.target()).unwrap();
        let check = |symbol: &str, params: usize, max_threads: usize| {
            let expected = Declared { params: vec![params], max_threads };
            assert_eq!(declared(module.ptx, symbol), Some(expected), "{symbol} of {}", arch.target());
        };
        for precision in [Precision::Int4, Precision::Int8] {
            for head_dim in HEAD_DIMS {
                let suffix = PageLayout { precision, head_dim }.suffix();
                check(&format!("cache_append_{suffix}"), size_of::<AppendParams>(), APPEND_THREADS);
                check(&format!("decode_{suffix}"), size_of::<DecodeParams>(), decode::THREADS);
            }
        }
        check(MEAN_SYMBOL, size_of::<MeanParams>(), MEAN_THREADS);
    }
}

#[test]
fn declarations_are_read_from_ptx() {
    let ptx = ".visible .entry other(\n\t.param .u32 x\n)\n.maxntid 1, 1, 1\n{}\n\
               .visible .entry k_d64(\n\t.param .align 8 .b8 k_d64_param_0[112]\n)\n.maxntid 256, 1, 1\n{\n";
    assert_eq!(declared(ptx, "k_d64"), Some(Declared { params: vec![112], max_threads: 256 }));
    assert_eq!(declared(ptx, "k_d6"), None);
}
