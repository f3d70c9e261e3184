//! The kernel that combines attention over two parts of the keys, against the CPU: every type, rows of any length and
//! any distance, with and without vector loads.

use cuda_std::executor::Memory;
use proptest::prelude::*;
use sage_attn::error::Operand;
use sage_attn::problem::{DType, TensorSpec};
use sage_attn::{Layout, TensorView, merge};
use sage_spec::merge::{CTA, MergeParams, SYMBOL, grid, row_threads};
use sage_spec::params::TensorArg;
use sage_tests::case::Tensor;
use sage_tests::generate::{Random, config};
use sage_tests::judge::{f32s, gather, gather_between, poison};

use crate::device::{forbid_gaps, launch};
use crate::kernels;

const TYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

fn arg(ptr: u64, spec: &TensorSpec) -> TensorArg {
    let [stride_batch, stride_head, stride_token, _] = spec.strides;
    TensorArg { ptr, stride_batch, stride_head, stride_token }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn merging_is_what_the_cpu_does(
        seed: u64,
        types in prop::array::uniform3(prop::sample::select(TYPES.to_vec())),
        head_dim in prop::sample::select(vec![1usize, 7, 8, 64, 72, 128, 264, 520]),
        tokens in 1..40usize,
        gap in prop::sample::select(vec![0usize, 8, 3]),
    ) {
        let mut random = Random(seed);
        let shape = [2, 3, tokens, head_dim];
        let rows = 6 * tokens;
        let row = (head_dim + gap) as i64;
        let strides = [3 * tokens as i64 * row, tokens as i64 * row, row, 1];
        let specs = types.map(|dtype| TensorSpec::new(Operand::Tensor, dtype, &shape, Layout::Strides(strides)).unwrap());
        let poison = poison(seed);
        let memory = &mut Memory::poisoned(poison);
        // Some rows without keys, with garbage in their output.
        let lses = [0, 1].map(|_| -> Vec<f32> {
            let lse = |random: &mut Random| if random.bits().is_multiple_of(5) { f32::NEG_INFINITY } else { 20.0 * random.normal() };
            (0..rows).map(|_| lse(&mut random)).collect()
        });
        let parts = [0, 1].map(|part| {
            let value = |head: usize, token: usize, _| match lses[part][head * tokens + token] {
                f32::NEG_INFINITY => f32::NAN,
                _ => random.normal(),
            };
            Tensor::fill(specs[part], value)
        });
        let values = [0, 1].map(|part| {
            // The gaps of inputs are NaN, which this does not look at.
            let bytes = parts[part].bytes();
            let spec = TensorSpec::new(Operand::Tensor, specs[part].dtype, &shape, Layout::Hnd).unwrap();
            let size = spec.dtype.bytes();
            let rows: Vec<u8> = (0..rows).flat_map(|r| bytes[r * row as usize * size..][..head_dim * size].to_vec()).collect();
            gather(&spec, &rows, "part")
        });
        let view = |x| TensorView::new(x, &shape, Layout::Hnd).unwrap();
        let expected = merge(&view(&values[0][..]), &lses[0], &view(&values[1][..]), &lses[1]).unwrap();

        let [o1, o2] = [0, 1].map(|part| {
            let ptr = memory.upload("part", &parts[part].bytes());
            forbid_gaps(memory, ptr, &specs[part]);
            arg(ptr, &specs[part])
        });
        let bytes = |lse: &[f32]| -> Vec<u8> { lse.iter().flat_map(|x| x.to_le_bytes()).collect() };
        let [lse1, lse2] = [0, 1].map(|part| memory.upload("lse of a part", &bytes(&lses[part])));
        let out_bytes = specs[2].span_elems(Operand::Out).unwrap() * specs[2].dtype.bytes();
        let (out, lse) = (memory.alloc("out", out_bytes), memory.alloc("lse", rows * 4));
        forbid_gaps(memory, out, &specs[2]);
        let whole = specs.iter().all(|spec| (row as usize * spec.dtype.bytes()).is_multiple_of(16));
        let params = MergeParams {
            o1,
            o2,
            out: arg(out, &specs[2]),
            lse1,
            lse2,
            lse,
            rows: rows as u32,
            num_heads: 3,
            seqlen: tokens as u32,
            head_dim: head_dim as u32,
            row_threads_log2: row_threads(head_dim).trailing_zeros(),
            dtype1: types[0].code(),
            dtype2: types[1].code(),
            out_dtype: types[2].code(),
            vectorized: u32::from(whole && head_dim.is_multiple_of(8)),
        };
        let fail = |what: String| TestCaseError::fail(format!("seed {seed} {shape:?} {types:?} gap {gap}: {what}"));
        launch(memory, SYMBOL, CTA, [grid(rows, head_dim) as u32, 1], seed, kernels::merge(params))
            .map_err(|fault| fail(fault.to_string()))?;

        let unit = [1.0 / 1024.0, 1.0 / 128.0, 1e-6][types[2].code() as usize];
        let actual = gather_between(&specs[2], memory.read(out, out_bytes), "out", poison);
        for (i, (actual, expected)) in actual.iter().zip(expected.out.to_f32()).enumerate() {
            let allowed = unit * expected.abs() + 4e-6;
            if (actual - expected).abs() > allowed || actual.is_nan() {
                return Err(fail(format!("element {i}: {actual} for {expected}")));
            }
        }
        for (row, (actual, expected)) in f32s(memory.read(lse, rows * 4)).iter().zip(&expected.lse).enumerate() {
            if actual.is_nan() || actual != expected && (actual - expected).abs() > 1e-5 {
                return Err(fail(format!("lse of row {row}: {actual} for {expected}")));
            }
        }
    }
}
