//! The merge kernel against the CPU, for every type, with and without vector loads.

use half::{bf16, f16};
use sage_attn::device::{DeviceTensor, MergeArgs};
use sage_attn::error::Operand;
use sage_attn::problem::TensorSpec;
use sage_attn::{DType, Element, Layout, TensorView, merge};
use sage_tests::generate::Random;
use serde_json::json;

use sage_tests::judge::f32s;

use crate::harness::{Buffer, gpu, record};

const TYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// Values rounded to a type, as f32 and as bytes.
fn rounded(values: &[f32], dtype: DType) -> (Vec<f32>, Vec<u8>) {
    match dtype {
        DType::F16 => values.iter().map(|&x| f16::from_f32(x)).map(|x| (x.to_f32(), x.to_le_bytes())).fold_pairs(),
        DType::BF16 => values.iter().map(|&x| bf16::from_f32(x)).map(|x| (x.to_f32(), x.to_le_bytes())).fold_pairs(),
        DType::F32 => values.iter().map(|&x| (x, x.to_le_bytes())).fold_pairs(),
    }
}

trait FoldPairs {
    fn fold_pairs(self) -> (Vec<f32>, Vec<u8>);
}

impl<const N: usize, I: Iterator<Item = (f32, [u8; N])>> FoldPairs for I {
    fn fold_pairs(self) -> (Vec<f32>, Vec<u8>) {
        let (values, bytes): (Vec<f32>, Vec<[u8; N]>) = self.unzip();
        (values, bytes.concat())
    }
}

/// Elements of a type, as f32.
fn widen(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F32 => f32s(bytes),
    }
}

fn view<T: Element>(x: &[T], shape: [usize; 4]) -> TensorView<'_> {
    TensorView::new(x, &shape, Layout::Hnd).expect("a view")
}

#[test]
fn merging_on_the_gpu_is_merging_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let stream = gpu.context().new_stream().expect("stream");
    let mut random = Random(11);
    let (mut cases, mut worst, mut worst_lse) = (0, 0.0f64, 0.0f64);
    for head_dim in [1, 7, 8, 64, 72, 128, 200, 256, 520] {
        for (dtype1, dtype2, out_dtype) in
            TYPES.iter().flat_map(|&a| TYPES.iter().flat_map(move |&b| TYPES.iter().map(move |&c| (a, b, c))))
        {
            let shape = [2, 3, 1 + (random.bits() % 50) as usize, head_dim];
            let (rows, len) = (shape[0] * shape[1] * shape[2], shape.iter().product());
            let mut part = |dtype| {
                // Some rows without keys, with garbage in their output.
                let lse: Vec<f32> = (0..rows)
                    .map(|_| if random.bits().is_multiple_of(5) { f32::NEG_INFINITY } else { 20.0 * random.normal() })
                    .collect();
                let mut values = random.normals(len);
                for (row, lse) in values.chunks_mut(head_dim).zip(&lse) {
                    if *lse == f32::NEG_INFINITY {
                        row.fill(f32::NAN);
                    }
                }
                (rounded(&values, dtype), lse)
            };
            let (((x1, bytes1), lse1), ((x2, bytes2), lse2)) = (part(dtype1), part(dtype2));
            // Inputs as the device sees them; the result stays in f32.
            let expected = merge(&view(&x1, shape), &lse1, &view(&x2, shape), &lse2).expect("the CPU merges");

            let le = |lse: &[f32]| -> Vec<u8> { lse.iter().flat_map(|x| x.to_le_bytes()).collect() };
            let upload = |bytes: &[u8]| Buffer::of(&gpu, &stream, bytes);
            let (o1, o2, l1, l2) = (upload(&bytes1), upload(&bytes2), upload(&le(&lse1)), upload(&le(&lse2)));
            let out = Buffer::poisoned(&gpu, &stream, len * out_dtype.bytes());
            let lse = Buffer::poisoned(&gpu, &stream, rows * 4);
            let tensor = |buffer: &Buffer, dtype| DeviceTensor {
                ptr: buffer.address(&stream),
                spec: TensorSpec::new(Operand::Tensor, dtype, &shape, Layout::Hnd).expect("spec"),
            };
            let args = MergeArgs {
                o1: tensor(&o1, dtype1),
                lse1: l1.address(&stream),
                o2: tensor(&o2, dtype2),
                lse2: l2.address(&stream),
                out: tensor(&out, out_dtype),
                lse: Some(lse.address(&stream)),
            };
            // SAFETY: the buffers were made above for these shapes and are read back before they are freed.
            unsafe { gpu.merge(&args, stream.cu_stream()) }.expect("a launch");
            let actual = widen(&out.read(&stream, "out"), out_dtype);
            let unit = [1.0 / 1024.0, 1.0 / 128.0, 1e-6][out_dtype.code() as usize];
            for (actual, expected) in actual.iter().zip(expected.out.to_f32()) {
                let error = f64::from((actual - expected).abs());
                let allowed = unit * f64::from(expected.abs()) + 4e-6;
                assert!(error <= allowed, "{actual} for {expected}, {shape:?} {dtype1} {dtype2} {out_dtype}");
                worst = worst.max(error);
            }
            for (actual, expected) in f32s(&lse.read(&stream, "lse")).iter().zip(&expected.lse) {
                let error = if actual == expected { 0.0 } else { f64::from((actual - expected).abs()) };
                assert!(error <= 1e-5, "lse {actual} for {expected}");
                worst_lse = worst_lse.max(error);
            }
            cases += 1;
        }
    }
    record("gpu_merge", &json!({ "device": gpu.name(), "cases": cases, "worst": worst, "worst_lse": worst_lse }));
}
