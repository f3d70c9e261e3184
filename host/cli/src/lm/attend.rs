//! Attention of the model's layers as a plan says, and its error.

use std::time::{Duration, Instant};

use sage_attn::adaptive::{Choice, PrecisionPlan};
use sage_attn::metrics::Metrics;
use sage_attn::models::rustlm::LAYERS;
use sage_attn::{Attention, Device, Error, Precision, Tensor, TensorView};

/// Computes attention as a plan says. A language model has one timestep.
pub struct Planned<'a> {
    plan: &'a PrecisionPlan,
    attention: Attention,
    /// Device of the last call, as its report names it.
    pub device: String,
    /// Whether to measure the error of the calls that come.
    pub measuring: bool,
    /// Time spent on measuring.
    pub measuring_time: Duration,
    errors: Vec<Mean>,
}

/// Figures of a layer, summed over calls.
#[derive(Clone, Copy, Default)]
struct Mean {
    calls: usize,
    cosine: f64,
    rel_l1: f64,
    rmse: f64,
}

/// Mean error of a layer.
pub struct LayerError {
    /// Precision, granularity and smoothing.
    pub choice: Choice,
    /// Cosine.
    pub cosine: f64,
    /// Relative L1.
    pub rel_l1: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
}

impl<'a> Planned<'a> {
    pub fn new(plan: &'a PrecisionPlan, device: Device) -> Planned<'a> {
        Planned {
            plan,
            attention: Attention::new().causal(true).device(device),
            device: String::new(),
            measuring: false,
            measuring_time: Duration::ZERO,
            errors: vec![Mean::default(); LAYERS],
        }
    }

    /// Computes a layer's attention.
    pub fn attend(&mut self, layer: usize, [q, k, v]: [&TensorView<'_>; 3]) -> Result<Tensor, Error> {
        let choice = self.plan.at(layer, 0);
        let attention = on_cpu_if_exact(choice, choice.apply(self.attention.clone()));
        let output = attention.forward(q, k, v)?;
        self.device = output.report.device;
        if self.measuring {
            let start = Instant::now();
            let exact = Choice::EXACT.apply(attention).device(Device::Cpu).forward(q, k, v)?.out.to_f32();
            let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
            self.errors[layer].add(&Metrics::compare(&output.out.to_f32(), &exact, v.spec().shape[3]));
            self.measuring_time += start.elapsed();
        }
        Ok(output.out)
    }

    /// The mean error of every layer, if it was measured.
    pub fn errors(&self) -> Vec<LayerError> {
        let error = |(layer, mean): (usize, &Mean)| {
            let calls = mean.calls as f64;
            LayerError {
                choice: self.plan.at(layer, 0),
                cosine: mean.cosine / calls,
                rel_l1: mean.rel_l1 / calls,
                rmse: mean.rmse / calls,
            }
        };
        self.errors.iter().enumerate().filter(|(_, mean)| mean.calls > 0).map(error).collect()
    }

    /// Share of the layers that are INT4.
    pub fn int4_share(&self) -> f64 {
        let int4 = (0..LAYERS).filter(|&layer| self.plan.at(layer, 0).precision() == Precision::Int4).count();
        int4 as f64 / LAYERS as f64
    }
}

impl Mean {
    fn add(&mut self, metrics: &Metrics) {
        self.calls += 1;
        self.cosine += metrics.cosine;
        self.rel_l1 += metrics.rel_l1;
        self.rmse += metrics.rmse;
    }
}

/// Exact arithmetic runs on the CPU, whatever the device of the rest.
pub fn on_cpu_if_exact(choice: Choice, attention: Attention) -> Attention {
    match choice.precision() {
        Precision::Exact => attention.device(Device::Cpu),
        _ => attention,
    }
}
