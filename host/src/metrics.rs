//! Error metrics between an output and its reference.

use serde::Serialize;

/// How far an output is from its reference. NaN in the output makes every figure NaN.
///
/// ```
/// use sage_attn::metrics::Metrics;
/// let metrics = Metrics::compare(&[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 3.0, 4.0], 2);
/// assert_eq!((metrics.rel_l1, metrics.max_abs, metrics.worst_row), (0.1, 1.0, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Cosine of the angle between the two, as flat vectors.
    pub cosine: f64,
    /// `Σ|actual − reference| / Σ|reference|`, the paper's relative L1.
    pub rel_l1: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Largest absolute error.
    pub max_abs: f64,
    /// Largest relative L1 of a row: a global figure hides one bad row in a thousand.
    pub worst_row_rel_l1: f64,
    /// Index of that row, or of the first one that is not finite.
    pub worst_row: usize,
}

impl Metrics {
    /// Compares `actual` with `reference`, both `[rows, row_len]`.
    ///
    /// Where the reference is all zero (a row that sees no key), an exact answer counts as perfect:
    /// relative L1 0, cosine 1; anything else counts as infinitely wrong: relative L1 +inf, cosine 0.
    /// Empty inputs are perfect. A value that is not finite, in either input, makes every figure NaN,
    /// so no threshold passes it.
    ///
    /// # Panics
    ///
    /// If the lengths differ or are not a multiple of `row_len`.
    pub fn compare(actual: &[f32], reference: &[f64], row_len: usize) -> Metrics {
        assert_eq!(actual.len(), reference.len(), "outputs of different sizes");
        assert!(actual.is_empty() || actual.len().is_multiple_of(row_len), "not whole rows of {row_len}");
        let mut total = Sums::default();
        let mut worst = (0.0, 0);
        let rows = actual.chunks(row_len.max(1)).zip(reference.chunks(row_len.max(1)));
        for (index, (actual, reference)) in rows.enumerate() {
            let row = Sums::of(actual, reference);
            if !row.is_finite() {
                return Metrics::nan(index);
            }
            if row.rel_l1() > worst.0 {
                worst = (row.rel_l1(), index);
            }
            total.add(&row);
        }
        Metrics {
            cosine: total.cosine(),
            rel_l1: total.rel_l1(),
            rmse: (total.squared_error / actual.len().max(1) as f64).sqrt(),
            max_abs: total.max_abs,
            worst_row_rel_l1: worst.0,
            worst_row: worst.1,
        }
    }

    fn nan(worst_row: usize) -> Metrics {
        let nan = f64::NAN;
        Metrics { cosine: nan, rel_l1: nan, rmse: nan, max_abs: nan, worst_row_rel_l1: nan, worst_row }
    }
}

/// What the metrics are made of.
#[derive(Default)]
struct Sums {
    product: f64,
    actual_squared: f64,
    reference_squared: f64,
    error: f64,
    reference: f64,
    squared_error: f64,
    max_abs: f64,
}

impl Sums {
    fn of(actual: &[f32], reference: &[f64]) -> Sums {
        let mut sums = Sums::default();
        for (&a, &r) in actual.iter().zip(reference) {
            let a = f64::from(a);
            let error = (a - r).abs();
            sums.add(&Sums {
                product: a * r,
                actual_squared: a * a,
                reference_squared: r * r,
                error,
                reference: r.abs(),
                squared_error: error * error,
                max_abs: error,
            });
        }
        sums
    }

    fn add(&mut self, other: &Sums) {
        self.product += other.product;
        self.actual_squared += other.actual_squared;
        self.reference_squared += other.reference_squared;
        self.error += other.error;
        self.reference += other.reference;
        self.squared_error += other.squared_error;
        self.max_abs = self.max_abs.max(other.max_abs);
    }

    /// `error` is not finite if any value is not.
    fn is_finite(&self) -> bool {
        self.error.is_finite()
    }

    fn rel_l1(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.reference }
    }

    fn cosine(&self) -> f64 {
        if self.actual_squared == 0.0 && self.reference_squared == 0.0 {
            return 1.0;
        }
        let norms = self.actual_squared.sqrt() * self.reference_squared.sqrt();
        if norms == 0.0 { 0.0 } else { self.product / norms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_is_perfect() {
        let m = Metrics::compare(&[1.0, -2.0, 0.0, 0.0], &[1.0, -2.0, 0.0, 0.0], 2);
        assert!((m.cosine - 1.0).abs() < 1e-12);
        assert_eq!((m.rel_l1, m.rmse, m.max_abs, m.worst_row_rel_l1), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(Metrics::compare(&[], &[], 4).cosine, 1.0);
    }

    #[test]
    fn figures_are_the_definitions() {
        let m = Metrics::compare(&[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 3.0, 4.0], 2);
        assert_eq!(m.rel_l1, 0.1);
        assert_eq!((m.rmse, m.max_abs), (0.5, 1.0));
        assert_eq!((m.worst_row, m.worst_row_rel_l1), (1, 1.0 / 7.0));
        assert!((m.cosine - 34.0 / (39f64.sqrt() * 30f64.sqrt())).abs() < 1e-12);
    }

    #[test]
    fn not_finite_never_passes() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let m = Metrics::compare(&[1.0, 2.0, bad, 4.0], &[1.0, 2.0, 3.0, 4.0], 2);
            assert_eq!(m.worst_row, 1);
            for figure in [m.cosine, m.rel_l1, m.rmse, m.max_abs, m.worst_row_rel_l1] {
                assert!(figure.is_nan());
            }
        }
    }

    #[test]
    fn zero_rows() {
        let m = Metrics::compare(&[1.0, 1.0, 1e-9, 0.0], &[1.0, 1.0, 0.0, 0.0], 2);
        assert_eq!((m.worst_row, m.worst_row_rel_l1), (1, f64::INFINITY));
        let m = Metrics::compare(&[0.0, 0.0], &[1.0, 1.0], 2);
        assert_eq!((m.cosine, m.rel_l1), (0.0, 1.0));
    }
}
