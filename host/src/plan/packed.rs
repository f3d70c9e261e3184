//! Plans of packed sequences.

use std::fmt::Write;

use super::{Capability, Plan, plan};
use crate::error::{Error, ModifierError};
use crate::problem::{Problem, Sequences};

/// A plan for each of the packed sequences that has rows. They are launched one after the other in one
/// workspace, so that a sequence has the bits that it has alone.
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
    let parts = (0..sequences.len())
        .filter_map(|index| problem.sequence(index).map(|problem| (index, problem)))
        .filter(|(_, problem)| !problem.is_empty())
        .map(|(index, problem)| Ok((index, plan(&problem, capability)?)))
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

    /// The plans, each with the index of its sequence.
    pub fn parts(&self) -> &[(usize, Plan)] {
        &self.parts
    }

    /// Bytes of scratch memory: what the largest sequence needs.
    pub fn workspace_bytes(&self) -> usize {
        self.parts.iter().map(|(_, plan)| plan.workspace().total_bytes()).max().unwrap_or(0)
    }

    /// The plan of every sequence in words.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for (index, plan) in &self.parts {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "sequence {index}\n{}", plan.explain());
        }
        text
    }
}
