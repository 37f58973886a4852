//! A failure as a test that can be pasted.

use super::act::Act;
use super::shrink::{Short, turns};
use super::{Campaign, Faults};
use crate::worlds::CAMPAIGNS;
use gmem_hal::PeerError;
use gmem_sim::Injected;
use std::fmt::Write as _;

/// A test of `tests/regressions.rs` that fails as this does.
pub fn test_of(campaign: &Campaign, short: &Short) -> String {
    let mut text = String::new();
    let Campaign { seed, faults, .. } = campaign;
    let why = short.failure.why.lines().next().unwrap_or_default();
    let faults = match faults {
        Faults::None => "None",
        Faults::Some => "Some",
        Faults::All => "All",
    };
    // Writing to a string does not fail.
    let _ = writeln!(text, "/// {why}\n#[test]\nfn campaign_of_seed_{seed}() {{");
    let _ = writeln!(text, "    let acts = vec![");
    for acts in &short.case.acts {
        if acts.is_empty() {
            let _ = writeln!(text, "        vec![],");
            continue;
        }
        let _ = writeln!(text, "        vec![");
        for act in acts {
            let _ = writeln!(text, "            {},", act_in_rust(act));
        }
        let _ = writeln!(text, "        ],");
    }
    let _ = writeln!(text, "    ];");
    let _ = writeln!(text, "    let schedule = schedule(&{:?});", turns(&short.case.schedule));
    let world = CAMPAIGNS.iter().find(|(_, kind)| kind.name == campaign.kind.name).map_or("CAMPAIGN", |(constant, _)| constant);
    let _ = writeln!(text, "    let campaign = Campaign {{ kind: worlds::{world}, faults: Faults::{faults}, ..Campaign::new({seed}) }};");
    let _ = writeln!(text, "    campaign.replay(&Case {{ acts, schedule }}).expect_clean();\n}}");
    text
}

/// An act as an expression, with the names that `tests/regressions.rs` imports.
fn act_in_rust(act: &Act) -> String {
    if let Act::Fail(callback, device, error) = act {
        let error = match error {
            Injected::Device(error) => format!("Injected::Device(DeviceError::{error:?})"),
            Injected::Peer(PeerError::Device(error)) => format!("Injected::Peer(PeerError::Device(DeviceError::{error:?}))"),
            Injected::Peer(error) => format!("Injected::Peer(PeerError::{error:?})"),
            Injected::Host(error) => format!("Injected::Host(HostError::{error:?})"),
            Injected::OutOfMemory => "Injected::OutOfMemory".to_owned(),
        };
        return format!("Act::Fail(Callback::{callback:?}, {device:?}, {error})");
    }
    let text = format!("Act::{act:?}").replace("Act::Do(", "Act::Do(Op::");
    let text = text.replace("Prot(READ | WRITE)", "Prot::RW").replace("Prot(READ)", "Prot::READ");
    text.replace(", Shared)", ", Backing::Shared)").replace(", Private)", ", Backing::Private)").replace("mode: ", "mode: Mode::")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem_hal::{Backing, DeviceError, Mode, Prot};
    use gmem_sim::Callback;
    use gmem_sim::random::{Op, PageRun};

    #[test]
    fn acts_are_told_as_expressions() {
        let run = PageRun { space: 0, first: 1, count: 2 };
        let told = |act| act_in_rust(&act);
        assert_eq!(
            told(Act::Do(Op::Map(run, Prot::RW, Backing::Shared))),
            "Act::Do(Op::Map(PageRun { space: 0, first: 1, count: 2 }, Prot::RW, Backing::Shared))"
        );
        assert_eq!(
            told(Act::Do(Op::Protect(run, Prot::READ))),
            "Act::Do(Op::Protect(PageRun { space: 0, first: 1, count: 2 }, Prot::READ))"
        );
        let attach = Op::Attach { space: 1, device: 2, mode: Mode::Replicate, activate: true };
        assert_eq!(told(Act::Do(attach)), "Act::Do(Op::Attach { space: 1, device: 2, mode: Mode::Replicate, activate: true })");
        let fail = Act::Fail(Callback::PeerMap, Some(3), Injected::Peer(PeerError::Device(DeviceError::Dead)));
        assert_eq!(told(fail), "Act::Fail(Callback::PeerMap, Some(3), Injected::Peer(PeerError::Device(DeviceError::Dead)))");
    }
}
