//! Every public item of the library and of the kernels' builder shows how it is used: it has an example, which runs as a test of its own, or
//! says where the example is that uses it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Words that begin an item which needs an example.
const KINDS: [&str; 5] = ["fn", "struct", "enum", "trait", "type"];

/// The documentation of a public item.
struct Item {
    name: String,
    docs: String,
}

impl Item {
    fn has_example(&self) -> bool {
        self.docs.contains("```")
    }

    /// The path in `Example: [`name`](path).`, or the name if there is no path.
    fn example(&self) -> Option<&str> {
        let (_, link) = self.docs.split_once("Example: [`")?;
        let (name, rest) = link.split_once("`]")?;
        Some(rest.strip_prefix('(').and_then(|rest| rest.split_once(").")).map_or(name, |(path, _)| path))
    }
}

/// The public items that begin a line of `text`, and whatever is documented inside their `impl` blocks, under
/// `Type::method`.
fn items(text: &str) -> Vec<Item> {
    let (mut items, mut docs, mut of) = (Vec::new(), String::new(), String::new());
    for line in text.lines().take_while(|line| *line != "mod tests {") {
        let trimmed = line.trim_start();
        if let Some(doc) = trimmed.strip_prefix("///") {
            docs.push_str(doc.trim_start());
            docs.push('\n');
            continue;
        }
        if line.starts_with("impl") {
            let head = line.split(" for ").last().unwrap_or(line).trim_start_matches("impl");
            let head = if head.starts_with('<') { head.split_once('>').map_or(head, |(_, rest)| rest) } else { head };
            of = head.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
        }
        if let Some(name) = name(trimmed).filter(|_| !docs.is_empty()) {
            let name = if line.starts_with("pub") { name.to_owned() } else { format!("{of}::{name}") };
            items.push(Item { name, docs: std::mem::take(&mut docs) });
        }
        // Attributes stand between the documentation and its item, perhaps on several lines.
        if trimmed.is_empty() || trimmed.ends_with(['{', '}', ';', ',']) {
            docs.clear();
        }
    }
    items
}

/// The name of the item that a line begins, if it is public and of a kind that needs an example.
fn name(line: &str) -> Option<&str> {
    let words = line.strip_prefix("pub ")?;
    let mut words = words.split_whitespace().skip_while(|word| ["const", "async", "unsafe"].contains(word));
    let kind = words.next()?;
    KINDS.contains(&kind).then(|| words.next()).flatten().map(|name| {
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
        &name[..end]
    })
}

/// The items that can be reached from `module`, a file, by the path of their module.
fn reachable(module: &Path, folder: &Path, path: &str, into: &mut BTreeMap<String, Item>) {
    let text = fs::read_to_string(module).unwrap();
    let text: String = text.lines().filter(|line| !line.trim_start().starts_with("//!")).collect::<Vec<_>>().join("\n");
    let add = |into: &mut BTreeMap<String, Item>, item: Item| into.insert(format!("{path}::{}", item.name), item);
    for item in items(&text) {
        add(into, item);
    }
    let file = |name: &str| -> (PathBuf, PathBuf) {
        let (file, inner) = (folder.join(format!("{name}.rs")), folder.join(name));
        if file.exists() { (file, inner) } else { (inner.join("mod.rs"), inner) }
    };
    for statement in text.split(';') {
        let statement = statement.trim();
        let last = statement.rsplit_once('\n').map_or(statement, |(_, last)| last);
        if let Some(name) = last.strip_prefix("pub mod ") {
            let hidden = statement.contains("#[doc(hidden)]");
            let (module, inner) = file(name);
            if !hidden {
                reachable(&module, &inner, &format!("{path}::{name}"), into);
            }
        }
        let Some((_, from)) = statement.split_once("pub use ") else { continue };
        let from = from.trim_start_matches("self::");
        let Some((from, names)) = from.split_once("::") else { continue };
        let (module, _) = file(from);
        if !module.exists() || names.contains("::") {
            continue; // of another crate, or an alias of what is reachable elsewhere
        }
        let names: Vec<&str> = names.trim_matches(['{', '}']).split(',').map(str::trim).collect();
        for item in items(&fs::read_to_string(&module).unwrap()) {
            if names.contains(&item.name.split("::").next().unwrap_or_default()) {
                add(into, item);
            }
        }
    }
}

/// What is wrong with the documentation of `items`; `modules` have examples.
fn missing(items: &BTreeMap<String, Item>, modules: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, item) in items.iter().filter(|(_, item)| !item.name.contains("::")) {
        let Some(example) = item.example().filter(|_| !item.has_example()) else {
            if !item.has_example() {
                wrong.push(format!("{path} has neither an example nor a line `Example: [`...`].`"));
            }
            continue;
        };
        let target = example.trim_start_matches("enum@").trim_start_matches("crate::").trim_end_matches("()");
        let named = |(path, item): (&String, &Item)| {
            item.has_example() && (path.ends_with(&format!("::{target}")) || path == target)
        };
        if !modules.contains(&target) && !items.iter().any(named) {
            wrong.push(format!("{path} says that `{example}` has an example, which has none"));
        }
    }
    wrong
}

/// Checks the crate whose source is in `folder` and is called `name`; `modules` have examples of their own.
fn check(folder: &str, name: &str, modules: &[&str], known: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder);
    let mut found = BTreeMap::new();
    reachable(&source.join("lib.rs"), &source, name, &mut found);
    for path in known {
        assert!(found.contains_key(*path), "{path} was not found");
    }
    for module in modules {
        assert!(fs::read_to_string(source.join(module).join("mod.rs")).unwrap().contains("//! ```"), "{module}");
    }
    let wrong = missing(&found, modules);
    let types = || found.values().filter(|item| !item.name.contains("::"));
    let (count, own) = (types().count(), types().filter(|item| item.has_example()).count());
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{name}: {count} public items, {own} with an example of their own");
}

#[test]
fn every_public_item_of_the_library_has_an_example() {
    let known = ["sage_attn::api::Attention", "sage_attn::plan::plan", "sage_attn::reference::convert::pack_int4"];
    check("host/src", "sage_attn", &["adaptive", "candle", "dlpack"], &known);
}

#[test]
fn every_public_item_of_the_builder_has_an_example() {
    let known = ["cuda_builder::builder::CudaBuilder", "cuda_builder::ptx::Module", "cuda_builder::inspect::lint"];
    check("host/cuda_builder/src", "cuda_builder", &[], &known);
}

#[test]
fn the_guard_fails_on_planted_omissions() {
    let planted = "\
/// Does it.
///
/// ```
/// it();
/// ```
#[inline]
pub const fn it() {}

/// Nothing to see.
pub struct Bare {
    /// A field.
    pub field: u32,
}

impl<'a> Bare {
    /// A method.
    ///
    /// ```
    /// method();
    /// ```
    pub fn method() {}
}

/// Example: [`it`].
pub enum Good {}

/// Example: [`Bare::method`](crate::Bare::method).
pub enum Better {}

/// Example: [`nowhere`](crate::nowhere()).
pub trait Bad {}
";
    let found: BTreeMap<String, Item> =
        items(planted).into_iter().map(|item| (format!("sage_attn::{}", item.name), item)).collect();
    assert_eq!(found.len(), 6, "{:?}", found.keys());
    let wrong = missing(&found, &[]);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].contains("Bad") && wrong[0].contains("nowhere"), "{wrong:?}");
    assert!(wrong[1].contains("Bare has neither"), "{wrong:?}");
}

/// What fails to compile might fail for a wrong reason, so each such program stands after one that differs in what
/// matters only. That they do what they say, the compiler decides: they are documentation tests.
#[test]
fn programs_that_must_not_compile_stand_beside_some_that_do() {
    let text = include_str!("support/must_not_compile.rs");
    let fences: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//! ```")).collect();
    assert!(fences.len() >= 4 * 40, "{} programs", fences.len() / 4);
    for pair in fences.chunks(4) {
        let [good, "", bad, ""] = pair else { panic!("{pair:?}") };
        assert!(*good == "no_run" && bad.starts_with("compile_fail,E0"), "{pair:?}");
    }
}
