//! A device that has failed for good.

use std::time::{Duration, Instant};

use sage_attn::device::Gpu;
use sage_attn::error::{DeviceError, Error};
use sage_attn::plan::plan;
use sage_attn::{Attention, Device, Layout, TensorView};

use crate::mock::{Config, Live, with_driver};
use crate::work::{self, forward};

/// The cause that a poisoned device names.
fn cause(result: Result<(), Error>) -> Option<String> {
    match result {
        Err(Error::Device(DeviceError::Poisoned { cause })) => Some(cause.to_string()),
        _ => None,
    }
}

#[test]
fn the_first_cause_stays_whatever_call_it_was() {
    with_driver("sticky::the_first_cause_stays_whatever_call_it_was", |mock| {
        mock.configure(Config { devices: 10_000, ..Config::H200 });
        mock.count();
        forward(0).expect("attention");
        let calls = mock.calls();
        let mut device = 0;
        for (code, name) in [(700, "CUDA_ERROR_ILLEGAL_ADDRESS"), (719, "CUDA_ERROR_LAUNCH_FAILED")] {
            for call in 1..=calls {
                device += 1;
                mock.fail(call, code);
                let first = forward(device);
                let failed = mock.call_name(call);
                let what = format!("error {code} of call {call}, {failed}: {first:?}");
                mock.count();
                // A failure before the device was ours is not the device's; it shows at its first use.
                let second = forward(device);
                let third = cause(forward(device));
                if first.is_err() && second.is_ok() {
                    assert!(third.is_none(), "{what}");
                    continue;
                }
                let third = third.unwrap_or_else(|| panic!("{what}, then {second:?}"));
                assert!(third.contains(name), "{what}: {third}");
                for seen in [first, second] {
                    match seen {
                        Err(Error::Device(DeviceError::Poisoned { cause })) => assert_eq!(*cause, *third, "{what}"),
                        Err(error) if error.to_string() == third => {}
                        // The result was there; what failed was the release of memory.
                        Ok(()) if failed.contains("Free") => {}
                        // Of opening the device, before there was anything to remember it.
                        Err(Error::Device(DeviceError::Driver { call, .. }))
                            if ["opening the device", "cuDeviceGetName", "cuDeviceTotalMem"].contains(&call)
                                || call.starts_with("cuDeviceGetAttribute") => {}
                        seen => panic!("{what}: {seen:?}, but the cause is {third}"),
                    }
                }
                assert_eq!(cause(forward(device)), Some(third), "{what}");
            }
        }
        assert_eq!(mock.violations(), "");
    });
}

#[test]
fn a_poisoned_device_is_not_called_and_answers_at_once() {
    with_driver("sticky::a_poisoned_device_is_not_called_and_answers_at_once", |mock| {
        let gpu = Gpu::open(0).expect("a device");
        let spec = work::spec();
        let problem = Attention::new().problem(spec, spec, spec, spec).expect("a problem");
        let plan = plan(&problem, gpu.capability()).expect("a plan");
        let stream = gpu.context().new_stream().expect("a stream");
        mock.count();
        gpu.prepare(&plan).expect("kernels");
        mock.fail(2, 700);
        let first = gpu.alloc(&stream, 256).expect_err("the fault");
        assert!(matches!(first, DeviceError::Driver { .. }), "{first}");
        mock.count();
        let bytes = vec![0; 1 << 16];
        let start = Instant::now();
        for _ in 0..1000 {
            for error in [
                gpu.alloc(&stream, 256).expect_err("poisoned"),
                gpu.prepare(&plan).expect_err("poisoned"),
                match gpu.run_host(&plan, &bytes, &bytes, &bytes) {
                    Err(Error::Device(error)) => error,
                    other => panic!("{other:?}"),
                },
            ] {
                assert_eq!(error, DeviceError::Poisoned { cause: first.to_string().into() });
            }
        }
        let each = start.elapsed() / 3000;
        assert!(each < Duration::from_millis(1), "{each:?}");
        assert_eq!(mock.call_names(), Vec::<String>::new());
        // Nothing of it stays.
        drop((stream, gpu));
        assert_eq!((mock.live(), mock.violations()), (Live::default(), String::new()));
    });
}

#[test]
fn a_fault_does_not_send_the_work_elsewhere() {
    with_driver("sticky::a_fault_does_not_send_the_work_elsewhere", |mock| {
        forward(0).expect("attention");
        mock.fail(12, 719);
        forward(0).expect_err("the fault");
        mock.count();
        let tokens = work::tokens();
        let view = TensorView::new(&tokens, &[1, 2, work::ROWS, 64], Layout::Hnd).expect("a view");
        let auto = Attention::new().device(Device::Auto).forward(&view, &view, &view);
        assert!(cause(auto.map(drop)).is_some_and(|cause| cause.contains("LAUNCH_FAILED")));
        // Another device is not concerned.
        forward(1).expect("another device");
    });
}
