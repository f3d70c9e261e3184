//! Choice of the attention kernel.

use sage_spec::PvFormat;
use sage_spec::symbol::{Arch, STEMS, Stem};

use super::Capability;
use crate::error::{Error, PlanError, Unsupported};
use crate::problem::{DType, Problem};

/// An attention kernel that was considered.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The kernel.
    pub stem: Stem,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a candidate.
///
/// Example: [`plan`](crate::plan::plan()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs, for this reason.
    Chosen(String),
    /// It does not, for this reason.
    Lost(String),
}

/// The kernel for `problem`, and the verdict on every kernel.
pub fn select(problem: &Problem, capability: &Capability) -> Result<(Stem, Vec<Candidate>), Error> {
    let &Capability { major, minor, .. } = capability;
    let Some(codes) = problem.codes() else {
        return Err(Unsupported::ExactOnGpu { device: "the GPU".into() }.into());
    };
    if !Arch::Sm80.loads_on(major, minor) {
        return Err(PlanError::CapabilityTooLow { major, minor }.into());
    }
    if problem.sequences().is_some() {
        return Err(PlanError::PackedSequences.into());
    }
    let dims = problem.dims();
    if dims.is_wide() && problem.input_dtype() == DType::F32 {
        let head_dim = dims.head_dim.max(dims.head_dim_v);
        return Err(PlanError::HeadDimOfType { dtype: DType::F32, head_dim, supported: WIDE_TYPES }.into());
    }
    let fp8 = Arch::Sm89.loads_on(major, minor);
    let pv = problem.pv().unwrap_or(if fp8 { PvFormat::Fp8 } else { PvFormat::F16 });
    // `STEMS` lists the fastest first; of those that remain the first one runs.
    let chosen_before = |stem: &Stem| {
        let fits = |other: &&Stem| {
            other.qk == codes && other.pv == pv && other.arch.loads_on(major, minor) && takes_heads(problem, other)
        };
        STEMS.iter().find(fits).is_some_and(|first| first != stem)
    };
    let reason_lost = |stem: &Stem| {
        if problem.kernel().is_some_and(|kernel| kernel != *stem) {
            Some("another kernel was asked for by name".to_owned())
        } else if stem.qk != codes {
            Some(format!("Q and K are to be {}", codes.name()))
        } else if stem.pv != pv && problem.pv().is_some() {
            Some(format!("P and V are to be {}", pv.name()))
        } else if !takes_heads(problem, stem) {
            Some(format!("it does not compute {WIDE}"))
        } else if !stem.arch.loads_on(major, minor) {
            Some(format!("it needs {}", requirement(stem.arch)))
        } else if stem.pv != pv {
            Some("FP8 P V is preferred where the device has it".to_owned())
        } else if problem.kernel().is_none() && chosen_before(stem) {
            Some(match stem.arch {
                Arch::Sm90a if problem.needs_general_kernel() => "with modifiers both are one kernel".to_owned(),
                Arch::Sm90a => "the mixed exponential is faster and as accurate on real attention".to_owned(),
                _ => "the kernel for compute capability 9.0 is faster".to_owned(),
            })
        } else {
            None
        }
    };
    let mut chosen = None;
    let mut candidates = Vec::with_capacity(STEMS.len());
    for stem in STEMS {
        let verdict = match reason_lost(&stem) {
            Some(reason) => Verdict::Lost(reason),
            None => {
                chosen = Some(stem);
                Verdict::Chosen(reason_chosen(problem, &stem))
            }
        };
        candidates.push(Candidate { stem, verdict });
    }
    let stem = chosen.ok_or_else(|| {
        if let Some(stem) = problem.kernel()
            && let Err(error) = check_heads(problem, &stem)
        {
            return error;
        }
        let arch = problem.kernel().map_or(Arch::Sm89, |stem| stem.arch);
        let kernel = problem.kernel().map_or_else(|| format!("pv {}", pv.name()), |stem| stem.name.to_owned());
        PlanError::KernelNeeds { kernel, needed: requirement(arch), major, minor }
    })?;
    Ok((stem, candidates))
}

/// Fails if `stem` does not compute the head dimension of `problem`. Modifiers they all compute.
///
/// # Errors
///
/// [`PlanError::Modifiers`].
pub(crate) fn check_heads(problem: &Problem, stem: &Stem) -> Result<(), PlanError> {
    if takes_heads(problem, stem) {
        return Ok(());
    }
    Err(PlanError::Modifiers { kernel: stem.name, wanted: vec![WIDE], supported: SUPPORTED })
}

/// What the kernels can do, in words.
const SUPPORTED: &str =
    "all modifiers up to head_dim 128 in all kernels, head_dim above 128 in the sm80 and sm89 kernels";
/// What some kernels lack, in words.
const WIDE: &str = "head_dim above 128";
/// Types of wide heads that the quantizers take, in words.
const WIDE_TYPES: &str = "f16, bf16 and f32 up to head_dim 128, f16 and bf16 up to 256";

/// Whether the kernel takes heads as wide as those of `problem`.
fn takes_heads(problem: &Problem, stem: &Stem) -> bool {
    match stem.arch {
        Arch::Sm80 | Arch::Sm89 => true,
        Arch::Sm90a => !problem.dims().is_wide(),
    }
}

fn reason_chosen(problem: &Problem, stem: &Stem) -> String {
    if problem.kernel().is_some() {
        "asked for by name".to_owned()
    } else if problem.pv().is_some() {
        format!("Q and K in {}, P and V in {} as asked for", stem.qk.name(), stem.pv.name())
    } else {
        match stem.pv {
            PvFormat::Fp8 if stem.arch == Arch::Sm90a => "made for compute capability 9.0".to_owned(),
            PvFormat::Fp8 => "FP8 P V, the default from compute capability 8.9 on".to_owned(),
            PvFormat::F16 => "FP16 P V, the default below compute capability 8.9".to_owned(),
        }
    }
}

/// Where a module loads, in words.
fn requirement(arch: Arch) -> &'static str {
    match arch {
        Arch::Sm80 => "compute capability 8.0 or later",
        Arch::Sm89 => "compute capability 8.9 or later",
        Arch::Sm90a => "compute capability 9.0",
    }
}
