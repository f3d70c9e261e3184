//! The least there is to it: tensors in, attention out, on a GPU if there is one.
//!
//! ```sh
//! cargo run --release --example minimal
//! ```

use sage_attn::{Attention, Error, Layout, TensorView};

fn main() -> Result<(), Error> {
    let (heads, tokens, head_dim) = (8, 512, 64);
    let values: Vec<f32> = (0..heads * tokens * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = TensorView::new(&values, &[1, heads, tokens, head_dim], Layout::Hnd)?;

    let output = Attention::new().causal(true).forward(&x, &x, &x)?;

    let report = &output.report;
    println!("{} on {}: {:.2} ms of attention", report.kernel, report.device, report.kernel_ms);
    // Under a causal mask the first query sees the first key only.
    println!("first row: {:.3?} of {:.3?}", &output.out.to_f32()[..4], &values[..4]);
    Ok(())
}
