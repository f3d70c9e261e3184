//! Relations between problems that hold to the last bit, whatever the numerics are: a reference that shared a
//! mistake with a kernel could not hide it here.

use sage_attn::problem::{DType, Smoothing};
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_spec::{Dims, Precision};
use sage_tests::case::Case;
use sage_tests::setup::{Setup, noise, noisy_k, noisy_q, noisy_v};

use crate::device::run;

/// Two query blocks, the second partial; three key blocks, the last partial; a GQA group of 3.
const DIMS: Dims =
    Dims { batch: 2, num_heads_q: 3, num_heads_kv: 1, seqlen_q: 150, seqlen_kv: 170, head_dim: 64, head_dim_v: 64 };

/// One kernel of each kind.
fn stems() -> impl Iterator<Item = Stem> {
    STEMS.into_iter().filter(|stem| match stem.arch {
        Arch::Sm80 => stem.qk == Precision::Int8,
        Arch::Sm89 => stem.qk == Precision::Int4,
        Arch::Sm90a => stem.qk == Precision::Int8,
    })
}

/// Output and LSE, as bits.
#[derive(PartialEq)]
struct Result {
    out: Vec<u32>,
    lse: Vec<u32>,
    head_dim: usize,
}

impl Result {
    fn of(case: &Case) -> Result {
        Result::in_order(case, 3)
    }

    fn in_order(case: &Case, seed: u64) -> Result {
        let outcome = run(case, seed).unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
        let dims = case.problem.dims();
        Result { out: bits(&outcome.out), lse: bits(outcome.lse.as_deref().unwrap_or(&[])), head_dim: dims.head_dim_v }
    }

    /// Bits of row `row`, flattened over batch and heads.
    fn row(&self, row: usize) -> &[u32] {
        &self.out[row * self.head_dim..(row + 1) * self.head_dim]
    }
}

/// Fails unless the results are equal; says which kernel and relation.
fn same(stem: Stem, what: &str, a: &Result, b: &Result) {
    let first = a.out.iter().zip(&b.out).position(|(a, b)| a != b);
    assert!(a.out == b.out, "{}: {what}: element {first:?} differs", stem.name);
    assert!(a.lse == b.lse, "{}: {what}: the LSE differs", stem.name);
}

#[test]
fn the_order_of_threads_and_ctas_does_not_matter() {
    for stem in stems() {
        let case = Setup { causal: true, ..Setup::new(stem, DIMS) }.noisy();
        let first = Result::in_order(&case, 0);
        for seed in 1..6 {
            same(stem, "another order", &first, &Result::in_order(&case, seed));
        }
    }
}

#[test]
fn batch_entries_and_heads_do_not_see_each_other() {
    for stem in stems() {
        let whole = Result::of(&Setup::new(stem, DIMS).noisy());
        let rows = DIMS.num_heads_q * DIMS.seqlen_q;
        for entry in 0..2 {
            let alone = Setup::new(stem, Dims { batch: 1, ..DIMS });
            let shift = |heads: usize| entry * heads;
            let alone = Result::of(&alone.case(
                &|h, n, d| noisy_q(h + shift(3), n, d),
                &|h, n, d| noisy_k(h + shift(1), n, d),
                &|h, n, d| noisy_v(h + shift(1), n, d),
            ));
            let range = entry * rows..(entry + 1) * rows;
            assert!(range.clone().zip(0..).all(|(r, own)| whole.row(r) == alone.row(own)), "{}", stem.name);
            assert!(whole.lse[range] == alone.lse, "{}", stem.name);
        }
        let swapped = Result::of(&Setup::new(stem, DIMS).case(
            &|h, n, d| noisy_q((h + 3) % 6, n, d),
            &|h, n, d| noisy_k(1 - h, n, d),
            &|h, n, d| noisy_v(1 - h, n, d),
        ));
        assert!((0..2 * rows).all(|r| whole.row(r) == swapped.row((r + rows) % (2 * rows))), "{}: swapped", stem.name);
    }
}

#[test]
fn grouped_heads_are_repeated_heads() {
    for stem in stems() {
        let grouped = Result::of(&Setup::new(stem, DIMS).noisy());
        let repeated = Setup::new(stem, Dims { num_heads_kv: 3, ..DIMS });
        let repeated = repeated.case(&noisy_q, &|h, n, d| noisy_k(h / 3, n, d), &|h, n, d| noisy_v(h / 3, n, d));
        same(stem, "repeated K and V", &grouped, &Result::of(&repeated));
    }
}

#[test]
fn two_groups_of_heads_are_repeated_heads() {
    for stem in stems() {
        let dims = Dims { batch: 1, num_heads_q: 6, num_heads_kv: 2, ..DIMS };
        let grouped = Result::of(&Setup::new(stem, dims).noisy());
        let repeated = Setup::new(stem, Dims { num_heads_kv: 6, ..dims });
        let repeated = repeated.case(&noisy_q, &|h, n, d| noisy_k(h / 3, n, d), &|h, n, d| noisy_v(h / 3, n, d));
        same(stem, "repeated K and V", &grouped, &Result::of(&repeated));
    }
}

/// Ratios of query to key/value heads that tiles and warps do not divide, up to the largest in use.
#[test]
fn ratios_of_heads_are_repeated_heads() {
    let stems: Vec<Stem> = stems().collect();
    for (&stem, ratio) in stems.iter().cycle().zip([5, 7, 40]) {
        let dims = Dims { batch: 1, num_heads_q: ratio, num_heads_kv: 1, seqlen_q: 2, seqlen_kv: 3, ..DIMS };
        let grouped = Result::of(&Setup::new(stem, dims).noisy());
        let repeated = Setup::new(stem, Dims { num_heads_kv: ratio, ..dims });
        let repeated = repeated.case(&noisy_q, &|_, n, d| noisy_k(0, n, d), &|_, n, d| noisy_v(0, n, d));
        same(stem, "repeated K and V", &grouped, &Result::of(&repeated));
    }
}

#[test]
fn layouts_and_types_do_not_matter() {
    for stem in stems() {
        let plain = Setup::new(stem, DIMS);
        let expected = Result::of(&plain.noisy());
        same(stem, "NHD", &expected, &Result::of(&Setup { nhd: true, ..plain }.noisy()));
        same(stem, "aligned rows with gaps", &expected, &Result::of(&Setup { row_gap: 8, ..plain }.noisy()));
        same(stem, "rows at odd places", &expected, &Result::of(&Setup { row_gap: 3, nhd: true, ..plain }.noisy()));
        // The sums of two f16 need not be f16: values that are.
        let case = |setup: Setup| setup.case(&|h, n, d| noise(1, h, n, d), &|h, n, d| noise(2, h, n, d), &noisy_v);
        let half = Setup { dtype: DType::F16, ..plain };
        same(stem, "f16 inputs", &Result::of(&case(plain)), &Result::of(&case(half)));
    }
}

#[test]
fn the_output_type_only_rounds_and_the_lse_changes_nothing() {
    for stem in stems() {
        let plain = Setup::new(stem, DIMS);
        let full = Result::of(&plain.noisy());
        let half = Result::of(&Setup { out_dtype: DType::F16, ..plain }.noisy());
        let round = |bits: &u32| half::f16::from_f32(f32::from_bits(*bits)).to_f32().to_bits();
        assert!(full.out.iter().map(round).eq(half.out.iter().copied()), "{}: f16 output", stem.name);
        let without = Result::of(&Setup { return_lse: false, ..plain }.noisy());
        assert!(full.out == without.out, "{}: without LSE", stem.name);
    }
}

#[test]
fn powers_of_two_pass_through() {
    for stem in stems() {
        let plain = Setup::new(stem, DIMS);
        let expected = Result::of(&plain.noisy());
        let times =
            |x: &[u32], factor: f32| x.iter().map(|x| (f32::from_bits(*x) * factor).to_bits()).collect::<Vec<_>>();
        // FP16 V is not scaled; powers of two round alike there too, short of overflow.
        let v = Result::of(&plain.case(&noisy_q, &noisy_k, &|h, n, d| 4.0 * noisy_v(h, n, d)));
        assert!(v.out == times(&expected.out, 4.0) && v.lse == expected.lse, "{}: 4 V", stem.name);
        let negative = Result::of(&plain.case(&noisy_q, &noisy_k, &|h, n, d| -noisy_v(h, n, d)));
        assert!(negative.out == times(&expected.out, -1.0), "{}: -V", stem.name);
        let scaled = Setup { sm_scale: plain.sm_scale / 8.0, ..plain };
        let q = scaled.case(&|h, n, d| 8.0 * noisy_q(h, n, d), &noisy_k, &noisy_v);
        same(stem, "8 Q", &expected, &Result::of(&q));
        let k = scaled.case(&noisy_q, &|h, n, d| 8.0 * noisy_k(h, n, d), &noisy_v);
        same(stem, "8 K", &expected, &Result::of(&k));
    }
}

#[test]
fn query_blocks_do_not_see_each_other() {
    for stem in stems() {
        let one = Dims { batch: 1, num_heads_q: 1, num_heads_kv: 1, seqlen_q: 128, ..DIMS };
        let two = Dims { seqlen_q: 150, ..one };
        let (one, two) = (Result::of(&Setup::new(stem, one).noisy()), Result::of(&Setup::new(stem, two).noisy()));
        assert!((0..128).all(|row| one.row(row) == two.row(row)), "{}", stem.name);
        assert!(one.lse[..] == two.lse[..128], "{}", stem.name);
    }
}

#[test]
fn zero_features_are_padding() {
    for stem in stems() {
        let narrow = Dims { batch: 1, head_dim: 52, head_dim_v: 52, ..DIMS };
        let pad = |f: fn(usize, usize, usize) -> f32| move |h, n, d| if d < 52 { f(h, n, d) } else { 0.0 };
        let narrow = Result::of(&Setup::new(stem, narrow).noisy());
        let wide = Setup::new(stem, Dims { batch: 1, ..DIMS });
        let wide = Result::of(&wide.case(&pad(noisy_q), &pad(noisy_k), &pad(noisy_v)));
        let rows = DIMS.num_heads_q * DIMS.seqlen_q;
        assert!((0..rows).all(|row| narrow.row(row) == &wide.row(row)[..52]), "{}", stem.name);
        assert!(narrow.lse == wide.lse, "{}", stem.name);
    }
}

/// Features that do not exist are zeros, and each part of V's channels is what it is by itself.
#[test]
fn wide_heads_are_made_of_their_parts() {
    for stem in stems().filter(|stem| stem.arch != Arch::Sm90a) {
        let rows = DIMS.num_heads_q * DIMS.seqlen_q;
        let of = |head_dim, head_dim_v, v: &dyn Fn(usize, usize, usize) -> f32| {
            let dims = Dims { batch: 1, head_dim, head_dim_v, ..DIMS };
            let setup = Setup { dtype: DType::BF16, ..Setup::new(stem, dims) };
            let cut = |f: fn(usize, usize, usize) -> f32| move |h, n, d| if d < 160 { f(h, n, d) } else { 0.0 };
            Result::of(&setup.case(&cut(noisy_q), &cut(noisy_k), v))
        };
        let whole = of(256, 256, &noisy_v);
        let second = |head: usize, token: usize, channel: usize| noisy_v(head, token, channel + 128);
        for (what, part, first) in [
            ("features", of(160, 256, &noisy_v), 0),
            ("channels", of(160, 200, &noisy_v), 0),
            ("the first part", of(256, 128, &noisy_v), 0),
            ("the second part", of(160, 128, &second), 128),
            ("a few of the second part", of(200, 9, &second), 128),
        ] {
            let range = first..first + part.head_dim;
            assert!((0..rows).all(|row| part.row(row) == &whole.row(row)[range.clone()]), "{}: {what}", stem.name);
            assert!(part.lse == whole.lse, "{}: {what}", stem.name);
        }
    }
}

#[test]
fn one_query_sees_every_key_causal_or_not() {
    for stem in stems() {
        let setup = Setup::new(stem, Dims { seqlen_q: 1, ..DIMS });
        let (all, causal) = (setup.noisy(), Setup { causal: true, ..setup }.noisy());
        same(stem, "causal", &Result::of(&all), &Result::of(&causal));
    }
}

#[test]
fn one_visible_key_returns_its_value_and_none_returns_zero() {
    for stem in stems() {
        // Causal with one key fewer than queries: row 0 sees none, row 1 the first.
        let dims = Dims { batch: 1, seqlen_q: 3, seqlen_kv: 2, ..DIMS };
        let plain = Smoothing { q: false, k: false, v: false };
        let setup = Setup { causal: true, smoothing: plain, ..Setup::new(stem, dims) };
        // V of codes that both formats hold exactly.
        let case = setup.case(&noisy_q, &noisy_k, &|_, n, d| if n == 0 { 448.0 } else { [1.0, -2.0, 3.5][d % 3] });
        let result = Result::of(&case);
        for head in 0..3 {
            assert!(result.row(head * 3).iter().all(|&x| x == 0), "{}", stem.name);
            assert_eq!(result.lse[head * 3], f32::NEG_INFINITY.to_bits());
            // P and its sum cancel, up to the reciprocal's last bit.
            let is_value = |&x: &u32| (f32::from_bits(x) / 448.0 - 1.0).abs() <= 2.4e-7;
            assert!(result.row(head * 3 + 1).iter().all(is_value), "{}", stem.name);
        }
    }
}

/// Every key twice: weights halve, and the log of their sum grows by ln 2. Not to the last bit: weights are
/// rounded relative to the largest score so far.
#[test]
fn keys_given_twice_change_only_the_lse() {
    for stem in stems() {
        let dims = Dims { batch: 1, seqlen_q: 40, seqlen_kv: 128, ..DIMS };
        let plain = Smoothing { q: false, k: false, v: false };
        let setup = |seqlen_kv| Setup { smoothing: plain, ..Setup::new(stem, Dims { seqlen_kv, ..dims }) };
        let once = Result::of(&setup(128).noisy());
        let case = setup(256).case(&noisy_q, &|h, n, d| noisy_k(h, n % 128, d), &|h, n, d| noisy_v(h, n % 128, d));
        let twice = Result::of(&case);
        for (a, b) in once.lse.iter().zip(&twice.lse) {
            let growth = f32::from_bits(*b) - f32::from_bits(*a);
            assert!((growth - std::f32::consts::LN_2).abs() < 0.04, "{}: {growth}", stem.name);
        }
        for row in 0..3 * 40 {
            let value = |x: &u32| f64::from(f32::from_bits(*x));
            let pairs = || once.row(row).iter().map(value).zip(twice.row(row).iter().map(value));
            let (error, size) =
                pairs().fold((0.0, 0.0), |(error, size), (a, b)| (error + (a - b).abs(), size + a.abs()));
            assert!(error < 0.1 * size, "{}: row {row} moves by {}", stem.name, error / size);
        }
    }
}
