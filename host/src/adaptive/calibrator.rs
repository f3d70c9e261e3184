//! Measuring candidates while a model runs.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use sage_spec::tiling::BLOCK_Q;
use serde::{Deserialize, Serialize};

use super::journal::{self, Journal};
use super::{AdaptiveError, Choice, Figures, Measurements, Site, Trial};
use crate::api::{Attention, Device, Tensor, TensorView};
use crate::error::{Axis, Error};
use crate::metrics::Metrics;
use crate::problem::{DType, Precision};

/// How much of what a model computes is measured. The default is everything.
///
/// Example: [`adaptive`](crate::adaptive).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Measure every n-th sample: 0, n, 2n, ...
    pub samples: usize,
    /// Measure every n-th timestep: 0, n, 2n, ...
    pub timesteps: usize,
    /// Measure at most this many key/value heads (of all batches) of a call, each with its query heads.
    /// They are spread evenly and move on with each sample, so that in the end all are measured.
    pub heads: Option<usize>,
    /// Compare at most this many query blocks (of 128 rows) of a head, spread evenly.
    pub query_blocks: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { samples: 1, timesteps: 1, heads: None, query_blocks: None }
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all_or = |limit: Option<usize>| limit.map_or("all".into(), |limit| limit.to_string());
        let (heads, blocks) = (all_or(self.heads), all_or(self.query_blocks));
        let Sampling { samples, timesteps, .. } = self;
        write!(f, "samples by {samples}, timesteps by {timesteps}, {heads} heads, {blocks} query blocks")
    }
}

/// Measures candidate precisions on the attention calls of a running model.
///
/// Memory is bounded: during a call, the outputs of the heads that are measured; between calls, a few
/// numbers per call and candidate.
///
/// Example: [`adaptive`](crate::adaptive).
#[derive(Debug)]
pub struct Calibrator {
    sampling: Sampling,
    measurements: Measurements,
    journal: Option<Journal>,
}

impl Calibrator {
    /// A calibrator that keeps its measurements in memory only.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::Candidates`] or [`AdaptiveError::SamplingZero`].
    pub fn new(candidates: Vec<Choice>, sampling: Sampling) -> Result<Calibrator, AdaptiveError> {
        check(&sampling)?;
        Ok(Calibrator { sampling, measurements: Measurements::new(candidates)?, journal: None })
    }

    /// A calibrator that appends every measurement to the file at `path` as it is made, and that starts
    /// with those already there. `subject` names the model and its inputs.
    ///
    /// # Errors
    ///
    /// As [`Calibrator::new`]; [`AdaptiveError::File`], [`AdaptiveError::Journal`] if the file is
    /// damaged, [`AdaptiveError::JournalMismatch`] if it was made with another subject, other
    /// candidates or another sampling.
    pub fn resume(
        path: &Path,
        subject: &str,
        candidates: Vec<Choice>,
        sampling: Sampling,
    ) -> Result<Calibrator, AdaptiveError> {
        check(&sampling)?;
        let (journal, measurements) = Journal::open(path, subject, candidates, sampling)?;
        Ok(Calibrator { sampling, measurements, journal: Some(journal) })
    }

    /// What has been measured.
    pub fn measurements(&self) -> &Measurements {
        &self.measurements
    }

    /// Whether [`Calibrator::observe`] would measure a call at `site`: it is among those sampled and
    /// has not been measured. A model may skip what leads only to calls that are not wanted.
    pub fn wants(&self, site: Site) -> bool {
        site.sample.is_multiple_of(self.sampling.samples)
            && site.timestep.is_multiple_of(self.sampling.timesteps)
            && !self.measurements.contains(site)
    }

    /// Measures every candidate on a call if it is wanted, and returns whether it was.
    ///
    /// `attention` carries the mask, the scale, the format of P V and the device of the call; its
    /// precision, granularity and smoothing are replaced by those of each candidate. Candidates run on
    /// its device; the exact output they are compared with is computed on the CPU in f32.
    ///
    /// # Errors
    ///
    /// Those of [`Attention::forward`], and [`AdaptiveError::File`] if the measurement cannot be
    /// written. After an error the call counts as not measured.
    pub fn observe(
        &mut self,
        site: Site,
        attention: &Attention,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
    ) -> Result<bool, Error> {
        self.observe_given(site, attention, [q, k, v], None)
    }

    /// [`Calibrator::observe`] where the exact output is at hand, `[B, Hq, M, Dv]`, because the model runs
    /// in full precision; it is not computed again.
    ///
    /// # Errors
    ///
    /// As [`Calibrator::observe`]; [`AdaptiveError::ExactShape`] if `exact` has not the shape of the output.
    pub fn observe_with_exact(
        &mut self,
        site: Site,
        attention: &Attention,
        [q, k, v]: [&TensorView<'_>; 3],
        exact: &Tensor,
    ) -> Result<bool, Error> {
        let expected = q.spec().output_shape(v.spec());
        if exact.shape() != expected {
            return Err(AdaptiveError::ExactShape { shape: exact.shape(), expected }.into());
        }
        self.observe_given(site, attention, [q, k, v], Some(exact))
    }

    /// Records the loss of a trial, unless it is recorded already; returns whether it was not.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::File`] if it cannot be written, [`AdaptiveError::Parameter`] if it is not finite.
    pub fn record_loss(&mut self, trial: Trial, loss: f64) -> Result<bool, AdaptiveError> {
        if !loss.is_finite() {
            return Err(AdaptiveError::Parameter { what: "the loss", value: loss, allowed: "finite" });
        }
        if self.measurements.loss(trial).is_some() {
            return Ok(false);
        }
        if let Some(journal) = &mut self.journal {
            journal.append_loss(trial, loss)?;
        }
        self.measurements.insert_loss(trial, loss)?;
        Ok(true)
    }

    fn observe_given(
        &mut self,
        site: Site,
        attention: &Attention,
        tensors: [&TensorView<'_>; 3],
        exact: Option<&Tensor>,
    ) -> Result<bool, Error> {
        if !self.wants(site) {
            return Ok(false);
        }
        let figures = self.measure(site.sample, attention, tensors, exact)?;
        if let Some(journal) = &mut self.journal {
            journal.append(site, &figures)?;
        }
        self.measurements.insert(site, figures)?;
        Ok(true)
    }

    fn measure(
        &self,
        sample: usize,
        attention: &Attention,
        [q, k, v]: [&TensorView<'_>; 3],
        exact: Option<&Tensor>,
    ) -> Result<Vec<Figures>, Error> {
        let attention = attention.clone().out_dtype(DType::F32).return_lse(false);
        attention.check(q, k, v)?;
        let exact = exact.map(Tensor::to_f32);
        let [batch, heads_q, seqlen_q, head_dim] = q.spec().output_shape(v.spec());
        let heads_kv = k.spec().shape[1];
        let blocks = spread(seqlen_q.div_ceil(BLOCK_Q), self.sampling.query_blocks, 0);
        let block = |block: usize| block * BLOCK_Q..seqlen_q.min((block + 1) * BLOCK_Q);
        let rows = join(blocks.into_iter().map(block));

        let candidates = self.measurements.candidates();
        let mut reference: Vec<f64> = Vec::new();
        let mut outputs: Vec<Vec<f32>> = vec![Vec::new(); candidates.len()];
        for head in spread(batch * heads_kv, self.sampling.heads, sample) {
            let (entry, head) = (head / heads_kv, head % heads_kv);
            let group = heads_q / heads_kv;
            let q = q.narrow(Axis::Batch, entry..entry + 1)?.narrow(Axis::Head, head * group..(head + 1) * group)?;
            let k = k.narrow(Axis::Batch, entry..entry + 1)?.narrow(Axis::Head, head..head + 1)?;
            let v = v.narrow(Axis::Batch, entry..entry + 1)?.narrow(Axis::Head, head..head + 1)?;
            let exact = match &exact {
                Some(all) => {
                    let first = (entry * heads_q + head * group) * seqlen_q * head_dim;
                    select(&all[first..][..group * seqlen_q * head_dim], [seqlen_q, head_dim], &rows)
                }
                None => exact_rows(&attention, [&q, &k, &v], &rows)?,
            };
            reference.extend(exact.into_iter().map(f64::from));
            for (candidate, output) in candidates.iter().zip(&mut outputs) {
                output.extend(candidate_rows(*candidate, &attention, [&q, &k, &v], &rows)?);
            }
        }
        Ok(outputs.iter().map(|output| Metrics::compare(output, &reference, head_dim).into()).collect())
    }
}

fn check(sampling: &Sampling) -> Result<(), AdaptiveError> {
    let rates = [
        ("samples", Some(sampling.samples)),
        ("timesteps", Some(sampling.timesteps)),
        ("heads", sampling.heads),
        ("query_blocks", sampling.query_blocks),
    ];
    match rates.into_iter().find(|&(_, rate)| rate == Some(0)) {
        Some((what, _)) => Err(AdaptiveError::SamplingZero { what }),
        None => Ok(()),
    }
}

/// At most `limit` of the indices below `len`, evenly spread, moved on by `turn`, ascending.
fn spread(len: usize, limit: Option<usize>, turn: usize) -> Vec<usize> {
    let count = limit.map_or(len, |limit| limit.min(len));
    let mut indices: Vec<usize> = (0..count).map(|i| (i * len / count + turn) % len).collect();
    indices.sort_unstable();
    indices
}

/// Joins ranges where one ends at the next one's start.
fn join(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// Exact attention of the rows of `q` in `rows`, `[heads, rows, D]` for each range.
///
/// Under the bottom-right causal mask a range of rows is attention of those rows over the keys that
/// its last row sees.
fn exact_rows(
    attention: &Attention,
    [q, k, v]: [&TensorView<'_>; 3],
    rows: &[Range<usize>],
) -> Result<Vec<f32>, Error> {
    let exact = Choice::EXACT.apply(attention.clone()).device(Device::Cpu);
    let (seqlen_q, seqlen_kv) = (q.spec().shape[2], k.spec().shape[2]);
    let mut out = Vec::new();
    for range in rows {
        let keys = match attention.is_causal() {
            true => 0..(range.end + seqlen_kv).saturating_sub(seqlen_q),
            false => 0..seqlen_kv,
        };
        let q = q.narrow(Axis::Token, range.clone())?;
        let (k, v) = (k.narrow(Axis::Token, keys.clone())?, v.narrow(Axis::Token, keys)?);
        out.extend(exact.forward(&q, &k, &v)?.out.to_f32());
    }
    Ok(out)
}

/// As [`exact_rows`], for a candidate. Its rows must be quantized as in the whole call: query blocks by
/// themselves are, but keys cut off by the mask would change the means and scales of K and V, so under
/// a causal mask all rows are computed.
fn candidate_rows(
    candidate: Choice,
    attention: &Attention,
    [q, k, v]: [&TensorView<'_>; 3],
    rows: &[Range<usize>],
) -> Result<Vec<f32>, Error> {
    if candidate.precision() == Precision::Exact {
        return exact_rows(attention, [q, k, v], rows);
    }
    let attention = candidate.apply(attention.clone());
    let [_, _, seqlen_q, head_dim] = q.spec().output_shape(v.spec());
    if attention.is_causal() || rows == std::slice::from_ref(&(0..seqlen_q)) {
        let all = attention.forward(q, k, v)?.out.to_f32();
        return Ok(select(&all, [seqlen_q, head_dim], rows));
    }
    let mut out = Vec::new();
    for range in rows {
        out.extend(attention.forward(&q.narrow(Axis::Token, range.clone())?, k, v)?.out.to_f32());
    }
    Ok(out)
}

/// The rows of `all` `[heads, seqlen, Dv]` in `rows`: for each range, of each head.
fn select(all: &[f32], [seqlen, head_dim]: [usize; 2], rows: &[Range<usize>]) -> Vec<f32> {
    let mut selected = Vec::new();
    for range in rows {
        for head in all.chunks_exact((seqlen * head_dim).max(1)) {
            selected.extend_from_slice(&head[range.start * head_dim..range.end * head_dim]);
        }
    }
    selected
}

impl Measurements {
    /// Reads the measurements in a file that [`Calibrator::resume`] writes.
    ///
    /// # Errors
    ///
    /// [`AdaptiveError::File`] or [`AdaptiveError::Journal`].
    pub fn load(path: &Path) -> Result<Measurements, AdaptiveError> {
        journal::load(path)
    }
}
