//! NVIDIA's assembler and disassembler, for tests on machines that have them: registers, spills and
//! warnings of each kernel, and its machine code (SASS).
//!
//! Nothing here takes part in building or running the kernels.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::hex;
use sha2::{Digest, Sha256};

/// The assembler and the disassembler.
///
/// ```no_run
/// use cuda_builder::ptxas::Tools;
/// let Some(tools) = Tools::find() else { return Ok(()) };
/// println!("{}", tools.ptxas.display());
/// # Ok::<(), cuda_builder::ptxas::ToolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// `ptxas`.
    pub ptxas: PathBuf,
    /// `nvdisasm`, where there is one.
    pub nvdisasm: Option<PathBuf>,
}

/// What ptxas says of a kernel.
///
/// Example: [`Tools`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes stored to spilled registers.
    pub spill_stores: u32,
    /// Bytes loaded from spilled registers.
    pub spill_loads: u32,
    /// Bytes of stack frame.
    pub stack: u32,
    /// Bytes of local memory.
    pub local: u32,
}

/// Outcome of a successful run of ptxas.
///
/// Example: [`Tools`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Per kernel.
    pub kernels: BTreeMap<String, Resources>,
    /// Warnings and performance notes such as C7510, one line each.
    pub warnings: Vec<String>,
    /// The machine code.
    pub cubin: Vec<u8>,
}

/// ptxas or nvdisasm failed.
///
/// Example: [`Tools`].
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started, or its files could not be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It refused its input.
    #[error("{program} failed:\n{output}")]
    Failed {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
}

impl Tools {
    /// Looks at `PTXAS`, then on `PATH`, then among the Python packages that carry ptxas.
    /// `nvdisasm` is looked for beside ptxas, then on `PATH`.
    pub fn find() -> Option<Self> {
        let ptxas = std::env::var_os("PTXAS")
            .map(PathBuf::from)
            .or_else(|| on_path("ptxas"))
            .or_else(in_python_packages)
            .filter(|path| path.is_file())?;
        let beside = ptxas.with_file_name(file_name("nvdisasm"));
        let nvdisasm = Some(beside).filter(|path| path.is_file()).or_else(|| on_path("nvdisasm"));
        Some(Tools { ptxas, nvdisasm })
    }

    /// Assembles a module for `arch` (`sm_89`).
    pub fn assemble(&self, ptx: &str, arch: &str) -> Result<Report, ToolError> {
        let scratch = Scratch::new(ptx.as_bytes())?;
        let (source, cubin) = (scratch.file("module.ptx"), scratch.file("module.cubin"));
        fs::write(&source, ptx)?;
        let arch = format!("-arch={arch}");
        let words: [&OsStr; 5] = ["-v".as_ref(), arch.as_ref(), source.as_ref(), "-o".as_ref(), cubin.as_ref()];
        let output = run(&self.ptxas, &words)?;
        let mut report = parse_report(&output);
        report.cubin = fs::read(&cubin)?;
        Ok(report)
    }

    /// Disassembles machine code, function by function; `None` without nvdisasm.
    pub fn disassemble(&self, cubin: &[u8]) -> Result<Option<BTreeMap<String, Sass>>, ToolError> {
        let Some(nvdisasm) = &self.nvdisasm else {
            return Ok(None);
        };
        let scratch = Scratch::new(cubin)?;
        let file = scratch.file("module.cubin");
        fs::write(&file, cubin)?;
        let words: [&OsStr; 2] = ["-c".as_ref(), file.as_ref()];
        Ok(Some(parse_sass(&run(nvdisasm, &words)?)))
    }
}

/// A folder of this process and this input, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(input: &[u8]) -> io::Result<Self> {
        let name = hex(&Sha256::digest(input)[..8]);
        let thread = std::thread::current().id();
        let folder = format!("cuda-builder-{}-{thread:?}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder.replace(['(', ')'], ""));
        fs::create_dir_all(&folder)?;
        Ok(Scratch(folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder left behind in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(program: &Path, args: &[&OsStr]) -> Result<String, ToolError> {
    let output = Command::new(program).args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(text);
    }
    Err(ToolError::Failed { program: program.display().to_string(), output: text })
}

fn file_name(program: &str) -> String {
    format!("{program}{}", std::env::consts::EXE_SUFFIX)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(file_name(program))).find(|path| path.is_file())
}

/// ptxas of the `nvidia-cuda-nvcc` wheels. Python is asked where its packages lie, as nothing else
/// knows.
fn in_python_packages() -> Option<PathBuf> {
    let script = "import site, sysconfig; print(*{sysconfig.get_path('purelib'), *site.getsitepackages(), \
                  site.getusersitepackages()}, sep='\\n')";
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    let folders = String::from_utf8_lossy(&output.stdout).into_owned();
    let places = ["nvidia/cu13/bin", "nvidia/cuda_nvcc/bin"];
    folders
        .lines()
        .flat_map(|folder| places.map(|place| Path::new(folder).join(place).join(file_name("ptxas"))))
        .find(|path| path.is_file())
}

/// Reads what `ptxas -v` prints.
fn parse_report(output: &str) -> Report {
    let mut report = Report::default();
    let mut kernel = String::new();
    for line in output.lines() {
        let text = line.strip_prefix("ptxas info").map(|rest| rest.trim_start_matches([' ', ':'])).unwrap_or(line);
        if let Some(rest) = text.strip_prefix("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            report.kernels.entry(kernel.clone()).or_default();
        } else if let Some(rest) = text.strip_prefix("Function properties for ") {
            kernel = rest.trim().to_owned();
        } else if line.contains("warning") || text.contains("(C7") || text.contains("Potential Performance Loss") {
            report.warnings.push(line.trim().to_owned());
        } else if let Some(resources) = report.kernels.get_mut(&kernel) {
            // `0 bytes stack frame, 4 bytes spill stores, ...` and `Used 90 registers, ...`
            for part in text.trim().split(", ") {
                let part = part.strip_prefix("Used ").unwrap_or(part);
                let Some((number, what)) = part.split_once(' ') else {
                    continue;
                };
                let Ok(number) = number.parse() else { continue };
                match what {
                    "bytes stack frame" => resources.stack = number,
                    "bytes spill stores" => resources.spill_stores = number,
                    "bytes spill loads" => resources.spill_loads = number,
                    "registers" => resources.registers = number,
                    "bytes lmem" => resources.local = number,
                    _ => {}
                }
            }
        }
    }
    report
}

/// One machine instruction.
///
/// Example: [`Tools`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SassInstruction {
    /// Opcode with modifiers, for example `IMMA.16864.S4.S4`.
    pub opcode: String,
    /// The whole instruction, predicate included.
    pub text: String,
}

/// Machine code of one function.
///
/// Example: [`Tools`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sass {
    /// Its instructions in order; the padding behind the last branch is left out.
    pub instructions: Vec<SassInstruction>,
    /// Index of the instruction that each label precedes.
    labels: BTreeMap<String, usize>,
}

impl Sass {
    /// How often each opcode occurs.
    pub fn opcodes(&self) -> BTreeMap<&str, usize> {
        count_opcodes(&self.instructions)
    }

    /// How many instructions have an opcode that starts with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.instructions.iter().filter(|instruction| instruction.opcode.starts_with(prefix)).count()
    }

    /// The bodies of the innermost loops, from the target of a backward branch to the branch.
    pub fn innermost_loops(&self) -> Vec<Loop<'_>> {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for (end, instruction) in self.instructions.iter().enumerate() {
            let target = instruction.opcode.starts_with("BRA").then(|| branch_target(&instruction.text));
            let start = target.flatten().and_then(|label| self.labels.get(label));
            // A branch to itself is the stop behind the end of the program.
            match start {
                Some(&start) if start < end => ranges.push((start, end)),
                _ => {}
            }
        }
        let contains =
            |outer: &(usize, usize), inner: &(usize, usize)| outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1;
        let innermost = ranges.iter().filter(|outer| !ranges.iter().any(|inner| contains(outer, inner)));
        innermost.map(|&(start, end)| Loop { body: &self.instructions[start..=end] }).collect()
    }
}

/// The body of a loop.
///
/// Example: [`Tools`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop<'a> {
    /// Its instructions, the backward branch included.
    pub body: &'a [SassInstruction],
}

impl Loop<'_> {
    /// How often each opcode occurs.
    pub fn opcodes(&self) -> BTreeMap<&str, usize> {
        count_opcodes(self.body)
    }

    /// How many instructions have an opcode that starts with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.body.iter().filter(|instruction| instruction.opcode.starts_with(prefix)).count()
    }
}

fn count_opcodes(instructions: &[SassInstruction]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for instruction in instructions {
        *counts.entry(instruction.opcode.as_str()).or_default() += 1;
    }
    counts
}

/// The label in ``@P0 BRA `(.L_x_1)``.
fn branch_target(text: &str) -> Option<&str> {
    text.split_once("`(")?.1.split_once(')').map(|(label, _)| label)
}

/// Reads what `nvdisasm -c` prints.
fn parse_sass(output: &str) -> BTreeMap<String, Sass> {
    let mut functions: BTreeMap<String, Sass> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in output.lines() {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':') {
            if let Some(name) = label.strip_prefix(".text.") {
                current = Some(name.to_owned());
                functions.entry(name.to_owned()).or_default();
            } else if let Some(function) = current.as_ref().and_then(|name| functions.get_mut(name)) {
                function.labels.insert(label.to_owned(), function.instructions.len());
            }
        } else if line.starts_with("//-----") {
            current = None;
        } else if let (Some(name), Some((_, code))) = (&current, line.split_once("*/")) {
            let text = code.split(';').next().unwrap_or_default().trim();
            let unpredicated = match text.strip_prefix('@') {
                Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, after)| after.trim_start()),
                None => text,
            };
            if let Some(opcode) = unpredicated.split_whitespace().next() {
                let function = functions.get_mut(name).expect("inserted with its label");
                function.instructions.push(SassInstruction { opcode: opcode.to_owned(), text: text.to_owned() });
            }
        }
    }
    for function in functions.values_mut() {
        while function.instructions.last().is_some_and(|last| last.opcode == "NOP") {
            function.instructions.pop();
        }
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let output = "\
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_89'
ptxas info    : Function properties for k
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 364 bytes cmem[0], 24 bytes lmem
ptxas info    : Compile time = 1.742 ms
";
        let report = parse_report(output);
        let expected = Resources { registers: 90, spill_stores: 4, spill_loads: 8, stack: 16, local: 24 };
        assert_eq!(report.kernels, BTreeMap::from([("k".to_owned(), expected)]));
        assert_eq!(report.warnings.len(), 1);
    }

    const SASS: &str = "\
//--------------------- .text.k                   --------------------------
        .type           k,@function
k:
.text.k:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_3:
        /*0010*/                   MOV R5, RZ ;
.L_x_1:
        /*0020*/                   IMMA.16864.S4.S4 R0, R2.ROW, R4.COL, R0 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_3) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
        /*0070*/                   NOP;
.L_x_4:
//--------------------- .text.empty               --------------------------
.text.empty:
        /*0000*/                   EXIT ;
";

    #[test]
    fn functions_are_told_apart() {
        let functions = parse_sass(SASS);
        assert_eq!(functions["k"].instructions.len(), 7);
        assert_eq!(functions["k"].count("IMMA.16864"), 1);
        assert_eq!(functions["k"].opcodes()["BRA"], 3);
        assert_eq!(functions["empty"].opcodes(), BTreeMap::from([("EXIT", 1)]));
    }

    #[test]
    fn only_the_inner_loop_is_innermost() {
        let functions = parse_sass(SASS);
        let loops = functions["k"].innermost_loops();
        assert_eq!(loops.len(), 1);
        assert_eq!(loops[0].body.len(), 2);
        assert_eq!(loops[0].count("IMMA"), 1);
    }
}
