//! From values to positions, and where ticks go.

/// How values are spread along an axis.
///
/// Example: [`LineChart`](crate::plot::LineChart).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal distances; starts at zero if no value is negative.
    Linear,
    /// Equal factors are equal distances; ticks at powers of two. Values must be positive.
    Log2,
}

/// An axis: its label and the range it shows.
///
/// ```
/// use sage_attn::plot::{Axis, Scale};
/// let axis = Axis::new("tokens", Scale::Log2, [1024.0, 4096.0]);
/// assert_eq!(axis.ticks(), [1024.0, 2048.0, 4096.0]);
/// assert_eq!(axis.position(2048.0), 0.5);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is shown, with its unit.
    pub label: String,
    /// How values are spread.
    pub scale: Scale,
    low: f64,
    high: f64,
}

/// Most ticks of a linear axis.
const TICKS: f64 = 8.0;

impl Axis {
    /// An axis that shows all finite `values`, but for those beyond 10^±300, whose differences and quotients are not
    /// finite; 0 to 1 if there are none.
    pub fn new(label: impl Into<String>, scale: Scale, values: impl IntoIterator<Item = f64>) -> Axis {
        let drawable = |x: f64| x == 0.0 || (1e-300..=1e300).contains(&x.abs());
        let usable = |x: &f64| drawable(*x) && (scale == Scale::Linear || *x > 0.0);
        let (low, high) = values
            .into_iter()
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let (low, high) = match scale {
            _ if low > high => (if scale == Scale::Log2 { 0.5 } else { 0.0 }, 1.0),
            Scale::Linear if low == 0.0 && high == 0.0 => (0.0, 1.0),
            Scale::Linear => {
                let (low, high) = (low.min(0.0), high.max(0.0));
                let step = step(low, high);
                ((low / step).floor() * step, (high / step).ceil() * step)
            }
            Scale::Log2 if low == high => (low / 2.0, high * 2.0),
            Scale::Log2 => (low, high),
        };
        Axis { label: label.into(), scale, low, high }
    }

    /// Where `value` lies, from 0 at the start of the axis to 1 at its end.
    pub fn position(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log2 => (value / self.low).log2() / (self.high / self.low).log2(),
        }
    }

    /// Values to mark.
    pub fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.low, self.high);
                let (first, last) = ((self.low / step).round() as i64, (self.high / step).round() as i64);
                (first..=last).map(|i| i as f64 * step).collect()
            }
            Scale::Log2 => {
                let (first, last) = (self.low.log2().ceil() as i32, self.high.log2().floor() as i32);
                (first..=last).map(|exponent| 2f64.powi(exponent)).collect()
            }
        }
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that gives at most [`TICKS`] steps.
fn step(low: f64, high: f64) -> f64 {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

/// A tick's value with a k or M where it is a round number of them.
pub fn label(value: f64) -> String {
    let magnitude = value.abs();
    for (unit, letter) in [(1024.0 * 1024.0, "Mi"), (1024.0, "Ki")] {
        if magnitude >= unit && value % unit == 0.0 {
            return format!("{}{letter}", value / unit);
        }
    }
    // Sums of steps are off by some units in the last place.
    format!("{}", (value * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_starts_at_zero_and_has_round_ticks() {
        let axis = Axis::new("y", Scale::Linear, [37.0, 141.0]);
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0, 160.0]);
        assert_eq!((axis.position(0.0), axis.position(80.0), axis.position(160.0)), (0.0, 0.5, 1.0));
        assert_eq!(Axis::new("y", Scale::Linear, [-3.0, 3.0]).position(0.0), 0.5);
    }

    #[test]
    fn a_logarithmic_axis_marks_powers_of_two() {
        let axis = Axis::new("x", Scale::Log2, [1000.0, 4096.0]);
        assert_eq!(axis.ticks(), [1024.0, 2048.0, 4096.0]);
        assert_eq!(axis.ticks().into_iter().map(label).collect::<Vec<_>>(), ["1Ki", "2Ki", "4Ki"]);
        assert_eq!((axis.position(1000.0), axis.position(4096.0)), (0.0, 1.0));
    }

    #[test]
    fn degenerate_values_still_give_an_axis() {
        for scale in [Scale::Linear, Scale::Log2] {
            for values in [vec![], vec![0.0], vec![f64::NAN, f64::INFINITY], vec![5.0]] {
                let axis = Axis::new("", scale, values.clone());
                assert!(axis.ticks().iter().all(|&x| (0.0..=1.0).contains(&axis.position(x))), "{values:?} {axis:?}");
            }
        }
    }
}
