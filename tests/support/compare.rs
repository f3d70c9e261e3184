//! Comparison of an output with its reference, row by row and element by element.
//!
//! A global norm hides one wrong row in a thousand, and `|a − b| > eps` lets NaN pass. Here every value
//! must be finite, every element within a fraction of its row's largest magnitude, and every row within
//! a relative L1 distance.

use std::fmt;

/// How far an output may be from its reference.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Largest error of an element, as a fraction of the largest magnitude in its reference row.
    pub element: f64,
    /// Largest `Σ|actual − reference| / Σ|reference|` of a row.
    pub row_l1: f64,
}

/// Why a comparison fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The lengths differ or are not whole rows.
    Length {
        /// Elements compared.
        actual: usize,
        /// Elements to compare with.
        reference: usize,
        /// Elements of a row.
        row_len: usize,
    },
    /// A value, of either side, is NaN or infinite.
    NotFinite {
        /// Its row.
        row: usize,
        /// Its position in the row.
        column: usize,
        /// The output's value.
        actual: f64,
        /// The reference's value.
        reference: f64,
    },
    /// An element is too far off.
    Element {
        /// Its row.
        row: usize,
        /// Its position in the row.
        column: usize,
        /// The output's value.
        actual: f64,
        /// The reference's value.
        reference: f64,
        /// Largest error allowed.
        allowed: f64,
    },
    /// A row is too far off.
    Row {
        /// Its index.
        row: usize,
        /// Its relative L1 distance.
        rel_l1: f64,
        /// Largest distance allowed.
        allowed: f64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Mismatch {}

/// Compares `actual` with `reference`, both `[rows, row_len]`. A reference row of zeros (a query that
/// sees no key) must be matched exactly.
pub fn compare_rows(actual: &[f32], reference: &[f64], row_len: usize, bounds: Bounds) -> Result<(), Mismatch> {
    let whole = row_len > 0 && actual.len().is_multiple_of(row_len);
    if actual.len() != reference.len() || !whole && !actual.is_empty() {
        return Err(Mismatch::Length { actual: actual.len(), reference: reference.len(), row_len });
    }
    let rows = actual.chunks_exact(row_len.max(1)).zip(reference.chunks_exact(row_len.max(1)));
    rows.enumerate().try_for_each(|(row, (actual, reference))| compare_row(row, actual, reference, bounds))
}

fn compare_row(row: usize, actual: &[f32], reference: &[f64], bounds: Bounds) -> Result<(), Mismatch> {
    let pairs = || actual.iter().map(|&a| f64::from(a)).zip(reference.iter().copied()).enumerate();
    for (column, (actual, reference)) in pairs() {
        if !actual.is_finite() || !reference.is_finite() {
            return Err(Mismatch::NotFinite { row, column, actual, reference });
        }
    }
    let largest = reference.iter().fold(0.0f64, |max, r| max.max(r.abs()));
    let allowed = bounds.element * largest;
    let (mut error, mut total) = (0.0, 0.0);
    for (column, (actual, reference)) in pairs() {
        if (actual - reference).abs() > allowed {
            return Err(Mismatch::Element { row, column, actual, reference, allowed });
        }
        error += (actual - reference).abs();
        total += reference.abs();
    }
    if error > bounds.row_l1 * total {
        return Err(Mismatch::Row { row, rel_l1: error / total, allowed: bounds.row_l1 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { element: 0.1, row_l1: 0.02 };
    const ROW: usize = 64;

    fn reference() -> Vec<f64> {
        (0..8 * ROW).map(|i| ((i * 37 % 101) as f64 - 50.0) / 25.0).collect()
    }

    /// The verdict on the reference itself after `change`.
    fn verdict(change: impl Fn(&mut [f32])) -> Result<(), Mismatch> {
        let reference = reference();
        let mut actual: Vec<f32> = reference.iter().map(|&x| x as f32).collect();
        change(&mut actual);
        compare_rows(&actual, &reference, ROW, BOUNDS)
    }

    #[test]
    fn equal_and_nearly_equal_pass() {
        assert_eq!(verdict(|_| ()), Ok(()));
        assert_eq!(verdict(|x| x.iter_mut().for_each(|x| *x *= 1.01)), Ok(()));
    }

    #[test]
    fn nan_and_infinity_fail() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(verdict(|x| x[130] = bad), Err(Mismatch::NotFinite { row: 2, column: 2, .. })));
        }
        let nan_reference = compare_rows(&[0.0], &[f64::NAN], 1, BOUNDS);
        assert!(matches!(nan_reference, Err(Mismatch::NotFinite { .. })));
    }

    #[test]
    fn one_wrong_element_fails() {
        assert!(matches!(verdict(|x| x[200] += 0.5), Err(Mismatch::Element { row: 3, column: 8, .. })));
    }

    #[test]
    fn one_wrong_row_fails_though_each_element_is_near() {
        let shift = |x: &mut [f32]| x[5 * ROW..6 * ROW].iter_mut().for_each(|x| *x += 0.1);
        assert!(matches!(verdict(shift), Err(Mismatch::Row { row: 5, .. })));
    }

    #[test]
    fn swapped_rows_fail() {
        let swap = |x: &mut [f32]| {
            let (a, b) = x.split_at_mut(ROW);
            a.swap_with_slice(&mut b[..ROW]);
        };
        assert!(verdict(swap).is_err());
    }

    #[test]
    fn zeros_fail_and_a_zero_row_must_be_zero() {
        assert!(verdict(|x| x.fill(0.0)).is_err());
        assert_eq!(compare_rows(&[0.0; 4], &[0.0; 4], 4, BOUNDS), Ok(()));
        assert!(compare_rows(&[0.0, 1e-30, 0.0, 0.0], &[0.0; 4], 4, BOUNDS).is_err());
    }

    #[test]
    fn missing_elements_fail() {
        assert!(matches!(compare_rows(&[1.0], &[1.0, 1.0], 1, BOUNDS), Err(Mismatch::Length { .. })));
        assert!(matches!(compare_rows(&[1.0; 3], &[1.0; 3], 2, BOUNDS), Err(Mismatch::Length { .. })));
        assert_eq!(compare_rows(&[], &[], 64, BOUNDS), Ok(()));
    }
}
