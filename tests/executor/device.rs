//! A device made of [`cuda_std::executor`]: plans are launched as on a GPU, with every byte watched.

use cuda_std::executor::{self, Fault, Launch, Memory};
use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs, SideArgs, TiledBytes};
use sage_attn::error::Operand;
use sage_attn::plan::{Capability, Kernel, Plan, Slot, Step, plan};
use sage_attn::problem::TensorSpec;
use sage_spec::launch::{self, Cta};
use sage_spec::params::ScoresParams;
use sage_spec::sm90::TensorMap;
use sage_spec::symbol::Arch;
use sage_tests::case::{Case, Tensor};
use sage_tests::judge::{Outcome, f32s, gather_between, judge, poison};
use sage_tests::side::Side;

use crate::kernels;

/// What the executor offers: everything.
pub const CAPABILITY: Capability = Capability { major: 9, minor: 0, sm_count: 4, smem_opt_in: 232_448 };

/// What `case` gives in schedule `seed`; fails unless it is what the reference allows.
pub fn judged(case: &Case, seed: u64) -> Outcome {
    let outcome = run(case, seed).unwrap_or_else(|fault| panic!("{}: {fault}", case.describe()));
    judge(case, &outcome).unwrap_or_else(|what| panic!("{}: {what}", case.describe()));
    outcome
}

/// Threads of a CTA of the plan's attention kernel, if it is not the general one.
pub fn attention_threads(plan: &Plan) -> Option<usize> {
    plan.entries().iter().find(|entry| entry.kernel == Kernel::Attention).map(|entry| entry.cta.threads)
}

/// Uploads a tensor. The gaps of its strides, and their NaNs, may not even be looked at.
pub fn upload(memory: &mut Memory, name: &str, tensor: &Tensor) -> DeviceTensor {
    let ptr = memory.upload(name, &tensor.bytes());
    forbid_gaps(memory, ptr, &tensor.spec);
    DeviceTensor { ptr, spec: tensor.spec }
}

/// Forbids whatever lies between the rows of the tensor at `ptr`.
pub fn forbid_gaps(memory: &mut Memory, ptr: u64, spec: &TensorSpec) {
    let size = spec.dtype.bytes();
    let [batch, heads, tokens, head_dim] = spec.shape;
    let mut rows = Vec::new();
    for b in 0..batch as i64 {
        for h in 0..heads as i64 {
            for n in 0..tokens as i64 {
                rows.push((b * spec.strides[0] + h * spec.strides[1] + n * spec.strides[2]) as usize * size);
            }
        }
    }
    rows.sort_unstable();
    for pair in rows.windows(2) {
        let end = pair[0] + head_dim * size;
        if pair[1] > end {
            memory.forbid(ptr + end as u64, pair[1] - end);
        }
    }
}

/// A workspace whose gaps between buffers are forbidden, but for what belongs to a buffer's last 16 bytes: bulk
/// copies read whole chunks (`sage_spec::sm90::Sm90AttentionParams::k_scale`).
pub fn workspace(memory: &mut Memory, plan: &Plan) -> DeviceMemory {
    let bytes = plan.workspace().total_bytes();
    let ptr = memory.alloc("workspace", bytes);
    let mut end = 0;
    for buffer in Slot::ALL.iter().filter_map(|slot| plan.workspace().get(*slot)) {
        memory.forbid(ptr + end as u64, buffer.offset_bytes - end);
        end = (buffer.offset_bytes + buffer.bytes).next_multiple_of(16).min(bytes);
    }
    DeviceMemory { ptr, bytes }
}

/// Launches `thread`, of the kernel `symbol`.
pub fn launch(
    memory: &mut Memory,
    symbol: &str,
    cta: Cta,
    grid: [u32; 2],
    seed: u64,
    thread: kernels::Thread,
) -> Result<(), Fault> {
    let launch = Launch {
        name: symbol.into(),
        grid: [grid[0], grid[1], 1],
        block: [cta.threads as u32, 1, 1],
        shared_bytes: cta.smem_bytes as u32,
        seed,
    };
    launch.run(memory, thread)
}

/// A tensor map that the executor reads.
fn encode(tensor: &TiledBytes) -> TensorMap {
    let [width, rows, planes] = tensor.extents;
    let [box_width, box_rows] = tensor.box_extents;
    let map = executor::TensorMap {
        base: tensor.address,
        element_bytes: 1,
        extents: tensor.extents.map(|extent| extent as u32),
        strides: [width, width * rows],
        box_extents: [box_width, box_rows, 1],
        swizzle_bytes: box_width,
    };
    assert!(planes > 0, "{tensor:?}");
    TensorMap(map.encode())
}

/// Launches `plan` as a GPU would.
///
/// # Errors
///
/// What a kernel did wrong.
pub fn launch_plan(
    memory: &mut Memory,
    plan: &Plan,
    args: &LaunchArgs,
    side: &SideArgs,
    seed: u64,
) -> Result<(), Fault> {
    launch_steps(memory, plan, args, side, seed, plan.steps())
}

/// Launches `steps`, which are `plan`'s or parts of them.
///
/// # Errors
///
/// What a kernel did wrong.
pub fn launch_steps<'a>(
    memory: &mut Memory,
    plan: &Plan,
    args: &LaunchArgs,
    side: &SideArgs,
    seed: u64,
    steps: impl Iterator<Item = Step<'a>>,
) -> Result<(), Fault> {
    for step in steps {
        if step.entry.kernel.needs_clearing() {
            memory.write(args.workspace.ptr, &vec![0; plan.workspace().cleared_bytes()]);
        }
        let params = args
            .kernel_params_with(plan, side, &step, &|tensor| Ok(encode(tensor)))
            .unwrap_or_else(|error| panic!("{error}"));
        let thread = kernels::kernel(&step.entry.symbol, params)
            .unwrap_or_else(|| panic!("{} is not in tests/executor/kernels.rs", step.entry.symbol));
        launch(memory, &step.entry.symbol, step.entry.cta, step.grid, seed, thread)?;
    }
    Ok(())
}

/// Runs `case`; `seed` picks the order of threads.
///
/// # Errors
///
/// What a kernel did wrong.
pub fn run(case: &Case, seed: u64) -> Result<Outcome, Fault> {
    run_with(case, None, seed)
}

/// [`run`] with modifiers.
///
/// # Errors
///
/// What a kernel did wrong.
pub fn run_with(case: &Case, side: Option<&Side>, seed: u64) -> Result<Outcome, Fault> {
    let plan = plan(&case.problem, &CAPABILITY).unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
    let poison = poison(case.seed);
    let memory = &mut Memory::poisoned(poison);
    let [q, k, v] = [("q", &case.q), ("k", &case.k), ("v", &case.v)].map(|(name, x)| upload(memory, name, x));
    let [alibi, bias, mask, sinks] = side.map_or([None, None, None, None], Side::bytes);
    let mut input = |name, bytes: Option<Vec<u8>>| bytes.map(|bytes| memory.upload(name, &bytes));
    let inputs = SideArgs {
        alibi: input("alibi", alibi),
        bias: input("bias", bias),
        mask: input("mask", mask),
        sinks: input("sinks", sinks),
    };
    let spec = *case.problem.out();
    let out_bytes = spec.span_elems(Operand::Out).expect("span") * spec.dtype.bytes();
    let out = DeviceTensor { ptr: memory.alloc("out", out_bytes), spec };
    forbid_gaps(memory, out.ptr, &spec);
    let lse_bytes = case.problem.lse_elems() * 4;
    let lse = case.problem.return_lse().then(|| memory.alloc("lse", lse_bytes));
    let workspace = workspace(memory, &plan);
    let args = LaunchArgs { q, k, v, out, lse, workspace };
    launch_plan(memory, &plan, &args, &inputs, seed)?;
    let scores = scores(memory, case, &plan, workspace.ptr, seed)?;
    if let Some(lse) = lse {
        assert_eq!(memory.first_undefined(lse, lse_bytes), None, "{}: an LSE was not written", case.describe());
    }
    Ok(Outcome {
        out: gather_between(&spec, memory.read(out.ptr, out_bytes), "out", poison),
        lse: lse.map(|lse| f32s(memory.read(lse, lse_bytes))),
        workspace: memory.read(workspace.ptr, workspace.bytes).to_vec(),
        plan,
        scores,
    })
}

/// Raw scores of the quantized operands that the launch left in the workspace.
fn scores(memory: &mut Memory, case: &Case, plan: &Plan, workspace: u64, seed: u64) -> Result<Option<Vec<i32>>, Fault> {
    let dims = case.problem.dims();
    let q_codes = plan.workspace().address(workspace, Slot::QCodes);
    // The Hopper kernels and those of wide heads have no such twin: what they do with scores shows in the output, to the last code.
    if plan.entries().is_empty() || q_codes == 0 || case.stem.arch == Arch::Sm90a || dims.is_wide() {
        return Ok(None);
    }
    let (depth, rows, keys) = (dims.head_dim_padded(), dims.seqlen_q_padded(), dims.seqlen_kv_padded());
    let bytes = dims.batch * dims.num_heads_q * rows * keys * 4;
    let params = ScoresParams {
        q_codes,
        k_codes: plan.workspace().address(workspace, Slot::KCodes),
        scores: memory.alloc("scores", bytes),
        num_heads_q: dims.num_heads_q as u32,
        num_heads_kv: dims.num_heads_kv as u32,
        seqlen_q: dims.seqlen_q as u32,
        seqlen_kv: dims.seqlen_kv as u32,
    };
    let symbol = format!("{}_scores_d{depth}", case.stem.name);
    let cta = launch::attention(depth, case.stem.qk, case.stem.pv);
    let thread = kernels::scores(&symbol, params).expect("every stem has a kernel for its scores");
    launch(memory, &symbol, cta, [launch::scores_grid(dims) as u32, 1], seed, thread)?;
    assert_eq!(memory.first_undefined(params.scores, bytes), None, "a score was not written");
    let bytes = memory.read(params.scores, bytes);
    Ok(Some(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
}
