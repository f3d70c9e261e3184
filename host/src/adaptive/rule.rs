//! From measurements to a plan.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::rank::{Chosen, Ranked, common, rank};
use super::{AdaptiveError, Choice, Decision, Measurements, Origin, PrecisionPlan, Speeds, Trial};

/// Least share of INT8's time that INT4 must save to be worth its error.
const MIN_GAIN: f64 = 0.02;

/// How layers and timesteps ("cells") are given to INT4 or INT8.
///
/// Of several candidates of one precision a cell takes the one with the best mean score. The score is
/// `cosine · (1 − relative L1)`.
///
/// `floor` is a lowest score: a cell whose INT4 scores below it takes INT8 in any case, and one whose
/// INT8 does as well takes exact arithmetic, if that was among the candidates.
///
/// Example: [`adaptive`](crate::adaptive).
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
    /// As much INT4 as keeps the model's own loss within a budget. It takes [`Trial`]s: how much the
    /// model as a whole loses with INT8 everywhere, and with INT4 in one cell alone. Losses are taken to
    /// add up; cells are taken as for [`Rule::Budget`], those without a trial are INT8.
    Loss {
        /// Largest loss, as the trials have it, above 0; 0.005 is half a percent.
        loss: f64,
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
            Rule::Loss { loss, floor } => {
                write!(f, "loss of the model of at most {} %", loss * 100.0)?;
                floor
            }
        };
        floor.map_or(Ok(()), |floor| write!(f, ", floor {floor}"))
    }
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

    /// [`Rule::Loss`] without a floor.
    pub const fn loss(loss: f64) -> Rule {
        Rule::Loss { loss, floor: None }
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
    /// measured, [`AdaptiveError::NoTrials`] if the model's loss was not measured and the rule needs it,
    /// [`AdaptiveError::Parameter`].
    pub fn plan(&self, measurements: &Measurements, speeds: &Speeds) -> Result<PrecisionPlan, AdaptiveError> {
        self.validate()?;
        let mut cells = rank(measurements, speeds)?;
        let floor = self.floor().unwrap_or(f64::NEG_INFINITY);
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
                let count = cells.len() as f64;
                let without: f64 = cells.iter().map(Ranked::error).sum();
                if without > rel_l1 * count {
                    let mean = without / count;
                    notes.push(format!("the budget is not met: without INT4 the mean relative L1 is {mean:.4}"));
                }
                let cost = |cell: &Ranked| Some(cell.int4.rel_l1 - cell.int8.rel_l1).filter(|_| may_int4(cell));
                fill(&mut cells, rel_l1 * count - without, cost);
            }
            Rule::Loss { loss, .. } => {
                let without = common(cells.iter().map(|cell| cell.int8.choice))
                    .and_then(|int8| measurements.loss(Trial::everywhere(int8)))
                    .ok_or(AdaptiveError::NoTrials)?;
                if without > loss {
                    notes.push(format!("the budget is not met: without INT4 the loss is {:.3} %", without * 100.0));
                }
                let cost = |cell: &Ranked| cell.loss.map(|loss| loss - without).filter(|_| may_int4(cell));
                fill(&mut cells, loss - without, cost);
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
            Rule::Loss { loss, .. } => ("the loss", loss, "positive and finite", loss > 0.0 && loss.is_finite()),
        };
        if !ok {
            return Err(AdaptiveError::Parameter { what, value, allowed });
        }
        match self.floor() {
            Some(value) if !(0.0..=1.0).contains(&value) => {
                Err(AdaptiveError::Parameter { what: "the floor", value, allowed: "between 0 and 1" })
            }
            _ => Ok(()),
        }
    }

    fn floor(&self) -> Option<f64> {
        let (Rule::Percentile { floor, .. } | Rule::Budget { floor, .. } | Rule::Loss { floor, .. }) = *self;
        floor
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

/// Gives cells to INT4 in the order of their cost per gain while `budget` lasts. A cell without a cost
/// stays as it is; one that would not cost but help, by chance of measuring, costs nothing.
fn fill(cells: &mut [Ranked], mut budget: f64, cost: impl Fn(&Ranked) -> Option<f64>) {
    let mut order: Vec<(usize, f64)> = Vec::new();
    for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.chosen == Chosen::Int8) {
        order.extend(cost(cell).map(|cost| (index, cost.max(0.0))));
    }
    order.sort_by(|a, b| (a.1 / cells[a.0].gain).total_cmp(&(b.1 / cells[b.0].gain)));
    for (index, cost) in order {
        if cost <= budget {
            budget -= cost;
            cells[index].chosen = Chosen::Int4;
        }
    }
}
