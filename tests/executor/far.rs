//! Tensors whose entries lie more than 2³¹ and 2³² elements apart, with no memory between them.

use cuda_std::executor::Memory;
use sage_attn::device::{DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::plan::plan;
use sage_attn::problem::{DType, TensorSpec};
use sage_spec::Dims;
use sage_spec::symbol::{STEMS, Stem};
use sage_tests::case::{Case, Tensor};
use sage_tests::setup::Setup;

use crate::device::{CAPABILITY, launch_plan, workspace};

/// Several entries along every axis.
const DIMS: Dims =
    Dims { batch: 2, num_heads_q: 2, num_heads_kv: 2, seqlen_q: 3, seqlen_kv: 4, head_dim: 24, head_dim_v: 24 };

/// Contiguous strides, but for entries along `axis`, which are `apart` elements apart if that is given.
fn strides([_, heads, tokens, head_dim]: [usize; 4], axis: usize, apart: Option<i64>) -> [i64; 4] {
    let mut strides = [heads * tokens * head_dim, tokens * head_dim, head_dim, 1].map(|stride| stride as i64);
    strides[axis] = apart.unwrap_or(strides[axis]);
    strides
}

/// Byte offsets of the rows of `spec`, in the order of a contiguous tensor.
fn rows(spec: &TensorSpec) -> Vec<u64> {
    let [batch, heads, tokens, _] = spec.shape;
    let size = spec.dtype.bytes() as i64;
    let mut rows = Vec::new();
    for b in 0..batch as i64 {
        for h in 0..heads as i64 {
            for n in 0..tokens as i64 {
                let [batch, head, token, _] = spec.strides;
                rows.push(((b * batch + h * head + n * token) * size) as u64);
            }
        }
    }
    rows
}

/// Allocates a tensor row by row.
fn scatter(memory: &mut Memory, name: &str, spec: TensorSpec) -> DeviceTensor {
    let ptr = (memory.end() + 4096).next_multiple_of(256);
    let mut rows = rows(&spec);
    rows.sort_unstable();
    for row in rows {
        memory.alloc_at(name, ptr + row, spec.shape[3] * spec.dtype.bytes());
    }
    DeviceTensor { ptr, spec }
}

/// Copies a contiguous tensor to its rows.
fn fill(memory: &mut Memory, to: &DeviceTensor, from: &Tensor) {
    let bytes = from.bytes();
    let row_bytes = to.spec.shape[3] * to.spec.dtype.bytes();
    for (row, bytes) in rows(&to.spec).into_iter().zip(bytes.chunks_exact(row_bytes)) {
        memory.write(to.ptr + row, bytes);
    }
}

/// Bytes of the output with all tensors stretched along `axis`.
fn stretched(case: &Case, axis: usize, apart: Option<i64>) -> Vec<u8> {
    let plan = plan(&case.problem, &CAPABILITY).unwrap();
    let memory = &mut Memory::new();
    let stretch = |spec: &TensorSpec| TensorSpec { strides: strides(spec.shape, axis, apart), ..*spec };
    let [q, k, v] = [("q", &case.q), ("k", &case.k), ("v", &case.v)].map(|(name, tensor)| {
        let to = scatter(memory, name, stretch(&tensor.spec));
        fill(memory, &to, tensor);
        to
    });
    let out = scatter(memory, "out", stretch(case.problem.out()));
    let lse = memory.alloc("lse", case.problem.lse_elems() * 4);
    let args = LaunchArgs { q, k, v, out, lse: Some(lse), workspace: workspace(memory, &plan) };
    launch_plan(memory, &plan, &args, &SideArgs::default(), 1)
        .unwrap_or_else(|fault| panic!("{} axis {axis}, {apart:?} apart: {fault}", case.describe()));
    let row_bytes = out.spec.shape[3] * out.spec.dtype.bytes();
    rows(&out.spec).into_iter().flat_map(|row| memory.read(out.ptr + row, row_bytes).to_vec()).collect()
}

/// One kernel of each kind.
fn stems() -> impl Iterator<Item = Stem> {
    STEMS
        .into_iter()
        .filter(|stem| ["sm80_int8_f16_fwd", "sm89_int4_fp8_fwd", "sm90_int8_fp8_fwd"].contains(&stem.name))
}

fn check(axis: usize, dtype: DType) {
    for stem in stems() {
        let case = Setup { dtype, out_dtype: dtype, ..Setup::new(stem, DIMS) }.noisy();
        let near = stretched(&case, axis, None);
        // Beyond 31 and 32 bits, in elements and in bytes; multiples of eight, and not.
        for apart in [(1 << 29) + 8, (1 << 31) + 8, (1 << 32) + 8, (1 << 32) + 31, (1 << 40) + 8] {
            assert!(stretched(&case, axis, Some(apart)) == near, "{} axis {axis}, {apart} apart", stem.name);
        }
    }
}

#[test]
fn batch_entries_farther_apart_than_32_bits_reach() {
    check(0, DType::F32);
}

#[test]
fn heads_farther_apart_than_32_bits_reach() {
    check(1, DType::F32);
}

#[test]
fn tokens_farther_apart_than_32_bits_reach() {
    check(2, DType::F32);
}

#[test]
fn tokens_of_16_bits_farther_apart_than_32_bits_reach() {
    check(2, DType::BF16);
}
