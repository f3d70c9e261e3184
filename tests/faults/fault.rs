//! A fault, and putting all of them into the sources.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One bug.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Name, in words joined by hyphens.
    pub name: &'static str,
    /// What is wrong, as a sentence.
    pub what: &'static str,
    /// The file, from the workspace on.
    pub file: &'static str,
    /// Text that occurs once in the file, with the expression to replace between « and ». White space matches any
    /// other.
    pub text: &'static str,
    /// The wrong expression, of the same type.
    pub bad: &'static str,
    /// Tests that should notice, the quickest first: binary and name.
    pub tests: &'static [&'static str],
}

/// `text` with every stretch of white space as one blank, and where each of its bytes is in `text`.
fn squeezed(text: &str) -> (String, Vec<usize>) {
    let (mut out, mut places) = (String::new(), Vec::new());
    let mut after_blank = false;
    for (place, c) in text.char_indices() {
        let blank = c.is_whitespace();
        if !(blank && after_blank) {
            out.push(if blank { ' ' } else { c });
            places.resize(out.len(), place);
        }
        after_blank = blank;
    }
    places.push(text.len());
    (out, places)
}

impl Fault {
    /// Where the expression is in `source`.
    fn place(&self, source: &str) -> Result<Range<usize>, String> {
        let fail = |what: &str| Err(format!("fault {}: {what} in {}", self.name, self.file));
        let (text, _) = squeezed(self.text);
        let (Some((before, rest)), 1) = (text.split_once('«'), text.matches('»').count()) else {
            return fail("the text has no « and »");
        };
        let Some((good, after)) = rest.split_once('»') else { return fail("» comes before «") };
        let wanted = format!("{before}{good}{after}");
        let (squeezed, places) = squeezed(source);
        let found: Vec<usize> = squeezed.match_indices(&wanted).map(|(at, _)| at).collect();
        match found[..] {
            [at] => {
                let begin = at + before.len();
                Ok(places[begin]..places[begin + good.len()])
            }
            [] => fail("its text is no more"),
            _ => fail("its text is there several times"),
        }
    }
}

/// The switch: part of the copy's lowest crate.
const SWITCH: &str = r#"
extern crate std;

/// Which seeded fault is on.
pub mod fault {
    /// The number of the fault, or of none.
    static ON: std::sync::OnceLock<u32> = std::sync::OnceLock::new();

    /// Whether `fault` is the one that is on.
    pub fn on(fault: u32) -> bool {
        *ON.get_or_init(|| std::env::var("SAGE_FAULT").map_or(u32::MAX, |n| n.parse().expect("a number"))) == fault
    }
}
"#;

/// The files of the workspace at `root` that differ in the copy that has all `faults`.
///
/// # Errors
///
/// A fault that does not find its place once, or two whose places overlap.
pub fn patched(root: &Path, faults: &[Fault]) -> Result<BTreeMap<PathBuf, String>, String> {
    let read =
        |file: &str| std::fs::read_to_string(root.join(file)).map_err(|error| format!("cannot read {file}: {error}"));
    let mut places: BTreeMap<&str, BTreeMap<(usize, usize), Vec<usize>>> = BTreeMap::new();
    for (number, fault) in faults.iter().enumerate() {
        let place = fault.place(&read(fault.file)?)?;
        places.entry(fault.file).or_default().entry((place.start, place.end)).or_default().push(number);
    }
    let mut files = BTreeMap::new();
    for (file, places) in places {
        let source = read(file)?;
        let switch = if file.starts_with("host/spec/") { "crate::fault::on" } else { "sage_spec::fault::on" };
        let (mut text, mut done) = (String::new(), 0);
        for ((begin, end), numbers) in places {
            if begin < done {
                return Err(format!("{}: its place in {file} overlaps another's", faults[numbers[0]].name));
            }
            text += &source[done..begin];
            text.push('(');
            for number in numbers {
                text += &format!("if {switch}({number}) {{ {} }} else ", faults[number].bad);
            }
            text += &format!("{{ {} }})", &source[begin..end]);
            done = end;
        }
        text += &source[done..];
        files.insert(PathBuf::from(file), text);
    }
    let spec = "host/spec/src/lib.rs";
    let text = files.remove(Path::new(spec)).map_or_else(|| read(spec), Ok)?;
    files.insert(spec.into(), text + SWITCH);
    // The copy embeds the kernels that are checked in, which have no faults; nobody runs them.
    let build = "host/build.rs";
    let text = read(build)?.replace(r#"if !root.join("kernels-gpu").is_dir() {"#, "if true {");
    files.insert(build.into(), text);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Fault =
        Fault { name: "x", what: "", file: "f.rs", text: "while «i < n» { step(i);", bad: "i <= n", tests: &[] };

    #[test]
    fn a_place_is_found_across_white_space() {
        let source = "fn f() {\n    while i < n {\n        step(i);\n    }\n}\n";
        let place = FAULT.place(source).unwrap();
        assert_eq!(&source[place], "i < n");
    }

    #[test]
    fn a_place_that_is_gone_or_ambiguous_is_an_error() {
        assert!(FAULT.place("while i > n { step(i); }").unwrap_err().contains("no more"));
        assert!(FAULT.place("while i < n { step(i); } while i < n { step(i); }").unwrap_err().contains("several"));
    }
}
