//! `docs/faults.md`: one line a fault.

use std::collections::BTreeMap;

use crate::fault::Fault;

/// The document, from the workspace on.
pub const DOCUMENT: &str = "docs/faults.md";

const HEAD: &str = "\
# Seeded faults

Bugs that were made, or nearly made, here or elsewhere, put into a copy of the sources one at a time. Each is killed
by at least two tests, or there would be a hole in the tests. `tests/faults` has them and writes this file:

```text
SAGE_FAULTS=run cargo test --release -p sage-tests --test faults -- --nocapture
```

One line a fault: what is wrong, where, and which of the tests that it names failed (`binary test`).

";

/// Where the lines of a list of faults begin.
fn section(file: &str) -> &'static str {
    match file {
        file if file.contains("attention/mma_sync") || file.contains("sm80") || file.contains("sm89") => {
            "Attention on `mma.sync`"
        }
        file if file.contains("attention/modifiers") => "Modifiers",
        file if file.contains("attention/sm90") => "Attention on Hopper",
        file if file.starts_with("kernels-gpu/") || file.starts_with("host/spec") => "Quantizers and what they share",
        file if file.contains("/cpu/") => "CPU back end",
        _ => "Host",
    }
}

fn begin(fault: &Fault) -> String {
    format!("* **{}** ({}): {}; killed by ", fault.name, fault.file, fault.what)
}

/// The document `old` with another line for `fault`, and with lines for none but `faults`.
pub fn text(faults: &[Fault], fault: usize, killers: &[String], old: &str) -> String {
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    for (number, other) in faults.iter().enumerate() {
        let begin = begin(other);
        let killers: Vec<String> = killers.iter().map(|killer| format!("`{killer}`")).collect();
        let line = match old.lines().find(|line| line.starts_with(&begin)) {
            _ if number == fault => format!("{begin}{}", killers.join(", ")),
            Some(line) => line.into(),
            None => continue,
        };
        *sections.entry(section(other.file)).or_default() += &format!("{line}\n");
    }
    let sections: Vec<String> = sections.iter().map(|(name, lines)| format!("## {name}\n\n{lines}")).collect();
    format!("{HEAD}{}", sections.join("\n"))
}

/// Fails unless `text` is the document of `faults`, with two killers each that the faults name.
pub fn check(text: &str, faults: &[Fault]) -> Result<(), String> {
    faults.iter().try_for_each(|fault| check_line(text, fault))?;
    let lines = text.lines().filter(|line| line.starts_with("* ")).count();
    if lines != faults.len() {
        return Err(format!("{DOCUMENT} has {lines} lines for {} faults", faults.len()));
    }
    Ok(())
}

/// Fails unless `text` says that two of the tests that `fault` names kill it.
pub fn check_line(text: &str, fault: &Fault) -> Result<(), String> {
    let begin = begin(fault);
    let Some(line) = text.lines().find_map(|line| line.strip_prefix(&begin)) else {
        return Err(format!("{DOCUMENT} has no line about {0}: run SAGE_FAULTS={0}", fault.name));
    };
    let killers: Vec<&str> = line.split(", ").map(|name| name.trim_matches('`')).collect();
    let known = killers.iter().filter(|killer| fault.tests.contains(killer)).count();
    if known < 2 || known < killers.len() {
        return Err(format!("{DOCUMENT}: {} is killed by {killers:?}, of which it names {known}", fault.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Fault = Fault {
        name: "x",
        what: "the last key is lost",
        file: "kernels-gpu/src/attention/sm90/f.rs",
        text: "",
        bad: "",
        tests: &["a one", "b two", "b three"],
    };

    #[test]
    fn what_is_written_is_what_is_checked() {
        let two = ["a one".to_string(), "b two".to_string()];
        let good = text(&[FAULT], 0, &two, "");
        assert!(good.contains("sm90/f.rs): the last key is lost; killed by `a one`, `b two`\n"), "{good}");
        assert_eq!(check(&good, &[FAULT]), Ok(()));
        assert!(check(&good, &[]).is_err());
        let other = Fault { name: "y", ..FAULT };
        let both = text(&[FAULT, other], 1, &two, &good);
        assert_eq!(check(&both, &[FAULT, other]), Ok(()));
        assert_eq!(text(&[FAULT], 0, &two, &both), good);
        assert!(check(&text(&[FAULT], 0, &two[..1], ""), &[FAULT]).is_err());
        assert!(check(&text(&[FAULT], 0, &[], ""), &[FAULT]).is_err());
        assert!(check(&good.replace("`b two`", "`c four`"), &[FAULT]).is_err());
        assert!(check(HEAD, &[FAULT]).is_err());
    }
}
