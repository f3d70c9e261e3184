//! The checked-in modules in `host/ptx`: current, free of what a kernel must not contain, with exactly
//! the declared barriers, and good machine code where the tools to see it are installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cuda_builder::manifest::{self, Manifest};
use cuda_builder::ptxas::{Report, Sass, Tools};
use cuda_builder::{CudaBuilder, NvvmArch, inspect, toolchain};
use sage_spec::symbol::{Arch, STEMS};
use sage_spec::{Precision, PvFormat};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

fn folder() -> PathBuf {
    root().join("host/ptx")
}

fn module(arch: Arch) -> String {
    let path = manifest::module_path(&folder(), arch.target());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn nvvm_arch(arch: Arch) -> NvvmArch {
    arch.target().parse().expect("every module has a target that the builder knows")
}

fn builder(arch: Arch) -> CudaBuilder {
    CudaBuilder::new(root().join("kernels-gpu")).arch(nvvm_arch(arch))
}

/// What the manifest leaves out, as `host/build.rs` does.
const HOST_BACK_END: [&str; 2] = ["kernels-gpu/cuda_std/src/executor", "kernels-gpu/cuda_std/src/host"];

const REBUILD: &str = "rebuild them with `SAGE_ATTN_REBUILD_PTX=1 cargo build -p sage-attn`";

#[test]
fn the_manifest_is_current() {
    let manifest = Manifest::load(&folder()).unwrap();
    let source = manifest::source_hash(root(), &["kernels-gpu", "host/spec"], &HOST_BACK_END).unwrap();
    let flags = Arch::ALL.map(|arch| (arch.target().to_owned(), builder(arch).flags().unwrap())).into_iter().collect();
    if let Err(error) = manifest.check(&folder(), Some(&source), &flags) {
        panic!("{error}; {REBUILD}");
    }
    let targets: Vec<&str> = manifest.modules.keys().map(String::as_str).collect();
    assert_eq!(targets, Arch::ALL.map(Arch::target));
}

#[test]
fn every_stem_has_its_kernels() {
    let manifest = Manifest::load(&folder()).unwrap();
    for arch in Arch::ALL {
        let entries = &manifest.modules[arch.target()].entries;
        assert_eq!(entries, &inspect::entries(&module(arch)).unwrap());
        for stem in STEMS.iter().filter(|stem| stem.arch == arch) {
            for head_dim in [64, 128] {
                let name = format!("{}_d{head_dim}", stem.symbol);
                assert!(entries.contains(&name), "{} has no {name}", arch.target());
            }
            // Those for Hopper take no wide heads.
            for head_dim in [64, 128, 256].into_iter().filter(|&d| arch != Arch::Sm90a || d <= 128) {
                let name = format!("{}_general_d{head_dim}", stem.general_symbol());
                assert!(entries.contains(&name), "{} has no {name}", arch.target());
            }
        }
    }
}

#[test]
fn nothing_in_a_kernel_is_generic_traps_calls_or_has_a_stack() {
    for arch in Arch::ALL {
        let findings = inspect::lint(&module(arch)).unwrap();
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{}:\n{}", arch.target(), text.join("\n"));
    }
}

type Census = BTreeMap<String, BTreeMap<String, BTreeMap<String, usize>>>;

/// A barrier, shuffle or tensor-core instruction more or less than declared means that the compiler
/// cloned or dropped one (it may: it takes inline assembly for ordinary code), or that a kernel was
/// changed. In the second case `SAGE_ATTN_WRITE_CENSUS=1 cargo test -p sage-tests --test ptx_modules
/// census` writes the new counts; read the difference before committing it.
#[test]
fn census_is_as_declared() {
    let census: Census =
        Arch::ALL.map(|arch| (arch.target().to_owned(), inspect::census(&module(arch)).unwrap())).into_iter().collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx/census.json");
    if std::env::var("SAGE_ATTN_WRITE_CENSUS").is_ok_and(|value| value == "1") {
        fs::write(&path, serde_json::to_string_pretty(&census).unwrap() + "\n").unwrap();
    }
    let declared = fs::read_to_string(&path).expect("tests/ptx/census.json is checked in");
    let declared: Census = serde_json::from_str(&declared).unwrap();
    for (target, kernels) in &census {
        let declared_kernels = declared.get(target).cloned().unwrap_or_default();
        assert_eq!(
            kernels.keys().collect::<Vec<_>>(),
            declared_kernels.keys().collect::<Vec<_>>(),
            "kernels of {target}"
        );
        for (kernel, counts) in kernels {
            assert_eq!(counts, &declared_kernels[kernel], "{kernel}, see the comment of this test");
        }
    }
    assert_eq!(census.keys().collect::<Vec<_>>(), declared.keys().collect::<Vec<_>>());
}

/// The module as ptxas sees it, and its machine code; `None` where the tools are missing.
struct Machine {
    report: Report,
    sass: BTreeMap<String, Sass>,
}

/// Assembles each module once for all tests.
fn machine(arch: Arch, test: &str) -> Option<&'static Machine> {
    static ALL: OnceLock<Option<BTreeMap<&str, Machine>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let tools = Tools::find().filter(|tools| tools.nvdisasm.is_some())?;
        let machines = Arch::ALL.map(|arch| {
            let report = tools.assemble(&module(arch), arch.target()).unwrap_or_else(|error| panic!("{error}"));
            let sass = tools.disassemble(&report.cubin).unwrap().expect("nvdisasm is there");
            (arch.target(), Machine { report, sass })
        });
        Some(machines.into_iter().collect())
    });
    if all.is_none() {
        println!("SKIPPED {test}: ptxas and nvdisasm are not installed");
    }
    all.as_ref().map(|all| &all[arch.target()])
}

#[test]
fn registers_suffice() {
    let mut too_large = Vec::new();
    for arch in Arch::ALL {
        let Some(machine) = machine(arch, "registers_suffice") else {
            return;
        };
        assert!(machine.report.warnings.is_empty(), "{:#?}", machine.report.warnings);
        for (kernel, used) in &machine.report.kernels {
            if [used.spill_stores, used.spill_loads, used.stack, used.local] != [0; 4] {
                too_large.push(format!("{kernel}: {used:?}"));
            }
        }
    }
    assert!(too_large.is_empty(), "kernels that do not fit their registers:\n{}", too_large.join("\n"));
}

/// The form of an asynchronous copy that an H200 refuses: see `cuda_std::cp_async::copy16_with_policy`.
#[test]
fn copies_with_a_policy_have_their_address_in_one_register() {
    for arch in Arch::ALL {
        let Some(machine) = machine(arch, "copies_with_a_policy_have_their_address_in_one_register") else {
            return;
        };
        let mut copies = 0;
        for (kernel, sass) in &machine.sass {
            for copy in sass.instructions.iter().filter(|instruction| instruction.opcode.starts_with("LDGSTS")) {
                let to = copy.text.split(['[', ']']).nth(1).unwrap();
                assert!(!kernel.starts_with("quantize") || !to.contains("UR"), "{kernel}: {}", copy.text);
                copies += 1;
            }
        }
        assert!(copies > 0, "{arch:?} has asynchronous copies");
    }
}

/// Each precision runs on the tensor-core instruction that is native to its architecture; in
/// particular INT4 is not unpacked to INT8 on Ampere and Ada.
#[test]
fn tensor_cores_are_native() {
    for stem in STEMS {
        let Some(machine) = machine(stem.arch, "tensor_cores_are_native") else {
            return;
        };
        for head_dim in [64, 128] {
            let qk = match (stem.arch, stem.qk) {
                // Hopper takes 4-bit codes as 8-bit ones.
                (Arch::Sm90a, _) => "IGMMA.64x128x32.S8.S8",
                (_, Precision::Int4) => "IMMA.16864.S4.S4",
                (_, Precision::Int8) => "IMMA.16832.S8.S8",
            };
            let pv: &[&str] = match (stem.arch, stem.pv) {
                (Arch::Sm90a, _) if head_dim == 64 => &["QGMMA.64x72x32.F32.E4M3.E4M3"],
                (Arch::Sm90a, _) => &["QGMMA.64x64x32.F32.E4M3.E4M3", "QGMMA.64x72x32.F32.E4M3.E4M3"],
                (_, PvFormat::Fp8) => &["QMMA.16832.F32.E4M3.E4M3"],
                (_, PvFormat::F16) => &["HMMA.16816.F32"],
            };
            let name = format!("{}_d{head_dim}", stem.symbol);
            let opcodes = machine.sass[&name].opcodes();
            for (opcode, count) in &opcodes {
                let is_mma = ["IMMA", "QMMA", "HMMA", "IGMMA", "QGMMA"].iter().any(|mma| opcode.starts_with(mma));
                assert!(!is_mma || *opcode == qk || pv.contains(opcode), "{name} has {count} {opcode}");
            }
            let has_all = opcodes.contains_key(qk) && pv.iter().all(|pv| opcodes.contains_key(pv));
            assert!(has_all, "{name}: {opcodes:?}");
        }
    }
}

/// SASS instructions per 32x64 tile of a warp in the loop over unmasked blocks. The kernels are bound
/// by issue slots, so an instruction more is time lost.
#[test]
fn the_main_loop_stays_small() {
    for (kernel, limit) in [("sm89_int4_fp8_fwd_d128", 600), ("sm89_int8_fp8_fwd_d128", 660)] {
        let Some(machine) = machine(Arch::Sm89, "the_main_loop_stays_small") else {
            return;
        };
        let loops = machine.sass[kernel].innermost_loops();
        // Masked loops do the same tensor work and more, so the smallest is the unmasked one.
        let unmasked = loops.iter().filter(|body| body.count("QMMA") >= 64).map(|body| body.body.len()).min();
        let size = unmasked.unwrap_or_else(|| panic!("{kernel} has no loop over a whole tile"));
        println!("{kernel}: {size} instructions in the main loop");
        assert!(size <= limit, "{kernel}: {size} instructions in the main loop, at most {limit} allowed");
    }
}

/// The modules come from this source and nothing else. Needs the compiler of the manifest; another
/// version may choose other registers.
#[test]
fn a_rebuild_gives_the_same_bytes() {
    let test = "a_rebuild_gives_the_same_bytes";
    let toolchain = match toolchain::discover() {
        Ok(toolchain) => toolchain,
        Err(error) => return println!("SKIPPED {test}: {error}"),
    };
    let wanted = Manifest::load(&folder()).unwrap().rustc;
    if toolchain.version != wanted {
        return println!("SKIPPED {test}: the modules were built by {wanted}, here is {toolchain}");
    }
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rebuild");
    let fresh = builder(Arch::Sm89).toolchain(toolchain).target_dir(target_dir).build().unwrap();
    let fresh = fs::read(fresh).unwrap();
    assert!(manifest::text_hash(&fresh) == manifest::text_hash(module(Arch::Sm89).as_bytes()), "{REBUILD}");
}
