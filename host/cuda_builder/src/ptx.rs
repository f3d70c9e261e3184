//! From what LLVM prints to what is shipped.
//!
//! [`finish`] applies launch bounds, keeps what kernels reach, and removes everything that would
//! differ between two builds of the same source: comments, crate hashes, the numbering that dead
//! functions leave behind. [`Module`] is the parsed text, shared with [`crate::inspect`].

mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

pub use parse::{BodyLine, Item, ItemKind, Module};

/// The PTX is not what this module expects of rustc.
///
/// Example: [`finish`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PtxError {
    /// Braces or parentheses do not match.
    #[error("the PTX ends inside `{0}`")]
    Unbalanced(String),
    /// `.version`, `.target` or `.address_size` is missing.
    #[error("the PTX has no `{0}` directive")]
    NoHeader(&'static str),
    /// Launch bounds that only entries may have.
    #[error("launch bounds in `{0}`, which is not a kernel: mark only entry points with #[kernel(..)]")]
    BoundsOutsideEntry(String),
    /// A marker that `#[kernel]` does not write.
    #[error("cannot read the launch bounds `{bounds}` of `{entry}`")]
    BadBounds {
        /// The kernel.
        entry: String,
        /// The marker's text.
        bounds: String,
    },
    /// Calls that nothing in the module answers.
    #[error("{}", unresolved_message(.0))]
    Unresolved(Vec<Unresolved>),
}

/// A function that is called and defined nowhere.
///
/// Example: [`finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The callee, demangled.
    pub callee: String,
    /// The kernels and functions that call it.
    pub callers: Vec<String>,
}

fn unresolved_message(all: &[Unresolved]) -> String {
    let mut text = String::from("the driver could not load this module; it calls functions that nothing defines:");
    for one in all {
        write!(text, "\n    {}, called by {}", one.callee, one.callers.join(", ")).expect("writing to a String");
    }
    text + "\nIn device code nothing may panic (index, slice, division by a variable) and functions of other \
            crates must be inlined."
}

/// Functions that the driver itself provides.
pub(crate) const DRIVER_FUNCTIONS: [&str; 4] = ["vprintf", "malloc", "free", "__assertfail"];

impl Module {
    /// Kernels, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.kind == ItemKind::Entry)
    }

    /// Symbols that other parts of the program see: kernels, and whatever has an unmangled name.
    fn roots(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| match item.kind {
            ItemKind::Entry => true,
            ItemKind::Function | ItemKind::Variable => {
                item.head.starts_with(".visible") && !is_mangled(&item.name) && item.name != "rust_begin_unwind"
            }
            // `global_asm!` declares shared memory this way; it belongs to nobody and costs nothing.
            ItemKind::ExternFunction | ItemKind::Other => false,
        })
    }

    /// Names of everything the roots reach, roots included.
    fn reachable(&self) -> BTreeSet<&str> {
        let by_name: BTreeMap<&str, &Item> = self.items.iter().map(|item| (item.name.as_str(), item)).collect();
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&Item> = self.roots().collect();
        while let Some(item) = open.pop() {
            if reached.insert(&item.name) {
                let symbols = item.symbols().filter_map(|symbol| by_name.get(symbol));
                open.extend(symbols.copied());
            }
        }
        reached
    }

    /// The functions that are called and that neither this module nor the driver defines.
    pub fn unresolved(&self) -> Vec<Unresolved> {
        let externs = self.items.iter().filter(|item| item.kind == ItemKind::ExternFunction);
        let missing = externs.filter(|item| !DRIVER_FUNCTIONS.contains(&item.name.as_str()));
        missing
            .map(|missing| {
                let calls = |item: &&Item| item.body_symbols().any(|symbol| symbol == missing.name);
                let callers = self.items.iter().filter(calls).map(|item| readable(&item.name)).collect();
                Unresolved { callee: readable(&missing.name), callers }
            })
            .collect()
    }

    /// Keeps of debug information the lines (`.file`, `.loc`), which profilers and sanitizers read.
    /// LLVM's DWARF sections are dropped: ptxas does not parse them, and they point into functions by
    /// labels that are numbered across the module.
    fn drop_debug_sections(&mut self) {
        self.target = self.target.split(',').next().unwrap_or_default().to_owned();
        self.items.retain(|item| item.kind != ItemKind::Other || is_file(item));
        for item in &mut self.items {
            item.body.retain(|line| {
                let label = line.text.strip_suffix(':').unwrap_or_default();
                !label.starts_with("$L__tmp") && !label.starts_with("$L__func_")
            });
            for line in item.body.iter_mut().filter(|line| is_location(&line.text)) {
                // What follows a comma names a string of a section.
                line.text.truncate(line.text.find(',').unwrap_or(line.text.len()));
            }
        }
    }

    /// The text of the module, entries last and by name.
    fn print(&self) -> String {
        let mut text =
            format!(".version {}\n.target {}\n.address_size {}\n", self.version, self.target, self.address_size);
        let mut entries: Vec<&Item> = self.entries().collect();
        entries.sort_by_key(|item| &item.name);
        let others = self.items.iter().filter(|item| item.kind != ItemKind::Entry);
        for item in others.chain(entries) {
            text.push('\n');
            text.push_str(&item.head);
            text.push('\n');
            if matches!(item.kind, ItemKind::Entry | ItemKind::Function) {
                text.push_str("{\n");
                for line in &item.body {
                    text.push_str(&line.text);
                    text.push('\n');
                }
                text.push_str("}\n");
            }
        }
        text
    }
}

impl Item {
    fn symbols(&self) -> impl Iterator<Item = &str> {
        identifiers(&self.head).chain(self.body_symbols())
    }

    fn body_symbols(&self) -> impl Iterator<Item = &str> {
        self.body.iter().flat_map(|line| identifiers(&line.text))
    }

    /// Rewrites each identifier of the item.
    fn rename(&mut self, new_name: &mut dyn FnMut(&str) -> Option<String>) {
        let body = self.body.iter_mut().map(|line| &mut line.text);
        for text in std::iter::once(&mut self.head).chain(body) {
            *text = replace_identifiers(text, new_name);
        }
        if let Some(name) = new_name(&self.name) {
            self.name = name;
        }
    }

    /// Moves the launch bounds behind the parameter list.
    fn apply_bounds(&mut self) -> Result<(), PtxError> {
        let Some(bounds) = self.bounds.take() else {
            return Ok(());
        };
        if self.kind != ItemKind::Entry {
            return Err(PtxError::BoundsOutsideEntry(readable(&self.name)));
        }
        let bad = || PtxError::BadBounds { entry: self.name.clone(), bounds: bounds.clone() };
        for assignment in bounds.split_whitespace() {
            let (name, value) = assignment.split_once('=').ok_or_else(bad)?;
            let value: u32 = value.parse().map_err(|_| bad())?;
            if name == "parameter_align" {
                // rustc's own limit for parameters is 16 bytes; a tensor map needs 64.
                self.head = raise_parameter_alignment(&self.head, value);
                continue;
            }
            let directive = match name {
                "max_threads" => format!(".maxntid {value}, 1, 1"),
                "min_blocks" => format!(".minnctapersm {value}"),
                "max_registers" => format!(".maxnreg {value}"),
                _ => return Err(bad()),
            };
            self.head.push('\n');
            self.head.push_str(&directive);
        }
        Ok(())
    }

    /// Numbers labels, depots and parameter blocks within the item: LLVM numbers them across all
    /// functions of the module, dead ones included.
    fn renumber(&mut self) {
        self.rename(&mut |symbol| {
            if let Some(rest) = symbol.strip_prefix("$L__BB") {
                let (_, block) = rest.split_once('_')?;
                return Some(format!("$L_{block}"));
            }
            symbol.starts_with("__local_depot").then(|| "__local_depot".to_owned())
        });
    }
}

/// `head` with every `.param .align` below `align` raised to it.
fn raise_parameter_alignment(head: &str, align: u32) -> String {
    const ALIGN: &str = ".param .align ";
    let mut parts = head.split(ALIGN);
    let mut raised = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let declared = part[..digits].parse().unwrap_or(align);
        write!(raised, "{ALIGN}{}{}", align.max(declared), &part[digits..]).expect("writing to a String");
    }
    raised
}

/// Turns LLVM's output into the module that is shipped.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\tret;\n}\n";
/// assert!(cuda_builder::ptx::finish(PTX)?.contains(".entry k"));
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn finish(ptx: &str) -> Result<String, PtxError> {
    let mut module = Module::parse(ptx)?;
    module.drop_debug_sections();
    module.items.iter_mut().try_for_each(Item::apply_bounds)?;
    let keep: BTreeSet<String> = module.reachable().into_iter().map(str::to_owned).collect();
    module.items.retain(|item| keep.contains(&item.name) || is_shared_declaration(item) || is_file(item));
    let unresolved = module.unresolved();
    if !unresolved.is_empty() {
        return Err(PtxError::Unresolved(unresolved));
    }
    let names = stable_names(&module);
    for item in &mut module.items {
        item.rename(&mut |symbol| names.get(symbol).cloned());
        item.renumber();
    }
    Ok(module.print())
}

/// `.file 1 "lib.rs"` of debug information.
fn is_file(item: &Item) -> bool {
    item.kind == ItemKind::Other && item.head.trim_start().starts_with(".file")
}

/// `.loc 1 15 0` of debug information.
pub(crate) fn is_location(line: &str) -> bool {
    line.trim_start().starts_with(".loc\t") || line.trim_start().starts_with(".loc ")
}

/// `.extern .shared` of `global_asm!`: kept whether or not a kernel was seen to use it.
fn is_shared_declaration(item: &Item) -> bool {
    item.kind == ItemKind::Variable && item.head.contains(".shared")
}

/// New names for the surviving mangled symbols: the readable path, numbered where two would clash.
/// Crate hashes depend on where the source lies, so none may survive.
fn stable_names(module: &Module) -> BTreeMap<String, String> {
    let mut taken: BTreeSet<String> = module.items.iter().map(|item| item.name.clone()).collect();
    let mut names = BTreeMap::new();
    for item in module.items.iter().filter(|item| is_mangled(&item.name)) {
        let base = readable(&item.name).replace("::", "__");
        let mut name = base.clone();
        let mut count = 1;
        while !taken.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        // Parameters are named after their function.
        for symbol in item.symbols().filter(|symbol| symbol.starts_with(&item.name)) {
            names.insert(symbol.to_owned(), symbol.replacen(&item.name, &name, 1));
        }
        names.insert(item.name.clone(), name);
    }
    names
}

fn is_mangled(name: &str) -> bool {
    name.starts_with("_R") || name.starts_with("anon_$_")
}

/// The path inside a mangled name: `_RNvNtCs1oz_4core9panicking5panic` is `core::panicking::panic`.
/// Enough for messages and for names: generic arguments are left out.
pub(crate) fn readable(name: &str) -> String {
    if name.starts_with("anon_$_") {
        return "anon".to_owned();
    }
    if !is_mangled(name) {
        return name.to_owned();
    }
    let mut parts = Vec::new();
    let mut rest = &name[2..];
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = skip_disambiguator(&rest[..start], &rest[start..], rest);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(length) = rest[..digits].parse::<usize>() else {
            break;
        };
        // An identifier that starts with a digit or an underscore is set apart by one.
        let identifier = rest[digits..].strip_prefix('_').unwrap_or(&rest[digits..]);
        let Some(part) = identifier.get(..length) else {
            break;
        };
        if !part.is_empty() {
            parts.push(part);
        }
        rest = &identifier[length..];
    }
    if parts.is_empty() { "function".to_owned() } else { parts.join("::") }
}

/// If the digit found belongs to a base-62 number `s..._`, steps over that number.
fn skip_disambiguator<'a>(before: &str, from_digit: &'a str, whole: &'a str) -> &'a str {
    match before.rfind('s') {
        Some(at) => match whole[at..].find('_') {
            Some(end) => {
                let after = &whole[at + end + 1..];
                if after.starts_with(|c: char| c.is_ascii_digit()) { after } else { from_digit }
            }
            None => from_digit,
        },
        None => from_digit,
    }
}

fn is_identifier_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

/// Words that could be symbols: maximal runs of identifier characters.
pub(crate) fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_identifier_char(c)).filter(|word| !word.is_empty())
}

pub(crate) fn replace_identifiers(text: &str, new_name: &mut dyn FnMut(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_identifier_char) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_identifier_char(c)).unwrap_or(from.len()));
        result.push_str(before);
        result.push_str(new_name(word).as_deref().unwrap_or(word));
        rest = after;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rustc prints for a crate with two kernels, a helper, a table and dead code.
    const RAW: &str = include_str!("../tests/data/raw.ptx");

    #[test]
    fn items_are_told_apart() {
        let module = Module::parse(RAW).unwrap();
        assert_eq!((module.version.as_str(), module.target.as_str()), ("8.4", "sm_89"));
        let kinds = |kind| module.items.iter().filter(|item| item.kind == kind).count();
        assert_eq!(kinds(ItemKind::Entry), 3);
        assert_eq!(kinds(ItemKind::Function), 2);
        assert_eq!(kinds(ItemKind::ExternFunction), 1);
        assert_eq!(kinds(ItemKind::Variable), 4);
        assert_eq!(kinds(ItemKind::Other), 0);
    }

    #[test]
    fn only_what_kernels_reach_survives() {
        let ptx = finish(RAW).unwrap();
        assert!(!ptx.contains("rust_begin_unwind") && !ptx.contains("panic_bounds_check"), "{ptx}");
        assert!(!ptx.contains("_R") && !ptx.contains("anon_$_"), "{ptx}");
        assert!(ptx.contains("call.uni (retval0), kern__helper, (param0);"), "{ptx}");
        assert!(ptx.contains(".b8 kern__TABLE[64]") && ptx.contains("mov.b64 \t%rd4, kern__TABLE;"), "{ptx}");
        assert!(ptx.contains("dynsmem[];"), "{ptx}");
    }

    #[test]
    fn comments_and_numbering_vanish() {
        let ptx = finish(RAW).unwrap();
        assert!(!ptx.contains("//") && !ptx.contains("$L__BB"), "{ptx}");
        assert_eq!(finish(&ptx).unwrap(), ptx);
    }

    #[test]
    fn launch_bounds_become_directives() {
        let ptx = finish(RAW).unwrap();
        assert!(ptx.contains(")\n.maxntid 128, 1, 1\n.minnctapersm 2\n{"), "{ptx}");
        assert_eq!(ptx.matches(".maxntid").count(), 1);
    }

    #[test]
    fn parameter_alignment_is_raised_and_never_lowered() {
        let head = ".visible .entry f(\n\t.param .align 8 .b8 f_param_0[384],\n\t.param .align 128 .b8 f_param_1[8]\n)";
        let raised = raise_parameter_alignment(head, 64);
        assert_eq!(raised, head.replace("align 8", "align 64"));
    }

    #[test]
    fn launch_bounds_outside_an_entry_are_an_error() {
        let raw = RAW.replace("mov.b32 \t%r30, 0;", "// launch_bounds max_threads=32");
        assert_eq!(finish(&raw), Err(PtxError::BoundsOutsideEntry("kern::helper".to_owned())));
        let raw = RAW.replace("max_threads=128", "threads=128");
        assert!(matches!(finish(&raw), Err(PtxError::BadBounds { .. })));
    }

    #[test]
    fn unresolved_calls_are_named_with_their_callers() {
        let raw = RAW.replace(
            "call.uni (retval0), _RNvCsgb5d3K97ife_4kern6helper",
            "call.uni _RNvNtCs1ozwTZqUGUF_4core9panicking18panic_bounds_check",
        );
        let error = finish(&raw).unwrap_err();
        let expected =
            Unresolved { callee: "core::panicking::panic_bounds_check".to_owned(), callers: vec!["calls".to_owned()] };
        assert_eq!(error, PtxError::Unresolved(vec![expected]));
    }

    #[test]
    fn of_debug_information_the_lines_stay() {
        let raw = RAW
            .replace(".target sm_89", ".target sm_89, debug")
            .replace("\tbar.sync", "$L__tmp7:\n\t.loc\t1 15 0, function_name $L__info_string0\n\tbar.sync");
        let sections = "\t.file\t1 \"lib.rs\"\n\t.section\t.debug_info\n\t{\n.b64 $L__tmp7\n\t}\n$L__sec_end0:\n\
                        \t.section\t.debug_macinfo\t{\t}\n";
        let ptx = finish(&(raw + sections)).unwrap();
        let lines: Vec<&str> = ptx.lines().filter(|line| line.contains("$L__") || line.contains(".debug")).collect();
        assert!(lines.is_empty(), "{lines:?}");
        assert!(ptx.contains("\t.loc\t1 15 0\n\tbar.sync") && ptx.contains(".file\t1 \"lib.rs\""), "{ptx}");
        assert!(ptx.contains(".target sm_89\n"), "{ptx}");
    }

    #[test]
    fn truncated_text_is_an_error() {
        assert!(matches!(Module::parse(&RAW[..RAW.len() - 3]), Err(PtxError::Unbalanced(_))));
        assert_eq!(Module::parse(""), Err(PtxError::NoHeader(".version")));
    }

    #[test]
    fn paths_are_read_from_mangled_names() {
        assert_eq!(readable("_RNvCsfgHYwM92fyn_7___rustc17rust_begin_unwind"), "__rustc::rust_begin_unwind");
        assert_eq!(readable("_RNvNtCs1ozwTZqUGUF_4core9panicking5panic"), "core::panicking::panic");
        assert_eq!(readable("vprintf"), "vprintf");
    }
}
