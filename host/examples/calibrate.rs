//! Calibrate, then use: measure on some samples which layers of a model bear 4 bits, keep the decision as a
//! plan, and run by it.
//!
//! The "model" is three layers of attention whose keys have stronger and stronger channel offsets, as those of
//! real models do in some layers.
//!
//! ```sh
//! cargo run --release --example calibrate
//! ```

use std::error::Error;

use sage_attn::adaptive::{Calibrator, Choice, PrecisionPlan, Rule, Sampling, Site, Speeds};
use sage_attn::{Attention, Layout, TensorView};

const LAYERS: usize = 3;
const SHAPE: [usize; 4] = [1, 4, 256, 64];

/// Queries, keys and values of a layer for one sample.
fn layer(layer: usize, sample: usize) -> [Vec<f32>; 3] {
    let noise = |i: usize, salt: usize| ((i * 73 + salt * 1009 + sample * 31) as f32 * 0.77).sin();
    let tensor = |salt: usize, offset: f32| -> Vec<f32> {
        let len = SHAPE.iter().product();
        (0..len).map(|i| noise(i, salt) + offset * ((i % SHAPE[3]) as f32 * 1.7).cos()).collect()
    };
    let offset = 2.0 * layer as f32;
    [tensor(3 * layer, offset), tensor(3 * layer + 1, offset), tensor(3 * layer + 2, 0.0)]
}

fn main() -> Result<(), Box<dyn Error>> {
    let attention = Attention::new().causal(true);

    // Feed it what the model computes while it runs in full precision.
    let mut calibrator = Calibrator::new(vec![Choice::INT4, Choice::INT8], Sampling::default())?;
    for sample in 0..2 {
        for index in 0..LAYERS {
            let [q, k, v] = layer(index, sample);
            let view = |x| TensorView::new(x, &SHAPE, Layout::Hnd);
            let site = Site { layer: index, timestep: 0, sample };
            calibrator.observe(site, &attention, &view(&q)?, &view(&k)?, &view(&v)?)?;
        }
    }

    // The worst third of the layers keeps 8 bits. A file of a few lines carries the decision to production.
    let plan = Rule::percentile(34.0).plan(calibrator.measurements(), &Speeds::unmeasured())?;
    let plan = PrecisionPlan::from_json(&plan.to_json())?;
    println!("{:.0} % of the calls run in INT4", 100.0 * plan.int4_share());

    for index in 0..LAYERS {
        let [q, k, v] = layer(index, 7);
        let view = |x| TensorView::new(x, &SHAPE, Layout::Hnd);
        let output = plan.at(index, 0).apply(attention.clone()).forward(&view(&q)?, &view(&k)?, &view(&v)?)?;
        println!("layer {index}: {} on {}", output.report.precision, output.report.device);
    }
    Ok(())
}
