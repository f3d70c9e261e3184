//! The text of a module, cut into top-level items.

use super::{PtxError, identifiers};

/// What a top-level piece of PTX is.
///
/// Example: [`Module`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A kernel.
    Entry,
    /// A function with a body.
    Function,
    /// A function without a body.
    ExternFunction,
    /// A variable in some state space.
    Variable,
    /// Debug sections and the like.
    Other,
}

/// A top-level piece of a module.
///
/// Example: [`Module`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Its symbol; empty for [`ItemKind::Other`].
    pub name: String,
    /// Its text without comments; for functions up to the opening brace.
    pub head: String,
    /// The lines between the braces of a function.
    pub body: Vec<BodyLine>,
    /// Line of the module at which it starts, from 1.
    pub line: usize,
    /// Launch bounds found in its body.
    pub(super) bounds: Option<String>,
}

/// A line of a function's body.
///
/// Example: [`Module`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyLine {
    /// Line of the module, from 1.
    pub number: usize,
    /// Its text, without comments.
    pub text: String,
}

/// A parsed module.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// let module = cuda_builder::ptx::Module::parse(PTX)?;
/// assert_eq!(module.entries().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["k"]);
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// `.version`, for example `8.4`.
    pub version: String,
    /// `.target`, for example `sm_89`.
    pub target: String,
    /// `.address_size`.
    pub address_size: String,
    /// Everything after the header, in the order of the text.
    pub items: Vec<Item>,
}

const MARKER: &str = "// launch_bounds ";

impl Module {
    /// Parses PTX as LLVM prints it, or as `finish` leaves it.
    pub fn parse(ptx: &str) -> Result<Self, PtxError> {
        let mut module =
            Module { version: String::new(), target: String::new(), address_size: String::new(), items: Vec::new() };
        let mut pending = Pending::default();
        for (index, line) in without_comments(ptx).enumerate() {
            let number = index + 1;
            if pending.is_empty() {
                let mut words = line.text.split_whitespace();
                let slot = match words.next() {
                    None => continue,
                    Some(".version") => &mut module.version,
                    Some(".target") => &mut module.target,
                    Some(".address_size") => &mut module.address_size,
                    Some(_) => {
                        pending.push(&line, number, &mut module.items);
                        continue;
                    }
                };
                *slot = words.collect::<Vec<_>>().join(" ");
            } else {
                pending.push(&line, number, &mut module.items);
            }
        }
        if !pending.is_empty() {
            return Err(PtxError::Unbalanced(pending.first_line()));
        }
        for (value, name) in
            [(&module.version, ".version"), (&module.target, ".target"), (&module.address_size, ".address_size")]
        {
            if value.is_empty() {
                return Err(PtxError::NoHeader(name));
            }
        }
        Ok(module)
    }
}

/// A line without comments, and the launch bounds its comment carried.
struct Line {
    text: String,
    bounds: Option<String>,
}

/// Strips `//` and `/* */`, line by line.
fn without_comments(ptx: &str) -> impl Iterator<Item = Line> {
    let mut inside_block = false;
    ptx.lines().map(move |line| {
        let mut text = String::new();
        let mut bounds = None;
        let mut rest = line;
        loop {
            if inside_block {
                let Some(end) = rest.find("*/") else { break };
                inside_block = false;
                rest = &rest[end + 2..];
            }
            match (rest.find("//"), rest.find("/*")) {
                (Some(at), block) if block.is_none_or(|block| at < block) => {
                    text.push_str(&rest[..at]);
                    bounds = rest[at..].strip_prefix(MARKER).map(|bounds| bounds.trim().to_owned());
                    break;
                }
                (_, Some(at)) => {
                    text.push_str(&rest[..at]);
                    inside_block = true;
                    rest = &rest[at + 2..];
                }
                _ => {
                    text.push_str(rest);
                    break;
                }
            }
        }
        text.truncate(text.trim_end().len());
        Line { text, bounds }
    })
}

/// The item being read. LLVM puts each top-level item on lines of its own, so an item ends with the
/// line that closes it.
#[derive(Default)]
struct Pending {
    lines: Vec<BodyLine>,
    /// Index in `lines` of the brace that opens the body.
    brace: Option<usize>,
    depth: i32,
    bounds: Option<String>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn first_line(&self) -> String {
        self.lines.first().map(|line| line.text.clone()).unwrap_or_default()
    }

    fn push(&mut self, line: &Line, number: usize, items: &mut Vec<Item>) {
        if let Some(bounds) = &line.bounds {
            self.bounds = Some(bounds.clone());
        }
        if line.text.is_empty() {
            return;
        }
        // A body on the line of its head (hand-written PTX) is split from it.
        let is_initializer = line.text.contains('=') || self.first_line().contains('=');
        for piece in split_braces(&line.text, is_initializer) {
            if piece == "{" && self.depth == 0 {
                self.brace = Some(self.lines.len());
            }
            self.depth += depth_change(&piece);
            self.lines.push(BodyLine { number, text: piece });
        }
        // `.file` and labels between debug sections end with their line.
        let first = self.first_line();
        let is_line = first.trim_start().starts_with(".file") || first.ends_with(':');
        if self.depth == 0 && (is_line || line.text.ends_with([';', '}'])) {
            items.push(std::mem::take(self).into_item());
        }
    }

    fn into_item(mut self) -> Item {
        let line = self.lines[0].number;
        let mut body = Vec::new();
        let mut has_body = false;
        if let Some(brace) = self.brace {
            has_body = true;
            body = self.lines.split_off(brace + 1);
            body.pop();
            self.lines.pop();
        }
        let head: Vec<String> = self.lines.into_iter().map(|line| line.text).collect();
        let head = head.join("\n");
        let words = || head.split(|c: char| c.is_whitespace() || c == '(');
        let has = |directive: &str| words().any(|word| word == directive);
        let kind = if has(".entry") {
            ItemKind::Entry
        } else if has(".func") {
            if has_body { ItemKind::Function } else { ItemKind::ExternFunction }
        } else if [".global", ".const", ".shared"].into_iter().any(has) {
            ItemKind::Variable
        } else {
            ItemKind::Other
        };
        let name = match kind {
            ItemKind::Entry => name_after(&head, ".entry"),
            ItemKind::Function | ItemKind::ExternFunction => name_after(&head, ".func"),
            ItemKind::Variable => variable_name(&head),
            ItemKind::Other => String::new(),
        };
        Item { kind, name, head, body, line, bounds: self.bounds }
    }
}

/// Cuts a line before and after braces that open or close a body; those of initializers stay.
fn split_braces(text: &str, is_initializer: bool) -> Vec<String> {
    let inline = text.trim();
    if is_initializer || inline == "{" || inline == "}" || !text.contains(".entry") && !text.contains(".func") {
        return vec![if inline == "{" || inline == "}" { inline.to_owned() } else { text.to_owned() }];
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        pieces.push(rest[..at].trim().to_owned());
        pieces.push(rest[at..=at].to_owned());
        rest = &rest[at + 1..];
    }
    pieces.push(rest.trim().to_owned());
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn depth_change(text: &str) -> i32 {
    text.chars()
        .map(|c| match c {
            '{' | '(' => 1,
            '}' | ')' => -1,
            _ => 0,
        })
        .sum()
}

/// The symbol after `.entry` or `.func`, past a return parameter in parentheses.
fn name_after(head: &str, directive: &str) -> String {
    let after = head.split_once(directive).map_or("", |(_, after)| after).trim_start();
    let after = match after.strip_prefix('(') {
        Some(result) => result.split_once(')').map_or("", |(_, after)| after),
        None => after,
    };
    identifiers(after).next().unwrap_or_default().to_owned()
}

/// The last word before an array bound, an initializer or the semicolon.
fn variable_name(head: &str) -> String {
    let declaration = head.split(['[', '=', ';']).next().unwrap_or_default();
    declaration.split_whitespace().last().unwrap_or_default().to_owned()
}
