//! The cases of a benchmark, and the chart of its figures, whatever they are.

use sage_attn::error::Operand;
use sage_attn::plan::{Capability, plan};
use sage_attn::plot::{LineChart, Scale, Series};
use sage_attn::problem::TensorSpec;
use sage_attn::{Attention, DType, Device, Layout, Precision};

use crate::outcome::check_message;

const H200: Capability = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };

/// The target. A line of text is a case, as options of `sage-attn bench` have it: a device, then heads, key/value
/// heads, queries, keys and features, and a figure.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut points = Vec::new();
    for line in text.lines().take(50) {
        let mut words = line.split_whitespace();
        if let Err(error) = words.next().unwrap_or("auto").parse::<Device>() {
            check_message(&error);
        }
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok()).unwrap_or(1);
        let [heads, kv_heads, queries, keys, head_dim] = std::array::from_fn(|_| number());
        let figure = words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(f64::NAN);
        points.push((keys as f64, figure));
        case([1, heads, queries, head_dim], [1, kv_heads, keys, head_dim]);
    }
    chart(points);
}

fn case(q: [usize; 4], kv: [usize; 4]) {
    for precision in [Precision::Exact, Precision::Int8, Precision::Int4] {
        for causal in [false, true] {
            let spec = |shape: [usize; 4]| TensorSpec::new(Operand::Q, DType::F32, &shape, Layout::Hnd);
            let (Ok(q), Ok(kv)) = (spec(q), spec(kv)) else { return };
            let attention = Attention::new().causal(causal).precision(precision);
            let planned = attention.problem(q, kv, kv, q).and_then(|problem| plan(&problem, &H200));
            if let Err(error) = planned {
                check_message(&error);
            }
        }
    }
}

fn chart(points: Vec<(f64, f64)>) {
    for x in [Scale::Log2, Scale::Linear] {
        for y in [Scale::Linear, Scale::Log2] {
            let series = vec![Series { name: "a < b".into(), points: points.clone() }];
            let chart = LineChart { title: "title".into(), x: ("x".into(), x), y: ("y".into(), y), series };
            let svg = chart.svg();
            assert!(svg.len() < 1 << 20 && svg.ends_with("</svg>\n"), "{} bytes", svg.len());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
    }
}
