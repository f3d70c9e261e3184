//! Reads PTX as text, for tests: which kernels there are, which instructions they hold, and which
//! of those should not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::ptx::{DRIVER_FUNCTIONS, Item, ItemKind, Module, PtxError, identifiers, is_location, readable};

/// Names of the kernels of a module, sorted.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// assert_eq!(cuda_builder::inspect::entries(PTX)?, ["k"]);
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn entries(ptx: &str) -> Result<Vec<String>, PtxError> {
    let mut names: Vec<String> = Module::parse(ptx)?.entries().map(|item| item.name.clone()).collect();
    names.sort();
    Ok(names)
}

/// One instruction of a body.
///
/// Example: [`instructions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its opcode with all modifiers, for example `ld.global.b32`.
    pub opcode: String,
    /// The whole statement, without label and without semicolon.
    pub text: String,
    /// Line of the module, from 1.
    pub line: usize,
}

impl Instruction {
    fn new(statement: &str, line: usize) -> Option<Self> {
        let mut text = statement.trim();
        // `$L_1:` may precede an instruction; `::` belongs to modifiers such as `.shared::cta`.
        while let Some((label, rest)) = text.split_once(':') {
            if label.is_empty() || rest.starts_with(':') || identifiers(label).next() != Some(label) {
                break;
            }
            text = rest.trim_start();
        }
        let unpredicated = match text.strip_prefix('@') {
            Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, after)| after).trim_start(),
            None => text,
        };
        let opcode = unpredicated.split_whitespace().next()?;
        if opcode.starts_with(['.', '"']) {
            return None;
        }
        Some(Instruction { opcode: opcode.to_owned(), text: one_line(text), line })
    }

    /// The opcode's first part, for example `ld`.
    pub fn mnemonic(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    fn has_modifier(&self, is_wanted: impl Fn(&str) -> bool) -> bool {
        self.opcode.split('.').skip(1).any(is_wanted)
    }

    /// Whether threads meet, memory is ordered or a copy is tracked here: what must neither be cloned
    /// nor dropped by an optimisation.
    fn is_collective(&self) -> bool {
        let ordering = ["bar", "barrier", "wgmma", "setmaxnreg", "fence", "membar", "mbarrier", "activemask"];
        ordering.contains(&self.mnemonic())
            || self.opcode.starts_with("cp.async")
            || self.has_modifier(|modifier| modifier == "sync" || modifier == "aligned")
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The instructions of a function, in the order of the text.
///
/// Example: [`instructions`].
pub fn instructions_of(item: &Item) -> Vec<Instruction> {
    let mut all = Vec::new();
    let mut statement = String::new();
    let mut start = 0;
    for line in item.body.iter().filter(|line| !is_location(&line.text)) {
        for character in line.text.chars() {
            if statement.trim().is_empty() && !character.is_whitespace() {
                start = line.number;
            }
            match character {
                ';' => {
                    all.extend(Instruction::new(&statement, start));
                    statement.clear();
                }
                // Braces of a scope stand alone; those of a vector operand follow an opcode.
                '{' if statement.trim().is_empty() => {}
                '}' if !statement.contains('{') => statement.clear(),
                _ => statement.push(character),
            }
        }
        // A label on a line of its own belongs to no instruction.
        if statement.trim_end().ends_with(':') {
            statement.clear();
        }
        statement.push(' ');
    }
    all
}

/// The instructions of each kernel, and of each function that was not inlined.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// let opcodes: Vec<String> =
///     cuda_builder::inspect::instructions(PTX)?["k"].iter().map(|instruction| instruction.opcode.clone()).collect();
/// assert_eq!(opcodes, ["bar.sync", "trap", "ret"]);
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn instructions(ptx: &str) -> Result<BTreeMap<String, Vec<Instruction>>, PtxError> {
    let module = Module::parse(ptx)?;
    let has_body = |item: &&Item| matches!(item.kind, ItemKind::Entry | ItemKind::Function);
    let bodies = module.items.iter().filter(has_body);
    Ok(bodies.map(|item| (item.name.clone(), instructions_of(item))).collect())
}

/// How often each collective, ordering or copying instruction occurs in each kernel.
///
/// LLVM takes inline assembly for something it may clone; a barrier in both arms of a branch hangs
/// the GPU. A count that differs from the declared one shows it.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// assert_eq!(cuda_builder::inspect::census(PTX)?["k"]["bar.sync"], 1);
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn census(ptx: &str) -> Result<BTreeMap<String, BTreeMap<String, usize>>, PtxError> {
    let count = |instructions: Vec<Instruction>| {
        let mut counts = BTreeMap::new();
        for instruction in instructions.into_iter().filter(Instruction::is_collective) {
            *counts.entry(instruction.opcode).or_default() += 1;
        }
        counts
    };
    Ok(instructions(ptx)?.into_iter().map(|(name, instructions)| (name, count(instructions))).collect())
}

/// What is wrong with a line.
///
/// Example: [`lint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A load, store or atomic that does not say which memory it means.
    GenericAccess,
    /// A `trap` or `brkpt`: a panic that became an instruction and kills the context.
    Trap,
    /// A call to a function that neither the module nor the driver defines.
    UnresolvedCall,
    /// A stack frame: an array that did not stay in registers.
    LocalDepot,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FindingKind::GenericAccess => "access without state space",
            FindingKind::Trap => "trap",
            FindingKind::UnresolvedCall => "call of an undefined function",
            FindingKind::LocalDepot => "stack frame",
        })
    }
}

/// Something a release kernel must not contain.
///
/// Example: [`lint`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The kernel or function.
    pub entry: String,
    /// Line of the module, from 1.
    pub line: usize,
    /// The offending text.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (line {}): {}: {}", self.entry, self.line, self.kind, self.text)
    }
}

/// Everything in a module that a release kernel must not contain, in the order of the text.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// use cuda_builder::inspect::{FindingKind, lint};
/// assert_eq!(lint(PTX)?[0].kind, FindingKind::Trap);
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn lint(ptx: &str) -> Result<Vec<Finding>, PtxError> {
    let module = Module::parse(ptx)?;
    let unresolved: BTreeSet<&str> = module
        .items
        .iter()
        .filter(|item| item.kind == ItemKind::ExternFunction)
        .map(|item| item.name.as_str())
        .filter(|name| !DRIVER_FUNCTIONS.contains(name))
        .collect();
    let mut findings = Vec::new();
    for item in &module.items {
        let mut find = |kind, line, text: &str| {
            findings.push(Finding { kind, entry: readable(&item.name), line, text: text.to_owned() });
        };
        if unresolved.contains(item.name.as_str()) {
            find(FindingKind::UnresolvedCall, item.line, "declared without a definition");
        }
        for line in item.body.iter().filter(|line| line.text.trim_start().starts_with(".local")) {
            find(FindingKind::LocalDepot, line.number, line.text.trim());
        }
        for instruction in instructions_of(item) {
            let kind = match instruction.mnemonic() {
                "trap" | "brkpt" => FindingKind::Trap,
                "call" if identifiers(&instruction.text).any(|word| unresolved.contains(word)) => {
                    FindingKind::UnresolvedCall
                }
                "ld" | "st" | "atom" | "red" if !instruction.has_modifier(is_state_space) => FindingKind::GenericAccess,
                _ => continue,
            };
            find(kind, instruction.line, &instruction.text);
        }
    }
    Ok(findings)
}

/// `global`, `shared`, `shared::cluster` and so on.
fn is_state_space(modifier: &str) -> bool {
    let space = modifier.split("::").next().unwrap_or_default();
    matches!(space, "global" | "shared" | "local" | "param" | "const")
}

/// The instructions of a kernel with registers renamed in the order they appear: text that stays
/// the same when an unrelated part of the compiler hands out other numbers.
///
/// ```
/// const PTX: &str = "\
///     .version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\tbar.sync 0;\n\ttrap;\n\tret;\n}\n";
/// assert_eq!(cuda_builder::inspect::normalised(PTX, "k")?.as_deref(), Some("bar.sync 0\ntrap\nret\n"));
/// # Ok::<(), cuda_builder::ptx::PtxError>(())
/// ```
pub fn normalised(ptx: &str, entry: &str) -> Result<Option<String>, PtxError> {
    let module = Module::parse(ptx)?;
    let Some(item) = module.entries().find(|item| item.name == entry) else {
        return Ok(None);
    };
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut text = String::new();
    for instruction in instructions_of(item) {
        text.push_str(&rename_registers(&instruction.text, &mut names, &mut counts));
        text.push('\n');
    }
    Ok(Some(text))
}

fn rename_registers(text: &str, names: &mut BTreeMap<String, String>, counts: &mut BTreeMap<String, usize>) -> String {
    crate::ptx::replace_identifiers(text, &mut |word| {
        let class = word.trim_end_matches(|c: char| c.is_ascii_digit());
        // `%r12` is a register, `%tid` and `%lanemask_lt` are not.
        if !class.starts_with('%') || class == word {
            return None;
        }
        let name = names.entry(word.to_owned()).or_insert_with(|| {
            let count = counts.entry(class.to_owned()).or_default();
            *count += 1;
            format!("{class}{count}")
        });
        Some(name.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(body: &str) -> String {
        format!(
            ".version 8.4\n.target sm_89\n.address_size 64\n.extern .func panic\n(\n\t.param .b64 panic_param_0\n)\n\
             .noreturn;\n.visible .entry k(\n\t.param .u64 p\n)\n{{\n{body}\n}}\n"
        )
    }

    fn kinds(body: &str) -> Vec<FindingKind> {
        lint(&module(body)).unwrap().into_iter().map(|finding| finding.kind).collect()
    }

    /// The declaration of `panic` itself is the first finding of every module above.
    const DECLARED: FindingKind = FindingKind::UnresolvedCall;

    #[test]
    fn statements_are_split() {
        let ptx =
            module("$L_1:\n\t@%p1 bra \t$L_1;\n{ .reg .b32 t; mov.b32 t, 1; }\nst.shared.v2.b32 [%r1], {%r2, %r3};");
        let all = &instructions(&ptx).unwrap()["k"];
        let texts: Vec<&str> = all.iter().map(|instruction| instruction.text.as_str()).collect();
        assert_eq!(texts, ["@%p1 bra $L_1", "mov.b32 t, 1", "st.shared.v2.b32 [%r1], {%r2, %r3}"]);
        assert_eq!(all[0].opcode, "bra");
        assert_eq!(all[0].line, 14);
    }

    #[test]
    fn collective_instructions_are_counted() {
        let ptx = module(
            "bar.sync 0;\n@%p1 bar.sync 1;\nmma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32\n\t{%r1, %r2}, {%r3};\n\
             mov.u32 %r1, %tid.x;\ncp.async.commit_group;\nshfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;",
        );
        let census = census(&ptx).unwrap();
        let expected = [
            ("bar.sync", 2),
            ("cp.async.commit_group", 1),
            ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 1),
            ("shfl.sync.bfly.b32", 1),
        ];
        let expected = expected.map(|(opcode, count)| (opcode.to_owned(), count));
        assert_eq!(census["k"], BTreeMap::from(expected));
    }

    #[test]
    fn generic_accesses_are_found() {
        assert_eq!(kinds("ld.global.b32 %r1, [%rd1];\nld.shared::cta.b32 %r1, [%r2];"), [DECLARED]);
        assert_eq!(kinds("ld.param.b64 %rd1, [p];\nred.global.add.f32 [%rd1], %f1;"), [DECLARED]);
        for line in
            ["ld.b32 %r1, [%rd1];", "@%p1 st.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};", "atom.add.u32 %r1, [%rd1], 1;"]
        {
            assert_eq!(kinds(line), [DECLARED, FindingKind::GenericAccess], "{line}");
        }
    }

    #[test]
    fn traps_stack_frames_and_undefined_calls_are_found() {
        assert_eq!(kinds("trap;"), [DECLARED, FindingKind::Trap]);
        assert_eq!(kinds(".local .align 4 .b8 depot[16];"), [DECLARED, FindingKind::LocalDepot]);
        assert_eq!(kinds("call.uni panic, (param0);"), [DECLARED, FindingKind::UnresolvedCall]);
        let finding = lint(&module("trap;")).unwrap().remove(1);
        assert_eq!(finding.to_string(), "k (line 13): trap: trap");
    }

    #[test]
    fn registers_are_renamed_in_order() {
        let ptx = module("mov.u32 %r7, %tid.x;\nadd.s32 %r9, %r7, %r7;\nmul.wide.u32 %rd4, %r9, 4;");
        let text = normalised(&ptx, "k").unwrap().unwrap();
        assert_eq!(text, "mov.u32 %r1, %tid.x\nadd.s32 %r2, %r1, %r1\nmul.wide.u32 %rd1, %r2, 4\n");
        assert_eq!(normalised(&ptx, "missing").unwrap(), None);
    }
}
