//! Calibration, rules and plans.

mod calibrator;
mod plan;
mod rule;

use sage_attn::adaptive::{Choice, Figures};
use sage_attn::{Precision, ScaleGranularity, Smoothing};
use std::path::PathBuf;

/// Every choice there is.
fn choices() -> Vec<Choice> {
    let mut choices = vec![Choice::EXACT];
    for precision in [Precision::Int4, Precision::Int8] {
        for granularity in [ScaleGranularity::PerBlock, ScaleGranularity::PerWarp, ScaleGranularity::PerThread] {
            for bits in 0..8 {
                let smoothing = Smoothing { q: bits & 1 != 0, k: bits & 2 != 0, v: bits & 4 != 0 };
                choices.push(Choice::new(precision, granularity, smoothing));
            }
        }
    }
    choices
}

/// Figures with this relative L1, as quantization has them.
fn figures(rel_l1: f64) -> Figures {
    Figures { cosine: 1.0 - rel_l1 * rel_l1 / 2.0, rel_l1, rmse: rel_l1 / 10.0, worst_row_rel_l1: 2.0 * rel_l1 }
}

/// A path in the temporary folder that no other test uses.
fn temporary(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sage-attn-adaptive-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}
