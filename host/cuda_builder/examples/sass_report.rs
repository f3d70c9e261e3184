//! What a PTX module becomes: registers and spills of each kernel, and the size of its innermost
//! loops with their most frequent opcodes.
//!
//! ```text
//! cargo run -p sage-cuda-builder --example sass_report -- host/ptx/sm_89.ptx sm_89
//! ```

use std::error::Error;
use std::fs;

use cuda_builder::ptxas::Tools;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(arch)) = (args.next(), args.next()) else {
        return Err("usage: sass_report MODULE.ptx sm_XX".into());
    };
    let tools = Tools::find().ok_or("ptxas is neither named by PTXAS, nor on PATH, nor a Python package")?;
    let report = tools.assemble(&fs::read_to_string(path)?, &arch)?;
    for warning in &report.warnings {
        println!("{warning}");
    }
    let sass = tools.disassemble(&report.cubin)?.ok_or("there is no nvdisasm")?;
    for (name, resources) in &report.kernels {
        println!("{name}: {resources:?}");
        for body in sass.get(name).into_iter().flat_map(|function| function.innermost_loops()) {
            let mut opcodes: Vec<_> = body.opcodes().into_iter().collect();
            opcodes.sort_by_key(|&(opcode, count)| (std::cmp::Reverse(count), opcode));
            let most: Vec<String> = opcodes.iter().take(8).map(|(opcode, count)| format!("{count} {opcode}")).collect();
            println!("    loop of {}: {}", body.body.len(), most.join(", "));
        }
    }
    Ok(())
}
