//! How much memory this machine has for us: what there is, or what a control group allows if that is less.

use gmem_hal::ByteLen;
use std::fs;
use std::path::{Path, PathBuf};

/// The memory of this machine in bytes, or what this process's control group and those above it allow, if that is less. Reads `/proc` and `/sys`.
///
/// A device with more memory than this could only end in the system's out-of-memory killer, so [`crate::Builder::build`] refuses it.
pub fn machine_memory() -> ByteLen {
    let system = rustix::system::sysinfo();
    let total = (system.totalram as u64).saturating_mul(system.mem_unit.into());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    ByteLen(limit(Path::new("/sys/fs/cgroup"), &own).map_or(total, |limit| limit.min(total)))
}

/// The least of the limits of the groups that `own` names, the text of `/proc/self/cgroup`, and of those above them. `None` if there is none.
///
/// A group that lies outside of what a container sees has no files here; then those of the groups above it, as the container sees them, are what counts.
fn limit(mount: &Path, own: &str) -> Option<u64> {
    let files = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let unified = controllers.is_empty();
        let memory = controllers.split(',').any(|c| c == "memory");
        (unified || memory).then(|| {
            // Version 2 is mounted alone, or beside version 1.
            let roots = if unified { vec![mount.to_path_buf(), mount.join("unified")] } else { vec![mount.join("memory")] };
            let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
            (roots, path.trim_start_matches('/').to_owned(), file)
        })
    });
    files.flat_map(|(roots, path, file)| roots.into_iter().filter_map(move |root| least(&root, &path, file))).min()
}

/// The least number in `file` of the group `path` and of those above it. "max" is no number.
fn least(root: &Path, path: &str, file: &str) -> Option<u64> {
    let read = |group: &Path| -> Option<u64> { fs::read_to_string(PathBuf::from(root).join(group).join(file)).ok()?.trim().parse().ok() };
    Path::new(path).ancestors().filter_map(read).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, gone with this.
    struct Groups(PathBuf);

    impl Groups {
        fn new(files: &[(&str, &str)]) -> Self {
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let groups = Self(std::env::temp_dir().join(format!("gmem-test-groups-{}-{number}", std::process::id())));
            for (file, text) in files {
                let path = groups.0.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            groups
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let two = Groups::new(&[("memory.max", "max\n"), ("a/memory.max", "4096000\n"), ("a/b/memory.max", "8192000\n")]);
        assert_eq!(limit(&two.0, "0::/a/b\n"), Some(4_096_000));
        assert_eq!(limit(&two.0, "0::/\n"), None);
        assert_eq!(limit(&two.0, "0::/a/not/here\n"), Some(4_096_000), "a group that cannot be seen");
        assert_eq!(limit(&two.0, ""), None);
        let one = Groups::new(&[("memory/memory.limit_in_bytes", "9223372036854771712\n"), ("memory/x/memory.limit_in_bytes", "777\n")]);
        assert_eq!(limit(&one.0, "7:cpu:/x\n4:blkio,memory:/x\n0::/\n"), Some(777));
        assert_eq!(limit(&one.0, "7:cpu:/x\n0::/x\n"), None, "not the controller of memory");
        let both = Groups::new(&[("memory/memory.limit_in_bytes", "900\n"), ("unified/g/memory.max", "800\n")]);
        assert_eq!(limit(&both.0, "4:memory:/\n0::/g\n"), Some(800));
    }

    #[test]
    fn a_machine_has_memory_and_not_more_than_it_says() {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let total: u64 = text.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap();
        assert!((1 << 20..=total << 10).contains(&machine_memory().get()), "{}", machine_memory());
    }
}
