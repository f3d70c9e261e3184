//! The error of attention by layer and timestep.

use super::{HeatMap, Panel};
use crate::adaptive::{Cell, Choice, Measurements, PrecisionPlan};

impl HeatMap {
    /// Mean relative L1 by layer and timestep, a panel per candidate, with a dot where `plan` uses the
    /// candidate.
    pub fn of_plan(measurements: &Measurements, plan: &PrecisionPlan) -> HeatMap {
        let cells = measurements.cells();
        let layers = distinct(&cells, |cell| cell.layer);
        let timesteps = distinct(&cells, |cell| cell.timestep);
        let panel = |(index, candidate): (usize, &Choice)| {
            let mut panel = Panel { title: candidate.to_string(), values: Vec::new(), marks: Vec::new() };
            for &layer in &layers {
                for &timestep in &timesteps {
                    let cell = cells.iter().find(|cell| (cell.layer, cell.timestep) == (layer, timestep));
                    panel.values.push(cell.map(|cell| cell.spreads[index].rel_l1()));
                    panel.marks.push(plan.at(layer, timestep) == *candidate);
                }
            }
            panel
        };
        let names = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect();
        let model = &plan.origin().model;
        let one = timesteps.len() == 1;
        HeatMap {
            title: if model.is_empty() {
                "Error of attention".into()
            } else {
                format!("Error of attention in {model}")
            },
            row_label: "layer".into(),
            column_label: if one { String::new() } else { "timestep".into() },
            value_label: "relative L1 against exact attention; dot: in the plan; outline: worst".into(),
            rows: names(&layers),
            columns: if one { vec![String::new()] } else { names(&timesteps) },
            panels: measurements.candidates().iter().enumerate().map(panel).collect(),
        }
    }
}

/// The distinct values of `of`, ascending.
fn distinct(cells: &[Cell], of: impl Fn(&Cell) -> usize) -> Vec<usize> {
    let mut values: Vec<usize> = cells.iter().map(of).collect();
    values.sort_unstable();
    values.dedup();
    values
}
