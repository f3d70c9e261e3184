//! Builds one PTX module of a kernel crate, for looking at while writing kernels.
//!
//! ```text
//! cargo run -p sage-cuda-builder --example build_module -- kernels-gpu sm_90a /tmp/sm_90a.ptx
//! ```

use std::error::Error;

use cuda_builder::{CudaBuilder, NvvmArch};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, arch, output] = args.as_slice() else {
        return Err("usage: build_module CRATE sm_XX OUTPUT.ptx".into());
    };
    let arch: NvvmArch = arch.parse()?;
    CudaBuilder::new(path).arch(arch).copy_to(output).build()?;
    Ok(())
}
