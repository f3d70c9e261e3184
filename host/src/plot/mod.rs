//! Charts as SVG, without a drawing library: text with numbers in it.

mod heatmap;
mod precision;

pub use heatmap::{HeatMap, Panel};
