//! Lines of `docs/contract.md` that nothing else tests through the public interface: what is not a number, what is
//! zero, what is empty, and strides that are never used.

use sage_attn::error::{Error, Invalid, Operand};
use sage_attn::problem::Sequences;
use sage_attn::{Attention, DType, Device, Layout, Output, Precision, SideInputs, Smoothing, Tensor, TensorView};
use sage_tests::generate::Random;

const PRECISIONS: [Precision; 3] = [Precision::Exact, Precision::Int8, Precision::Int4];

/// Batch, query heads, key/value heads, queries, keys, features.
const B: usize = 2;
const HQ: usize = 4;
const HKV: usize = 2;
const M: usize = 70;
const N: usize = 90;
const D: usize = 40;

fn attend(attention: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Output {
    let q = TensorView::new(q, &[B, HQ, M, D], Layout::Hnd).unwrap();
    let [k, v] = [k, v].map(|x| TensorView::new(x, &[B, HKV, N, D], Layout::Hnd).unwrap());
    attention.clone().device(Device::Cpu).return_lse(true).forward(&q, &k, &v).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn what_is_not_finite_is_not_dropped_and_stays_in_its_head() {
    let mut random = Random(11);
    let q = random.normals(B * HQ * M * D);
    let [k, v] = [0; 2].map(|_| random.normals(B * HKV * N * D));
    for precision in PRECISIONS {
        let attention = Attention::new().precision(precision);
        let clean = attend(&attention, &q, &k, &v).out.to_f32();
        for (bad, which, head_kv) in [
            (f32::NAN, 1, 0),
            (f32::NAN, 2, 3),
            (f32::INFINITY, 1, 2),
            (f32::NEG_INFINITY, 2, 1),
            (f32::INFINITY, 2, 3),
        ] {
            let mut tensors = [q.clone(), k.clone(), v.clone()];
            tensors[which][head_kv * N * D + 33 * D + 7] = bad;
            let out = attend(&attention, &tensors[0], &tensors[1], &tensors[2]).out.to_f32();
            for (head, (rows, clean)) in out.chunks(M * D).zip(clean.chunks(M * D)).enumerate() {
                let what = format!("{precision:?}, {bad} in tensor {which}, query head {head}");
                if head / (HQ / HKV) == head_kv {
                    let reached = rows.chunks(D).filter(|row| row.iter().any(|x| !x.is_finite())).count();
                    // Without shared scales an infinite key hides from the rows whose product with it is −∞.
                    let hides = precision == Precision::Exact && which == 1 && bad.is_infinite();
                    assert!(reached == M || hides && reached > 0, "{what}: {reached} rows");
                } else {
                    assert_eq!(bits(rows), bits(clean), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_query_that_is_not_finite_reaches_its_row_and_no_other_block() {
    let mut random = Random(12);
    let q = random.normals(B * HQ * M * D);
    let [k, v] = [0; 2].map(|_| random.normals(B * HKV * N * D));
    for precision in PRECISIONS {
        let attention = Attention::new().precision(precision);
        let clean = attend(&attention, &q, &k, &v).out.to_f32();
        for bad in [f32::NAN, f32::INFINITY] {
            let (head, row) = (5, 3);
            let mut poisoned = q.clone();
            poisoned[(head * M + row) * D + 1] = bad;
            let out = attend(&attention, &poisoned, &k, &v).out.to_f32();
            let at = (head * M + row) * D;
            assert!(out[at..at + D].iter().any(|x| !x.is_finite()), "{precision:?} {bad}");
            let (before, after) = (head * M * D, (head + 1) * M * D);
            assert_eq!(bits(&out[..before]), bits(&clean[..before]), "{precision:?} {bad}");
            assert_eq!(bits(&out[after..]), bits(&clean[after..]), "{precision:?} {bad}");
        }
    }
}

#[test]
fn zeros_give_zeros_and_weigh_alike() {
    let mut random = Random(13);
    let q = random.normals(B * HQ * M * D);
    let values = random.normals(B * HKV * N * D);
    let zeros = vec![0.0; B * HKV * N * D];
    for precision in PRECISIONS {
        for smoothing in [None, Some(Smoothing::NONE), Some(Smoothing { q: true, k: true, v: true })] {
            let mut attention = Attention::new().precision(precision);
            if let Some(smoothing) = smoothing {
                attention = attention.smoothing(smoothing);
            }
            // Zero values: exactly zero.
            let out = attend(&attention, &q, &values, &zeros).out.to_f32();
            assert!(out.iter().all(|&x| x == 0.0), "{precision:?} {smoothing:?}");
            // Zero keys: every key weighs the same, and the log-sum-exp is ln N.
            let output = attend(&attention, &q, &zeros, &values);
            let lse = output.lse.unwrap();
            let (first, exact) = (lse[0], (N as f32).ln());
            assert!(lse.iter().all(|&x| (x - exact).abs() < 1e-5 && x == first), "{precision:?} {first} {exact}");
            for (head, rows) in output.out.to_f32().chunks(M * D).enumerate() {
                assert!(rows.chunks(D).all(|row| bits(row) == bits(&rows[..D])), "{precision:?} {head}");
            }
            // One channel of zeros: exactly zero, and nothing else changed its place.
            let mut channel = values.clone();
            channel.iter_mut().skip(7).step_by(D).for_each(|x| *x = 0.0);
            let out = attend(&attention, &q, &values, &channel).out.to_f32();
            assert!(out.iter().skip(7).step_by(D).all(|&x| x == 0.0), "{precision:?} {smoothing:?}");
            assert!(out.iter().skip(8).step_by(D).all(|&x| x != 0.0), "{precision:?} {smoothing:?}");
        }
    }
}

#[test]
fn empty_problems_may_have_any_other_extents() {
    let huge = 1usize << 40;
    let none: [f32; 0] = [];
    for (q, kv) in [
        ([huge, huge, 0, 8], [huge, huge, 5, 8]),
        ([0, huge, huge / 1024, 8], [0, huge, 5, 8]),
        ([huge, 0, 3, 8], [huge, huge, 0, 8]),
        ([usize::MAX, usize::MAX, 0, 128], [usize::MAX, 1, 0, 128]),
    ] {
        let q = TensorView::new(&none, &q, Layout::Strides([1, 1, 1, 1]));
        let kv = TensorView::new(&none, &kv, Layout::Strides([1, 1, 1, 1]));
        let (Ok(q), Ok(kv)) = (q, kv) else { continue };
        for precision in PRECISIONS {
            let attention = Attention::new().precision(precision).device(Device::Cpu).return_lse(true);
            match attention.forward(&q, &kv, &kv) {
                Ok(output) => {
                    assert!(output.out.to_f32().is_empty());
                    assert_eq!(output.lse, Some(vec![]));
                }
                // Sequences are bounded whether or not there is a head.
                Err(error) => assert!(matches!(error, Error::Unsupported(_)), "{error}"),
            }
        }
    }
}

#[test]
fn an_empty_problem_of_huge_extents_is_computed() {
    let none: [f32; 0] = [];
    let shape = [1 << 40, 1 << 40, 0, 8];
    let view = TensorView::new(&none, &shape, Layout::Hnd).unwrap();
    let output = Attention::new().device(Device::Cpu).return_lse(true).forward(&view, &view, &view).unwrap();
    assert_eq!((output.out.shape(), output.lse), (shape, Some(vec![])));
    let heads = TensorView::new(&none, &[0, usize::MAX, 3, 8], Layout::Strides([1, 1, 1, 1])).unwrap();
    let output = Attention::new().device(Device::Cpu).forward(&heads, &heads, &heads).unwrap();
    assert!(output.out.to_f32().is_empty());
}

#[test]
fn a_stride_that_is_never_used_may_be_anything() {
    let mut random = Random(14);
    let x = random.normals(2 * 8);
    let dense = TensorView::new(&x, &[1, 2, 1, 8], Layout::Hnd).unwrap();
    let attention = Attention::new().device(Device::Cpu);
    let expected = attention.forward(&dense, &dense, &dense).unwrap().out;
    // One sequence of one token, then one of none: what begins after the last token is nothing.
    let sequences = Sequences::new(&[0, 1, 1], &[0, 1, 1]).unwrap();
    for unused in [i64::MIN, -3, 0, 1, i64::MAX] {
        let view = TensorView::new(&x, &[1, 2, 1, 8], Layout::Strides([unused, 8, unused, 1])).unwrap();
        assert_eq!(attention.forward(&view, &view, &view).unwrap().out, expected, "{unused}");
        let side = SideInputs::new().sequences(&sequences);
        assert_eq!(attention.forward_with(&view, &view, &view, &side).unwrap().out, expected, "{unused}, packed");
    }
}

#[test]
fn nothing_is_copied_behind_the_back_of_a_caller_with_odd_strides() {
    // What cannot be read as it lies is refused: the caller is the one to copy.
    let x = vec![0.0f32; 4 * 8 * 2];
    for strides in [[64, 16, 2, 2], [64, 1, 4, 1], [-64, 8, 16, 1]] {
        let shape = if strides[0] < 0 { [2, 2, 4, 8] } else { [1, 2, 4, 8] };
        let error = TensorView::new(&x, &shape, Layout::Strides(strides)).unwrap_err();
        assert!(matches!(
            error,
            Error::Invalid(
                Invalid::FeatureStride { .. } | Invalid::StrideBelowRow { .. } | Invalid::NegativeStride { .. }
            )
        ));
    }
}

#[test]
fn memory_that_there_is_not_is_an_error_that_names_it() {
    let bytes = 1usize << 52;
    let error = Tensor::zeros(DType::F32, [1, 1, bytes / 4, 1]).unwrap_err();
    assert_eq!(error, sage_attn::error::DeviceError::HostMemory { bytes }.into());
    let error = Tensor::zeros(DType::F32, [usize::MAX, 2, 2, 2]).unwrap_err();
    let shape = [usize::MAX, 2, 2, 2];
    assert_eq!(error, Invalid::ElementsOverflow { tensor: Operand::Out, shape }.into());
}
