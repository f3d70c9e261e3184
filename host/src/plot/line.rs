//! Line charts.

use std::fmt::Write;

use super::axis::{Axis, Scale, label};
use super::{COLOURS, escape};

/// One line.
///
/// Example: [`LineChart`].
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points in the order they are joined.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common pair of axes.
///
/// ```
/// use sage_attn::plot::{LineChart, Scale, Series};
/// let chart = LineChart {
///     title: "Attention".into(),
///     x: ("tokens".into(), Scale::Log2),
///     y: ("TOPS".into(), Scale::Linear),
///     series: vec![Series { name: "int8".into(), points: vec![(1024.0, 382.0), (8192.0, 924.0)] }],
/// };
/// assert!(chart.svg().starts_with("<svg"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Heading.
    pub title: String,
    /// Label and scale of the horizontal axis.
    pub x: (String, Scale),
    /// Label and scale of the vertical axis.
    pub y: (String, Scale),
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 460.0;
/// Left, top, right and bottom margins; the legend is in the right one.
const MARGINS: [f64; 4] = [70.0, 45.0, 220.0, 55.0];

impl LineChart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(&self.x.0, self.x.1, points().map(|point| point.0));
        let y = Axis::new(&self.y.0, self.y.1, points().map(|point| point.1));
        let [left, top, right, bottom] = MARGINS;
        let at_x = |value: f64| left + x.position(value) * (WIDTH - left - right);
        let at_y = |value: f64| HEIGHT - bottom - y.position(value) * (HEIGHT - top - bottom);
        let (end_x, end_y) = (WIDTH - right, HEIGHT - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"25\" font-size=\"15\">{}</text>\n",
            escape(&self.title)
        );
        // Writing to a string cannot fail.
        for value in y.ticks() {
            let (at, text) = (at_y(value), label(value));
            let _ = writeln!(svg, "<path d=\"M{left} {at:.1}H{end_x}\" stroke=\"#ddd\"/>");
            let _ =
                writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", left - 8.0, at + 4.0);
        }
        for value in x.ticks() {
            let (at, text) = (at_x(value), label(value));
            let _ = writeln!(svg, "<path d=\"M{at:.1} {top}V{end_y}\" stroke=\"#ddd\"/>");
            let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>", end_y + 18.0);
        }
        let (middle_x, middle_y) = ((left + end_x) / 2.0, (top + end_y) / 2.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {top}V{end_y}H{end_x}\" fill=\"none\" stroke=\"black\"/>\n\
             <text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 15.0,
            escape(&x.label),
            escape(&y.label)
        );
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            // What is not finite, or not positive on a logarithmic axis, has no place.
            let inside = |position: f64| (-0.001..=1.001).contains(&position);
            let drawn = series.points.iter().filter(|(a, b)| inside(x.position(*a)) && inside(y.position(*b)));
            let points: Vec<(f64, f64)> = drawn.map(|&(a, b)| (at_x(a), at_y(b))).collect();
            let path: Vec<String> = points.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (a, b) in points {
                let _ = writeln!(svg, "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let (a, b) = (end_x + 15.0, top + 10.0 + 20.0 * index as f64);
            // A point by itself has no line to show.
            let (from, width) = if series.points.len() > 1 { (a, 2) } else { (a + 19.9, 7) };
            let _ = writeln!(
                svg,
                "<path d=\"M{from} {b}H{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linecap=\"round\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                a + 20.0,
                a + 26.0,
                b + 4.0,
                escape(&series.name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_name_and_label_is_drawn_inside() {
        let chart = LineChart {
            title: "a < b & c".into(),
            x: ("tokens".into(), Scale::Log2),
            y: ("GFLOP/s".into(), Scale::Linear),
            series: vec![
                Series { name: "one".into(), points: vec![(1024.0, 10.0), (4096.0, 30.0)] },
                Series { name: "two".into(), points: vec![(2048.0, f64::NAN), (2048.0, 5.0)] },
            ],
        };
        let svg = chart.svg();
        for part in ["a &lt; b &amp; c", ">tokens<", ">GFLOP/s<", ">one<", ">two<", ">2Ki<", "</svg>"] {
            assert!(svg.contains(part), "{part} is not in\n{svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for circle in svg.split("<circle ").skip(1) {
            let number =
                |key: &str| circle.split(key).nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap();
            let (x, y) = (number("cx=\""), number("cy=\""));
            assert!((MARGINS[0]..=WIDTH - MARGINS[2]).contains(&x) && (MARGINS[1]..=HEIGHT - MARGINS[3]).contains(&y));
        }
    }
}
