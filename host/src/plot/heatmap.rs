//! Heat maps: a number per row and column as a colour, several panels on one scale.

use std::fmt::Write;

use super::escape;

/// Width of a cell where there are few columns.
const CELL_WIDTH: f64 = 64.0;
const CELL_HEIGHT: f64 = 22.0;
/// Widest panel; more columns make narrower cells.
const PANEL_WIDTH: f64 = 640.0;
/// Narrowest cell that has room for its number.
const TEXT_WIDTH: f64 = 44.0;
const MARGIN: f64 = 16.0;
const ROW_LABELS: f64 = 56.0;
const GAP: f64 = 28.0;
/// Title, panel titles and column labels.
const HEAD: f64 = 84.0;
const LEGEND: f64 = 64.0;
const LEGEND_BAR: f64 = 200.0;

/// White to dark blue, even steps of lightness, readable without colour vision.
const SHADES: [[f64; 3]; 5] =
    [[247.0, 251.0, 255.0], [198.0, 219.0, 239.0], [107.0, 174.0, 214.0], [33.0, 113.0, 181.0], [8.0, 48.0, 107.0]];

/// Panels of rows and columns, coloured on one logarithmic scale.
///
/// ```
/// use sage_attn::plot::{HeatMap, Panel};
/// let panel = Panel { title: "int4".into(), values: vec![Some(0.1), Some(0.2)], marks: vec![false, true] };
/// let map = HeatMap {
///     title: "Error".into(),
///     row_label: "layer".into(),
///     column_label: "timestep".into(),
///     value_label: "relative L1".into(),
///     rows: vec!["0".into()],
///     columns: vec!["0".into(), "1".into()],
///     panels: vec![panel],
/// };
/// assert!(map.to_svg().contains("relative L1"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Above everything.
    pub title: String,
    /// What a row is.
    pub row_label: String,
    /// What a column is.
    pub column_label: String,
    /// What the numbers are; at the scale.
    pub value_label: String,
    /// Label of each row.
    pub rows: Vec<String>,
    /// Label of each column.
    pub columns: Vec<String>,
    /// Side by side.
    pub panels: Vec<Panel>,
}

/// One map. Its vectors are `[rows, columns]`, row by row.
///
/// Example: [`HeatMap`].
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Above the map.
    pub title: String,
    /// The numbers; a missing one, or one that is not finite, is drawn in grey.
    pub values: Vec<Option<f64>>,
    /// Cells with a dot; may be empty.
    pub marks: Vec<bool>,
}

impl HeatMap {
    /// The drawing as a complete SVG document. The largest value of each panel is outlined.
    pub fn to_svg(&self) -> String {
        let scale = Shading::of(self.panels.iter().flat_map(|panel| &panel.values).flatten().copied());
        let columns = self.columns.len().max(1);
        let cell = (PANEL_WIDTH / columns as f64).min(CELL_WIDTH);
        // A panel's title needs room too.
        let titles = self.panels.iter().map(|panel| panel.title.chars().count()).max().unwrap_or(0);
        let panel_width = (cell * columns as f64).max(titles as f64 * 6.6);
        let grid_height = CELL_HEIGHT * self.rows.len() as f64;
        let panels = self.panels.len().max(1) as f64;
        // Generous widths of a character: fonts differ.
        let title_width = self.title.chars().count() as f64 * 8.4;
        let legend_width = ROW_LABELS + LEGEND_BAR + 12.0 + self.value_label.chars().count() as f64 * 6.4;
        let map_width = ROW_LABELS + panels * panel_width + (panels - 1.0) * GAP;
        let width = 2.0 * MARGIN + map_width.max(title_width).max(legend_width);
        let height = HEAD + grid_height + LEGEND + MARGIN;

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        text(&mut svg, [MARGIN, 26.0], "start", " font-size=\"15\" font-weight=\"bold\"", &self.title);
        text(&mut svg, [MARGIN, HEAD - 8.0], "start", " fill=\"#666\"", &self.row_label);
        for (row, label) in self.rows.iter().enumerate() {
            let y = HEAD + (row as f64 + 0.5) * CELL_HEIGHT + 4.0;
            text(&mut svg, [MARGIN + ROW_LABELS - 8.0, y], "end", "", label);
        }
        for (index, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + ROW_LABELS + index as f64 * (panel_width + GAP);
            text(&mut svg, [left, 50.0], "start", " font-weight=\"bold\"", &panel.title);
            self.column_labels(&mut svg, left, cell);
            self.panel(&mut svg, panel, left, cell, &scale);
        }
        self.legend(&mut svg, HEAD + grid_height + 24.0, &scale);
        svg.push_str("</svg>\n");
        svg
    }

    /// As many column labels as fit, and above the last what they are.
    fn column_labels(&self, svg: &mut String, left: f64, cell: f64) {
        let widest = self.columns.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let every = ((widest as f64 + 1.0) * 7.0 / cell).ceil().max(1.0) as usize;
        for (column, label) in self.columns.iter().enumerate().step_by(every) {
            let x = left + (column as f64 + 0.5) * cell;
            text(svg, [x, HEAD - 8.0], "middle", " fill=\"#666\"", label);
        }
        let right = left + cell * self.columns.len() as f64;
        text(svg, [right, HEAD - 26.0], "end", " fill=\"#666\"", &self.column_label);
    }

    fn panel(&self, svg: &mut String, panel: &Panel, left: f64, cell: f64, scale: &Shading) {
        let columns = self.columns.len().max(1);
        let finite = |index: usize| panel.values.get(index).copied().flatten().filter(|value| value.is_finite());
        let cells = self.rows.len() * self.columns.len();
        let worst = (0..cells)
            .filter(|&i| finite(i).is_some())
            .max_by(|&a, &b| finite(a).unwrap_or(f64::NEG_INFINITY).total_cmp(&finite(b).unwrap_or(f64::NEG_INFINITY)));
        for index in 0..cells {
            let (x, y) = (left + (index % columns) as f64 * cell, HEAD + (index / columns) as f64 * CELL_HEIGHT);
            let fill = finite(index).map_or_else(|| "#bbb".to_owned(), |value| scale.colour(value));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{CELL_HEIGHT}\" fill=\"{fill}\"/>"
            );
            let Some(value) = finite(index) else { continue };
            let ink = if scale.position(value) > 0.55 { "#fff" } else { "#222" };
            if cell >= TEXT_WIDTH {
                let at = [x + cell / 2.0, y + CELL_HEIGHT / 2.0 + 4.0];
                text(svg, at, "middle", &format!(" fill=\"{ink}\""), &number(value));
            }
            if panel.marks.get(index) == Some(&true) {
                let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\" fill=\"{ink}\"/>", x + 5.0, y + 5.0);
            }
        }
        if let Some(worst) = worst {
            let (x, y) = (left + (worst % columns) as f64 * cell, HEAD + (worst / columns) as f64 * CELL_HEIGHT);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{CELL_HEIGHT}\" fill=\"none\" \
                 stroke=\"#d95f02\" stroke-width=\"2\"/>"
            );
        }
    }

    fn legend(&self, svg: &mut String, y: f64, scale: &Shading) {
        let (left, width, steps) = (MARGIN + ROW_LABELS, LEGEND_BAR, 40);
        for step in 0..steps {
            let position = (f64::from(step) + 0.5) / f64::from(steps);
            let x = left + width * f64::from(step) / f64::from(steps);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"10\" fill=\"{}\"/>",
                width / f64::from(steps) + 0.2,
                colour(position)
            );
        }
        text(svg, [left, y + 24.0], "start", "", &number(scale.low));
        text(svg, [left + width, y + 24.0], "end", "", &number(scale.high));
        text(svg, [left + width + 12.0, y + 9.0], "start", "", &self.value_label);
    }
}

/// From the smallest to the largest positive value, logarithmic.
struct Shading {
    low: f64,
    high: f64,
}

impl Shading {
    fn of(values: impl Iterator<Item = f64>) -> Shading {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = positive.fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
        if low <= high { Shading { low, high } } else { Shading { low: 1.0, high: 1.0 } }
    }

    /// 0 at the lowest value and below, 1 at the highest.
    fn position(&self, value: f64) -> f64 {
        if value <= self.low || self.high <= self.low {
            return 0.0;
        }
        ((value / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
    }

    fn colour(&self, value: f64) -> String {
        colour(self.position(value))
    }
}

/// Colour at a position between 0 and 1.
fn colour(position: f64) -> String {
    let scaled = position * (SHADES.len() - 1) as f64;
    let index = (scaled as usize).min(SHADES.len() - 2);
    let part = scaled - index as f64;
    let channel = |i: usize| (SHADES[index][i] + part * (SHADES[index + 1][i] - SHADES[index][i])).round() as u8;
    format!("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2))
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        x if x < 0.001 => format!("{value:.1e}"),
        x if x < 0.1 => format!("{value:.4}"),
        x if x < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.0}"),
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, attributes: &str, content: &str) {
    let content = escape(content);
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{attributes}>{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: Vec<Option<f64>>) -> HeatMap {
        HeatMap {
            title: "a < b & c".into(),
            row_label: "layer".into(),
            column_label: "step".into(),
            value_label: "error".into(),
            rows: vec!["0".into(), "1".into()],
            columns: vec!["0".into(), "1".into(), "2".into()],
            panels: vec![Panel { title: "one".into(), values, marks: vec![true, false, false, false, false, false] }],
        }
    }

    #[test]
    fn every_cell_is_drawn_and_text_is_escaped() {
        let svg = map(vec![Some(0.1), Some(0.2), Some(1.0), None, Some(f64::NAN), Some(0.0)]).to_svg();
        assert_eq!(svg.matches(&format!("height=\"{CELL_HEIGHT}\" fill=\"#")).count(), 6);
        assert_eq!(svg.matches("fill=\"#bbb\"").count(), 2);
        assert_eq!(svg.matches("stroke=\"#d95f02\"").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn the_scale_is_logarithmic_and_monotone() {
        let scale = Shading::of([0.01, 0.1, 1.0, f64::NAN, -3.0].into_iter());
        assert_eq!((scale.low, scale.high), (0.01, 1.0));
        assert!((scale.position(0.1) - 0.5).abs() < 1e-12);
        assert_eq!((scale.position(-1.0), scale.position(5.0)), (0.0, 1.0));
        assert_eq!(scale.colour(0.01), "#f7fbff");
        assert_eq!(scale.colour(1.0), "#08306b");
    }

    #[test]
    fn nothing_to_draw_is_still_a_document() {
        for values in [vec![], vec![None; 6], vec![Some(0.5); 6]] {
            let svg = map(values).to_svg();
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN"), "{svg}");
        }
        let empty = HeatMap { rows: vec![], columns: vec![], panels: vec![], ..map(vec![]) };
        assert!(empty.to_svg().ends_with("</svg>\n"));
    }
}
