//! `gmem probe`: what this machine permits, and what follows for the user.

use crate::args::ProbeArgs;
use crate::failure::Failure;
use crate::output;
use gmem::{ByteLen, Probe, UffdAccess};
use serde_json::{Value, json};

/// Looks at the machine and prints what was found.
pub(crate) fn probe(args: &ProbeArgs) -> Result<(), Failure> {
    let probe = gmem::probe();
    if args.json { output::json(&object(&probe)) } else { output::line(&text(&probe)) }
}

fn uffd_name(access: UffdAccess) -> &'static str {
    match access {
        UffdAccess::Full => "full",
        UffdAccess::Device => "device",
        UffdAccess::UserModeOnly => "user-mode-only",
        UffdAccess::Refused => "refused",
    }
}

/// The names of the fields are the interface of `--json`.
fn object(p: &Probe) -> Value {
    json!({
        "kernel": p.kernel,
        "userfaultfd": uffd_name(p.uffd),
        "userfaultfd_features": p.uffd_features,
        "userfaultfd_shmem": p.uffd_shmem,
        "userfaultfd_move": p.uffd_move,
        "userfaultfd_poison": p.uffd_poison,
        "userfaultfd_sigbus": p.uffd_sigbus,
        "userfaultfd_wp_async": p.uffd_wp_async,
        "memfd": p.memfd,
        "collapse": p.collapse,
        "transparent_hugepage": p.thp,
        "max_map_count": p.max_map_count,
        "overcommit_memory": p.overcommit,
        "memory_total": p.memory_total,
        "memory_available": p.memory_available,
        "cores": p.cores,
        "consequences": p.consequences(),
    })
}

fn text(p: &Probe) -> String {
    let yes = |found: bool| if found { "yes" } else { "no" }.to_owned();
    let number = |n: u64| if n == 0 { "unknown".to_owned() } else { n.to_string() };
    let uffd = match p.uffd {
        UffdAccess::Full => "for all faults",
        UffdAccess::Device => "for all faults, by /dev/userfaultfd",
        UffdAccess::UserModeOnly => "for faults of user code only",
        UffdAccess::Refused => "refused",
    };
    let overcommit = match p.overcommit {
        0 => "0 (heuristic)".to_owned(),
        1 => "1 (always)".to_owned(),
        2 => "2 (never)".to_owned(),
        other => other.to_string(),
    };
    let rows = [
        ("kernel", p.kernel.clone()),
        ("memory: total / available", format!("{} / {}", ByteLen(p.memory_total), ByteLen(p.memory_available))),
        ("processors", p.cores.to_string()),
        ("userfaultfd", uffd.to_owned()),
        ("  serves shared memory", yes(p.uffd_shmem)),
        ("  moves pages (private backing)", yes(p.uffd_move)),
        ("  poisons pages", yes(p.uffd_poison)),
        ("  raises SIGBUS", yes(p.uffd_sigbus)),
        ("  tracks writes", yes(p.uffd_wp_async)),
        ("memory objects (memfd)", yes(p.memfd)),
        ("huge pages in memory objects", yes(p.collapse)),
        ("transparent huge pages", if p.thp.is_empty() { "unknown".to_owned() } else { p.thp.clone() }),
        ("vm.max_map_count", number(p.max_map_count)),
        ("vm.overcommit_memory", overcommit),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, found)| vec![name.to_owned(), found]).collect();
    let said = p.consequences();
    let follows = match said.as_slice() {
        [] => "Everything gmem needs is there: every page size, backing and delivery works.".to_owned(),
        said => said.iter().map(|s| format!("- {s}")).collect::<Vec<_>>().join("\n"),
    };
    format!("{}\n\nWhat follows:\n{follows}", output::columns(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_what_is_missing_and_what_follows() {
        let mut p = gmem::probe();
        p.uffd = UffdAccess::Refused;
        let (text, object) = (text(&p), object(&p));
        assert!(
            text.contains("userfaultfd") && text.contains("What follows:\n- ") && text.contains("unprivileged_userfaultfd=1"),
            "{text}"
        );
        assert_eq!(object["userfaultfd"], "refused");
        assert!(object["consequences"][0].as_str().is_some_and(|s| s.contains("in-thread")), "{object}");
        assert!(object["memory_total"].as_u64() == Some(p.memory_total) && object["cores"].is_u64());
    }
}
