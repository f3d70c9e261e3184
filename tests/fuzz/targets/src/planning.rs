//! Any problem has a plan that keeps to the limits of its device, or is refused.

use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::error::{Error, Operand};
use sage_attn::plan::{Capability, Kernel, Plan, plan, plan_packed};
use sage_attn::problem::{Problem, TensorSpec};
use sage_spec::limits::{MAX_GRID, MAX_GRID_Y, WORKSPACE_ALIGN};

use crate::bytes::Bytes;
use crate::edges::stride;
use crate::outcome::{Outcome, check_message};
use crate::problem::validate;
use crate::request::request;

/// Steps of a plan that are looked at; a plan may have millions.
const STEPS: usize = 40;

const DEVICES: [Capability; 6] = [
    Capability { major: 8, minor: 0, sm_count: 108, smem_opt_in: 166_912 },
    Capability { major: 8, minor: 9, sm_count: 128, smem_opt_in: 101_376 },
    Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 },
    Capability { major: 9, minor: 0, sm_count: 0, smem_opt_in: 232_448 },
    Capability { major: 12, minor: 0, sm_count: u32::MAX, smem_opt_in: 101_376 },
    Capability { major: 9, minor: 0, sm_count: 1, smem_opt_in: 60_000 },
];

/// The target.
pub fn run(data: &[u8]) {
    match outcome(data) {
        Outcome::Planned => {}
        Outcome::Good(error) | Outcome::Refused(error) => check_message(&error),
    }
}

/// What becomes of the request in `data` on a device that it also chooses.
pub fn outcome(data: &[u8]) -> Outcome {
    let mut bytes = Bytes::new(data);
    let device = match bytes.below(16) {
        0 => Capability { major: 7, minor: 5, ..DEVICES[0] },
        _ => bytes.pick(&DEVICES),
    };
    let problem = match validate(request(&mut bytes)) {
        Ok(problem) => problem,
        Err(refused) => return refused,
    };
    // What is not for `plan` is for `plan_packed`, and the reverse.
    let packed = problem.sequences().is_some() != bytes.once_in(16);
    match if packed { packed_plan(&problem, &device, &mut bytes) } else { plain_plan(&problem, &device, &mut bytes) } {
        Ok(()) => Outcome::Planned,
        Err(error) => Outcome::Good(error),
    }
}

fn plain_plan(problem: &Problem, device: &Capability, bytes: &mut Bytes<'_>) -> Result<(), Error> {
    let plan = plan(problem, device)?;
    check(&plan, bytes);
    Ok(())
}

fn packed_plan(problem: &Problem, device: &Capability, bytes: &mut Bytes<'_>) -> Result<(), Error> {
    let plan = plan_packed(problem, device)?;
    let (args, side) = arguments(problem, plan.workspace_bytes(), bytes);
    for part in plan.parts() {
        check(&part.1, bytes);
        assert!(part.1.workspace().total_bytes() <= plan.workspace_bytes());
        let _ = args.of_part(&plan, &side, part).expect("tensors as planned");
    }
    Ok(())
}

/// Everything that a plan promises about itself.
fn check(plan: &Plan, bytes: &mut Bytes<'_>) {
    let (problem, device) = (plan.problem(), plan.capability());
    let mut end = 0;
    for buffer in plan.workspace().buffers() {
        assert!(buffer.offset_bytes >= end && buffer.offset_bytes.is_multiple_of(WORKSPACE_ALIGN), "{buffer:?}");
        end = buffer.offset_bytes + buffer.bytes;
    }
    assert_eq!(end, plan.workspace().total_bytes());
    for buffer in plan.workspace().buffers() {
        assert_eq!(buffer.slot.is_cleared(), buffer.offset_bytes < plan.workspace().cleared_bytes(), "{buffer:?}");
    }
    assert!(i64::try_from(end).is_ok());
    assert_eq!(plan.entries().is_empty(), problem.is_empty());
    assert_eq!(plan.chunks().count() == 0, problem.is_empty());
    let _ = plan.schedule();
    for step in plan.steps().take(STEPS) {
        let [x, y] = step.grid.map(|extent| extent as usize);
        assert!((1..=MAX_GRID).contains(&x) && (1..=MAX_GRID_Y).contains(&y), "{:?}", step.grid);
        assert!((32..=1024).contains(&step.entry.cta.threads) && step.entry.cta.threads.is_multiple_of(32));
        assert!(step.entry.cta.smem_bytes <= device.smem_opt_in);
        assert!(step.chunk.head_count >= 1 && step.chunk.block_count >= 1);
        assert_eq!(step.entry.kernel.needs_clearing(), step.entry.kernel == Kernel::Quantize);
    }
    if bytes.once_in(8) {
        assert!(plan.explain().lines().count() > 5);
    }
    let (args, side) = arguments(problem, end, bytes);
    let encode = |_: &_| Ok(Default::default());
    for step in plan.steps().take(4) {
        // Good addresses and bad ones; either way nothing but an answer.
        if let Err(error) = args.kernel_params_with(plan, &side, &step, &encode) {
            check_message(&error);
        }
    }
}

/// Arguments of a launch, at addresses that may be bad.
fn arguments(problem: &Problem, workspace: usize, bytes: &mut Bytes<'_>) -> (LaunchArgs, SideArgs) {
    let mut next = 1u64 << 20;
    let mut address = |span: u64, bytes: &mut Bytes<'_>| {
        if bytes.once_in(16) {
            return bytes.word() >> bytes.below(64);
        }
        let at = next;
        next = next.saturating_add(span).checked_next_multiple_of(256).unwrap_or(u64::MAX - 255);
        at
    };
    let mut tensor = |operand, spec: &TensorSpec, bytes: &mut Bytes<'_>| {
        let span = spec.span_elems(operand).unwrap_or(0) as u64 * spec.dtype.bytes() as u64;
        let mut spec = *spec;
        if bytes.once_in(32) {
            spec.strides[bytes.below(4)] = stride(bytes);
        }
        DeviceTensor { ptr: address(span, bytes), spec }
    };
    let [q, k] = [(Operand::Q, problem.q()), (Operand::K, problem.k())].map(|(o, spec)| tensor(o, spec, bytes));
    let [v, out] = [(Operand::V, problem.v()), (Operand::Out, problem.out())].map(|(o, spec)| tensor(o, spec, bytes));
    let lse = (problem.return_lse() != bytes.once_in(32)).then(|| address(problem.lse_elems() as u64 * 4, bytes));
    let missing = usize::from(bytes.once_in(16)) * bytes.below(255);
    let ptr = address(workspace as u64, bytes);
    let workspace = DeviceMemory { ptr, bytes: workspace.saturating_sub(missing) };
    let modifiers = problem.modifiers();
    let mut side =
        |present: bool, bytes: &mut Bytes<'_>| (present != bytes.once_in(32)).then(|| address(1 << 20, bytes));
    let side = SideArgs {
        alibi: side(modifiers.alibi.is_some(), bytes),
        bias: side(modifiers.bias.is_some(), bytes),
        mask: side(modifiers.mask.is_some(), bytes),
        sinks: side(modifiers.sinks.is_some(), bytes),
    };
    (LaunchArgs { q, k, v, out, lse, workspace }, side)
}
