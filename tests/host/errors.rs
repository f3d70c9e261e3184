//! Every bad input has its own error, whose message names the value and what would be right.

use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs, SideArgs};
use sage_attn::error::{Axis, Invalid, ModifierError, Operand, PlanError, Unsupported};
use sage_attn::plan::{Capability, Plan, plan, plan_packed};
use sage_attn::problem::{BiasSpec, Modifiers, PairSpec, Problem, Request, TensorSpec};
use sage_attn::{
    Attention, DType, Device, Error, Layout, Precision, PvFormat, Sequences, SideInputs, TensorView, TensorViewMut,
};

fn spec(shape: [usize; 4]) -> TensorSpec {
    TensorSpec::new(Operand::Q, DType::F16, &shape, Layout::Hnd).unwrap()
}

/// A good request: 4 query heads, 2 key/value heads, 100 queries, 300 keys, 64 features.
fn good() -> Request {
    let (q, k) = (spec([2, 4, 100, 64]), spec([2, 2, 300, 64]));
    Request::new(q, k, k, q)
}

/// The error of the good request after `change`, whose message must contain `words`.
fn error(change: impl Fn(&mut Request), words: &[&str]) -> Error {
    let mut request = good();
    change(&mut request);
    checked(Problem::new(request).unwrap_err(), words)
}

fn checked(error: Error, words: &[&str]) -> Error {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is not one line");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    error
}

fn invalid(expected: Invalid) -> Error {
    Error::Invalid(expected)
}

#[test]
fn the_good_request_is_good() {
    Problem::new(good()).unwrap();
}

#[test]
fn wrong_rank() {
    for shape in [&[4usize, 100, 64][..], &[], &[1, 1, 4, 100, 64]] {
        let found = TensorView::new(&[0.0f32; 4 * 100 * 64], shape, Layout::Hnd).unwrap_err();
        let rank = shape.len();
        let found = checked(found, &[&rank.to_string(), "must have 4"]);
        assert_eq!(found, invalid(Invalid::Rank { tensor: Operand::Tensor, rank }));
    }
}

#[test]
fn batch_mismatch() {
    let wrong = spec([3, 2, 300, 64]);
    let expect = |tensor| invalid(Invalid::BatchMismatch { tensor, batch: 3, expected: 2 });
    assert_eq!(error(|r| r.k = wrong, &["k", "3", "2"]), expect(Operand::K));
    assert_eq!(error(|r| r.v = wrong, &["v", "3", "2"]), expect(Operand::V));
    assert_eq!(error(|r| r.out = spec([3, 4, 100, 64]), &["out", "3", "2"]), expect(Operand::Out));
}

#[test]
fn head_dim_mismatch() {
    let expect = |tensor, head_dim, of, expected| invalid(Invalid::HeadDimMismatch { tensor, head_dim, of, expected });
    let k = error(|r| r.k = spec([2, 2, 300, 128]), &["k has head_dim 128", "q has 64"]);
    assert_eq!(k, expect(Operand::K, 128, Operand::Q, 64));
    // The width of v is its own, and the output has it.
    let out = error(|r| r.v = spec([2, 2, 300, 128]), &["out has head_dim 64", "v has 128"]);
    assert_eq!(out, expect(Operand::Out, 64, Operand::V, 128));
    let out = error(|r| r.out = spec([2, 4, 100, 128]), &["out has head_dim 128", "v has 64"]);
    assert_eq!(out, expect(Operand::Out, 128, Operand::V, 64));
}

fn with_head_dim(head_dim: usize) -> impl Fn(&mut Request) {
    move |r| {
        for t in [&mut r.q, &mut r.k, &mut r.v, &mut r.out] {
            *t = spec([t.shape[0], t.shape[1], t.shape[2], head_dim]);
        }
    }
}

#[test]
fn head_dim_zero() {
    let found = error(with_head_dim(0), &["head_dim of q is 0", "1 to 256"]);
    assert_eq!(found, invalid(Invalid::HeadDimZero { tensor: Operand::Q, max: 256 }));
    let no_values = |r: &mut Request| (r.v, r.out) = (spec([2, 2, 300, 0]), spec([2, 4, 100, 0]));
    assert_eq!(
        error(no_values, &["head_dim of v is 0"]),
        invalid(Invalid::HeadDimZero { tensor: Operand::V, max: 256 })
    );
}

#[test]
fn head_dim_too_large() {
    let found = error(with_head_dim(257), &["head_dim of q is 257", "1 to 256"]);
    let expected = Unsupported::HeadDim { tensor: Operand::Q, head_dim: 257, max: 256 };
    assert_eq!(found, Error::Unsupported(expected));
}

#[test]
fn key_and_value_lengths_differ() {
    let found = error(|r| r.v = spec([2, 2, 299, 64]), &["299", "300"]);
    assert_eq!(found, invalid(Invalid::SeqlenKvMismatch { seqlen: 299, expected: 300 }));
}

#[test]
fn output_length_differs() {
    let found = error(|r| r.out = spec([2, 4, 99, 64]), &["99", "100"]);
    assert_eq!(found, invalid(Invalid::OutSeqlenMismatch { seqlen: 99, expected: 100 }));
}

#[test]
fn key_and_value_heads_differ() {
    let found = error(|r| r.v = spec([2, 4, 300, 64]), &["4", "2"]);
    assert_eq!(found, invalid(Invalid::KvHeadsMismatch { heads: 4, expected: 2 }));
}

#[test]
fn output_heads_differ() {
    let found = error(|r| r.out = spec([2, 2, 100, 64]), &["2", "4"]);
    assert_eq!(found, invalid(Invalid::OutHeadsMismatch { heads: 2, expected: 4 }));
}

#[test]
fn no_key_heads() {
    let none = spec([2, 0, 300, 64]);
    let found = error(|r| (r.k, r.v) = (none, none), &["0 heads", "4"]);
    assert_eq!(found, invalid(Invalid::NoKvHeads { heads_q: 4 }));
}

#[test]
fn heads_do_not_divide() {
    let three = spec([2, 3, 300, 64]);
    let found = error(|r| (r.k, r.v) = (three, three), &["4", "3"]);
    assert_eq!(found, invalid(Invalid::HeadsNotDivisible { heads_q: 4, heads_kv: 3 }));
}

#[test]
fn element_types_differ() {
    let f32s = TensorSpec { dtype: DType::F32, ..good().k };
    let expect = |tensor| invalid(Invalid::DTypeMismatch { tensor, dtype: DType::F32, expected: DType::F16 });
    assert_eq!(error(|r| r.k = f32s, &["k", "f32", "f16"]), expect(Operand::K));
    assert_eq!(error(|r| r.v = f32s, &["v", "f32", "f16"]), expect(Operand::V));
}

#[test]
fn element_count_overflows() {
    let shape = [1 << 20, 1 << 20, 1 << 20, 64];
    let found = TensorSpec::new(Operand::K, DType::F16, &shape, Layout::Hnd).unwrap_err();
    assert_eq!(found, Invalid::ElementsOverflow { tensor: Operand::K, shape });
    let small_strides = TensorSpec { shape, ..spec([1, 1, 1, 64]) };
    let found = error(|r| (r.q, r.k, r.v, r.out) = (small_strides, small_strides, small_strides, small_strides), &[]);
    assert_eq!(found, invalid(Invalid::ElementsOverflow { tensor: Operand::Q, shape }));
}

#[test]
fn sequence_too_long() {
    let long = spec([1, 1, 1 << 31, 64]);
    let one = spec([1, 1, 1, 64]);
    let max = sage_spec::limits::MAX_SEQLEN;
    let expect = |tensor| Error::Unsupported(Unsupported::Seqlen { tensor, seqlen: 1 << 31, max });
    let words = ["2147483648", &max.to_string()];
    assert_eq!(error(|r| (r.q, r.k, r.v, r.out) = (one, long, long, one), &words), expect(Operand::K));
    assert_eq!(error(|r| (r.q, r.k, r.v, r.out) = (long, one, one, long), &words), expect(Operand::Q));
}

#[test]
fn last_stride_not_one() {
    let found = error(|r| r.k.strides[3] = 2, &["k", "2", "must be 1"]);
    assert_eq!(found, invalid(Invalid::FeatureStride { tensor: Operand::K, stride: 2 }));
}

#[test]
fn zero_stride() {
    let expect = |tensor, axis| invalid(Invalid::ZeroStride { tensor, axis });
    assert_eq!(error(|r| r.out.strides[1] = 0, &["out", "head", "positive"]), expect(Operand::Out, Axis::Head));
    assert_eq!(error(|r| r.k.strides[0] = 0, &["k", "batch"]), expect(Operand::K, Axis::Batch));
}

#[test]
fn negative_stride() {
    let found = error(|r| r.q.strides[2] = -64, &["q", "-64", "token", "positive"]);
    assert_eq!(found, invalid(Invalid::NegativeStride { tensor: Operand::Q, axis: Axis::Token, stride: -64 }));
}

#[test]
fn stride_below_row() {
    let found = error(|r| r.q.strides[2] = 32, &["q", "32", "64"]);
    let expected = Invalid::StrideBelowRow { tensor: Operand::Q, axis: Axis::Token, stride: 32, head_dim: 64 };
    assert_eq!(found, invalid(expected));
}

#[test]
fn output_rows_overlap() {
    let found = error(|r| r.out.strides[1] = 99 * 64, &["out", "6336", "6400"]);
    assert_eq!(found, invalid(Invalid::OutputOverlap { axis: Axis::Head, stride: 6336, needed: 6400 }));
    // An input may do that: nothing is written.
    let mut request = good();
    request.q.strides[1] = 99 * 64;
    Problem::new(request).unwrap();
}

#[test]
fn span_overflows() {
    let strides = [i64::MAX / 2, 6400, 64, 1];
    let found = error(|r| r.k.strides = strides, &["k", "4611686018427387903"]);
    assert_eq!(found, invalid(Invalid::SpanOverflow { tensor: Operand::K, strides }));
}

#[test]
fn span_beyond_buffer() {
    let found = TensorView::new(&[0.0f32; 1000], &[1, 1, 16, 64], Layout::Hnd).unwrap_err();
    let found = checked(found, &["1024", "1000"]);
    assert_eq!(found, invalid(Invalid::SpanBeyondBuffer { needed: 1024, len: 1000 }));
    let strides = Layout::Strides([0, 0, 128, 1]);
    TensorView::new(&[0.0f32; 15 * 128 + 64], &[1, 1, 16, 64], strides).unwrap();
    let found = TensorViewMut::new(&mut [0.0f32; 15 * 128 + 63], &[1, 1, 16, 64], strides).unwrap_err();
    assert_eq!(found, invalid(Invalid::SpanBeyondBuffer { needed: 1984, len: 1983 }));
}

#[test]
fn sm_scale_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let found = error(|r| r.sm_scale = Some(bad), &[&bad.to_string(), "finite"]);
        assert!(matches!(found, Error::Invalid(Invalid::SmScaleNotFinite { .. })));
    }
}

#[test]
fn sm_scale_negative() {
    let found = error(|r| r.sm_scale = Some(-0.125), &["-0.125", "0 or positive"]);
    assert_eq!(found, invalid(Invalid::SmScaleNegative { sm_scale: -0.125 }));
}

#[test]
fn sm_scale_zero_is_allowed() {
    let problem = Problem::new(Request { sm_scale: Some(0.0), ..good() }).unwrap();
    assert_eq!(problem.sm_scale(), 0.0);
}

#[test]
fn unknown_kernel() {
    let found = error(|r| r.kernel = Some("sm70_int8".into()), &["sm70_int8", "sm80_int8_f16_fwd"]);
    assert!(matches!(found, Error::Invalid(Invalid::UnknownKernel { .. })));
}

#[test]
fn kernel_contradicts_options() {
    let kernel = || Some("sm89_int8_fp8_fwd".to_owned());
    let found = error(|r| (r.kernel, r.precision) = (kernel(), Precision::Int4), &["int8", "int4", "precision"]);
    assert!(matches!(found, Error::Invalid(Invalid::KernelConflict { option: "precision", .. })));
    let found = error(|r| (r.kernel, r.pv) = (kernel(), Some(PvFormat::F16)), &["fp8", "f16", "pv"]);
    assert!(matches!(found, Error::Invalid(Invalid::KernelConflict { option: "pv", .. })));
}

const ADA: Capability = Capability { major: 8, minor: 9, sm_count: 128, smem_opt_in: 101_376 };

/// The error of planning the good request, changed, for `capability`.
fn plan_error(capability: Capability, change: impl Fn(&mut Request), words: &[&str]) -> Error {
    let mut request = good();
    change(&mut request);
    checked(plan(&Problem::new(request).unwrap(), &capability).unwrap_err(), words)
}

#[test]
fn capability_too_low() {
    let turing = Capability { major: 7, minor: 5, ..ADA };
    let found = plan_error(turing, |_| (), &["7.5", "8.0"]);
    assert_eq!(found, Error::Plan(PlanError::CapabilityTooLow { major: 7, minor: 5 }));
}

#[test]
fn kernel_needs_a_newer_device() {
    let ampere = Capability { minor: 0, ..ADA };
    let by_name =
        plan_error(ampere, |r| r.kernel = Some("sm89_int8_fp8_fwd".into()), &["sm89_int8_fp8_fwd", "8.9", "8.0"]);
    assert!(matches!(by_name, Error::Plan(PlanError::KernelNeeds { .. })));
    let by_format = plan_error(ampere, |r| r.pv = Some(PvFormat::Fp8), &["pv fp8", "8.9", "8.0"]);
    assert!(matches!(by_format, Error::Plan(PlanError::KernelNeeds { .. })));
}

#[test]
fn too_little_shared_memory() {
    let found = plan_error(Capability { smem_opt_in: 1024, ..ADA }, |_| (), &["1024"]);
    assert!(matches!(found, Error::Plan(PlanError::SharedMemory { max: 1024, .. })));
}

/// What has no kernel for wide heads names what there is.
#[test]
fn wide_heads_without_a_kernel() {
    let hopper = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
    let named = |r: &mut Request| {
        with_head_dim(192)(r);
        r.kernel = Some("sm90_int8_fp8_fwd".into());
    };
    let found = plan_error(hopper, named, &["sm90_int8_fp8_fwd", "head_dim above 128", "sm80 and sm89"]);
    assert!(matches!(found, Error::Plan(PlanError::Modifiers { .. })));
    let f32 = |r: &mut Request| {
        with_head_dim(192)(r);
        [&mut r.q, &mut r.k, &mut r.v, &mut r.out].into_iter().for_each(|t| t.dtype = DType::F32);
    };
    let found = plan_error(hopper, f32, &["f32", "192", "f16 and bf16 up to 256", "device cpu"]);
    assert!(matches!(found, Error::Plan(PlanError::HeadDimOfType { dtype: DType::F32, head_dim: 192, .. })));
    // 99 KiB of shared memory suffice for 16-bit types, with ΔS too.
    for precision in [Precision::Int8, Precision::Int4] {
        let mut request = Request { precision, ..good() };
        with_head_dim(256)(&mut request);
        plan(&Problem::new(request).unwrap(), &ADA).unwrap();
    }
}

#[test]
fn grid_too_large() {
    let many = TensorSpec { strides: [64, 64, 64, 1], ..spec([1, 1, 1, 64]) };
    let with = |heads| TensorSpec { shape: [1 << 16, heads, 1, 64], ..many };
    let wide = |r: &mut Request| {
        (r.q, r.k, r.v) = (with(1 << 16), with(1), with(1));
        r.out = TensorSpec { strides: [1 << 22, 64, 64, 1], ..r.q };
    };
    let found = plan_error(ADA, wide, &["2147483647"]);
    // One tile of Q a head, and those of K and V.
    assert!(matches!(found, Error::Plan(PlanError::GridTooLarge { ctas, .. }) if ctas > 1 << 32));
}

#[test]
fn too_many_tiles_of_keys() {
    // 2²⁶ key/value heads of nearly 2³¹ overlapping tokens each.
    let overlap = TensorSpec { strides: [64, 64, 64, 1], ..spec([1, 1, 1, 64]) };
    let heads = 1 << 26;
    let q = TensorSpec { shape: [1, heads, 1, 64], ..overlap };
    let k = TensorSpec { shape: [1, heads, (1 << 31) - 1024, 64], ..overlap };
    let found = plan_error(ADA, |r| (r.q, r.k, r.v, r.out) = (q, k, k, q), &["2147483647"]);
    assert!(matches!(found, Error::Plan(PlanError::GridTooLarge { .. })));
}

#[test]
fn exact_arithmetic_on_a_gpu() {
    let found = plan_error(ADA, |r| r.precision = Precision::Exact, &["exact", "int8"]);
    assert!(matches!(found, Error::Unsupported(Unsupported::ExactOnGpu { .. })));
    let tokens = [0.0f32; 64];
    let view = TensorView::new(&tokens, &[1, 1, 1, 64], Layout::Hnd).unwrap();
    let attention = Attention::new().precision(Precision::Exact).device(Device::Cuda(0));
    let found = checked(attention.forward(&view, &view, &view).unwrap_err(), &["cuda:0", "exact"]);
    assert!(matches!(found, Error::Unsupported(Unsupported::ExactOnGpu { .. })));
}

#[test]
fn a_kernel_on_the_cpu_refuses_what_it_does_not_compute() {
    let tokens = [0.0f32; 3 * 64];
    let view = TensorView::new(&tokens, &[1, 1, 3, 64], Layout::Hnd).unwrap();
    let attention = Attention::new().kernel("sm90_int8_fp8_fwd").device(Device::Cpu);
    for computed in [&attention, &attention.clone().softcap(5.0)] {
        assert!(computed.forward(&view, &view, &view).is_ok());
    }
    let wide = TensorView::new(&tokens, &[1, 1, 1, 192], Layout::Hnd).unwrap();
    let found = attention.softcap(5.0).forward(&wide, &wide, &wide).unwrap_err();
    let found = checked(found, &["sm90_int8_fp8_fwd", "head_dim above 128", "sm80"]);
    assert!(matches!(found, Error::Plan(PlanError::Modifiers { .. })));
}

#[test]
fn output_of_the_wrong_type() {
    let tokens = [0.0f32; 64];
    let view = TensorView::new(&tokens, &[1, 1, 1, 64], Layout::Hnd).unwrap();
    let mut out = [0.0f32; 64];
    let mut out = TensorViewMut::new(&mut out, &[1, 1, 1, 64], Layout::Hnd).unwrap();
    let attention = Attention::new().out_dtype(DType::BF16);
    let found = checked(attention.forward_into(&view, &view, &view, &mut out).unwrap_err(), &["f32", "bf16"]);
    assert_eq!(found, invalid(Invalid::OutDTypeMismatch { dtype: DType::F32, expected: DType::BF16 }));
}

#[test]
fn unknown_device_name() {
    for name in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", ""] {
        let found = checked(name.parse::<Device>().unwrap_err(), &["auto, cpu or cuda:N"]);
        assert_eq!(found, invalid(Invalid::DeviceName { name: name.into() }));
    }
    assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
}

#[test]
fn no_query_heads_is_no_error() {
    let none = spec([2, 0, 100, 64]);
    let problem = Problem::new(Request { q: none, out: none, ..good() }).unwrap();
    assert!(problem.is_empty());
    assert!(plan(&problem, &ADA).unwrap().entries().is_empty());
}

#[test]
fn more_queries_than_keys_under_a_causal_mask_is_no_error() {
    let (q, k) = (spec([1, 1, 300, 64]), spec([1, 1, 100, 64]));
    let problem = Problem::new(Request { causal: true, ..Request::new(q, k, k, q) }).unwrap();
    assert_eq!((problem.band().keys(199), problem.band().keys(200)), ((0, 0), (0, 1)));
}

#[test]
fn an_odd_head_dimension_in_four_bits_is_no_error() {
    let mut request = Request { precision: Precision::Int4, ..good() };
    with_head_dim(63)(&mut request);
    plan(&Problem::new(request).unwrap(), &ADA).unwrap();
}

#[test]
fn a_kernel_of_one_architecture_does_not_run_on_the_next() {
    // `sm_90a` code loads on compute capability 9.0 only.
    for (major, minor) in [(8, 9), (10, 0), (12, 0)] {
        let device = Capability { major, minor, ..ADA };
        let words = ["sm90_int8_fp8_fwd", "9.0", &format!("{major}.{minor}")];
        let found = plan_error(device, |r| r.kernel = Some("sm90_int8_fp8_fwd".into()), &words);
        assert!(matches!(found, Error::Plan(PlanError::KernelNeeds { .. })));
    }
}

#[test]
fn a_workspace_beyond_the_address_space() {
    // Every padded buffer is counted in 128 bits before any is laid out: the most that grids allow still fits.
    let overlap = TensorSpec { strides: [64, 64, 64, 1], ..spec([1, 1, 1, 64]) };
    let with = |heads, tokens| TensorSpec { shape: [1, heads, tokens, 64], ..overlap };
    let keys = (1 << 31) - 1024;
    let request = Request::new(with(16, 1), with(16, keys), with(16, keys), spec([1, 16, 1, 64]));
    let plan = plan(&Problem::new(request).unwrap(), &ADA).unwrap();
    assert!(plan.workspace().total_bytes() > 1 << 41 && i64::try_from(plan.workspace().total_bytes()).is_ok());
}

#[test]
fn packed_and_plain_plans_are_not_confused() {
    let packed = Sequences::new(&[0, 100], &[0, 300]).unwrap();
    let (q, k) = (spec([1, 4, 100, 64]), spec([1, 2, 300, 64]));
    let request = Request { sequences: Some(packed), ..Request::new(q, k, k, q) };
    let found = plan(&Problem::new(request).unwrap(), &ADA).unwrap_err();
    assert_eq!(checked(found, &["plan_packed"]), Error::Plan(PlanError::PackedSequences));
    let found = plan_packed(&Problem::new(good()).unwrap(), &ADA).unwrap_err();
    assert_eq!(checked(found, &["plan"]), Error::Modifier(ModifierError::NotPacked));
}

#[test]
fn a_part_that_is_not_there() {
    let view = TensorView::new(&[0.0f32; 64], &[1, 1, 1, 64], Layout::Hnd).unwrap();
    #[allow(clippy::reversed_empty_ranges)] // which is the point
    for range in [0..2, 2..2, 1..0] {
        let (begin, end) = (range.start, range.end);
        let found = checked(view.narrow(Axis::Token, range).unwrap_err(), &["token", "1"]);
        assert_eq!(found, invalid(Invalid::NarrowRange { axis: Axis::Token, begin, end, extent: 1 }));
    }
}

/// A plan with every side input and a log-sum-exp, and good arguments for it at made-up addresses.
fn launch() -> (Plan, LaunchArgs, SideArgs) {
    let pairs = PairSpec::contiguous(Operand::Bias, [2, 4, 100, 300]).unwrap();
    let modifiers = Modifiers {
        alibi: Some([2, 4]),
        bias: Some(BiasSpec { dtype: DType::F32, pairs }),
        mask: Some(pairs),
        sinks: Some(4),
        ..Modifiers::default()
    };
    let request = Request { modifiers, return_lse: true, ..good() };
    let plan = plan(&Problem::new(request).unwrap(), &ADA).unwrap();
    let at = |index: u64, spec| DeviceTensor { ptr: index << 32, spec };
    let args = LaunchArgs {
        q: at(1, good().q),
        k: at(2, good().k),
        v: at(3, good().v),
        out: at(4, good().out),
        lse: Some(5 << 32),
        workspace: DeviceMemory { ptr: 6 << 32, bytes: plan.workspace().total_bytes() },
    };
    let side = SideArgs { alibi: Some(7 << 32), bias: Some(8 << 32), mask: Some(9 << 32), sinks: Some(10 << 32) };
    (plan, args, side)
}

/// The error of good arguments after `change`.
fn launch_error(change: impl Fn(&mut LaunchArgs, &mut SideArgs), words: &[&str]) -> Error {
    let (plan, mut args, mut side) = launch();
    let first = plan.steps().next().unwrap();
    let encode = |_: &_| Ok(Default::default());
    args.kernel_params_with(&plan, &side, &first, &encode).expect("good arguments");
    change(&mut args, &mut side);
    checked(args.kernel_params_with(&plan, &side, &first, &encode).unwrap_err(), words)
}

#[test]
fn whatever_is_written_overlaps_nothing() {
    type Change = fn(&mut LaunchArgs, &mut SideArgs);
    let cases: [(Change, Operand, Operand); 15] = [
        (|args, _| args.out.ptr = args.q.ptr + 64, Operand::Out, Operand::Q),
        (|args, _| args.out.ptr = args.k.ptr, Operand::Out, Operand::K),
        (|args, _| args.out.ptr = args.v.ptr, Operand::Out, Operand::V),
        (|args, side| side.bias = Some(args.out.ptr), Operand::Out, Operand::Bias),
        (|args, side| side.mask = Some(args.out.ptr), Operand::Out, Operand::Mask),
        (|args, side| side.alibi = Some(args.out.ptr), Operand::Out, Operand::Alibi),
        (|args, side| side.sinks = Some(args.out.ptr), Operand::Out, Operand::Sinks),
        (|args, _| args.lse = Some(args.out.ptr), Operand::Out, Operand::Lse),
        (|args, _| args.lse = Some(args.k.ptr), Operand::Lse, Operand::K),
        (|args, side| side.mask = args.lse, Operand::Lse, Operand::Mask),
        (|args, _| args.workspace.ptr = args.out.ptr, Operand::Out, Operand::Workspace),
        (|args, _| args.lse = Some(args.workspace.ptr), Operand::Lse, Operand::Workspace),
        (|args, _| args.workspace.ptr = args.q.ptr, Operand::Workspace, Operand::Q),
        (|args, side| side.bias = Some(args.workspace.ptr), Operand::Workspace, Operand::Bias),
        (|args, side| side.sinks = Some(args.workspace.ptr), Operand::Workspace, Operand::Sinks),
    ];
    for (change, written, other) in cases {
        let words = [written.to_string(), other.to_string()];
        let found = launch_error(change, &[&words[0], &words[1], "overlap"]);
        assert_eq!(found, invalid(Invalid::Aliasing { written, other }));
    }
}

#[test]
fn null_pointers_misalignment_and_wrapping_addresses() {
    let found = launch_error(|args, _| args.q.ptr = 0, &["q", "null", "102400"]);
    assert_eq!(found, invalid(Invalid::NullPointer { tensor: Operand::Q, bytes: 2 * 4 * 100 * 64 * 2 }));
    let found = launch_error(|_, side| side.sinks = Some(0), &["sinks", "null", "16"]);
    assert_eq!(found, invalid(Invalid::NullPointer { tensor: Operand::Sinks, bytes: 16 }));
    let found = launch_error(|args, _| args.out.ptr += 1, &["out", "2 bytes"]);
    assert!(matches!(found, Error::Invalid(Invalid::Misaligned { tensor: Operand::Out, align: 2, .. })));
    let found = launch_error(|args, _| args.workspace.ptr += 128, &["workspace", "256 bytes"]);
    assert!(matches!(found, Error::Invalid(Invalid::Misaligned { tensor: Operand::Workspace, align: 256, .. })));
    let found = launch_error(|args, _| args.v.ptr = u64::MAX - 1, &["v", "address space"]);
    assert!(matches!(found, Error::Invalid(Invalid::AddressOverflow { tensor: Operand::V, .. })));
}

#[test]
fn arguments_that_were_not_planned_for() {
    let found = launch_error(|args, _| args.workspace.bytes -= 1, &["workspace", "needs"]);
    let Error::Invalid(Invalid::WorkspaceTooSmall { bytes, needed }) = found else { panic!("{found}") };
    assert_eq!(bytes + 1, needed);
    let found = launch_error(|args, _| args.lse = None, &["return_lse = true", "no lse"]);
    assert_eq!(found, invalid(Invalid::LsePresence { planned: true }));
    let found = launch_error(|_, side| side.bias = None, &["with bias", "none"]);
    assert_eq!(found, invalid(Invalid::SidePresence { operand: Operand::Bias, planned: true }));
    let found = launch_error(|args, _| args.k.spec.shape[2] += 1, &["k", "301", "300"]);
    assert!(matches!(found, Error::Invalid(Invalid::LaunchMismatch { tensor: Operand::K, .. })));
    let found = launch_error(|args, _| args.v.spec.dtype = DType::BF16, &["v", "bf16", "f16"]);
    assert!(matches!(found, Error::Invalid(Invalid::LaunchMismatch { tensor: Operand::V, .. })));
    // Strides may be others than planned for; they are checked again.
    let found = launch_error(|args, _| args.out.spec.strides[1] = 99 * 64, &["out", "head", "6400"]);
    assert!(matches!(found, Error::Invalid(Invalid::OutputOverlap { axis: Axis::Head, .. })));
}

#[test]
fn slopes_and_sinks_that_are_not_finite() {
    let tokens = [0.0f32; 2 * 64];
    let view = TensorView::new(&tokens, &[1, 2, 1, 64], Layout::Hnd).unwrap();
    let error = |side: &SideInputs<'_>| {
        Attention::new().device(Device::Cpu).forward_with(&view, &view, &view, side).expect_err("bad values")
    };
    let found = checked(error(&SideInputs::new().alibi(&[1.0, f32::INFINITY])), &["slope 1", "inf", "finite"]);
    assert_eq!(found, Error::Modifier(ModifierError::AlibiNotFinite { index: 1, slope: f32::INFINITY }));
    let found = checked(error(&SideInputs::new().sinks(&[f32::INFINITY, 0.0])), &["head 0", "inf", "finite"]);
    assert_eq!(found, Error::Modifier(ModifierError::SinkNotFinite { head: 0, sink: f32::INFINITY }));
    let none = [f32::NEG_INFINITY; 2];
    Attention::new().device(Device::Cpu).forward_with(&view, &view, &view, &SideInputs::new().sinks(&none)).unwrap();
}
