//! Results files: what benchmarks wrote, as points of a chart.

use std::path::Path;

use sage_attn::plot::{LineChart, Scale, Series};
use serde_json::Value;

use super::Failure;

/// How fast and how exact something was on one shape; of that, what its file has.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Kernel or peer.
    pub name: String,
    /// Where it ran; empty if the file does not say.
    pub device: String,
    /// Whether the causal mask was on.
    pub causal: bool,
    /// Features of a head.
    pub head_dim: u64,
    /// Tokens, of the keys if they are not as many as the queries.
    pub tokens: u64,
    /// 10¹² operations per second of the whole computation.
    pub e2e_tops: Option<f64>,
    /// 10¹² operations per second of attention alone; for peers, which do nothing else, the same.
    pub tops: Option<f64>,
    /// Relative L1 distance from exact attention.
    pub rel_l1: Option<f64>,
}

/// The points of a results file: a report of the benchmark `gpu`, perhaps with peers; several of them under
/// `by_seqlen`; a report of the benchmark `cpu`; or lines that `sage-attn bench --json` printed.
pub fn read(path: &Path) -> Result<Vec<Point>, Failure> {
    let bad = |why: String| Failure::Input(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let points = parse(&text).map_err(bad)?;
    if points.is_empty() {
        return Err(bad("there is no result in it".into()));
    }
    Ok(points)
}

fn parse(text: &str) -> Result<Vec<Point>, String> {
    let mut points = Vec::new();
    // A report is one value over many lines; `bench` prints many values, each on a line.
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let value = value.map_err(|error| format!("not JSON: {error}"))?;
        if let Some(reports) = value.get("by_seqlen").and_then(Value::as_object) {
            for report in reports.values() {
                report_points(report, &mut points)?;
            }
        } else if value.get("cpu").is_some() {
            cpu_points(&value, &mut points)?;
        } else if value.get("cases").is_some() {
            report_points(&value, &mut points)?;
        } else {
            points.push(point(&value, "kernel", "", number(&value, "seqlen_kv")?)?);
        }
    }
    Ok(points)
}

/// The points of one report of the benchmark `gpu`, whose cases share a length.
fn report_points(report: &Value, points: &mut Vec<Point>) -> Result<(), String> {
    let device = report.get("device").and_then(Value::as_str).unwrap_or_default();
    let tokens = number(report, "seqlen")?;
    for (list, key) in [("cases", "kernel"), ("peers", "peer")] {
        for case in report.get(list).and_then(Value::as_array).into_iter().flatten() {
            points.push(point(case, key, device, tokens)?);
        }
    }
    Ok(())
}

/// The points of a report of the benchmark `cpu`, in which every case has its own length and contestants.
fn cpu_points(report: &Value, points: &mut Vec<Point>) -> Result<(), String> {
    let device = report.get("cpu").and_then(Value::as_str).unwrap_or("cpu");
    for case in report.get("cases").and_then(Value::as_array).into_iter().flatten() {
        let [rows, keys, heads, head_dim] = ["seqlen_q", "seqlen_kv", "heads", "head_dim"].map(|key| number(case, key));
        let (rows, keys, head_dim) = (rows?, keys?, head_dim?);
        let causal = case.get("causal").and_then(Value::as_bool).ok_or_else(|| missing(case, "causal"))?;
        let visible = if causal { keys - (rows - 1.0) / 2.0 } else { keys };
        let flops = 4.0 * heads? * head_dim * rows * visible;
        for result in case.get("results").and_then(Value::as_array).into_iter().flatten() {
            let name = result.get("name").and_then(Value::as_str).ok_or_else(|| missing(result, "name"))?;
            let tops = Some(flops / (number(result, "min_ms")? * 1e9));
            points.push(Point {
                name: name.to_owned(),
                device: device.to_owned(),
                causal,
                head_dim: head_dim as u64,
                tokens: keys as u64,
                e2e_tops: tops,
                tops,
                rel_l1: None,
            });
        }
    }
    Ok(())
}

/// The point of an object whose name is under `key`.
fn point(object: &Value, key: &str, device: &str, tokens: f64) -> Result<Point, String> {
    let text = |key| object.get(key).and_then(Value::as_str);
    let figure = |key| object.get(key).and_then(Value::as_f64);
    let (tops, rel_l1) = (figure("tops"), figure("rel_l1"));
    if tops.or(rel_l1).is_none() {
        return Err(missing(object, "tops"));
    }
    Ok(Point {
        name: text(key).ok_or_else(|| missing(object, key))?.to_owned(),
        device: text("device").unwrap_or(device).to_owned(),
        causal: object.get("causal").and_then(Value::as_bool).ok_or_else(|| missing(object, "causal"))?,
        head_dim: number(object, "head_dim")? as u64,
        tokens: tokens as u64,
        e2e_tops: figure("e2e_tops").or(tops),
        tops,
        rel_l1,
    })
}

fn number(object: &Value, key: &str) -> Result<f64, String> {
    object.get(key).and_then(Value::as_f64).ok_or_else(|| missing(object, key))
}

fn missing(object: &Value, key: &str) -> String {
    let text: String = object.to_string().chars().take(80).collect();
    format!("a result needs \"{key}\", which is missing in {text}; results are what `bench --json` prints")
}

/// Operations per second over the number of tokens, one line for each name and mask; in the unit that suits.
pub fn chart(title: String, points: &[Point], tops: fn(&Point) -> Option<f64>) -> LineChart {
    let largest = points.iter().filter_map(tops).fold(0.0, f64::max);
    let (unit, factor) = if largest < 10.0 { ("GFLOP/s", 1e3) } else { ("TOPS", 1.0) };
    lines(title, points, unit, |point| tops(point).map(|tops| tops * factor))
}

/// What `figure` is of the points that have it, in `unit`, likewise.
pub fn lines(title: String, points: &[Point], unit: &str, figure: impl Fn(&Point) -> Option<f64>) -> LineChart {
    let both_masks = points.iter().any(|point| point.causal) && points.iter().any(|point| !point.causal);
    let mut series: Vec<Series> = Vec::new();
    for point in points {
        let mask = if both_masks && point.causal { ", causal" } else { "" };
        let name = format!("{}{mask}", point.name);
        let Some(figure) = figure(point) else { continue };
        let at = (point.tokens as f64, figure);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(at),
            None => series.push(Series { name, points: vec![at] }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    LineChart { title, x: ("tokens".into(), Scale::Log2), y: (unit.into(), Scale::Linear), series }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"device": "G", "seqlen": 4096, "cases":
        [{"kernel": "k", "causal": false, "head_dim": 128, "tops": 900.0, "e2e_tops": 800.0}],
        "peers": [{"peer": "p", "causal": true, "head_dim": 64, "tops": 500.0}]}"#;

    #[test]
    fn reports_and_lines_are_read() {
        let points = parse(REPORT).unwrap();
        assert_eq!(points.len(), 2);
        let kernel = &points[0];
        assert_eq!((kernel.name.as_str(), kernel.device.as_str(), kernel.tokens), ("k", "G", 4096));
        assert_eq!((kernel.tops, kernel.e2e_tops, kernel.head_dim), (Some(900.0), Some(800.0), 128));
        assert_eq!((points[1].e2e_tops, points[1].causal), (Some(500.0), true));
        assert_eq!(parse(&format!("{{\"by_seqlen\": {{\"4096\": {REPORT}}}}}")).unwrap(), points);

        let line = r#"{"kernel": "c", "device": "cpu", "causal": true, "head_dim": 8, "seqlen_kv": 64, "tops": 0.5,
            "e2e_tops": 0.25}"#;
        let points = parse(&format!("{line}\n{line}\n")).unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!((points[0].tokens, points[0].e2e_tops, points[0].rel_l1), (64, Some(0.25), None));

        let errors = r#"{"seqlen": 8, "cases": [{"kernel": "k", "causal": false, "head_dim": 64, "rel_l1": 0.04}]}"#;
        let points = parse(errors).unwrap();
        assert_eq!((points[0].tops, points[0].e2e_tops, points[0].rel_l1), (None, None, Some(0.04)));
    }

    #[test]
    fn the_report_of_the_cpu_has_times_instead_of_rates() {
        let points = parse(
            r#"{"cpu": "C", "cases": [{"causal": true, "head_dim": 64, "heads": 2, "seqlen_q": 10, "seqlen_kv": 20,
            "results": [{"name": "exact", "min_ms": 0.5}]}]}"#,
        )
        .unwrap();
        // Rows see 11 to 20 keys, 15.5 on average.
        assert_eq!(points[0].tops, Some(4.0 * 2.0 * 64.0 * 10.0 * 15.5 / 0.5e9));
        assert_eq!((points[0].device.as_str(), points[0].tokens), ("C", 20));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(parse("{\"kernel\": \"k\"}").unwrap_err().contains("seqlen_kv"));
        assert!(parse("{\"cases\": [], ").unwrap_err().contains("not JSON"));
        assert!(parse("{\"cases\": [{}], \"seqlen\": 1}").unwrap_err().contains("tops"));
    }

    #[test]
    fn a_chart_joins_lengths_and_picks_its_unit() {
        let point = |tokens, tops, causal| Point {
            name: "k".into(),
            device: "d".into(),
            causal,
            head_dim: 64,
            tokens,
            e2e_tops: Some(tops),
            tops: Some(2.0 * tops),
            rel_l1: causal.then_some(0.5),
        };
        let points = [point(4096, 0.2, false), point(1024, 0.1, false), point(1024, 0.05, true)];
        let drawn = chart("t".into(), &points, |point| point.e2e_tops);
        assert_eq!(drawn.y.0, "GFLOP/s");
        assert_eq!(drawn.series[0].points, [(1024.0, 100.0), (4096.0, 200.0)]);
        assert_eq!(drawn.series[1].name, "k, causal");
        assert_eq!(chart("t".into(), &[point(1, 9.0, true)], |point| point.tops).y.0, "TOPS");
        let drawn = lines("t".into(), &points, "relative L1", |point| point.rel_l1);
        assert_eq!((drawn.y.0.as_str(), drawn.series.len()), ("relative L1", 1), "one point has an error");
        assert_eq!(drawn.series[0].points, [(1024.0, 0.5)]);
    }
}
