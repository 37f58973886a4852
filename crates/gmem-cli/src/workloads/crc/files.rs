//! Which files to read.

use rustix::fs::{OFlags, fstatfs};
use serde::Serialize;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    /// Its length when it was looked at.
    pub(crate) len: u64,
    pub(crate) content: Content,
}

/// Where the bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// In the file, as long as it is this one.
    File(Stamp),
    /// Here: the system makes them up when asked, and may make up others the next time.
    Taken(Vec<u8>),
}

/// What of a file is different once it was written to, or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

/// A file that cannot be used, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// What there is inside directories beside files with content.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct PassedOver {
    pub(crate) empty: u64,
    /// Symbolic links.
    pub(crate) links: u64,
    /// Pipes, sockets and devices.
    pub(crate) special: u64,
}

impl PassedOver {
    fn all(self) -> u64 {
        self.empty + self.links + self.special
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [(self.empty, "empty files"), (self.links, "links"), (self.special, "pipes, sockets and devices")];
        let said: Vec<String> = kinds.into_iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!("{kind}: {n}")).collect();
        f.write_str(&if said.is_empty() { "nothing".to_owned() } else { said.join(", ") })
    }
}

/// Everything found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<Input>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) passed_over: PassedOver,
}

/// The most that is read of a file of which the system does not know the size.
const MOST_TAKEN: u64 = 16 << 20;

/// File systems whose files are made up when they are read and have a size that means nothing: those of processes, devices and configuration. (Their magic
/// numbers are in `linux/magic.h`; the other such systems say 0.)
const MADE_UP: [u32; 3] = [0x9fa0, 0x6265_6572, 0x6265_6570];

impl Stamp {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), len: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }

    /// What happened to the file that had this stamp and has another now.
    pub(crate) fn became(&self, now: &Self) -> Option<&'static str> {
        match now.len.cmp(&self.len) {
            _ if now == self => None,
            std::cmp::Ordering::Less => Some("the file became shorter while it was read"),
            std::cmp::Ordering::Greater => Some("the file became longer while it was read"),
            std::cmp::Ordering::Equal => Some("the file changed while it was read"),
        }
    }
}

impl Found {
    fn problem(&mut self, path: &Path, reason: impl ToString) {
        self.problems.push(Problem { path: path.display().to_string(), reason: reason.to_string() });
    }

    /// A file with content.
    fn file(&mut self, path: &Path, len: u64, content: Content) {
        self.files.push(Input { path: path.to_path_buf(), len, content });
    }
}

/// Opens a file, without waiting if it is a pipe by now.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

/// Looks at `paths` and below them, in the order of their names so that two runs do the same.
///
/// A named path is followed if it is a symbolic link, and an empty file is an error. Links and special files inside directories are passed over, because a
/// link may lead in a circle and reading a pipe may never end; and so are empty files.
pub(crate) fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in paths {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => directory(path, &mut found),
            Ok(meta) if meta.is_file() => match look(path) {
                Ok(Look::Content(len, content)) => found.file(path, len, content),
                Ok(Look::Empty) => found.problem(path, "the file is empty"),
                Ok(Look::Special) => found.problem(path, "this is neither a file nor a directory"),
                Ok(Look::Endless) => found.problem(path, endless()),
                Err(e) => found.problem(path, e),
            },
            Ok(_) => found.problem(path, "this is neither a file nor a directory"),
            Err(e) => found.problem(path, e),
        }
    }
    found
}

/// A directory that was named: there must be something to read in it.
fn directory(root: &Path, found: &mut Found) {
    let (before, passed) = (found.files.len() + found.problems.len(), found.passed_over);
    walk(root, found);
    if found.files.len() + found.problems.len() == before {
        let now = found.passed_over;
        let passed = PassedOver { empty: now.empty - passed.empty, links: now.links - passed.links, special: now.special - passed.special };
        let but = if passed.all() == 0 { String::new() } else { format!(", but {passed}") };
        found.problem(root, format!("there is no file to read in this directory{but}"));
    }
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
                Ok(meta) if meta.is_symlink() => found.passed_over.links += 1,
                Ok(meta) if meta.is_file() => match look(&path) {
                    Ok(Look::Content(len, content)) => found.file(&path, len, content),
                    Ok(Look::Empty) => found.passed_over.empty += 1,
                    Ok(Look::Special) => found.passed_over.special += 1,
                    Ok(Look::Endless) => found.problem(&path, endless()),
                    Err(e) => found.problem(&path, e),
                },
                Ok(_) => found.passed_over.special += 1,
                Err(e) => found.problem(&path, e),
            }
        }
        open.extend(below.into_iter().rev());
    }
}

/// What a file turned out to be.
enum Look {
    /// So many bytes, and where they are.
    Content(u64, Content),
    Empty,
    /// Something else took its place.
    Special,
    /// The system does not say how long it is, and it does not end.
    Endless,
}

fn endless() -> String {
    format!("the system does not know its size and it has more than {}; copy it to an ordinary file", gmem::ByteLen(MOST_TAKEN))
}

/// Opens a file and sees how much there is in it. The contents of one whose size means nothing are read at once.
fn look(path: &Path) -> io::Result<Look> {
    let file = open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(Look::Special);
    }
    let kind = fstatfs(&file)?.f_type as u32;
    if meta.len() > 0 && !MADE_UP.contains(&kind) {
        return Ok(Look::Content(meta.len(), Content::File(Stamp::of(&meta))));
    }
    let bytes = take(&file)?;
    Ok(match bytes.len() as u64 {
        0 => Look::Empty,
        len if len > MOST_TAKEN => Look::Endless,
        len => Look::Content(len, Content::Taken(bytes)),
    })
}

/// Reads all of a file, or a little more than [`MOST_TAKEN`]: always as much at a time, because some such files are made of records and refuse less.
fn take(mut file: &File) -> io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    while bytes.len() as u64 <= MOST_TAKEN {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("there is nothing to read now, and waiting for it may never end"));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
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
        let _socket = std::os::unix::net::UnixListener::bind(at("b/socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::create_dir(at("void")).unwrap();
        fs::write(at("void/empty"), "").unwrap();
        let named = ["missing", "none", "void", "b/empty", "pipe"].map(at);
        let found = find(&[vec![dir.path().to_path_buf()], named.into(), vec!["/dev/null".into(), "/proc/self/pagemap".into()]].concat());
        let names: Vec<_> = found.files.iter().map(|f| (f.path.clone(), f.len)).collect();
        assert_eq!(names, [(at("a"), 3), (at("c"), 5), (at("b/deep/x"), 3)]);
        let reasons: Vec<_> = found.problems.iter().map(|p| p.reason.as_str()).collect();
        assert!(reasons[0].contains("No such file"), "{reasons:?}");
        let expected = [
            "there is no file to read in this directory",
            "there is no file to read in this directory, but empty files: 1",
            "the file is empty",
            "this is neither a file nor a directory",
            "this is neither a file nor a directory",
        ];
        assert_eq!(reasons[1..6], expected);
        assert!(reasons.len() == 7 && reasons[6].contains("more than 16 MiB"), "{reasons:?}");
        assert_eq!(found.passed_over, PassedOver { empty: 3, links: 1, special: 2 });
    }

    #[test]
    fn files_without_a_size_are_taken_as_they_are() {
        let named = ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"].map(PathBuf::from);
        let found = find(&named);
        assert_eq!((found.problems.as_slice(), found.files.len()), (&[][..], 2));
        for (input, path) in found.files.iter().zip(&named) {
            let bytes = fs::read(path).unwrap();
            assert_eq!((input.len, &input.content), (bytes.len() as u64, &Content::Taken(bytes)), "{path:?}");
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(matches!(look(&pipe), Ok(Look::Special))));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(30)), Ok(true), "it waits for somebody to write");
    }

    #[test]
    fn a_stamp_tells_what_became_of_a_file() {
        let was = Stamp { device: 1, inode: 2, len: 3, modified: (4, 5) };
        assert_eq!(was.became(&was), None);
        for (now, word) in [
            (Stamp { len: 2, ..was }, "shorter"),
            (Stamp { len: 4, modified: (4, 6), ..was }, "longer"),
            (Stamp { modified: (4, 6), ..was }, "changed"),
            (Stamp { inode: 3, ..was }, "changed"),
            (Stamp { device: 3, ..was }, "changed"),
        ] {
            assert!(was.became(&now).is_some_and(|what| what.contains(word)), "{now:?}");
        }
    }
}
