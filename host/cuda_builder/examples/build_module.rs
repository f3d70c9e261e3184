//! Builds one PTX module of a kernel crate, for looking at it while writing kernels.
//!
//! ```text
//! cargo run -p sage-cuda-builder --example build_module -- kernels-gpu sm_90a /tmp/sm_90a.ptx
//! ```

use std::error::Error;

use cuda_builder::CudaBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(arch), Some(out)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: build_module FOLDER sm_XX OUT.ptx".into());
    };
    CudaBuilder::new(folder).arch(arch.parse()?).copy_to(&out).build()?;
    Ok(())
}
