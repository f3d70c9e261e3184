//! Embedding by raw addresses: memory and a stream that belong to somebody else, here allocated through
//! cudarc's plain driver calls. The launch allocates nothing and waits for nothing, so it is captured into a
//! graph and replayed.
//!
//! ```sh
//! cargo run --release --example raw_pointers
//! ```

use std::error::Error;

use sage_attn::cudarc::driver::result;
use sage_attn::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs};
use sage_attn::error::{DeviceError, Operand};
use sage_attn::half::f16;
use sage_attn::plan::plan;
use sage_attn::problem::TensorSpec;
use sage_attn::{Attention, DType, Layout};

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (DeviceError::NoDriver | DeviceError::NoDevice { .. })) => {
            println!("nothing to show: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };

    // Once for each shape: what runs, and how much scratch memory it needs.
    let (heads, tokens, head_dim) = (8, 4096, 128);
    let spec = TensorSpec::new(Operand::Tensor, DType::F16, &[1, heads, tokens, head_dim], Layout::Hnd)?;
    let problem = Attention::new().causal(true).problem(spec, spec, spec, spec)?;
    let plan = plan(&problem, gpu.capability())?;
    println!("{}", plan.explain());
    gpu.prepare(&plan)?; // loads the kernels, which a capture could not

    // Memory and a stream, as any engine has them.
    let elements: Vec<f16> = (0..heads * tokens * head_dim).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
    let bytes = size_of_val(elements.as_slice());
    let stream = gpu.context().new_stream()?;
    // SAFETY: the context is current since the stream was made; sizes are those of the tensors; everything is
    // freed below, after the stream has finished.
    unsafe {
        let [x, out] = [result::malloc_sync(bytes)?, result::malloc_sync(bytes)?];
        let workspace = DeviceMemory {
            ptr: result::malloc_sync(plan.workspace().total_bytes())?,
            bytes: plan.workspace().total_bytes(),
        };
        result::memcpy_htod_sync(x, &elements)?;

        let input = DeviceTensor { ptr: x, spec };
        let args =
            LaunchArgs { q: input, k: input, v: input, out: DeviceTensor { ptr: out, spec }, lse: None, workspace };
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        gpu.launch(&plan, &args, stream.cu_stream())?;
        let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?;
        for _ in 0..3 {
            graph.launch()?;
        }
        stream.synchronize()?;

        let mut row = vec![f16::ZERO; head_dim];
        result::memcpy_dtoh_sync(&mut row, out)?;
        // The first query sees the first key only, so its output is that key's value.
        println!("first row: {:.3?} of {:.3?}", &row[..4], &elements[..4]);
        for address in [x, out, workspace.ptr] {
            result::free_sync(address)?;
        }
    }
    Ok(())
}
