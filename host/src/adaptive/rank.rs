//! The cells of a plan with their best candidates.

use super::{AdaptiveError, Cell, Choice, Measurements, Speeds, Trial};
use crate::problem::Precision;

/// A cell with its best candidates.
pub struct Ranked {
    pub layer: usize,
    pub timestep: usize,
    pub samples: usize,
    pub int4: Candidate,
    pub int8: Candidate,
    pub exact: Option<Choice>,
    /// The model's loss with INT4 in this cell alone, if that was tried.
    pub loss: Option<f64>,
    /// Share of INT8's time that INT4 saves.
    pub gain: f64,
    pub chosen: Chosen,
}

/// A candidate and its mean figures.
#[derive(Clone, Copy)]
pub struct Candidate {
    pub choice: Choice,
    pub score: f64,
    pub rel_l1: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Chosen {
    Int4,
    Int8,
    Exact,
}

impl Ranked {
    /// What is chosen, and its score.
    pub fn decision(&self) -> (Choice, f64) {
        match (self.chosen, self.exact) {
            (Chosen::Int4, _) => (self.int4.choice, self.int4.score),
            (Chosen::Exact, Some(exact)) => (exact, 1.0),
            (Chosen::Int8 | Chosen::Exact, _) => (self.int8.choice, self.int8.score),
        }
    }

    /// Relative L1 of what is chosen.
    pub fn error(&self) -> f64 {
        match self.chosen {
            Chosen::Int4 => self.int4.rel_l1,
            Chosen::Int8 => self.int8.rel_l1,
            Chosen::Exact => 0.0,
        }
    }
}

/// The cells with the best candidate of each precision.
pub fn rank(measurements: &Measurements, speeds: &Speeds) -> Result<Vec<Ranked>, AdaptiveError> {
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
        let loss = measurements.loss(Trial::cell(layer, timestep, int4.choice));
        Ok(Ranked { layer, timestep, samples, int4, int8, exact, loss, gain, chosen: Chosen::Int8 })
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
pub fn common(choices: impl Iterator<Item = Choice>) -> Option<Choice> {
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
