//! The executor against a GPU, instruction by instruction: the kernels in `kernels/` run on both with the same
//! inputs, and every bit is compared (`exp2`, `log2`, reciprocals and sums of floating-point products: within a
//! bound). Without a GPU the comparison says that it was skipped; that the executor's fragments and swizzles are
//! where the PTX ISA puts them is checked by `maps` all the same.
//!
//! The PTX is taken from the folder `SAGE_CONFORMANCE_PTX`; what is missing there is built, if this machine has
//! the device toolchain. So the folder and this binary can be carried to a machine with nothing but a driver.

mod cases;
mod coverage;
mod gpu;
mod host;
mod maps;
mod skeleton;

use cases::{CONTROLS, Case, Control, Rule};

/// How far two results are apart, in units of what the rule allows; more than 1 is too far.
fn distance(case: &Case, actual: &[u32], expected: &[u32]) -> (f64, usize) {
    let scale = match case.rule {
        Rule::Sum(_) => host::run(&case.magnitudes()),
        Rule::Bits | Rule::Relative(_) | Rule::BitsThen(..) => Vec::new(),
    };
    let mut worst = (0.0, 0);
    for (i, (&a, &b)) in actual.iter().zip(expected).enumerate() {
        let (x, y) = (f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b)));
        let far = match case.rule {
            _ if a == b => 0.0,
            Rule::Bits => f64::INFINITY,
            Rule::BitsThen(bits, _) if i < bits => f64::INFINITY,
            _ if x.is_nan() || y.is_nan() || x.is_infinite() || y.is_infinite() => f64::INFINITY,
            Rule::BitsThen(_, bound) => (x - y).abs() / bound,
            Rule::Relative(bound) => (x - y).abs() / (y.abs() * bound),
            Rule::Sum(bound) => (x - y).abs() / (f64::from(f32::from_bits(scale[i])) * bound),
        };
        if far > worst.0 || far.is_nan() {
            worst = (far, i);
        }
    }
    worst
}

#[test]
fn the_gpu_agrees_with_the_executor() {
    let gpu = gpu::open();
    if gpu.is_none() && std::env::var_os("SAGE_CONFORMANCE_PTX").is_none() {
        return println!("SKIPPED: no GPU");
    }
    let modules = match gpu::modules() {
        Ok(modules) => modules,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let Some(gpu) = gpu else { return println!("SKIPPED: no GPU; the PTX is ready") };
    let mut failures = Vec::new();
    let mut figures = serde_json::Map::new();
    for case in cases::all() {
        let Some(actual) = gpu.run(&modules, &case) else {
            println!("SKIPPED {}: this GPU does not load {}", case.name, case.arch.target());
            continue;
        };
        let expected = host::run(&case);
        let (far, at) = distance(&case, &actual, &expected);
        println!("{}: {:?}, {} words, worst {far:.3} of what is allowed", case.name, case.rule, expected.len());
        figures.insert(case.name.into(), serde_json::json!({ "words": expected.len(), "worst": far }));
        if far.is_nan() || far > 1.0 {
            failures.push(format!("{} word {at}: GPU {:#x}, executor {:#x}", case.name, actual[at], expected[at]));
        }
    }
    if let Ok(folder) = std::env::var("SAGE_RESULTS") {
        let path = std::path::Path::new(&folder).join("conformance.json");
        let text = serde_json::Value::from(figures);
        std::fs::write(&path, format!("{text:#}\n")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// A comparison that lets everything through would be worth nothing.
#[test]
fn a_changed_bit_is_found() {
    for case in cases::all() {
        let expected = host::run(&case);
        assert_eq!(distance(&case, &expected, &expected).0, 0.0, "{}", case.name);
        let mut actual = expected.clone();
        let at = expected.iter().position(|&bits| f32::from_bits(bits).is_normal()).unwrap_or(0);
        actual[at] ^= 0x0040_0000;
        let (far, found) = distance(&case, &actual, &expected);
        assert!(far > 1.0 && found == at, "{}: {far} at {found}", case.name);
    }
}

/// Mistakes that tools find on a GPU, the executor finds too.
#[test]
fn the_executor_refuses_every_control() {
    use cuda_std::executor::FaultKind;

    for Control { tool, name, kernel, .. } in CONTROLS {
        let fault = host::run_control(name, kernel).expect_err(name);
        let is_right = match tool {
            "memcheck" => matches!(fault.kind, FaultKind::OutOfBounds { .. }),
            "racecheck" => matches!(fault.kind, FaultKind::Race { .. }),
            "initcheck" => matches!(fault.kind, FaultKind::Uninitialised { .. }),
            _ => matches!(fault.kind, FaultKind::Deadlock { .. } | FaultKind::Barrier { .. }),
        };
        assert!(is_right, "{tool}: {fault}");
    }
}

/// The script that runs the controls under their tools runs all of them.
#[test]
fn every_control_is_in_the_script() {
    let script = include_str!("../gpu/sanitize.sh");
    for Control { tool, name, .. } in CONTROLS {
        let line = script.lines().find(|line| line.trim_start().starts_with(&format!("{tool}) controls=")));
        assert!(line.is_some_and(|line| line.contains(name)), "tests/gpu/sanitize.sh does not run {name} under {tool}");
    }
}

/// For `tests/gpu/sanitize.sh`: `SAGE_CONTROL` names the kernel, about which the tool that this process runs under must
/// complain.
#[test]
#[ignore = "makes a mistake on the GPU, for a tool to find"]
fn the_control_of_a_tool() {
    let Ok(wanted) = std::env::var("SAGE_CONTROL") else { return println!("SKIPPED: SAGE_CONTROL is not set") };
    let control = CONTROLS.iter().find(|control| control.name == wanted);
    let control = control.unwrap_or_else(|| panic!("SAGE_CONTROL is {wanted:?}, which is no control"));
    let gpu = gpu::open().expect("a GPU");
    let modules = gpu::modules().expect("PTX");
    println!("{} ended: {:?}", control.name, gpu.run_control(&modules, control));
}
