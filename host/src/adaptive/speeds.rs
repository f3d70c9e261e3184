//! How long the candidates take.

use super::Choice;
use crate::api::{Attention, TensorView};
use crate::error::Error;

/// Runs before those that count.
const WARM_UP: usize = 2;

/// Speed of the candidates on the device a plan is for.
///
/// INT4 is not faster everywhere: GPUs of compute capability 8.x multiply 4-bit integers natively, 9.0
/// unpacks them to 8 bits, and the CPU works on unpacked codes too. So a plan is made for a device.
///
/// ```
/// use sage_attn::adaptive::{Choice, Speeds};
/// let speeds = Speeds::assumed("RTX 4090", 1.4);
/// // The share of INT8's time that INT4 saves.
/// assert!((speeds.gain(Choice::INT4, Choice::INT8) - (1.0 - 1.0 / 1.4)).abs() < 1e-9);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Speeds {
    device: String,
    known: Known,
}

#[derive(Clone, Debug, PartialEq)]
enum Known {
    /// Every use of INT4 counts the same.
    Nothing,
    /// INT4 is so many times as fast as INT8.
    Speedup(f64),
    /// Milliseconds of a call.
    Measured(Vec<(Choice, f64)>),
}

impl Speeds {
    /// No speeds: plans have the largest share of INT4, as if it were equally faster everywhere.
    pub fn unmeasured() -> Speeds {
        Speeds { device: String::new(), known: Known::Nothing }
    }

    /// INT4 is `speedup` times as fast as INT8 on `device`, as measured elsewhere.
    pub fn assumed(device: impl Into<String>, speedup: f64) -> Speeds {
        Speeds { device: device.into(), known: Known::Speedup(speedup) }
    }

    /// Times `candidates` on the device of `attention`, with tensors like those of the model: the
    /// median of `runs` calls, smoothing and quantization included.
    ///
    /// # Errors
    ///
    /// Those of [`Attention::forward`].
    pub fn measure(
        attention: &Attention,
        candidates: &[Choice],
        runs: usize,
        [q, k, v]: [&TensorView<'_>; 3],
    ) -> Result<Speeds, Error> {
        let mut device = String::new();
        let mut measured = Vec::with_capacity(candidates.len());
        for &candidate in candidates {
            let attention = candidate.apply(attention.clone());
            let mut times = Vec::with_capacity(runs.max(1));
            for run in 0..WARM_UP + runs.max(1) {
                let report = attention.forward(q, k, v)?.report;
                if run >= WARM_UP {
                    times.push(report.e2e_ms);
                }
                device = report.device;
            }
            times.sort_by(f64::total_cmp);
            measured.push((candidate, times[times.len() / 2]));
        }
        Ok(Speeds { device, known: Known::Measured(measured) })
    }

    /// Device the speeds are those of; empty if they are not measured.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Milliseconds that a call took with `choice`, if it was measured.
    pub fn ms(&self, choice: Choice) -> Option<f64> {
        match &self.known {
            Known::Measured(measured) => measured.iter().find(|&&(of, _)| of == choice).map(|&(_, ms)| ms),
            _ => None,
        }
    }

    /// Share of the time of `int8` that `int4` saves; negative if it is slower. 1 if nothing is known,
    /// so that all cells weigh alike; 0 if one of the two was not measured.
    pub fn gain(&self, int4: Choice, int8: Choice) -> f64 {
        match self.known {
            Known::Nothing => 1.0,
            Known::Speedup(speedup) => 1.0 - 1.0 / speedup,
            Known::Measured(_) => match (self.ms(int4), self.ms(int8)) {
                (Some(int4), Some(int8)) if int8 > 0.0 => 1.0 - int4 / int8,
                _ => 0.0,
            },
        }
    }

    /// The speeds in a sentence's beginning, as in "on cuda:0 int4/thread/q,k takes 1.2 ms, ...".
    pub(super) fn describe(&self) -> String {
        let device = if self.device.is_empty() { "the device" } else { &self.device };
        match &self.known {
            Known::Nothing => format!("on {device} no speed is known"),
            Known::Speedup(speedup) => format!("on {device} INT4 is {speedup} times as fast as INT8"),
            Known::Measured(measured) => {
                let times: Vec<String> =
                    measured.iter().map(|(choice, ms)| format!("{choice} takes {ms:.3} ms")).collect();
                format!("on {device} {}", times.join(" and "))
            }
        }
    }
}
