//! Tables with emphasis where somebody looks at them.

use std::io::{self, IsTerminal};

use comfy_table::Table;

use super::{Failure, print};

/// Prints a table; on a terminal its header is bold.
pub fn table(table: &Table) -> Result<(), Failure> {
    print(text(table))
}

/// The table as [`table`] prints it.
pub fn text(table: &Table) -> String {
    let text = table.to_string();
    if colours(io::stdout().is_terminal(), std::env::var_os("NO_COLOR").as_deref()) { embolden(&text) } else { text }
}

/// Whether to use escape sequences: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
fn colours(terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
    terminal && no_color.is_none_or(|value| value.is_empty())
}

/// Makes the cells of the header bold: what stands above the rule that ends it.
fn embolden(text: &str) -> String {
    let (bold, plain) = ("\x1b[1m", "\x1b[0m");
    let mut header = true;
    let lines = text.lines().map(|line| {
        header &= !line.starts_with('╞');
        match line.chars().next() {
            Some('│') if header => {
                let cells: Vec<String> = line.split('│').map(|cell| format!("{bold}{cell}{plain}")).collect();
                let inner = &cells[1..cells.len() - 1]; // the line begins and ends with a border
                format!("│{}│", inner.join("│"))
            }
            _ => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use comfy_table::presets::UTF8_FULL_CONDENSED;

    use super::*;

    #[test]
    fn only_the_header_is_bold_and_nothing_else_changes() {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["a", "b"]).add_row(["1", "2"]);
        let (plain, bold) = (table.to_string(), embolden(&table.to_string()));
        assert_eq!(bold.replace("\x1b[1m", "").replace("\x1b[0m", ""), plain);
        let marked: Vec<bool> = bold.lines().map(|line| line.contains("\x1b[1m")).collect();
        assert_eq!(marked.iter().filter(|marked| **marked).count(), 1, "{bold:?}");
        assert!(bold.lines().find(|line| line.contains('1') && line.contains('2')).is_some());
        assert!(marked[1], "the line below the upper border: {bold:?}");
    }

    #[test]
    fn pipes_and_no_color_get_plain_text() {
        let set = std::ffi::OsStr::new("1");
        assert!(colours(true, None) && colours(true, Some(std::ffi::OsStr::new(""))));
        assert!(!colours(false, None) && !colours(true, Some(set)));
    }
}
