//! Call k fails, for every k.

use sage_attn::Error;
use sage_attn::error::DeviceError;

use crate::mock::{Config, Live, Mock, with_driver};
use crate::work::{self, Work};

/// Invalid value, out of memory, not found, illegal address, launch failed.
pub const CODES: [u32; 5] = [1, 2, 500, 700, 719];

/// Runs `work` with its call k failing, for every k and every code, each time on a device of its own; returns how
/// many failures that were.
fn every_call_fails(mock: &Mock, name: &str, work: Work, first_device: usize, codes: &[u32]) -> u64 {
    let before = mock.live();
    mock.count();
    work(first_device).unwrap_or_else(|error| panic!("{name} without failures: {error}"));
    let calls = mock.calls();
    let names = mock.call_names();
    assert!(calls > 30, "{name}: {names:?}");
    // After the last of these only releases are left.
    let frees = |call: usize| names.get(call + 1).is_some_and(|next| next == "cuMemFree");
    let works = |call: &usize| WORK.contains(&names[*call].as_str()) && !frees(*call);
    let done = (0..names.len()).rfind(works).expect("some work") as u64 + 1;
    assert_eq!((mock.live().events, mock.live().allocations), (before.events, before.allocations), "{name}");
    // Devices that are kept by `Gpu::shared` after success are kept after failure; others never.
    let keeps = mock.live().contexts > before.contexts;
    let mut device = first_device;
    let mut failures = 0;
    for &code in codes {
        for call in 1..=calls {
            device += 1;
            let before = mock.live();
            mock.fail(call, code);
            let result = work(device);
            let (failed, made) = (mock.call_name(call), mock.calls());
            let leaked = leaked_by_cudarc(mock, name, call, &failed);
            // Without memory pools memory is freed after waiting for its stream.
            let frees = call < made && mock.call_name(call + 1) == "cuMemFree";
            mock.count();
            let what = format!("{name} with error {code} of call {call} of {made}, {failed}");
            check_result(&what, &failed, &result, call > done || frees);
            let live = mock.live();
            assert_eq!(mock.violations(), "", "{what}");
            assert_eq!(live.events, before.events, "{what}: events");
            assert_eq!(live.allocations, before.allocations + leaked.allocations, "{what}: allocations");
            if !keeps {
                assert_eq!(live.modules, before.modules, "{what}: modules");
                assert_eq!(live.streams, before.streams, "{what}: streams");
                assert_eq!(live.contexts, before.contexts + leaked.contexts, "{what}: contexts");
            }
            failures += 1;
            // The same work must do now, and leave what it always leaves. (A broken device is in `sticky`.)
            if code == 2 {
                work(device).unwrap_or_else(|error| panic!("{what}, then again: {error}"));
                assert_eq!(mock.live().events, before.events, "{what}, then again");
                assert_eq!(mock.live().allocations, live.allocations, "{what}, then again");
            }
        }
    }
    failures
}

/// Calls that a result depends on.
const WORK: [&str; 5] =
    ["cuLaunchKernel", "cuMemcpyDtoHAsync", "cuEventRecord", "cuEventElapsedTime", "cuStreamSynchronize"];

/// A failed call is a typed error of the device, unless it only was to release something. `done` is whether
/// nothing was asked for but a release.
fn check_result(what: &str, failed: &str, result: &Result<(), Error>, done: bool) {
    match result {
        Err(Error::Device(error)) => {
            assert!(!matches!(error, DeviceError::HostMemory { .. } | DeviceError::NoDriver), "{what}: {error}");
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() > 20, "{what}: {text}");
        }
        Err(error) => panic!("{what}: {error}"),
        Ok(()) => {
            let releases = ["Destroy", "Free", "Unload", "Release"].iter().any(|name| failed.contains(name));
            assert!(done || releases, "{what}: no error");
        }
    }
}

/// What cudarc leaves behind if `call` fails, where the host cannot give it back: an allocation whose two events
/// cannot be made ([`Gpu::alloc`](sage_attn::device::Gpu::alloc)), and a reference to a primary context about which a
/// question is not answered (`CudaContext::new`). Nothing else may be.
fn leaked_by_cudarc(mock: &Mock, name: &str, call: u64, failed: &str) -> Live {
    let names = mock.call_names();
    let before = &names[..call as usize - 1];
    let last = before.iter().rposition(|name| name != "cuCtxGetCurrent" && name != "cuEventCreate");
    let events = before[last.map_or(0, |last| last + 1)..].iter().filter(|name| *name == "cuEventCreate").count();
    let allocated = last.is_some_and(|last| ["cuMemAlloc", "cuMemAllocAsync"].contains(&before[last].as_str()));
    let of_caller = ["launch", "launch_slices", "merge"].contains(&name);
    let of_buffer = of_caller && allocated && events < 2 && ["cuCtxGetCurrent", "cuEventCreate"].contains(&failed);
    let retained = before.last().is_some_and(|name| name == "cuDevicePrimaryCtxRetain");
    let of_context = retained && failed == "cuDeviceGetAttribute";
    Live { allocations: u64::from(of_buffer), contexts: u64::from(of_context), ..Live::default() }
}

macro_rules! every_call_fails {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            with_driver(concat!("every_call::", stringify!($name)), |mock| {
                mock.configure(Config { devices: 100_000, memory_bytes: 64 << 20, ..Config::H200 });
                let (name, work) = work::ALL.into_iter().find(|(name, _)| *name == stringify!($name)).expect("a work");
                let failures = every_call_fails(mock, name, work, 0, &CODES);
                // The same without allocations in the order of streams.
                mock.configure(Config { devices: 100_000, memory_bytes: 64 << 20, pools: 0, ..Config::H200 });
                let without_pools = every_call_fails(mock, name, work, 50_000, &[719]);
                println!("{name}: {failures} failures with and {without_pools} without memory pools");
            });
        })*

        #[test]
        fn every_work_has_its_test() {
            let tested = [$(stringify!($name)),*];
            assert!(work::ALL.iter().all(|(name, _)| tested.contains(name)) && tested.len() == work::ALL.len());
        }
    };
}

every_call_fails!(forward forward_int4 forward_general forward_packed run_host launch launch_slices merge);
