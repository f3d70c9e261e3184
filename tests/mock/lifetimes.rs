//! What is alive, over many calls and in any order of release.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use half::f16;
use sage_attn::device::Gpu;
use sage_attn::error::{DeviceError, Error};
use sage_attn::plan::plan;
use sage_attn::{Attention, Device, Layout, TensorView};

use crate::mock::{Config, Live, Mock, with_driver};
use crate::work::{self, assert_nothing_in_progress, forward};

/// Attention that needs about a megabyte.
fn larger(ordinal: usize) -> Result<(), Error> {
    let tokens = vec![f16::ONE; 1000 * 128];
    let view = TensorView::new(&tokens, &[1, 1, 1000, 128], Layout::Hnd)?;
    Attention::new().return_lse(true).device(Device::Cuda(ordinal)).forward(&view, &view, &view).map(drop)
}

fn with_memory(memory_bytes: u64) -> Config {
    Config { memory_bytes, ..Config::H200 }
}

#[test]
fn a_thousand_times_out_of_memory_then_success_changes_nothing() {
    with_driver("lifetimes::a_thousand_times_out_of_memory_then_success_changes_nothing", |mock| {
        larger(0).expect("enough memory");
        let steady = mock.live();
        for cycle in 0..1000 {
            // A little more every time, so that every allocation of the call is the one that fails.
            let limit = cycle * 1200;
            mock.configure(with_memory(limit));
            let error = larger(0).expect_err("too little memory");
            let Error::Device(DeviceError::OutOfMemory { bytes, free, total }) = error else { panic!("{error}") };
            assert!(free < bytes && free <= total && total as u64 == limit, "{bytes} of {free} of {total}");
            assert_eq!(mock.live(), steady, "cycle {cycle}");
            mock.configure(with_memory(1 << 30));
            larger(0).expect("enough memory");
            assert_eq!(mock.live(), steady, "cycle {cycle}");
        }
        assert_nothing_in_progress(mock, "in the end");
        assert_eq!(steady, Live { contexts: 1, streams: 1, modules: steady.modules, ..Live::default() });
    });
}

#[test]
fn ten_thousand_calls_leave_what_one_leaves() {
    with_driver("lifetimes::ten_thousand_calls_leave_what_one_leaves", |mock| {
        forward(0).expect("attention");
        let steady = mock.live();
        for _ in 0..10_000 {
            forward(0).expect("attention");
        }
        assert_eq!(mock.live(), steady);
        assert_nothing_in_progress(mock, "in the end");
    });
}

#[test]
fn devices_opened_and_dropped_leave_nothing() {
    with_driver("lifetimes::devices_opened_and_dropped_leave_nothing", |mock| {
        for (name, work) in work::ALL.into_iter().filter(|(name, _)| !name.starts_with("forward")) {
            for _ in 0..100 {
                work(0).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(mock.live(), Live::default(), "{name}");
            }
        }
        assert_eq!(mock.violations(), "");
    });
}

/// A device with the kernels of one plan.
fn prepared() -> (Arc<CudaContext>, Arc<Gpu>) {
    let context = CudaContext::new(0).expect("a context");
    let gpu = Gpu::with_context(context.clone()).expect("a device");
    let spec = work::spec();
    let problem = Attention::new().problem(spec, spec, spec, spec).expect("a problem");
    gpu.prepare(&plan(&problem, gpu.capability()).expect("a plan")).expect("kernels");
    (context, gpu)
}

/// Makes cudarc keep an error, as a stream does that cannot be destroyed.
fn keep_an_error(mock: &Mock, context: &Arc<CudaContext>) {
    let stream = context.new_stream().expect("a stream");
    mock.fail(2, 1);
    drop(stream);
    assert_eq!(mock.call_names(), ["cuCtxGetCurrent", "cuStreamDestroy"]);
    mock.count();
}

#[test]
fn an_earlier_error_keeps_no_kernel_loaded_and_hurries_none() {
    with_driver("lifetimes::an_earlier_error_keeps_no_kernel_loaded_and_hurries_none", |mock| {
        let (context, gpu) = prepared();
        assert!(mock.live().modules >= 2);
        keep_an_error(mock, &context);
        drop(gpu);
        assert_eq!(mock.live().modules, 0);
        // Kernels that may still run are waited for before their code goes away.
        let names = mock.call_names();
        let first = |name: &str| names.iter().position(|called| called == name);
        assert!(first("cuCtxSynchronize") < first("cuModuleUnload"), "{names:?}");
        assert!(first("cuCtxSynchronize").is_some(), "{names:?}");
        // The error is still there for whoever asks.
        assert!(context.check_err().is_err());
        drop(context);
        assert_eq!((mock.live(), mock.violations()), (Live::default(), String::new()));
    });
}

#[test]
fn the_error_of_a_release_is_told_once_and_by_its_name() {
    with_driver("lifetimes::the_error_of_a_release_is_told_once_and_by_its_name", |mock| {
        let (context, gpu) = prepared();
        let stream = context.new_stream().expect("a stream");
        keep_an_error(mock, &context);
        let error = gpu.alloc(&stream, 256).expect_err("the stream's error");
        assert!(
            error.to_string().starts_with("releasing something earlier failed: CUDA_ERROR_INVALID_VALUE"),
            "{error}"
        );
        gpu.alloc(&stream, 256).expect("it has been told");
    });
}

#[test]
fn what_a_call_cannot_release_is_its_own_error() {
    with_driver("lifetimes::what_a_call_cannot_release_is_its_own_error", |mock| {
        forward(0).expect("attention");
        mock.count();
        forward(0).expect("attention");
        let names = mock.call_names();
        let destroy = names.iter().position(|name| name == "cuEventDestroy").expect("events are destroyed");
        mock.fail(destroy as u64 + 1, 1);
        let error = forward(0).expect_err("an event was not released");
        assert!(error.to_string().starts_with("releasing events failed"), "{error}");
        mock.count();
        forward(0).expect("the next call has nothing to do with it");
    });
}

#[test]
fn memory_outlives_its_device() {
    with_driver("lifetimes::memory_outlives_its_device", |mock| {
        let (context, gpu) = prepared();
        let stream = context.new_stream().expect("a stream");
        let memory = gpu.alloc(&stream, 4096).expect("memory");
        drop((gpu, context, stream));
        assert_eq!(mock.live(), Live { contexts: 1, streams: 1, events: 2, allocations: 1, bytes: 4096, modules: 0 });
        drop(memory);
        assert_eq!((mock.live(), mock.violations()), (Live::default(), String::new()));
    });
}

#[test]
fn threads_share_a_device() {
    with_driver("lifetimes::threads_share_a_device", |mock| {
        mock.configure(with_memory(8 << 20));
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let works = [forward, larger];
                    for round in 0..50 {
                        match works[(thread + round) % 2](round % 2) {
                            // Eight of the larger ones at a time are too much.
                            Ok(()) | Err(Error::Device(DeviceError::OutOfMemory { .. })) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no thread panics");
        }
        assert_nothing_in_progress(mock, "in the end");
        assert_eq!((mock.live().contexts, mock.live().streams), (2, 2));
    });
}
