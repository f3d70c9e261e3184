//! Shapes by name: each is planned for a device, and the plan keeps to every limit and covers all of the work.

use sage_attn::error::Operand;
use sage_attn::plan::{Capability, Kernel, Plan, Slot, plan};
use sage_attn::problem::{Problem, Request, TensorSpec};
use sage_attn::{DType, Layout, Precision};
use sage_spec::limits::{MAX_GRID, MAX_GRID_Y, WORKSPACE_ALIGN};

use crate::{ADA, AMPERE, HOPPER};

const BATCHES: [usize; 7] = [0, 1, 2, 3, 17, 65_535, 65_536];
const LENGTHS: [usize; 15] = [0, 1, 2, 9, 63, 64, 65, 127, 128, 129, 503, 1001, 1023, 4096, 100_001];
/// Of Q and K, and of V.
const HEAD_DIMS: [[usize; 2]; 9] =
    [[1, 1], [40, 40], [64, 64], [64, 128], [80, 80], [128, 128], [129, 129], [192, 128], [256, 256]];
/// Of Q, and of K and V.
const HEADS: [[usize; 2]; 4] = [[1, 1], [8, 8], [32, 8], [9, 3]];
const LAYOUTS: [&str; 3] = ["HND", "NHD", "strides"];

/// A tensor of `layout`; with strides, rows have a gap.
fn spec(layout: &str, [batch, heads, tokens, head_dim]: [usize; 4]) -> TensorSpec {
    let (shape, layout) = match layout {
        "HND" => ([batch, heads, tokens, head_dim], Layout::Hnd),
        "NHD" => ([batch, tokens, heads, head_dim], Layout::Nhd),
        _ => {
            let row = head_dim + 24;
            let strides = [heads * tokens * row, tokens * row, row, 1].map(|stride| stride.max(1) as i64);
            ([batch, heads, tokens, head_dim], Layout::Strides(strides))
        }
    };
    TensorSpec::new(Operand::Tensor, DType::BF16, &shape, layout).unwrap()
}

/// Everything that a plan promises about sizes.
fn check(plan: &Plan) {
    let (problem, device) = (plan.problem(), plan.capability());
    let dims = problem.dims();
    let mut end = 0;
    for buffer in plan.workspace().buffers() {
        assert!(buffer.bytes > 0 && buffer.offset_bytes >= end && buffer.offset_bytes.is_multiple_of(WORKSPACE_ALIGN));
        end = buffer.offset_bytes + buffer.bytes;
    }
    assert_eq!(end, plan.workspace().total_bytes());
    let is_empty = dims.batch == 0 || dims.seqlen_q == 0;
    assert_eq!(plan.entries().is_empty(), is_empty);
    let codes = if is_empty || dims.seqlen_kv == 0 {
        0
    } else {
        let keys = dims.batch * dims.num_heads_kv * dims.seqlen_kv_padded() * dims.head_dim_padded();
        plan.stem().storage().bytes(keys)
    };
    assert_eq!(plan.workspace().get(Slot::KCodes).map_or(0, |buffer| buffer.bytes), codes);
    let (mut blocks, mut launches) = (0u64, 0u64);
    for step in plan.steps() {
        let [x, y] = step.grid.map(|extent| extent as usize);
        assert!((1..=MAX_GRID).contains(&x) && (1..=MAX_GRID_Y).contains(&y), "{:?}", step.grid);
        assert!(step.entry.cta.smem_bytes <= device.smem_opt_in && step.entry.cta.threads <= 1024);
        if matches!(step.entry.kernel, Kernel::Attention | Kernel::General) {
            blocks += u64::from(step.chunk.head_count) * u64::from(step.chunk.block_count);
            launches += 1;
        }
    }
    let all = if is_empty { 0 } else { dims.batch * dims.num_heads_q * dims.num_query_blocks() };
    assert_eq!((blocks, launches), (all as u64, plan.chunks().count()));
}

/// A shape of the grid.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    heads: [usize; 2],
    lengths: [usize; 2],
    head_dims: [usize; 2],
    causal: bool,
    precision: Precision,
    return_lse: bool,
    layout: &'static str,
}

impl Shape {
    fn name(&self, device: &Capability) -> String {
        let Shape { batch, heads: [hq, hkv], lengths: [m, n], head_dims: [d, dv], layout, precision, .. } = self;
        let flags = [(self.causal, " causal"), (self.return_lse, " lse")].map(|(on, name)| if on { name } else { "" });
        let Capability { major, minor, .. } = device;
        let flags = flags.concat();
        format!("B{batch} H{hq}/{hkv} M{m} N{n} D{d}/{dv} {layout} {precision:?}{flags}, device {major}.{minor}")
    }

    fn problem(&self) -> Problem {
        let Shape { batch, heads: [heads_q, heads_kv], lengths: [m, n], head_dims: [d, dv], layout, .. } = *self;
        let (q, k) = (spec(layout, [batch, heads_q, m, d]), spec(layout, [batch, heads_kv, n, d]));
        let (v, out) = (spec(layout, [batch, heads_kv, n, dv]), spec(layout, [batch, heads_q, m, dv]));
        let Shape { causal, precision, return_lse, .. } = *self;
        Problem::new(Request { causal, precision, return_lse, ..Request::new(q, k, v, out) }).expect("a valid shape")
    }
}

/// Every combination of the lists above, causal and not; heads, precision and log-sum-exp take turns.
fn shapes() -> impl Iterator<Item = Shape> {
    let extents = BATCHES.into_iter().flat_map(|batch| LENGTHS.into_iter().map(move |m| (batch, m)));
    let extents = extents.flat_map(|(batch, m)| LENGTHS.into_iter().map(move |n| (batch, [m, n])));
    let extents = extents.flat_map(|(batch, lengths)| HEAD_DIMS.into_iter().map(move |dims| (batch, lengths, dims)));
    let extents = extents.flat_map(|extents| LAYOUTS.into_iter().map(move |layout| (extents, layout)));
    extents.enumerate().flat_map(|(index, ((batch, lengths, head_dims), layout))| {
        [false, true].map(|causal| Shape {
            batch,
            // Turns of four, five and seven meet all others.
            heads: HEADS[index % HEADS.len()],
            lengths,
            head_dims,
            causal,
            precision: if index % 5 < 2 { Precision::Int4 } else { Precision::Int8 },
            return_lse: index % 7 < 3,
            layout,
        })
    })
}

#[test]
fn every_named_shape_is_planned() {
    let (mut planned, mut refused) = (0, 0);
    for shape in shapes() {
        let problem = shape.problem();
        for device in [AMPERE, ADA, HOPPER] {
            match plan(&problem, &device) {
                Ok(plan) => {
                    if let Err(panic) = std::panic::catch_unwind(|| check(&plan)) {
                        println!("in {}", shape.name(&device));
                        std::panic::resume_unwind(panic);
                    }
                    planned += 1;
                }
                // More tiles than a grid has CTAs, nothing else.
                Err(error) => {
                    let heads = (shape.batch * shape.heads[0]) as u64;
                    let tiles = heads * (shape.lengths[0].max(shape.lengths[1]) as u64).div_ceil(64);
                    let is_large = error.to_string().contains("CTAs") && tiles > 1 << 28;
                    assert!(is_large, "{}: {error}", shape.name(&device));
                    refused += 1;
                }
            }
        }
    }
    println!("{planned} shapes planned, {refused} too large for a grid");
    assert!(planned >= 200_000, "{planned}");
}
