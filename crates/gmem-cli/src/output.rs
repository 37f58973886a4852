//! Writing results. A result that nobody can get is a failure, never a success and never a panic.

use crate::failure::Failure;
use rustix::io::Errno;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when the process began.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Called by the C runtime before that of Rust, which opens `/dev/null` in the place of a standard descriptor that is closed: results would vanish there.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: asking for the flags of a descriptor touches no memory.
    CLOSED.store(unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } < 0, Ordering::Relaxed);
}

/// Writes `text` and a newline to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let failed = |e| match e {
        Errno::PIPE => Failure::OutputClosed,
        // Not open, or for reading only.
        Errno::BADF => Failure::Failed("there is no standard output to write the result to".to_owned()),
        e => Failure::while_doing("writing to standard output", e),
    };
    if CLOSED.load(Ordering::Relaxed) {
        return Err(failed(Errno::BADF));
    }
    // Not by `Stdout`, for which a descriptor that cannot be written to is as good as any other.
    let out = io::stdout().lock();
    let text = format!("{text}\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(out.as_fd(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Prints what the parser of the command line says when it was asked for help.
pub(crate) fn help(text: &clap::Error) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        // In colours, where they are welcome.
        return text.print().map_err(|e| Failure::while_doing("writing to standard output", e));
    }
    line(text.render().to_string().trim_end())
}

/// Writes `object` as one line of JSON.
pub(crate) fn json(object: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(object).map_err(|e| Failure::while_doing("writing the result as JSON", e))?;
    line(&text)
}

/// `text` without what a terminal would obey: names of files may hold anything.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
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
