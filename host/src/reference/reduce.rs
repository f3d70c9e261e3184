//! Sums in the order of [`sage_spec::reduce`], and NaN-propagating extrema.

use sage_spec::limits::MAX_HEAD_DIM;
use sage_spec::reduce::FEATURES_PER_THREAD;

/// One f32 per feature; zero beyond the head dimension.
pub type Row = [f32; MAX_HEAD_DIM];

/// A strided-lane sum over `LANES` lanes, one for every feature.
pub struct LaneSum<const LANES: usize> {
    lanes: [Row; LANES],
}

impl<const LANES: usize> LaneSum<LANES> {
    pub fn new() -> Self {
        LaneSum { lanes: [[0.0; MAX_HEAD_DIM]; LANES] }
    }

    /// Adds value number `index`; indices come in ascending order.
    pub fn add(&mut self, index: usize, value: &Row) {
        self.add_to(index % LANES, value);
    }

    /// Adds a value to `lane`.
    pub fn add_to(&mut self, lane: usize, value: &Row) {
        add_row(&mut self.lanes[lane], value);
    }

    /// Adds the lanes pairwise.
    pub fn finish(mut self) -> Row {
        let mut half = LANES / 2;
        while half > 0 {
            let (low, high) = self.lanes.split_at_mut(half);
            low.iter_mut().zip(&*high).for_each(|(low, high)| add_row(low, high));
            half /= 2;
        }
        self.lanes[0]
    }
}

fn add_row(sum: &mut Row, value: &Row) {
    sum.iter_mut().zip(value).for_each(|(sum, x)| *sum += x);
}

/// Sum over the features of a row: every thread adds its [`FEATURES_PER_THREAD`] `term`s in order,
/// then the `head_dim_padded / 8` threads of the row add theirs in a butterfly (`shfl.bfly`).
pub fn feature_sum(head_dim_padded: usize, term: impl Fn(usize) -> f32) -> f32 {
    let threads = head_dim_padded / FEATURES_PER_THREAD;
    let mut parts = [0.0; MAX_HEAD_DIM / FEATURES_PER_THREAD];
    for (thread, part) in parts[..threads].iter_mut().enumerate() {
        *part = (0..FEATURES_PER_THREAD).fold(0.0, |part, feature| part + term(thread * FEATURES_PER_THREAD + feature));
    }
    let mut distance = threads / 2;
    while distance > 0 {
        parts = std::array::from_fn(|thread| parts[thread] + parts[thread ^ distance]);
        distance /= 2;
    }
    parts[0]
}

/// The larger of two numbers; NaN if either is.
#[inline(always)]
pub fn max_or_nan(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller of two numbers; NaN if either is.
#[inline(always)]
pub fn min_or_nan(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(x: f32) -> Row {
        [x; MAX_HEAD_DIM]
    }

    /// 1 is lost beside 2²⁵, so the sum tells in which order it was made.
    #[test]
    fn lanes_are_strided_and_added_in_halves() {
        const BIG: f32 = 33_554_432.0;
        let mut sum = LaneSum::<4>::new();
        // Lane 0: 2²⁵ then −2²⁵ (indices 0, 4); lane 2: 1; lane 1: 1.
        for (index, x) in [BIG, 1.0, 1.0, 0.0, -BIG].into_iter().enumerate() {
            sum.add(index, &row(x));
        }
        assert_eq!(sum.finish(), row(2.0));

        let mut sum = LaneSum::<4>::new();
        // Lanes (2²⁵, 1, 1, −2²⁵): lane 0 + 2 loses a 1, lane 1 + 3 loses the other one.
        for (index, x) in [BIG, 1.0, 1.0, -BIG].into_iter().enumerate() {
            sum.add(index, &row(x));
        }
        assert_eq!(sum.finish(), row(0.0));
    }

    #[test]
    fn feature_sum_is_sequential_within_a_thread_then_a_butterfly() {
        const BIG: f32 = 33_554_432.0;
        for head_dim in [64, 128, 256] {
            assert_eq!(feature_sum(head_dim, |_| 1.0), head_dim as f32);
        }
        // In one thread 1 is lost between 2²⁵ and −2²⁵; in two neighbouring ones it is not.
        let sum_of =
            |terms: [(usize, f32); 3]| feature_sum(64, |d| terms.iter().find(|(at, _)| *at == d).map_or(0.0, |t| t.1));
        assert_eq!(sum_of([(0, BIG), (1, 1.0), (2, -BIG)]), 0.0);
        assert_eq!(sum_of([(0, BIG), (1, -BIG), (9, 1.0)]), 1.0);
        // Threads 0 and 4 meet first (distance 4), then 0 and 2.
        assert_eq!(sum_of([(0, BIG), (32, -BIG), (16, 1.0)]), 1.0);
        assert_eq!(sum_of([(0, BIG), (32, 1.0), (16, -BIG)]), 0.0);
    }

    #[test]
    fn extrema_keep_nan() {
        assert_eq!((max_or_nan(1.0, 2.0), min_or_nan(1.0, 2.0)), (2.0, 1.0));
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(max_or_nan(a, b).is_nan() && min_or_nan(a, b).is_nan());
        }
    }
}
