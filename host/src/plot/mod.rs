//! Charts as SVG, without a drawing library: text with numbers in it.

mod heatmap;

pub use heatmap::{HeatMap, Panel};
