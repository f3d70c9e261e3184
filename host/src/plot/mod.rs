//! Charts as SVG: lines over axes, and heat maps.

mod axis;
mod heatmap;
mod line;
mod precision;

pub use axis::{Axis, Scale};
pub use heatmap::{HeatMap, Panel};
pub use line::{LineChart, Series};

/// Colours of series, told apart also by people who do not see red and green as different (Okabe and Ito).
pub const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// `text` as it may stand between tags and in attributes.
///
/// ```
/// assert_eq!(sage_attn::plot::escape("a < b"), "a &lt; b");
/// ```
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}
