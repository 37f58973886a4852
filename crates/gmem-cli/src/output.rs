//! Writing results. A reader that goes away (`gmem run ... | head -1`) must end the command, not make it panic as `println!` would.

use crate::failure::Failure;
use std::io::{self, Write};

/// Writes `text` and a newline to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::while_doing("writing to standard output", e),
    })
}

/// Writes `object` as one line of JSON.
pub(crate) fn json(object: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(object).map_err(|e| Failure::while_doing("writing the result as JSON", e))?;
    line(&text)
}

/// Writes a remark to standard error, a line or several. A closed standard error is nobody's loss.
pub(crate) fn note(text: &str) {
    let mut err = io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(err, "gmem: {line}");
    }
}

/// Lays rows out in columns: the first column to the left, the others to the right.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(i, cell)| if i == 0 { format!("{cell:<w$}", w = widths[i]) } else { format!("{cell:>w$}", w = widths[i]) })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn columns_line_up_by_characters_not_bytes() {
        let rows = vec![vec!["µs".to_owned(), "1".to_owned()], vec!["a".to_owned(), "22".to_owned()]];
        assert_eq!(columns(&rows), "µs   1\na   22");
    }
}
