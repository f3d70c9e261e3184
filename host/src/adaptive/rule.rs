//! From measurements to a plan.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AdaptiveError, Cell, Choice, Decision, Measurements, Origin, PrecisionPlan, Speeds};
use crate::problem::Precision;

/// Least share of INT8's time that INT4 must save to be worth its error.
const MIN_GAIN: f64 = 0.02;

/// How layers and timesteps ("cells") are given to INT4 or INT8.
///
/// Of several candidates of one precision a cell takes the one with the best mean score. The score is
/// `cosine · (1 − relative L1)`.
///
/// `floor` is a lowest score: a cell whose INT4 scores below it takes INT8 in any case, and one whose
/// INT8 does as well takes exact arithmetic, if that was among the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// The rule of SageAttention2's first report (arXiv 2411.10958v1): the given percentage of cells,
    /// those whose INT4 scores lowest, take INT8; the others INT4.
    Percentile {
        /// Cells that take INT8, 0 to 100; fractions of a cell count as one.
        percent: f64,
        /// Lowest score.
        floor: Option<f64>,
    },
    /// As much INT4 as keeps the mean relative L1 over all cells within a budget. Cells are taken in
    /// the order of what they cost, the error INT4 adds per share of time it saves, while they fit.
    Budget {
        /// Largest mean relative L1 over all cells, above 0.
        rel_l1: f64,
        /// Lowest score.
        floor: Option<f64>,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floor = match *self {
            Rule::Percentile { percent, floor } => {
                write!(f, "INT8 for the worst {percent} %")?;
                floor
            }
            Rule::Budget { rel_l1, floor } => {
                write!(f, "mean relative L1 of at most {rel_l1}")?;
                floor
            }
        };
        floor.map_or(Ok(()), |floor| write!(f, ", floor {floor}"))
    }
}

/// A cell with its best candidates.
struct Ranked {
    layer: usize,
    timestep: usize,
    samples: usize,
    int4: Candidate,
    int8: Candidate,
    exact: Option<Choice>,
    /// Share of INT8's time that INT4 saves.
    gain: f64,
    chosen: Chosen,
}

/// A candidate and its mean figures.
#[derive(Clone, Copy)]
struct Candidate {
    choice: Choice,
    score: f64,
    rel_l1: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Chosen {
    Int4,
    Int8,
    Exact,
}

impl Rule {
    /// [`Rule::Percentile`] without a floor.
    pub const fn percentile(percent: f64) -> Rule {
        Rule::Percentile { percent, floor: None }
    }

    /// [`Rule::Budget`] without a floor.
    pub const fn budget(rel_l1: f64) -> Rule {
        Rule::Budget { rel_l1, floor: None }
    }

    /// Decides every layer and timestep that was measured. A timestep that was not takes the decision
    /// of the last measured one before it (of the first, if there is none), a layer that was not the
    /// best INT8 candidate.
    ///
    /// If `speeds` say that INT4 saves less than 2 % of INT8's time on the device, nothing takes INT4,
    /// whatever the rule: there is error to lose and nothing to win. The plan's note says so.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::NoMeasurements`], [`AdaptiveError::NoCandidate`] unless both INT4 and INT8 were
    /// measured, [`AdaptiveError::Parameter`].
    pub fn plan(&self, measurements: &Measurements, speeds: &Speeds) -> Result<PrecisionPlan, AdaptiveError> {
        self.validate()?;
        let mut cells = rank(measurements, speeds)?;
        let floor = match *self {
            Rule::Percentile { floor, .. } | Rule::Budget { floor, .. } => floor.unwrap_or(f64::NEG_INFINITY),
        };
        for cell in &mut cells {
            cell.chosen = match cell.exact {
                Some(_) if cell.int8.score < floor => Chosen::Exact,
                _ => Chosen::Int8,
            };
        }
        // A score of −∞ stands for an output that was not finite.
        let may_int4 = |cell: &Ranked| cell.gain >= MIN_GAIN && cell.int4.score >= floor && cell.int4.score.is_finite();
        let mut notes = Vec::new();
        if cells.iter().all(|cell| cell.gain < MIN_GAIN) {
            notes.push(format!("{}: INT4 would cost accuracy and gain nothing", speeds.describe()));
        }
        match *self {
            Rule::Percentile { percent, .. } => {
                let int8 = (percent * cells.len() as f64 / 100.0).ceil() as usize;
                let mut order: Vec<usize> = (0..cells.len()).collect();
                order.sort_by(|&a, &b| cells[a].int4.score.total_cmp(&cells[b].int4.score));
                for cell in order.into_iter().skip(int8) {
                    if may_int4(&cells[cell]) {
                        cells[cell].chosen = Chosen::Int4;
                    }
                }
            }
            Rule::Budget { rel_l1, .. } => {
                let budget = rel_l1 * cells.len() as f64;
                let mut error: f64 = cells.iter().map(Ranked::error).sum();
                if error > budget {
                    notes.push(format!(
                        "the budget is not met: without INT4 the mean relative L1 is {:.4}",
                        error / cells.len() as f64
                    ));
                }
                let cost = |cell: &Ranked| (cell.int4.rel_l1 - cell.int8.rel_l1).max(0.0);
                let mut order: Vec<usize> = (0..cells.len())
                    .filter(|&index| cells[index].chosen == Chosen::Int8 && may_int4(&cells[index]))
                    .collect();
                let price = |index: usize| cost(&cells[index]) / cells[index].gain;
                order.sort_by(|&a, &b| price(a).total_cmp(&price(b)));
                for index in order {
                    let with = error + cost(&cells[index]);
                    if with <= budget {
                        error = with;
                        cells[index].chosen = Chosen::Int4;
                    }
                }
            }
        }
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        self.assemble(cells, speeds, note)
    }

    /// Checks the rule's parameters, which [`Rule::plan`] does too.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::Parameter`].
    pub fn validate(&self) -> Result<(), AdaptiveError> {
        let (what, value, allowed, ok) = match *self {
            Rule::Percentile { percent, .. } => {
                ("percent", percent, "between 0 and 100", (0.0..=100.0).contains(&percent))
            }
            Rule::Budget { rel_l1, .. } => {
                ("the budget", rel_l1, "positive and finite", rel_l1 > 0.0 && rel_l1.is_finite())
            }
        };
        if !ok {
            return Err(AdaptiveError::Parameter { what, value, allowed });
        }
        let (Rule::Percentile { floor, .. } | Rule::Budget { floor, .. }) = *self;
        match floor {
            Some(value) if !(0.0..=1.0).contains(&value) => {
                Err(AdaptiveError::Parameter { what: "the floor", value, allowed: "between 0 and 1" })
            }
            _ => Ok(()),
        }
    }

    fn assemble(
        &self,
        cells: Vec<Ranked>,
        speeds: &Speeds,
        note: Option<String>,
    ) -> Result<PrecisionPlan, AdaptiveError> {
        let samples = cells.iter().map(|cell| cell.samples).min().unwrap_or(0);
        let timesteps = cells.iter().map(|cell| cell.timestep + 1).max().unwrap_or(1);
        let default = common(cells.iter().map(|cell| cell.int8.choice)).unwrap_or(Choice::INT8);
        let mut layers: BTreeMap<usize, Vec<Decision>> = BTreeMap::new();
        for cell in cells {
            let (choice, score) = cell.decision();
            let score = score.is_finite().then_some(score);
            let decisions = layers.entry(cell.layer).or_default();
            match decisions.last_mut() {
                Some(last) if last.choice == choice => {
                    last.score = last.score.zip(score).map(|(a, b)| a.min(b));
                }
                Some(_) => decisions.push(Decision { from_timestep: cell.timestep, choice, score }),
                None => decisions.push(Decision { from_timestep: 0, choice, score }),
            }
        }
        let origin = Origin { model: String::new(), device: speeds.device().into(), samples, rule: Some(*self), note };
        PrecisionPlan::new(origin, timesteps, default, layers)
    }
}

impl Ranked {
    fn decision(&self) -> (Choice, f64) {
        match (self.chosen, self.exact) {
            (Chosen::Int4, _) => (self.int4.choice, self.int4.score),
            (Chosen::Exact, Some(exact)) => (exact, 1.0),
            (Chosen::Int8 | Chosen::Exact, _) => (self.int8.choice, self.int8.score),
        }
    }

    /// Relative L1 of what is chosen.
    fn error(&self) -> f64 {
        match self.chosen {
            Chosen::Int4 => self.int4.rel_l1,
            Chosen::Int8 => self.int8.rel_l1,
            Chosen::Exact => 0.0,
        }
    }
}

/// The cells with the best candidate of each precision.
fn rank(measurements: &Measurements, speeds: &Speeds) -> Result<Vec<Ranked>, AdaptiveError> {
    let candidates = measurements.candidates();
    let cells = measurements.cells();
    if cells.is_empty() {
        return Err(AdaptiveError::NoMeasurements);
    }
    let exact = candidates.iter().copied().find(|candidate| candidate.precision() == Precision::Exact);
    let missing = |precision| AdaptiveError::NoCandidate { precision, candidates: candidates.to_vec() };
    let ranked = |cell: Cell| {
        let int4 = best(candidates, &cell, Precision::Int4).ok_or_else(|| missing("int4"))?;
        let int8 = best(candidates, &cell, Precision::Int8).ok_or_else(|| missing("int8"))?;
        let gain = speeds.gain(int4.choice, int8.choice);
        let Cell { layer, timestep, samples, .. } = cell;
        Ok(Ranked { layer, timestep, samples, int4, int8, exact, gain, chosen: Chosen::Int8 })
    };
    cells.into_iter().map(ranked).collect()
}

/// The candidate of `precision` with the best score, the first of equals. A score that is not a number
/// is the worst there is.
fn best(candidates: &[Choice], cell: &Cell, precision: Precision) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for (&choice, spread) in candidates.iter().zip(&cell.spreads) {
        if choice.precision() != precision {
            continue;
        }
        let (score, rel_l1) = (spread.score(), spread.rel_l1());
        let this = match score.is_nan() {
            true => Candidate { choice, score: f64::NEG_INFINITY, rel_l1: f64::INFINITY },
            false => Candidate { choice, score, rel_l1 },
        };
        if best.is_none_or(|best| this.score > best.score) {
            best = Some(this);
        }
    }
    best
}

/// The most frequent choice, the first of equals.
fn common(choices: impl Iterator<Item = Choice>) -> Option<Choice> {
    let mut counts: Vec<(Choice, usize)> = Vec::new();
    for choice in choices {
        match counts.iter_mut().find(|(counted, _)| *counted == choice) {
            Some((_, count)) => *count += 1,
            None => counts.push((choice, 1)),
        }
    }
    let most = counts.iter().map(|&(_, count)| count).max()?;
    counts.iter().find(|&&(_, count)| count == most).map(|&(choice, _)| choice)
}
