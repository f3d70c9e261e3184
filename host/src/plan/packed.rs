//! Plans of packed sequences.

use std::fmt::Write;

use super::{Capability, Plan, plan};
use crate::error::{Error, ModifierError};
use crate::problem::{Problem, Sequences};

/// Plans for the packed sequences that have rows: one for each run of neighbouring sequences of equal lengths, which
/// is a batch. They are launched one after the other in one workspace; a sequence has the bits that it has alone.
///
/// Example: [`plan_packed`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedPlan {
    problem: Problem,
    sequences: Sequences,
    parts: Vec<(usize, Plan)>,
}

/// Plans the packed sequences of `problem` for a device of capability `capability`.
///
/// # Errors
///
/// [`ModifierError::NotPacked`] if there are none; otherwise as [`plan`].
///
/// ```
/// use sage_attn::error::Operand;
/// use sage_attn::plan::{Capability, plan_packed};
/// use sage_attn::problem::TensorSpec;
/// use sage_attn::{Attention, DType, Layout, Sequences, SideInputs};
///
/// let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 300, 8, 64], Layout::Nhd)?;
/// let sequences = Sequences::new(&[0, 100, 300], &[0, 100, 300])?;
/// let side = SideInputs::new().sequences(&sequences);
/// let problem = Attention::new().problem_with(spec, spec, spec, spec, &side)?;
/// let rtx_4090 = Capability { major: 8, minor: 9, sm_count: 128, smem_opt_in: 101_376 };
/// let plan = plan_packed(&problem, &rtx_4090)?;
/// assert_eq!(plan.parts().len(), 2);
/// # Ok::<(), sage_attn::Error>(())
/// ```
pub fn plan_packed(problem: &Problem, capability: &Capability) -> Result<PackedPlan, Error> {
    let sequences = problem.sequences().ok_or(ModifierError::NotPacked)?.clone();
    let mut begin = 0;
    let runs = std::iter::from_fn(|| {
        let first = (begin < sequences.len()).then_some(begin)?;
        let count = sequences.alike_from(first);
        begin += count;
        Some((first, count))
    });
    let parts = runs
        .filter_map(|(first, count)| problem.sequence_batch(first, count).map(|problem| (first, problem)))
        .filter(|(_, problem)| !problem.is_empty())
        .map(|(first, problem)| Ok((first, plan(&problem, capability)?)))
        .collect::<Result<_, Error>>()?;
    Ok(PackedPlan { problem: problem.clone(), sequences, parts })
}

impl PackedPlan {
    /// The problem planned for.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Where sequences begin and end.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The plans, each with the index of its first sequence; its batch is the sequences from there on.
    pub fn parts(&self) -> &[(usize, Plan)] {
        &self.parts
    }

    /// Kernels that are launched in all.
    pub fn launches(&self) -> usize {
        self.parts.iter().map(|(_, plan)| plan.steps().count()).sum()
    }

    /// Bytes of scratch memory: what the largest of the plans needs.
    pub fn workspace_bytes(&self) -> usize {
        self.parts.iter().map(|(_, plan)| plan.workspace().total_bytes()).max().unwrap_or(0)
    }

    /// The plans in words.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for (first, plan) in &self.parts {
            let last = first + plan.problem().dims().batch - 1;
            // Writing to a String cannot fail.
            let _ = match last == *first {
                true => writeln!(text, "sequence {first}\n{}", plan.explain()),
                false => writeln!(text, "sequences {first} to {last}\n{}", plan.explain()),
            };
        }
        text
    }
}
