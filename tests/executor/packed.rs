//! Packed sequences: each has the bits that it has alone.

use cuda_std::executor::Memory;
use proptest::prelude::*;
use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::error::Operand;
use sage_attn::plan::plan_packed;
use sage_attn::problem::{DType, Layout, Problem, Request, Sequences, TensorSpec};
use sage_spec::symbol::{STEMS, Stem};
use sage_tests::case::Tensor;
use sage_tests::generate::{Random, config};
use sage_tests::judge::f32s;

use crate::device::{CAPABILITY, launch_plan};

const HEADS: usize = 2;
const WIDTH: usize = 40;

/// Bits of the output `[Hq, tokens, D]` and of the log-sum-exp, which is sequence after sequence.
fn run(stem: &Stem, [q, k, v]: [&Tensor; 3], sequences: &Sequences, causal: bool) -> (Vec<u32>, Vec<u32>) {
    let spec = |tensor: &Tensor| TensorSpec { dtype: DType::F32, ..tensor.spec };
    let mut request = Request::new(q.spec, k.spec, v.spec, spec(q));
    request.sequences = Some(sequences.clone());
    request.kernel = Some(stem.name.into());
    request.causal = causal;
    request.return_lse = true;
    let problem = Problem::new(request).unwrap();
    let plan = plan_packed(&problem, &CAPABILITY).unwrap();
    let memory = &mut Memory::new();
    let [q, k, v] = [("q", q), ("k", k), ("v", v)]
        .map(|(name, x)| DeviceTensor { ptr: memory.upload(name, &x.bytes()), spec: x.spec });
    let bytes = problem.out().span_elems(Operand::Out).unwrap() * 4;
    let out = DeviceTensor { ptr: memory.alloc("out", bytes), spec: *problem.out() };
    let lse = memory.alloc("lse", problem.lse_elems() * 4);
    let workspace =
        DeviceMemory { ptr: memory.alloc("workspace", plan.workspace_bytes()), bytes: plan.workspace_bytes() };
    let args = LaunchArgs { q, k, v, out, lse: Some(lse), workspace };
    for part in plan.parts() {
        let (args, side) = args.of_part(&plan, &SideArgs::default(), part).unwrap();
        launch_plan(memory, &part.1, &args, &side, 7).unwrap_or_else(|fault| panic!("{fault}"));
    }
    let bits = |bytes: &[u8]| f32s(bytes).into_iter().map(f32::to_bits).collect();
    (bits(memory.read(out.ptr, bytes)), bits(memory.read(lse, problem.lse_elems() * 4)))
}

fn tensor(tokens: usize, value: impl FnMut(usize, usize, usize) -> f32) -> Tensor {
    let spec = TensorSpec::new(Operand::Tensor, DType::F16, &[1, HEADS, tokens, WIDTH], Layout::Hnd).unwrap();
    Tensor::fill(spec, value)
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn packed_sequences_are_sequences_alone(
        runs in prop::collection::vec(((0..90usize, 0..90usize), 1..3usize), 1..4),
        stem in prop::sample::select(STEMS.to_vec()),
        causal: bool,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let lens: Vec<(usize, usize)> = runs.iter().flat_map(|&(len, count)| std::iter::repeat_n(len, count)).collect();
        let of_sequences: Vec<[Vec<f32>; 3]> = lens
            .iter()
            .map(|&(m, n)| [m, n, n].map(|tokens| random.normals(HEADS * tokens * WIDTH)))
            .collect();
        let packed: [Tensor; 3] = std::array::from_fn(|which| {
            let len = |index: usize| if which == 0 { lens[index].0 } else { lens[index].1 };
            let places: Vec<(usize, usize)> =
                (0..lens.len()).flat_map(|index| (0..len(index)).map(move |token| (index, token))).collect();
            tensor(places.len(), |head, token, d| {
                let (index, token) = places[token];
                of_sequences[index][which][(head * len(index) + token) * WIDTH + d]
            })
        });
        let cumulative = |len: fn(&(usize, usize)) -> usize| -> Vec<usize> {
            (0..=lens.len()).map(|count| lens[..count].iter().map(len).sum()).collect()
        };
        let sequences = Sequences::new(&cumulative(|lens| lens.0), &cumulative(|lens| lens.1)).unwrap();
        let total = cumulative(|lens| lens.0)[lens.len()];
        let (out, lse) = run(&stem, packed.each_ref(), &sequences, causal);
        for (index, &(m, n)) in lens.iter().enumerate() {
            let alone: [Tensor; 3] = std::array::from_fn(|which| {
                let tokens = [m, n, n][which];
                tensor(tokens, |head, token, d| of_sequences[index][which][(head * tokens + token) * WIDTH + d])
            });
            let single = Sequences::new(&[0, m], &[0, n]).unwrap();
            let (one_out, one_lse) = run(&stem, alone.each_ref(), &single, causal);
            let rows = sequences.q(index);
            for head in 0..HEADS {
                let from = (head * total + rows.start) * WIDTH;
                prop_assert_eq!(&out[from..from + m * WIDTH], &one_out[head * m * WIDTH..(head + 1) * m * WIDTH]);
            }
            prop_assert_eq!(&lse[HEADS * rows.start..HEADS * rows.end], &one_lse[..]);
        }
    }
}
