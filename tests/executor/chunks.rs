//! Work cut into several launches, as the planner does it where ΔS would take too much memory: smaller problems
//! than those, cut by hand.

use cuda_std::executor::Memory;
use sage_attn::device::{DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::error::Operand;
use sage_attn::plan::{Kernel, Plan, Slot, Step, chunk_rows, plan};
use sage_spec::params::Chunk;
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_spec::{Dims, launch, sm90};
use sage_tests::case::Case;
use sage_tests::judge::f32s;
use sage_tests::setup::Setup;

use crate::device::{CAPABILITY, launch_steps, upload, workspace};

/// Three query blocks, the last partial; two groups of heads.
const DIMS: Dims =
    Dims { batch: 1, num_heads_q: 4, num_heads_kv: 2, seqlen_q: 300, seqlen_kv: 170, head_dim: 64, head_dim_v: 64 };

/// `step` on `chunk` alone.
fn on<'a>(plan: &Plan, step: Step<'a>, chunk: Chunk) -> Step<'a> {
    let dims = plan.problem().dims();
    let (heads, blocks) = (chunk.head_count as usize, chunk.block_count as usize);
    let grid = match step.entry.kernel {
        Kernel::DeltaS => [launch::delta_s_grid(dims, heads, blocks), 1],
        // Two items a CTA, so that each launch counts them.
        _ if plan.arch() == Arch::Sm90a => [
            sm90::work_items(heads, chunk_rows(dims, &chunk), sm90::block_q_of_threads(step.entry.cta.threads))
                .div_ceil(2),
            1,
        ],
        _ => launch::attention_grid(heads, blocks),
    };
    Step { chunk, grid: grid.map(|extent| extent as u32), ..step }
}

/// Bits of the output and of the log-sum-exp, computed in chunks of `heads` heads and `blocks` query blocks.
fn run(case: &Case, heads: usize, blocks: usize) -> Vec<u32> {
    let plan = plan(&case.problem, &CAPABILITY).unwrap();
    let memory = &mut Memory::new();
    let [q, k, v] = [("q", &case.q), ("k", &case.k), ("v", &case.v)].map(|(name, x)| upload(memory, name, x));
    let spec = *case.problem.out();
    let out_bytes = spec.span_elems(Operand::Out).unwrap() * 4;
    let lse_bytes = case.problem.lse_elems() * 4;
    let out = DeviceTensor { ptr: memory.alloc("out", out_bytes), spec };
    let lse = memory.alloc("lse", lse_bytes);
    let args = LaunchArgs { q, k, v, out, lse: Some(lse), workspace: workspace(memory, &plan) };
    let submit = |memory: &mut Memory, steps: Vec<Step<'_>>| {
        launch_steps(memory, &plan, &args, &SideArgs::default(), 5, steps.into_iter())
            .unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
    };
    submit(memory, plan.setup_steps().collect());
    for head in (0..DIMS.num_heads_q).step_by(heads) {
        for block in (0..DIMS.num_query_blocks()).step_by(blocks) {
            let chunk = Chunk {
                head_begin: head as u32,
                head_count: heads.min(DIMS.num_heads_q - head) as u32,
                block_begin: block as u32,
                block_count: blocks.min(DIMS.num_query_blocks() - block) as u32,
            };
            if let Some(delta_s) = plan.workspace().get(Slot::DeltaS) {
                memory.undefine(args.workspace.ptr + delta_s.offset_bytes as u64, delta_s.bytes);
            }
            submit(memory, plan.chunk_steps().map(|step| on(&plan, step, chunk)).collect());
        }
    }
    let bits = |bytes: &[u8]| f32s(bytes).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    [bits(memory.read(out.ptr, out_bytes)), bits(memory.read(lse, lse_bytes))].concat()
}

/// One kernel of each kind.
fn stems() -> impl Iterator<Item = Stem> {
    STEMS
        .into_iter()
        .filter(|stem| ["sm80_int8_f16_fwd", "sm89_int4_fp8_fwd", "sm90_int8_fp8_fwd"].contains(&stem.name))
}

fn same_in_chunks(heads: usize, blocks: usize) {
    for stem in stems() {
        let case = Setup { causal: true, ..Setup::new(stem, DIMS) }.noisy();
        let whole = run(&case, DIMS.num_heads_q, DIMS.num_query_blocks());
        assert!(run(&case, heads, blocks) == whole, "{}", stem.name);
    }
}

#[test]
fn chunks_of_heads_change_no_bit() {
    same_in_chunks(3, DIMS.num_query_blocks());
}

#[test]
fn chunks_of_blocks_change_no_bit() {
    same_in_chunks(1, 2);
}

#[test]
fn chunks_of_one_block_change_no_bit() {
    same_in_chunks(1, 1);
}

#[test]
fn chunks_of_blocks_of_two_heads_change_no_bit() {
    same_in_chunks(2, 2);
}
