//! The planner: right choices, bounded workspace, chunks that cover everything once, and no panic
//! whatever is asked.

mod shapes;

use proptest::prelude::*;
use sage_attn::error::{Error, Operand, PlanError};
use sage_attn::plan::{Capability, Kernel, Plan, Slot, plan};
use sage_attn::problem::{Problem, Request, TensorSpec};
use sage_attn::{DType, Layout, Precision, PvFormat, ScaleGranularity, Smoothing};

const AMPERE: Capability = Capability { major: 8, minor: 0, sm_count: 108, smem_opt_in: 166_912 };
const ADA: Capability = Capability { major: 8, minor: 9, sm_count: 128, smem_opt_in: 101_376 };
const HOPPER: Capability = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };

fn request(batch: usize, [heads_q, heads_kv]: [usize; 2], [m, n]: [usize; 2], d: usize) -> Request {
    let spec =
        |heads, tokens| TensorSpec::new(Operand::Q, DType::BF16, &[batch, heads, tokens, d], Layout::Hnd).unwrap();
    Request::new(spec(heads_q, m), spec(heads_kv, n), spec(heads_kv, n), spec(heads_q, m))
}

fn planned(request: Request, capability: &Capability) -> Plan {
    plan(&Problem::new(request).unwrap(), capability).unwrap()
}

fn symbols(plan: &Plan) -> Vec<&str> {
    plan.steps().map(|step| step.entry.symbol.as_str()).collect()
}

#[test]
fn each_device_gets_its_kernel() {
    let base = request(1, [8, 8], [512, 512], 128);
    let stem = |request: &Request, capability| planned(request.clone(), capability).stem().name;
    assert_eq!(stem(&base, &AMPERE), "sm80_int8_f16_fwd");
    assert_eq!(stem(&base, &ADA), "sm89_int8_fp8_fwd");
    assert_eq!(stem(&base, &HOPPER), "sm90_int8_fp8_fwd");
    let int4 = Request { precision: Precision::Int4, ..base.clone() };
    assert_eq!(stem(&int4, &AMPERE), "sm80_int4_f16_fwd");
    assert_eq!(stem(&int4, &ADA), "sm89_int4_fp8_fwd");
    let f16 = Request { pv: Some(PvFormat::F16), ..base.clone() };
    assert_eq!(stem(&f16, &HOPPER), "sm80_int8_f16_fwd");
    let named = Request { kernel: Some("sm80_int4_f16_fwd".into()), ..base };
    let plan = planned(named, &HOPPER);
    assert_eq!(plan.stem().name, "sm80_int4_f16_fwd");
    assert!(plan.problem().smoothing().q, "INT4 by the kernel's name smooths Q as INT4 does");
}

/// The padded head dimension is the next of 64, 128 and 256 for q, k and v together; 256 has general kernels only,
/// whose CTAs take 128 channels of v each.
#[test]
fn head_dimensions_choose_the_kernel() {
    for (head_dim, head_dim_v, symbol, parts) in [
        (64, 64, "sm90_int8_fp8_fwd_d64", None),
        (64, 128, "sm90_int8_fp8_fwd_d128", None),
        (128, 40, "sm90_int8_fp8_fwd_d128", None),
        (192, 128, "sm89_int8_fp8_fwd_general_d256", Some(1)),
        (129, 129, "sm89_int8_fp8_fwd_general_d256", Some(2)),
        (128, 256, "sm89_int8_fp8_fwd_general_d256", Some(2)),
        (256, 256, "sm89_int8_fp8_fwd_general_d256", Some(2)),
    ] {
        let mut request = request(2, [4, 2], [300, 300], head_dim);
        let v = TensorSpec::new(Operand::V, DType::BF16, &[2, 2, 300, head_dim_v], Layout::Hnd).unwrap();
        let out = TensorSpec::new(Operand::Out, DType::BF16, &[2, 4, 300, head_dim_v], Layout::Hnd).unwrap();
        (request.v, request.out) = (v, out);
        let plan = planned(request, &HOPPER);
        let depth = if head_dim.max(head_dim_v) > 128 { 256 } else { head_dim.max(head_dim_v).next_multiple_of(64) };
        assert_eq!(symbols(&plan), [format!("quantize_fp8_bf16_d{depth}"), symbol.to_owned()]);
        if let Some(parts) = parts {
            let grid = plan.chunk_steps().next().unwrap().grid;
            assert_eq!(grid, [2 * 3 * parts, 8], "{head_dim}/{head_dim_v}");
        }
        assert_eq!(plan.problem().flops(), 2.0 * 8.0 * 300.0 * 300.0 * (head_dim + head_dim_v) as f64);
        assert_eq!(plan.explain().contains(&format!("Dv={head_dim_v}")), head_dim_v != head_dim);
    }
}

#[test]
fn a_named_kernel_is_refused_where_it_does_not_load() {
    for (name, device) in [("sm90_int8_fp8_fwd", ADA), ("sm90_int4_fp8_fwd", AMPERE), ("sm89_int8_fp8_fwd", AMPERE)] {
        let named = Request { kernel: Some(name.into()), ..request(1, [8, 8], [512, 512], 128) };
        let error = plan(&Problem::new(named).unwrap(), &device).unwrap_err();
        assert!(matches!(error, Error::Plan(PlanError::KernelNeeds { .. })), "{name}: {error}");
    }
}

#[test]
fn the_launch_sequence_is_the_documented_one() {
    let base = request(2, [4, 2], [300, 500], 80);
    let plain = Request { smoothing: Some(Smoothing::NONE), ..base.clone() };
    assert_eq!(symbols(&planned(plain, &AMPERE)), ["quantize_f16_bf16_d128", "sm80_int8_f16_fwd_d128"]);
    let int4 = Request { precision: Precision::Int4, ..base };
    assert_eq!(
        symbols(&planned(int4, &ADA)),
        ["quantize_fp8_bf16_d128", "delta_s_bf16_d128", "sm89_int4_fp8_fwd_d128",]
    );
}

#[test]
fn without_keys_only_attention_is_launched_and_nothing_is_needed() {
    let plan = planned(Request { return_lse: true, ..request(2, [4, 2], [300, 0], 64) }, &ADA);
    assert_eq!(symbols(&plan), ["sm89_int8_fp8_fwd_d64"]);
    assert_eq!(plan.workspace().total_bytes(), 0);
}

#[test]
fn without_output_nothing_is_launched() {
    for request in [
        request(0, [4, 2], [300, 500], 64),
        request(2, [0, 2], [300, 500], 64),
        request(2, [0, 0], [300, 500], 64),
        request(2, [4, 2], [0, 500], 64),
    ] {
        let plan = planned(request, &ADA);
        assert_eq!(plan.steps().count(), 0);
        assert_eq!(plan.workspace().total_bytes(), 0);
        assert!(plan.explain().contains("none"));
    }
}

#[test]
fn the_mean_products_are_kept_only_for_the_lse_of_smoothed_keys() {
    let base = request(1, [4, 2], [300, 500], 64);
    let has = |request: Request| planned(request, &ADA).workspace().get(Slot::QkMean).is_some();
    assert!(!has(base.clone()));
    assert!(has(Request { return_lse: true, ..base.clone() }));
    assert!(!has(Request { return_lse: true, smoothing: Some(Smoothing::NONE), ..base }));
}

#[test]
fn long_sequences_need_less_than_twice_their_own_memory() {
    let smooth = Smoothing { q: true, k: true, v: true };
    for precision in [Precision::Int4, Precision::Int8] {
        for pv in [PvFormat::Fp8, PvFormat::F16] {
            let base = request(1, [8, 8], [128 << 10, 128 << 10], 128);
            let request = Request {
                precision,
                pv: Some(pv),
                smoothing: Some(smooth),
                granularity: ScaleGranularity::PerThread,
                return_lse: true,
                ..base
            };
            let plan = planned(request, &HOPPER);
            let inputs = 3 * 8 * (128usize << 10) * 128 * 2;
            let total = plan.workspace().total_bytes();
            assert!(total <= 2 * inputs, "{total} bytes for {inputs} bytes of q, k and v");
            let delta_s = plan.workspace().get(Slot::DeltaS).unwrap().bytes;
            assert!(delta_s <= inputs / 8);
            assert_eq!(plan.chunks().iter().next().unwrap().block_count % 32, 0);
        }
    }
}

#[test]
fn many_heads_are_divided_at_the_limit_of_the_grid() {
    let plan = planned(request(70, [1000, 1000], [1, 1], 64), &ADA);
    let heads: Vec<u32> = plan.chunks().iter().map(|chunk| chunk.head_count).collect();
    assert_eq!(heads, [65_535, 70_000 - 65_535]);
}

#[test]
fn explanations_say_why() {
    let int4 = Request { precision: Precision::Int4, ..request(1, [8, 8], [512, 512], 128) };
    let text = planned(int4, &HOPPER).explain();
    for words in [
        "sm90_int4_fp8_fwd  chosen",
        "sm90_int8_fp8_fwd  lost: Q and K are to be int4",
        "sm89_int4_fp8_fwd  lost: the kernel for compute capability 9.0 is faster",
        "sm80_int4_f16_fwd  lost: FP8 P V is preferred",
        "INT4 gains no speed",
        "delta_s_bf16_d128",
        "bytes in all",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let ada = Request { kernel: Some("sm89_int8_fp8_fwd".into()), ..request(1, [8, 8], [512, 512], 128) };
    assert!(planned(ada, &HOPPER).explain().contains("FP8 mma.sync is emulated"));
    assert!(!planned(request(1, [8, 8], [512, 512], 128), &HOPPER).explain().contains("note"));
    assert!(!planned(request(1, [8, 8], [512, 512], 128), &ADA).explain().contains("note"));
}

/// Sizes that break things: tiny, near tile edges, and near every power of two up to the largest.
fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..300,
        2 => (0u32..64, 0usize..3).prop_map(|(bit, off)| (1usize << bit).wrapping_add(off).wrapping_sub(1)),
        1 => any::<usize>(),
    ]
}

fn stride() -> impl Strategy<Value = i64> {
    prop_oneof![1 => -5i64..300, 1 => (0u32..63).prop_map(|bit| 1i64 << bit), 1 => any::<i64>()]
}

fn any_spec() -> impl Strategy<Value = TensorSpec> {
    let dtype = prop_oneof![Just(DType::F16), Just(DType::BF16), Just(DType::F32)];
    let strides = (stride(), stride(), stride(), prop_oneof![9 => Just(1i64), 1 => stride()]);
    (dtype, [extent(), extent(), extent(), extent()], strides).prop_map(|(dtype, shape, (a, b, c, d))| TensorSpec {
        dtype,
        shape,
        strides: [a, b, c, d],
    })
}

fn any_options() -> impl Strategy<Value = Request> {
    let spec = TensorSpec { dtype: DType::F16, shape: [1; 4], strides: [1; 4] };
    let precision =
        prop_oneof![Just(Precision::Auto), Just(Precision::Int4), Just(Precision::Int8), Just(Precision::Exact),];
    let granularity = prop_oneof![
        Just(ScaleGranularity::PerBlock),
        Just(ScaleGranularity::PerWarp),
        Just(ScaleGranularity::PerThread),
    ];
    let smoothing = proptest::option::of(any::<[bool; 3]>());
    let sm_scale = proptest::option::of(prop_oneof![3 => 0.0f32..2.0, 1 => any::<f32>()]);
    (precision, granularity, smoothing, sm_scale, any::<[bool; 2]>()).prop_map(
        move |(precision, granularity, smoothing, sm_scale, [causal, return_lse])| Request {
            precision,
            granularity,
            smoothing: smoothing.map(|[q, k, v]| Smoothing { q, k, v }),
            sm_scale,
            causal,
            return_lse,
            ..Request::new(spec, spec, spec, spec)
        },
    )
}

/// Capabilities from before the first that is supported to after the last that is known.
fn any_capability() -> impl Strategy<Value = Capability> {
    (7u32..13, 0u32..10, 0usize..300_000).prop_map(|(major, minor, smem_opt_in)| Capability {
        major,
        minor,
        sm_count: 1,
        smem_opt_in,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn malformed_requests_never_panic(
        specs in [any_spec(), any_spec(), any_spec(), any_spec()],
        options in any_options(),
        capability in any_capability(),
    ) {
        let [q, k, v, out] = specs;
        if let Ok(problem) = Problem::new(Request { q, k, v, out, ..options.clone() }) {
            let _ = plan(&problem, &capability).map(|plan| plan.explain());
        }
    }

    /// Shapes that agree with each other but have hostile extents and strides reach the planner.
    #[test]
    fn hostile_but_consistent_requests_never_panic(
        (batch, heads_kv, group) in (extent(), extent(), 0usize..9),
        (m, n, d) in (extent(), extent(), 0usize..140),
        strides in [[stride(), stride(), stride()], [stride(), stride(), stride()]],
        options in any_options(),
        capability in any_capability(),
    ) {
        let heads_q = heads_kv.saturating_mul(group);
        let spec = |shape, [b, h, t]: [i64; 3]| TensorSpec { dtype: DType::F16, shape, strides: [b, h, t, 1] };
        let q = spec([batch, heads_q, m, d], strides[0]);
        let k = spec([batch, heads_kv, n, d], strides[1]);
        let out = TensorSpec::new(Operand::Out, DType::F16, &q.shape, Layout::Hnd).unwrap_or(q);
        let planned = Problem::new(Request { q, k, v: k, out, ..options.clone() })
            .and_then(|problem| plan(&problem, &capability));
        if let Ok(plan) = planned {
            prop_assert!(plan.workspace().total_bytes() <= i64::MAX as usize);
            let _ = plan.explain();
        }
    }

    #[test]
    fn buffers_are_aligned_and_disjoint(
        (batch, heads_kv, group) in (1usize..4, 1usize..4, 1usize..5),
        (m, n, d) in (1usize..3000, 1usize..3000, 1usize..129),
        options in any_options(),
    ) {
        let base = request(batch, [heads_kv * group, heads_kv], [m, n], d);
        let request = Request { sm_scale: None, q: base.q, k: base.k, v: base.v, out: base.out, ..options };
        prop_assume!(request.precision != Precision::Exact);
        let plan = planned(request, &ADA);
        let mut end = 0;
        for buffer in plan.workspace().buffers() {
            prop_assert!(buffer.offset_bytes >= end && buffer.offset_bytes.is_multiple_of(256));
            prop_assert!(buffer.bytes > 0);
            end = buffer.offset_bytes + buffer.bytes;
        }
        prop_assert_eq!(end, plan.workspace().total_bytes());
    }

    #[test]
    fn chunks_cover_every_query_block_once(
        (batch, heads) in (1usize..4, 1usize..40),
        (m, n) in (1usize..6000, 1usize..400_000),
        smooth_q in any::<bool>(),
    ) {
        let smoothing = Some(Smoothing { q: smooth_q, k: true, v: false });
        let plan = planned(Request { smoothing, ..request(batch, [heads, heads], [m, n], 64) }, &ADA);
        let dims = *plan.problem().dims();
        let (rows, blocks) = (batch * heads, dims.num_query_blocks());
        let mut seen = vec![0u8; rows * blocks];
        let mut attention = 0;
        for step in plan.chunk_steps() {
            prop_assert!(step.grid.iter().all(|&ctas| ctas >= 1));
            if step.entry.kernel != Kernel::Attention {
                continue;
            }
            attention += 1;
            let chunk = step.chunk;
            prop_assert_eq!(step.grid, [chunk.block_count, chunk.head_count]);
            for head in chunk.head_begin..chunk.head_begin + chunk.head_count {
                for block in chunk.block_begin..chunk.block_begin + chunk.block_count {
                    seen[head as usize * blocks + block as usize] += 1;
                }
            }
            if let Some(delta_s) = plan.workspace().get(Slot::DeltaS) {
                let used = chunk.head_count as usize * chunk.block_count as usize * dims.seqlen_kv_padded() * 4;
                prop_assert!(used <= delta_s.bytes);
            }
        }
        prop_assert!(seen.iter().all(|&count| count == 1));
        prop_assert_eq!(attention, plan.chunks().count());
        prop_assert!(smooth_q || attention == 1);
    }
}
