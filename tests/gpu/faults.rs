//! A device that has too little memory, and one that has failed.

use std::process::Command;

use cudarc::driver::DevicePtr;
use sage_attn::device::{DeviceMemory, DeviceTensor, LaunchArgs};
use sage_attn::error::{DeviceError, Error, Operand};
use sage_attn::plan::plan;
use sage_attn::problem::TensorSpec;
use sage_attn::{Attention, DType, Device, Layout, TensorView};
use serde_json::json;

use crate::harness::{gpu, record};

/// Set in the process that breaks its device.
const FAULT: &str = "SAGE_GPU_FAULT";

#[test]
fn too_little_memory_is_a_typed_error_and_leaves_the_device_usable() {
    let Some(gpu) = gpu() else { return };
    let stream = gpu.context().new_stream().expect("stream");
    let total = gpu.total_bytes();
    let error = gpu.alloc(&stream, 2 * total).expect_err("twice the device's memory");
    let DeviceError::OutOfMemory { bytes, free, total: stated } = error else { panic!("{error}") };
    assert_eq!(bytes, 2 * total);
    assert!(free <= stated && stated <= total, "{free} of {stated}, {total}");

    // Take all but a little, then ask for attention that needs more.
    let mut hoard = Vec::new();
    let mut piece = total / 4;
    while piece >= 32 << 20 {
        match gpu.alloc(&stream, piece) {
            Ok(memory) => hoard.push(memory),
            Err(DeviceError::OutOfMemory { .. }) => piece /= 2,
            Err(other) => panic!("{other}"),
        }
    }
    let tokens = 1 << 18;
    let x = vec![half::f16::ONE; tokens * 128];
    let view = TensorView::new(&x, &[1, 1, tokens, 128], Layout::Hnd).expect("view");
    let attention = Attention::new().device(Device::Cuda(0));
    let crowded = attention.forward(&view, &view, &view).expect_err("no memory left");
    assert!(matches!(crowded, Error::Device(DeviceError::OutOfMemory { .. })), "{crowded}");
    drop(hoard);
    stream.synchronize().expect("memory is given back");
    let short = TensorView::new(&x[..512 * 128], &[1, 1, 512, 128], Layout::Hnd).expect("view");
    attention.forward(&short, &short, &short).expect("there is room again");
    record("gpu_memory", &json!({ "device": gpu.name(), "alone": error.to_string(), "crowded": crowded.to_string() }));
}

#[test]
fn a_fault_sticks_and_every_later_call_names_it() {
    let Some(gpu) = gpu() else { return };
    // The fault makes the whole process's context unusable, so it happens in a process of its own.
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "faults::the_process_that_breaks_its_device", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FAULT, "1")
        .output()
        .expect("the child runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let seen: Vec<&str> = stdout.lines().filter_map(|line| line.split_once("seen: ").map(|(_, seen)| seen)).collect();
    assert_eq!(seen.len(), 4, "{stdout}");
    record("gpu_fault", &json!({ "device": gpu.name(), "seen": seen }));
}

#[test]
#[ignore = "breaks the device for its process; the test above runs it in one of its own"]
fn the_process_that_breaks_its_device() {
    if std::env::var_os(FAULT).is_none() {
        println!("SKIPPED: {FAULT} is not set");
        return;
    }
    let gpu = gpu().expect("the parent found one");
    let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 1, 256, 64], Layout::Hnd).expect("spec");
    let problem = Attention::new().problem(spec, spec, spec, spec).expect("problem");
    let plan = plan(&problem, gpu.capability()).expect("plan");
    let stream = gpu.context().new_stream().expect("stream");
    // Addresses that pass every check and belong to nobody. The workspace is real: the driver itself would see
    // that it is not when its counters are cleared, which is an error of the call and not a fault of the device.
    let nowhere = |index: u64| DeviceTensor { ptr: 0x10_0000 * index, spec };
    let bytes = plan.workspace().total_bytes();
    let memory = gpu.alloc(&stream, bytes).expect("memory");
    let workspace = DeviceMemory { ptr: memory.device_ptr(&stream).0, bytes };
    let args = LaunchArgs { q: nowhere(1), k: nowhere(2), v: nowhere(3), out: nowhere(4), lse: None, workspace };
    // SAFETY: none; the promise about addresses is broken on purpose, and the process ends soon.
    let launched = unsafe { gpu.launch(&plan, &args, stream.cu_stream()) };
    // The launch itself may see the fault or be faster than it.
    let _ = stream.synchronize();
    let first = match launched {
        Err(Error::Device(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(()) => gpu.alloc(&stream, 256).expect_err("the context is broken"),
    };
    assert!(matches!(first, DeviceError::Driver { .. }), "{first}");
    println!("seen: {first}");
    let poisoned = |error: Error| {
        let Error::Device(DeviceError::Poisoned { cause }) = &error else { panic!("{error}") };
        assert_eq!(**cause, *first.to_string());
        println!("seen: {error}");
    };
    poisoned(gpu.alloc(&stream, 256).expect_err("poisoned").into());
    // SAFETY: nothing is launched any more.
    poisoned(unsafe { gpu.launch(&plan, &args, stream.cu_stream()) }.expect_err("poisoned"));
    let x = vec![half::f16::ONE; 256 * 64];
    let view = TensorView::new(&x, &[1, 1, 256, 64], Layout::Hnd).expect("view");
    let auto = Attention::new().forward(&view, &view, &view);
    // A fault is no reason to compute elsewhere in silence.
    poisoned(auto.expect_err("poisoned"));
    // Destructors would call into the broken context.
    std::process::exit(0);
}
