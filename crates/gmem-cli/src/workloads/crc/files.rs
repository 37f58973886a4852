//! Which files to read.

use std::fs;
use std::path::{Path, PathBuf};

/// A file to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    /// Its length when it was looked at.
    pub(crate) len: u64,
}

/// A file that cannot be used, and why.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Problem {
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// Everything found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<Input>,
    pub(crate) problems: Vec<Problem>,
}

impl Found {
    fn problem(&mut self, path: &Path, reason: impl ToString) {
        self.problems.push(Problem { path: path.display().to_string(), reason: reason.to_string() });
    }
}

/// Looks at `paths` and below them, in the order of their names so that two runs do the same.
///
/// A named path is followed if it is a symbolic link; links and special files inside directories are passed over, because a link may lead in a
/// circle and reading a pipe may never end.
pub(crate) fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in paths {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                let before = found.files.len() + found.problems.len();
                walk(path, &mut found);
                if found.files.len() + found.problems.len() == before {
                    found.problem(path, "there is no file in this directory");
                }
            }
            Ok(meta) if meta.is_file() => take(path, meta.len(), &mut found),
            Ok(_) => found.problem(path, "this is neither a file nor a directory"),
            Err(e) => found.problem(path, e),
        }
    }
    found
}

/// Walks with a list of its own: a directory tree may be deeper than a stack.
fn walk(root: &Path, found: &mut Found) {
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries: Result<Vec<_>, _> = fs::read_dir(&directory).and_then(Iterator::collect);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(e) => {
                found.problem(&directory, e);
                continue;
            }
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut below = Vec::new();
        for entry in entries {
            let path = entry.path();
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => below.push(path),
                Ok(meta) if meta.is_file() => take(&path, meta.len(), found),
                Ok(_) => {}
                Err(e) => found.problem(&path, e),
            }
        }
        open.extend(below.into_iter().rev());
    }
}

fn take(path: &Path, len: u64, found: &mut Found) {
    if len == 0 {
        return found.problem(path, "the file is empty");
    }
    match fs::File::open(path) {
        Ok(_) => found.files.push(Input { path: path.to_path_buf(), len }),
        Err(e) => found.problem(path, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_walked_in_order_and_odd_things_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("b/deep")).unwrap();
        fs::create_dir(at("none")).unwrap();
        for (name, text) in [("c", "three"), ("a", "one"), ("b/deep/x", "two"), ("b/empty", "")] {
            fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), at("b/circle")).unwrap();
        let found = find(&[dir.path().to_path_buf(), at("missing"), at("none"), PathBuf::from("/dev/null")]);
        let names: Vec<_> = found.files.iter().map(|f| (f.path.clone(), f.len)).collect();
        assert_eq!(names, [(at("a"), 3), (at("c"), 5), (at("b/deep/x"), 3)]);
        let reasons: Vec<_> = found.problems.iter().map(|p| p.reason.as_str()).collect();
        assert_eq!(reasons.len(), 4, "{reasons:?}");
        assert_eq!(reasons[0], "the file is empty");
        assert!(reasons[1].contains("No such file"));
        assert_eq!(reasons[2], "there is no file in this directory");
        assert_eq!(reasons[3], "this is neither a file nor a directory");
    }
}
