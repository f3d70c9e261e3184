//! Every error of a driver by itself, with what it must say; and what makes no call at all.

use cudarc::driver::{CudaContext, DevicePtr};
use half::f16;
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, HostSide, LaunchArgs, SliceArgs, driver_version};
use sage_attn::error::{DeviceError, Error, Invalid, Operand, PlanError};
use sage_attn::plan::plan;
use sage_attn::problem::{Modifiers, Problem, Request, TensorSpec};
use sage_attn::{Attention, DType, Device, Layout, Output, TensorView};

use crate::mock::{Config, Live, Mock, with_driver};
use crate::work::{self, ROWS, forward, spec, tokens};

fn attend(device: Device) -> Result<Output, Error> {
    let tokens = tokens();
    let view = TensorView::new(&tokens, &[1, 2, ROWS, 64], Layout::Hnd)?;
    Attention::new().device(device).forward(&view, &view, &view)
}

/// The error of device 0, and what [`Device::Auto`] makes of it: the CPU, for that reason.
fn without_gpu(config: Config) -> (Error, String) {
    let error = attend(Device::Cuda(0)).expect_err("no usable GPU");
    let output = attend(Device::Auto).unwrap_or_else(|error| panic!("{config:?}: {error}"));
    assert_eq!(output.report.device, "cpu");
    let note = output.report.note.expect("why it was the CPU");
    assert_eq!(note, error.to_string());
    (error, note)
}

#[test]
fn a_driver_without_devices() {
    with_driver("driver_errors::a_driver_without_devices", |mock| {
        let config = Config { devices: 0, ..Config::H200 };
        mock.configure(config);
        let (error, _) = without_gpu(config);
        assert_eq!(error, DeviceError::NoDevice { ordinal: 0, count: 0 }.into());
    });
}

#[test]
fn a_driver_that_does_not_start() {
    with_driver("driver_errors::a_driver_that_does_not_start", |mock| {
        mock.fail(1, 803);
        let error = attend(Device::Cuda(0)).expect_err("no driver");
        let text = error.to_string();
        assert!(matches!(error, Error::Device(DeviceError::DriverInit { code: 803, .. })), "{text}");
        assert!(text.contains("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), "{text}");
        mock.fail(1, 803);
        assert_eq!(attend(Device::Auto).expect("the CPU").report.note, Some(text));
    });
}

#[test]
fn a_driver_that_is_too_old() {
    with_driver("driver_errors::a_driver_that_is_too_old", |mock| {
        let config = Config { version: 11_010, ..Config::H200 };
        mock.configure(config);
        let (error, note) = without_gpu(config);
        assert_eq!(error, DeviceError::DriverTooOld { version: "11.1".into(), oldest: "11.2".into() }.into());
        assert!(note.contains("11.1") && note.contains("11.2"), "{note}");
        assert_eq!(driver_version(), Ok("11.1".into()));
        mock.configure(Config { version: 11_020, ..Config::H200 });
        attend(Device::Cuda(0)).expect("old enough");
    });
}

#[test]
fn a_device_that_is_too_old() {
    with_driver("driver_errors::a_device_that_is_too_old", |mock| {
        let config = Config { major: 7, minor: 5, ..Config::H200 };
        mock.configure(config);
        let (error, _) = without_gpu(config);
        assert_eq!(error, PlanError::CapabilityTooLow { major: 7, minor: 5 }.into());
        work::assert_nothing_in_progress(mock, "planning");
    });
}

#[test]
fn a_device_that_does_not_exist() {
    with_driver("driver_errors::a_device_that_does_not_exist", |mock| {
        mock.configure(Config { devices: 2, ..Config::H200 });
        for ordinal in [2, 3, usize::MAX] {
            let error = attend(Device::Cuda(ordinal)).expect_err("no such device");
            assert_eq!(error, DeviceError::NoDevice { ordinal, count: 2 }.into());
        }
        assert_eq!(mock.live(), Live::default());
    });
}

#[test]
fn a_device_that_reports_no_multiprocessors_gets_no_empty_grid() {
    with_driver("driver_errors::a_device_that_reports_no_multiprocessors_gets_no_empty_grid", |mock| {
        for (ordinal, (major, minor)) in [(9, 0), (8, 9), (8, 0)].into_iter().enumerate() {
            mock.configure(Config { major, minor, sm_count: 0, ..Config::H200 });
            // The mock refuses a launch without CTAs.
            attend(Device::Cuda(ordinal)).expect("attention");
        }
        assert_eq!(mock.violations(), "");
    });
}

#[test]
fn a_device_with_little_shared_memory() {
    with_driver("driver_errors::a_device_with_little_shared_memory", |mock| {
        mock.configure(Config { smem_opt_in: 1024, ..Config::H200 });
        let error = attend(Device::Cuda(0)).expect_err("too little shared memory");
        assert!(matches!(error, Error::Plan(PlanError::SharedMemory { max: 1024, .. })), "{error}");
    });
}

/// The error of attention on a device of its own whose first call of `name` fails with `code`.
fn failing(mock: &Mock, name: &str, code: u32) -> DeviceError {
    // As many devices are in use as there are contexts.
    let first = mock.live().contexts as usize;
    mock.count();
    forward(first).expect("attention");
    let call = mock.call_names().iter().position(|called| called == name).expect("a call of that name");
    mock.fail(call as u64 + 1, code);
    let error = forward(first + 1).expect_err("the failure");
    mock.count();
    work::assert_nothing_in_progress(mock, name);
    match error {
        Error::Device(error) => error,
        error => panic!("{error}"),
    }
}

#[test]
fn each_call_has_its_error() {
    with_driver("driver_errors::each_call_has_its_error", |mock| {
        let rejected = failing(mock, "cuModuleLoadDataEx", 222);
        let DeviceError::ModuleRejected { target, driver, name, log } = &rejected else { panic!("{rejected}") };
        assert_eq!((*target, driver.as_str(), name.as_str()), ("sm_90a", "13.0", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"));
        assert_eq!(log, "ptxas fatal : the mock refuses; as it was told");

        let missing = failing(mock, "cuModuleGetFunction", 500);
        assert!(matches!(&missing, DeviceError::SymbolMissing { target: "sm_90a", symbol } if symbol.contains("_d64")));

        let refused = failing(mock, "cuFuncSetAttribute", 1);
        let DeviceError::SharedMemoryRefused { bytes, name, .. } = &refused else { panic!("{refused}") };
        assert!(*bytes > 48 << 10 && name == "CUDA_ERROR_INVALID_VALUE", "{refused}");

        let memory = failing(mock, "cuMemAllocAsync", 2);
        let DeviceError::OutOfMemory { bytes, free, total } = memory else { panic!("{memory}") };
        assert_eq!((bytes, total), (2 * ROWS * 64 * 2, 1 << 30));
        assert!(free <= total);

        for (name, call) in [
            ("cuStreamCreate", "creating a stream"),
            ("cuMemcpyHtoDAsync", "copying to the device"),
            ("cuMemsetD8Async", "clearing the workspace"),
            ("cuTensorMapEncodeTiled", "making a tensor map"),
            ("cuLaunchKernel", "launching a kernel"),
            ("cuEventRecord", "recording an event"),
            ("cuMemcpyDtoHAsync", "copying from the device"),
            ("cuStreamSynchronize", "running the kernels"),
            ("cuEventElapsedTime", "timing the kernels"),
        ] {
            let error = failing(mock, name, 1);
            assert!(
                matches!(&error, DeviceError::Driver { call: said, code: 1, .. } if *said == call),
                "{name}: {error:?}"
            );
        }
        // An error of shared memory that is the device's is not called a refusal.
        let fault = failing(mock, "cuFuncSetAttribute", 719);
        assert!(matches!(fault, DeviceError::Driver { code: 719, .. }), "{fault}");
    });
}

#[test]
fn a_driver_that_cannot_name_its_errors() {
    with_driver("driver_errors::a_driver_that_cannot_name_its_errors", |mock| {
        mock.configure(Config { nameless: 1, ..Config::H200 });
        let error = failing(mock, "cuLaunchKernel", 1);
        let expected = "launching a kernel failed: CUDA_ERROR_INVALID_VALUE (1): no description";
        assert_eq!(error.to_string(), expected);
    });
}

#[test]
fn a_bad_request_makes_no_call() {
    with_driver("driver_errors::a_bad_request_makes_no_call", |mock| {
        forward(0).expect("the device is there");
        let tokens = tokens();
        let view = |shape: [usize; 4]| TensorView::new(&tokens, &shape, Layout::Hnd).expect("a view");
        let (good, wide) = (view([1, 2, ROWS, 64]), view([1, 1, 1, 192]));
        let attention = || Attention::new().device(Device::Cuda(0));
        mock.count();
        for (what, result) in [
            ("tokens", attention().forward(&good, &good, &view([1, 2, 1, 64]))),
            ("heads", attention().forward(&view([1, 3, 10, 64]), &good, &good)),
            ("batch", attention().forward(&view([2, 2, 10, 64]), &good, &good)),
            ("head_dim", attention().forward(&view([1, 2, 40, 32]), &good, &good)),
            ("scale", attention().sm_scale(f32::NAN).forward(&good, &good, &good)),
            ("softcap", attention().softcap(-1.0).forward(&good, &good, &good)),
            ("kernel", attention().kernel("none").forward(&good, &good, &good)),
            ("plan", attention().kernel("sm90_int8_fp8_fwd").forward(&wide, &wide, &wide)),
        ] {
            let error = result.expect_err(what);
            assert!(!matches!(error, Error::Device(_)), "{what}: {error}");
            assert_eq!(mock.call_names(), Vec::<String>::new(), "{what}: {error}");
        }
    });
}

/// Everything that a launch on addresses takes, at addresses that nothing is read from.
fn example(gpu: &Gpu, spec: TensorSpec) -> (sage_attn::plan::Plan, LaunchArgs) {
    let problem = Attention::new().problem(spec, spec, spec, spec).expect("a problem");
    let plan = plan(&problem, gpu.capability()).expect("a plan");
    let at = |index: u64| DeviceTensor { ptr: 0x10_0000 * index, spec };
    let workspace = DeviceMemory { ptr: 0x50_0000, bytes: plan.workspace().total_bytes() };
    let args = LaunchArgs { q: at(1), k: at(2), v: at(3), out: at(4), lse: None, workspace };
    (plan, args)
}

#[test]
fn bad_arguments_of_a_launch_make_no_call() {
    with_driver("driver_errors::bad_arguments_of_a_launch_make_no_call", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let stream = gpu.context().new_stream().expect("a stream");
        let (plan, good) = example(&gpu, spec());
        let empty = TensorSpec::new(Operand::Q, DType::F16, &[1, 2, 0, 64], Layout::Hnd).expect("a shape");
        let (nothing, none) = example(&gpu, empty);
        mock.count();
        let changes: [fn(&mut LaunchArgs); 6] = [
            |args| args.q.ptr = 0,
            |args| args.k.ptr += 1,
            |args| args.out.ptr = args.v.ptr,
            |args| args.workspace.bytes -= 1,
            |args| args.lse = Some(0x90_0000),
            |args| args.v.spec.shape[2] += 1,
        ];
        for change in changes {
            let mut args = good;
            change(&mut args);
            // SAFETY: nothing is launched.
            let error = unsafe { gpu.launch(&plan, &args, stream.cu_stream()) }.expect_err("a bad argument");
            assert!(matches!(error, Error::Invalid(_)), "{error}");
        }
        // Nor does a problem without output, and it is no error.
        // SAFETY: nothing is launched.
        unsafe { gpu.launch(&nothing, &none, stream.cu_stream()) }.expect("nothing to do");
        assert_eq!(mock.call_names(), Vec::<String>::new());
    });
}

#[test]
fn buffers_and_streams_of_another_context() {
    with_driver("driver_errors::buffers_and_streams_of_another_context", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let own = gpu.context().new_stream().expect("a stream");
        // The same device; another device.
        let contexts = [CudaContext::new_non_primary(0, 0), CudaContext::new(1)];
        for context in contexts.map(|context| context.expect("a context")) {
            let foreign = context.new_stream().expect("a stream");
            let (plan, args) = example(&gpu, spec());
            mock.count();
            // SAFETY: nothing is launched.
            let error = unsafe { gpu.launch(&plan, &args, foreign.cu_stream()) }.expect_err("a foreign stream");
            assert_eq!(error, Invalid::ForeignContext { what: "the stream".into() }.into());

            let tensor = |stream: &std::sync::Arc<_>| gpu_tensor(stream);
            let (q, mut out) = (tensor(&own), tensor(&own));
            let mut workspace = gpu.alloc(&own, plan.workspace().total_bytes()).expect("memory");
            let elsewhere = tensor(&foreign);
            let view = |x| transmuted(x);
            let mut launch = |k, stream: &std::sync::Arc<_>| {
                let len = 2 * ROWS * 64;
                // SAFETY: f16 and u16 have one size.
                let out = unsafe { out.transmute_mut::<f16>(len) }.expect("of one size");
                let args =
                    SliceArgs { q: view(&q), k, v: view(&q), out, lse: None, workspace: workspace.as_view_mut() };
                gpu.launch_slices(&plan, args, stream)
            };
            let error = launch(view(&elsewhere), &own).expect_err("a foreign buffer");
            assert_eq!(error, Invalid::ForeignContext { what: "k".into() }.into());
            let error = launch(view(&q), &foreign).expect_err("a foreign stream");
            assert_eq!(error, Invalid::ForeignContext { what: "the stream".into() }.into());
            assert!(!mock.call_names().iter().any(|name| name == "cuLaunchKernel"));
        }
        assert_eq!(mock.violations(), "");
    });
}

fn gpu_tensor(stream: &std::sync::Arc<cudarc::driver::CudaStream>) -> cudarc::driver::CudaSlice<u16> {
    stream.clone_htod(&vec![0u16; 2 * ROWS * 64]).expect("memory")
}

fn transmuted(slice: &cudarc::driver::CudaSlice<u16>) -> cudarc::driver::CudaView<'_, f16> {
    // SAFETY: f16 and u16 have one size.
    unsafe { slice.transmute::<f16>(slice.len()) }.expect("of one size")
}

#[test]
fn host_memory_that_is_too_short_is_refused_before_the_first_kernel() {
    with_driver("driver_errors::host_memory_that_is_too_short_is_refused_before_the_first_kernel", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let modifiers = Modifiers { sinks: Some(2), ..Modifiers::default() };
        let request = Request { modifiers, ..Request::new(spec(), spec(), spec(), spec()) };
        let plan = plan(&Problem::new(request).expect("a problem"), gpu.capability()).expect("a plan");
        let good = vec![0u8; 2 * ROWS * 64 * 2];
        let sinks = [0u8; 8];
        let side = HostSide { sinks: Some(&sinks), ..HostSide::default() };
        gpu.run_host_with(&plan, &good, &good, &good, &side).expect("good arguments");
        mock.count();
        let short = HostSide { sinks: Some(&sinks[..7]), ..side };
        for (result, expected) in [
            (
                gpu.run_host_with(&plan, &good, &good, &good, &short),
                Invalid::SideTooShort { operand: Operand::Sinks, bytes: 7, needed: 8 },
            ),
            (
                gpu.run_host_with(&plan, &good, &good, &good, &HostSide::default()),
                Invalid::SidePresence { operand: Operand::Sinks, planned: true },
            ),
            (
                gpu.run_host_with(&plan, &good, &good[2..], &good, &side),
                Invalid::SpanBeyondBuffer { needed: 2 * ROWS * 64, len: 2 * ROWS * 64 - 1 },
            ),
        ] {
            assert_eq!(result.err(), Some(expected.into()));
        }
        assert!(!mock.call_names().iter().any(|name| name == "cuLaunchKernel"));
        work::assert_nothing_in_progress(mock, "refusals");
    });
}

#[test]
fn buffers_of_the_wrong_length_or_type_are_refused() {
    with_driver("driver_errors::buffers_of_the_wrong_length_or_type_are_refused", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let stream = gpu.context().new_stream().expect("a stream");
        let request = Request { return_lse: true, ..Request::new(spec(), spec(), spec(), spec()) };
        let plan = plan(&Problem::new(request).expect("a problem"), gpu.capability()).expect("a plan");
        let floats = |len| stream.clone_htod(&vec![0.0f32; len]).expect("memory");
        let (x, mut out) = (gpu_tensor(&stream), gpu_tensor(&stream));
        let (mut good, mut lse, wrong) = (floats(2 * ROWS), floats(2 * ROWS + 1), floats(2 * ROWS * 64));
        let mut workspace = gpu.alloc(&stream, plan.workspace().total_bytes()).expect("memory");
        let len = out.len();
        let mut launch = |q_len: usize, lse: Option<cudarc::driver::CudaViewMut<'_, f32>>| {
            // SAFETY: f16 and u16 have one size.
            let out = unsafe { out.transmute_mut::<f16>(len) }.expect("of one size");
            // SAFETY: as above, and no longer than it is.
            let q = unsafe { x.transmute::<f16>(q_len) }.expect("of one size");
            let (k, v) = (transmuted(&x), transmuted(&x));
            let args = SliceArgs { q, k, v, out, lse, workspace: workspace.as_view_mut() };
            gpu.launch_slices(&plan, args, &stream)
        };
        launch(len, Some(good.as_view_mut())).expect("good arguments");
        let error = launch(len, Some(lse.as_view_mut())).expect_err("another length");
        assert_eq!(error, Invalid::LseLength { len: 2 * ROWS + 1, expected: 2 * ROWS }.into());
        let error = launch(len, None).expect_err("no lse");
        assert_eq!(error, Invalid::LsePresence { planned: true }.into());
        let error = launch(len - 1, Some(good.as_view_mut())).expect_err("too short");
        assert_eq!(error, Invalid::SpanBeyondBuffer { needed: len, len: len - 1 }.into());
        let mut out = floats(len);
        let args = SliceArgs {
            q: wrong.as_view(),
            k: wrong.as_view(),
            v: wrong.as_view(),
            out: out.as_view_mut(),
            lse: None,
            workspace: workspace.as_view_mut(),
        };
        let error = gpu.launch_slices(&plan, args, &stream).expect_err("another type");
        assert!(matches!(error, Error::Invalid(Invalid::LaunchMismatch { tensor: Operand::Q, .. })), "{error}");
        assert_eq!(mock.violations(), "");
    });
}

#[test]
fn a_launch_allocates_nothing_waits_for_nothing_and_uses_one_stream() {
    with_driver("driver_errors::a_launch_allocates_nothing_waits_for_nothing_and_uses_one_stream", |mock| {
        for (major, minor) in [(9, 0), (8, 9), (8, 0)] {
            mock.configure(Config { major, minor, ..Config::H200 });
            let gpu = Gpu::open(0).expect("a device");
            let stream = gpu.context().new_stream().expect("a stream");
            let (plan, mut args) = example(&gpu, spec());
            gpu.prepare(&plan).expect("kernels");
            let memory = gpu.alloc(&stream, args.workspace.bytes).expect("memory");
            args.workspace.ptr = memory.device_ptr(&stream).0;
            mock.count();
            // SAFETY: the workspace is allocated, and kernels do not run here.
            unsafe { gpu.launch(&plan, &args, stream.cu_stream()) }.expect("a launch");
            const ALLOWED: [&str; 5] =
                ["cuCtxGetCurrent", "cuStreamGetCtx", "cuMemsetD8Async", "cuTensorMapEncodeTiled", "cuLaunchKernel"];
            let names = mock.call_names();
            assert!(names.iter().all(|name| ALLOWED.contains(&name.as_str())), "{names:?}");
            assert_eq!(names.iter().filter(|name| *name == "cuLaunchKernel").count(), plan.steps().count());
        }
    });
}

#[test]
fn a_stream_that_is_gone_is_no_crash() {
    with_driver("driver_errors::a_stream_that_is_gone_is_no_crash", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let stream = gpu.context().new_stream().expect("a stream");
        let handle = stream.cu_stream();
        drop(stream);
        let (plan, args) = example(&gpu, spec());
        // SAFETY: the promise of a live stream is broken on purpose; the mock knows its streams.
        let error = unsafe { gpu.launch(&plan, &args, handle) }.expect_err("no such stream");
        assert!(matches!(error, Error::Device(DeviceError::Driver { code: 400, .. })), "{error}");
        assert!(!mock.call_names().iter().any(|name| name == "cuLaunchKernel"));
    });
}
