//! Faults of planning, of the workspace and of the parameters of a launch.

use super::killers::*;
use crate::fault::Fault;

const PLAN: &str = "host/src/plan/mod.rs";
const CHUNKS: &str = "host/src/plan/chunks.rs";
const WORKSPACE: &str = "host/src/plan/workspace.rs";
const PARAMS: &str = "host/src/device/params.rs";

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "heads-past-the-end",
        what: "the last chunk has as many heads as the others",
        file: CHUNKS,
        text: "head_count: «this.heads_per_chunk.min(this.heads - head)»,",
        bad: "this.heads_per_chunk",
        tests: &[PLANHEADS, PLANCOVER],
    },
    Fault {
        name: "buffers-unaligned",
        what: "a buffer of the workspace begins where the last one ends",
        file: WORKSPACE,
        text: "let offset = «end.next_multiple_of(WORKSPACE_ALIGN as u128)»;",
        bad: "end",
        tests: &[PLANBUF, K80, REF],
    },
    Fault {
        name: "scales-of-real-blocks",
        what: "there is no room for the scales of key blocks of padding",
        file: WORKSPACE,
        text: "Slot::KScale => Some(per_kv(«dims.num_kv_blocks_padded()»,",
        bad: "dims.num_kv_blocks()",
        tests: &[K80, K90, REF],
    },
    Fault {
        name: "codes-of-real-rows",
        what: "there is no room for the codes of query rows of padding",
        file: WORKSPACE,
        text: "Slot::QCodes => Some(per_q(«m»,",
        bad: "dims.seqlen_q",
        tests: &[Q80, K80, REF],
    },
    Fault {
        name: "delta-s-of-one-block",
        what: "there is room for the ΔS of one query block",
        file: WORKSPACE,
        text: "chunk: «chunks.largest()» as u128,",
        bad: "1",
        tests: &[PLANCOVER, Q80, REF],
    },
    Fault {
        name: "progress-of-one-head",
        what: "the counters of the second head lie in the next buffer",
        file: WORKSPACE,
        text: "Some(Progress::bytes(0) as u128 + product(«self.heads_kv», Progress::bytes(1) - Progress::bytes(0), 1))",
        bad: "1",
        tests: &[BATCH, GRAN, REF],
    },
    Fault {
        name: "grid-axes-swapped",
        what: "heads and query blocks change places in the grid",
        file: PLAN,
        text: "Kernel::Attention => return «launch::attention_grid(heads, blocks)»,",
        bad: "launch::attention_grid(blocks, heads)",
        tests: &[PLANCOVER, Q80, BATCH],
    },
    Fault {
        name: "shared-memory-too-small",
        what: "the quantizer gets 32 bytes of shared memory too few",
        file: PLAN,
        text: "«launch::quantize(d, element)»);",
        bad: "Cta { smem_bytes: launch::quantize(d, element).smem_bytes - 32, ..launch::quantize(d, element) }",
        tests: &[K80, K90, REF],
    },
    Fault {
        name: "quantizer-without-ctas",
        what: "the quantizer's grid has no CTA",
        file: PLAN,
        text: "let tickets = schedule::tickets(self.problem.dims(), self.problem.smoothing().k); tickets.min(«self.quantize_resident() as u128») as usize",
        bad: "0",
        tests: &[K80, K90, REF],
    },
    Fault {
        name: "kernel-on-a-device-without-it",
        what: "a kernel is chosen though the device does not load its module",
        file: "host/src/plan/select.rs",
        text: "} else if «!stem.arch.loads_on(major, minor)» { Some(format!(",
        bad: "!stem.arch.loads_on(major, minor) && major < 8",
        tests: &[PLANNAMED, ERRNEW],
    },
    Fault {
        name: "no-queries-is-work",
        what: "a problem without queries is not empty",
        file: "host/src/problem/mod.rs",
        text: "self.dims.batch == 0 || self.dims.num_heads_q == 0 || «self.dims.seqlen_q == 0»",
        bad: "self.dims.seqlen_q > usize::MAX - 1",
        tests: &[PLANNONE, APIEMPTY, Q80],
    },
    Fault {
        name: "default-scale-without-root",
        what: "scores are divided by the head dimension and not by its root",
        file: "host/src/problem/validate.rs",
        text: "None => Ok(1.0 / «(head_dim as f32).sqrt()»),",
        bad: "head_dim as f32",
        tests: &[APIPREC, APIINT8, APIDEF],
    },
    Fault {
        name: "vector-loads-of-odd-rows",
        what: "rows that do not begin at multiples of 16 bytes are loaded as vectors",
        file: "host/src/device/args.rs",
        text: "u32::from(base && «strides» && head_dim.is_multiple_of(8))",
        bad: "strides || base",
        tests: &[FT, LAYOUT, REF],
    },
    Fault {
        name: "map-of-real-keys",
        what: "the tensor map of V has rows of the real length",
        file: PARAMS,
        text: "map(Slot::VCodes, [«keys», depth, heads_kv],",
        bad: "dims.seqlen_kv as u64",
        tests: &[K90, Q90, REF],
    },
    Fault {
        name: "items-of-128-rows",
        what: "a head has as many work items as query blocks, not as tiles of a work item's rows",
        file: PARAMS,
        text: "tiles_per_head: «rows.div_ceil(block_q)» as u32,",
        bad: "rows.div_ceil(128)",
        tests: &[Q90, BATCH, REF],
    },
    Fault {
        name: "scale-in-natural-units",
        what: "scores are scaled for e where the kernels take powers of two",
        file: PARAMS,
        text: "sm_scale_log2: «problem.sm_scale() * LOG2_E»,",
        bad: "problem.sm_scale()",
        tests: &[K80, K90, REF],
    },
];
