//! The functions of `cuda_std`, read from its source, so that a test can ask for something about each of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Module and name of every public function in `cuda_std/src`.
///
/// # Panics
///
/// If the source is not there.
pub fn of_cuda_std() -> BTreeSet<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-gpu/cuda_std/src");
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("cuda_std is part of the workspace") {
        let path = entry.expect("the folder can be listed").path();
        let module = path.file_stem().expect("a source file has a name").to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && module != "lib" {
            let source = fs::read_to_string(&path).expect("the file was just listed");
            all.extend(functions_of(&source).into_iter().map(|name| (module.clone(), name)));
        }
    }
    all
}

/// Public functions of a source, those that a local macro writes included: such a macro contains
/// `pub fn $name`, and each use of it starts with the name.
fn functions_of(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut writers = Vec::new();
    let mut current_macro = None;
    let mut expects_name = false;
    for line in source.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("macro_rules! ") {
            current_macro = identifier(rest);
        }
        let header = ["pub fn ", "pub unsafe fn ", "pub const fn "];
        if let Some(rest) = header.iter().find_map(|header| line.strip_prefix(header)) {
            match (identifier(rest), &current_macro) {
                (Some(name), _) => names.push(name),
                (None, Some(writer)) => writers.push(writer.clone()),
                (None, None) => panic!("no name in `{line}`"),
            }
        }
        if writers.iter().any(|writer| line.starts_with(&format!("{writer}! {{"))) {
            expects_name = true;
        } else if expects_name && !line.starts_with("//") && !line.starts_with("#[") {
            names.extend(identifier(line));
            expects_name = false;
        }
    }
    names
}

/// The identifier that `text` begins with.
pub fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_source() {
        let source = "
    macro_rules! mma {
        ($name:ident) => {
            pub unsafe fn $name() {}
        };
    }
    mma! {
        /// Doc.
        m16n8k64_s4, u32
    }
    pub fn plain() {}
        pub unsafe fn generic<const N: u32>() {}
    fn private() {}
    ";
        assert_eq!(functions_of(source), ["m16n8k64_s4", "plain", "generic"]);
    }
}
