//! What a calibration has measured.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer, Serialize};

use super::{AdaptiveError, Choice};
use crate::metrics::Metrics;

/// Which attention call of a model: a layer, a timestep of sampling (0 for language models), and the
/// calibration input (prompt, window, image) it belongs to. All count from 0.
///
/// Example: [`adaptive`](crate::adaptive).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// Attention layer.
    pub layer: usize,
    /// Timestep.
    pub timestep: usize,
    /// Calibration input.
    pub sample: usize,
}

/// An experiment with the whole model: its loss when everything runs in INT8, or everything but one
/// cell. A loss is how much worse the model's own measure is than in full precision, relative: 0.01 is
/// 1 % more bits per byte, or whatever the model is judged by.
///
/// Example: [`Measurements`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trial {
    /// Layer and timestep that alone run with `choice`; `None` is every one.
    pub cell: Option<(usize, usize)>,
    /// What they run with.
    pub choice: Choice,
}

impl Trial {
    /// The same choice everywhere.
    pub const fn everywhere(choice: Choice) -> Trial {
        Trial { cell: None, choice }
    }

    /// `choice` at one layer and timestep, INT8 elsewhere.
    pub const fn cell(layer: usize, timestep: usize, choice: Choice) -> Trial {
        Trial { cell: Some((layer, timestep)), choice }
    }
}

/// Error of one candidate on one call against exact attention. NaN where an output was not finite.
///
/// Example: [`adaptive`](crate::adaptive).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Cosine of the angle between the outputs as flat vectors.
    #[serde(deserialize_with = "nan_if_null")]
    pub cosine: f64,
    /// `Σ|O − O'| / Σ|O|`.
    #[serde(deserialize_with = "nan_if_null")]
    pub rel_l1: f64,
    /// Root of the mean squared error.
    #[serde(deserialize_with = "nan_if_null")]
    pub rmse: f64,
    /// Largest relative L1 of a row.
    #[serde(deserialize_with = "nan_if_null")]
    pub worst_row_rel_l1: f64,
}

/// JSON has no NaN; it is written as null.
fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Figures {
    /// The paper's score, `cosine · (1 − relative L1)`: 1 is perfect.
    pub fn score(&self) -> f64 {
        self.cosine * (1.0 - self.rel_l1)
    }
}

impl From<Metrics> for Figures {
    fn from(metrics: Metrics) -> Figures {
        let Metrics { cosine, rel_l1, rmse, worst_row_rel_l1, .. } = metrics;
        Figures { cosine, rel_l1, rmse, worst_row_rel_l1 }
    }
}

/// The figures of every candidate on every call that was measured.
///
/// ```
/// use sage_attn::adaptive::{Choice, Figures, Measurements, Site};
/// let figures = |cosine| Figures { cosine, rel_l1: 0.02, rmse: 0.01, worst_row_rel_l1: 0.1 };
/// let mut measurements = Measurements::new(vec![Choice::INT4, Choice::INT8])?;
/// let site = Site { layer: 3, timestep: 0, sample: 0 };
/// measurements.insert(site, vec![figures(0.99), figures(0.9998)])?;
/// assert!(measurements.contains(site));
/// assert_eq!(measurements.cells()[0].layer, 3);
/// # Ok::<(), sage_attn::adaptive::AdaptiveError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Measurements {
    candidates: Vec<Choice>,
    records: BTreeMap<Site, Vec<Figures>>,
    losses: HashMap<Trial, f64>,
}

impl Measurements {
    /// Nothing measured yet.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::Candidates`] if there is no candidate, or one twice.
    pub fn new(candidates: Vec<Choice>) -> Result<Measurements, AdaptiveError> {
        let repeated = candidates.iter().enumerate().any(|(i, candidate)| candidates[..i].contains(candidate));
        if candidates.is_empty() || repeated {
            return Err(AdaptiveError::Candidates { candidates });
        }
        Ok(Measurements { candidates, records: BTreeMap::new(), losses: HashMap::new() })
    }

    /// What is measured at each site, in the order of the figures.
    pub fn candidates(&self) -> &[Choice] {
        &self.candidates
    }

    /// Whether `site` has been measured.
    pub fn contains(&self, site: Site) -> bool {
        self.records.contains_key(&site)
    }

    /// Adds the figures of a call, one per candidate.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::FigureCount`] or [`AdaptiveError::RecordedTwice`].
    pub fn insert(&mut self, site: Site, figures: Vec<Figures>) -> Result<(), AdaptiveError> {
        if figures.len() != self.candidates.len() {
            let (found, expected) = (figures.len(), self.candidates.len());
            return Err(AdaptiveError::FigureCount { site, found, expected });
        }
        if self.contains(site) {
            return Err(AdaptiveError::RecordedTwice { site });
        }
        self.records.insert(site, figures);
        Ok(())
    }

    /// Adds the loss of a trial.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::TriedTwice`].
    pub fn insert_loss(&mut self, trial: Trial, loss: f64) -> Result<(), AdaptiveError> {
        match self.losses.insert(trial, loss) {
            None => Ok(()),
            Some(before) => {
                self.losses.insert(trial, before);
                Err(AdaptiveError::TriedTwice { trial })
            }
        }
    }

    /// The loss of a trial, if it was made.
    pub fn loss(&self, trial: Trial) -> Option<f64> {
        self.losses.get(&trial).copied()
    }

    /// Every call with its figures, by layer, then timestep, then sample.
    pub fn records(&self) -> impl ExactSizeIterator<Item = (Site, &[Figures])> {
        self.records.iter().map(|(&site, figures)| (site, figures.as_slice()))
    }

    /// The records of each layer and timestep, averaged over samples; by layer, then timestep.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        for (site, figures) in self.records() {
            let same = cells.last().is_some_and(|cell| (cell.layer, cell.timestep) == (site.layer, site.timestep));
            if !same {
                let spreads = vec![Spread::default(); self.candidates.len()];
                cells.push(Cell { layer: site.layer, timestep: site.timestep, samples: 0, spreads });
            }
            if let Some(cell) = cells.last_mut() {
                cell.samples += 1;
                cell.spreads.iter_mut().zip(figures).for_each(|(spread, figures)| spread.add(figures));
            }
        }
        cells
    }
}

/// The measurements of one layer and timestep.
///
/// Example: [`Measurements`].
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Attention layer.
    pub layer: usize,
    /// Timestep.
    pub timestep: usize,
    /// Calls measured.
    pub samples: usize,
    /// Per candidate.
    pub spreads: Vec<Spread>,
}

/// Figures of one candidate over the samples of a cell. A sample that is NaN makes them NaN.
///
/// Example: [`Measurements`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    samples: usize,
    score: f64,
    score_squared: f64,
    cosine: f64,
    rel_l1: f64,
    rmse: f64,
    worst_row_rel_l1: f64,
}

impl Spread {
    fn add(&mut self, figures: &Figures) {
        let score = figures.score();
        self.samples += 1;
        self.score += score;
        self.score_squared += score * score;
        self.cosine += figures.cosine;
        self.rel_l1 += figures.rel_l1;
        self.rmse += figures.rmse;
        let (worst, row) = (self.worst_row_rel_l1, figures.worst_row_rel_l1);
        self.worst_row_rel_l1 = if row.is_nan() || row > worst { row } else { worst };
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.samples as f64
    }

    /// Mean of the paper's score.
    pub fn score(&self) -> f64 {
        self.mean(self.score)
    }

    /// Standard deviation of the score over the samples.
    pub fn score_deviation(&self) -> f64 {
        (self.mean(self.score_squared) - self.score().powi(2)).max(0.0).sqrt()
    }

    /// Mean cosine.
    pub fn cosine(&self) -> f64 {
        self.mean(self.cosine)
    }

    /// Mean relative L1.
    pub fn rel_l1(&self) -> f64 {
        self.mean(self.rel_l1)
    }

    /// Mean of the root mean squared errors.
    pub fn rmse(&self) -> f64 {
        self.mean(self.rmse)
    }

    /// Largest relative L1 of any row of any sample.
    pub fn worst_row_rel_l1(&self) -> f64 {
        self.worst_row_rel_l1
    }
}
