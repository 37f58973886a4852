//! What was asked for, checked against what can be.

use crate::args::{BackingArg, Common, DeliveryArg, DeviceKind, ModeArg};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::output;
use gmem::accel::BuildError;
use gmem::{Backing, ByteLen, Delivery, Mode, PageSize};

/// A device, an address space and regions, as a workload gets them. Every combination here is a sensible one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) device: DeviceKind,
    pub(crate) mode: Mode,
    /// Bytes of device memory, a multiple of `page_size`; zero for a device without memory of its own.
    pub(crate) device_memory: u64,
    pub(crate) page_size: PageSize,
    pub(crate) cores: usize,
    pub(crate) replay: bool,
    pub(crate) backing: Backing,
    pub(crate) delivery: Delivery,
    /// Whether system calls work on pages that are not there, so that nobody has to touch them first.
    pub(crate) system_calls: bool,
}

/// What a workload is going to use.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    /// The page size it asks for if nothing is said.
    pub(crate) page_size: PageSize,
    /// The length of each buffer.
    pub(crate) buffers: Vec<u64>,
    /// For each kind of launch, the pieces of buffers that it touches at once.
    pub(crate) launches: Vec<Vec<u64>>,
}

impl Needs {
    /// The bytes of all buffers, each rounded up to whole pages, or `None` on overflow.
    pub(crate) fn managed(&self, page: PageSize) -> Option<u64> {
        sum_of_pages(&self.buffers, page)
    }

    /// The bytes of whole pages that the most demanding launch touches at once.
    pub(crate) fn launch(&self, page: PageSize) -> u64 {
        self.launches.iter().map(|pieces| sum_of_pages(pieces, page).unwrap_or(u64::MAX)).max().unwrap_or(0)
    }

    /// The device memory to have if nothing is said: a quarter of the data, so that pages have to travel, but what one launch touches at once and two pages
    /// on their way.
    pub(crate) fn device_memory(&self, page: PageSize) -> u64 {
        let quarter = self.managed(page).map_or(u64::MAX, |bytes| bytes / 4) & !(page.bytes() - 1);
        quarter.max(self.launch(page).saturating_add(2 * page.bytes()) & !(page.bytes() - 1))
    }
}

fn sum_of_pages(lengths: &[u64], page: PageSize) -> Option<u64> {
    lengths.iter().try_fold(0u64, |sum, len| sum.checked_add(len.checked_next_multiple_of(page.bytes())?))
}

impl Setup {
    /// Checks the command line. `needs` may be known only roughly; overflow of it is reported as such.
    pub(crate) fn resolve(common: &Common, needs: &Needs, machine: &Machine) -> Result<Self, Failure> {
        let device = common.device.unwrap_or_default();
        let mode = mode(device, common.mode)?;
        let page_size = page_size(common.page_size, needs.page_size)?;
        let backing = common.backing.map_or(Backing::Shared, |b| match b {
            BackingArg::Shared => Backing::Shared,
            BackingArg::Private => Backing::Private,
        });
        let delivery = delivery(common.delivery, backing, machine)?;
        if mode == Mode::Replicate && backing == Backing::Private {
            return Err(Failure::Usage(
                "--mode replicate with --backing private cannot be: a device process cannot map another process's private memory; \
                 use --backing shared, or --mode exclusive"
                    .to_owned(),
            ));
        }
        if common.no_replay && device == DeviceKind::Integrated {
            return Err(Failure::Usage(
                "--no-replay with --device integrated cannot be: its faults are the CPU's own, which are always replayed".to_owned(),
            ));
        }
        let managed = managed(needs, page_size, machine)?;
        let device_memory = device_memory(device, common.device_memory, needs.device_memory(page_size), page_size, machine)?;
        let wanted = managed.saturating_add(device_memory);
        if wanted > machine.available {
            return Err(Failure::Failed(format!(
                "the data ({}) and the device memory ({}) need {} and {} are available now; use less data or less device memory",
                ByteLen(managed),
                ByteLen(device_memory),
                ByteLen(wanted),
                ByteLen(machine.available),
            )));
        }
        let cores = common.cores.map_or(machine.cpus.min(64), |n| n as usize);
        let system_calls = machine.serves_system_calls(delivery);
        Ok(Self { device, mode, device_memory, page_size, cores, replay: !common.no_replay, backing, delivery, system_calls })
    }

    /// The bytes of address space the buffers take, with room for each to begin on a boundary of the largest page.
    pub(crate) fn space(&self, needs: &Needs) -> Result<u64, Failure> {
        let largest = PageSize::Size2M;
        sum_of_pages(&needs.buffers, largest)
            .and_then(|bytes| bytes.checked_add(largest.bytes()))
            .ok_or_else(|| Failure::Usage("the data would take more than 2^64 bytes; use less data".to_owned()))
    }

    /// How many bytes one launch may name, if the launches have to name their memory and hold it in device memory all at once.
    pub(crate) fn held_at_once(&self) -> Option<u64> {
        (!self.replay && self.mode == Mode::CoherentExclusive).then_some(self.device_memory)
    }

    /// The device's name on the command line.
    pub(crate) fn device_name(&self) -> &'static str {
        device_name(self.device)
    }

    /// The mode's name on the command line.
    pub(crate) fn mode_name(&self) -> &'static str {
        mode_name(self.mode)
    }

    /// The backing's name on the command line.
    pub(crate) fn backing_name(&self) -> &'static str {
        backing_name(self.backing)
    }

    /// The delivery's name on the command line.
    pub(crate) fn delivery_name(&self) -> &'static str {
        delivery_name(self.delivery)
    }
}

fn backing_name(backing: Backing) -> &'static str {
    match backing {
        Backing::Shared => "shared",
        Backing::Private => "private",
    }
}

fn delivery_name(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Service => "service",
        Delivery::InThread => "inthread",
    }
}

fn device_name(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Peer => "peer",
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Share => "share",
        Mode::CoherentExclusive => "exclusive",
        Mode::Replicate => "replicate",
    }
}

/// The modes a device can do, the default first.
fn modes(device: DeviceKind) -> &'static [Mode] {
    match device {
        DeviceKind::Discrete => &[Mode::CoherentExclusive, Mode::Replicate],
        DeviceKind::Integrated => &[Mode::Share],
        DeviceKind::Peer => &[Mode::CoherentExclusive],
    }
}

fn mode(device: DeviceKind, asked: Option<ModeArg>) -> Result<Mode, Failure> {
    let can = modes(device);
    let Some(asked) = asked else { return Ok(can[0]) };
    let asked = match asked {
        ModeArg::Exclusive => Mode::CoherentExclusive,
        ModeArg::Share => Mode::Share,
        ModeArg::Replicate => Mode::Replicate,
    };
    if can.contains(&asked) {
        return Ok(asked);
    }
    let names: Vec<&str> = can.iter().map(|m| mode_name(*m)).collect();
    let why = match (device, asked) {
        (DeviceKind::Integrated, _) => "it has no page table and no memory of its own",
        (_, Mode::Share) => "its process cannot walk the CPU's page table",
        _ => "it keeps its pages in its own memory",
    };
    Err(Failure::Usage(format!(
        "the {} device cannot do --mode {}: {why}; it can do: {}",
        device_name(device),
        mode_name(asked),
        names.join(", ")
    )))
}

/// Who resolves faults: whoever was asked for; if nobody was and gmem's thread cannot, the faulting thread.
fn delivery(asked: Option<DeliveryArg>, backing: Backing, machine: &Machine) -> Result<Delivery, Failure> {
    let delivery = asked.map_or(Delivery::Service, |d| match d {
        DeliveryArg::Service => Delivery::Service,
        DeliveryArg::Inthread => Delivery::InThread,
    });
    let Some(why) = machine.refuses(backing, delivery) else { return Ok(delivery) };
    if asked.is_none() && machine.refuses(backing, Delivery::InThread).is_none() {
        output::note(&format!("{why}; the faulting threads resolve their faults themselves (--delivery inthread)\n{}", machine.remedies()));
        return Ok(Delivery::InThread);
    }
    let names = (backing_name(backing), delivery_name(delivery));
    let mut message = format!("--backing {} with --delivery {} cannot be: {why}", names.0, names.1);
    let pairs = [(Backing::Shared, Delivery::Service), (Backing::Shared, Delivery::InThread), (Backing::Private, Delivery::Service)];
    let can: Vec<String> = pairs
        .iter()
        .filter(|(b, d)| machine.refuses(*b, *d).is_none())
        .map(|(b, d)| format!("--backing {} --delivery {}", backing_name(*b), delivery_name(*d)))
        .collect();
    message.push_str(&format!("; there are: {}", can.join(", ")));
    if delivery == Delivery::Service {
        message.push_str(&format!("\n{}", machine.remedies()));
    }
    Err(Failure::Usage(message))
}

fn page_size(asked: Option<u64>, default: PageSize) -> Result<PageSize, Failure> {
    let Some(bytes) = asked else { return Ok(default) };
    PageSize::from_bytes(bytes).ok_or_else(|| {
        let sizes: Vec<String> = PageSize::ALL.iter().map(PageSize::to_string).collect();
        Failure::Usage(format!("--page-size {} ({bytes} bytes) is no page size; there are {}", ByteLen(bytes), sizes.join(", ")))
    })
}

fn managed(needs: &Needs, page: PageSize, machine: &Machine) -> Result<u64, Failure> {
    match needs.managed(page) {
        Some(bytes) if bytes <= machine.total => Ok(bytes),
        Some(bytes) => Err(Failure::Usage(format!(
            "the data would take {} and this machine has {} of memory; use less data",
            ByteLen(bytes),
            ByteLen(machine.total)
        ))),
        None => Err(Failure::Usage("the data would take more than 2^64 bytes; use less data".to_owned())),
    }
}

/// A size to be typed in again: in the largest unit that divides it, and never rounded.
fn exact(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

fn device_memory(device: DeviceKind, asked: Option<u64>, default: u64, page: PageSize, machine: &Machine) -> Result<u64, Failure> {
    let bytes = asked.unwrap_or(default);
    let refuse = |found: String| Err(Failure::Usage(format!("--device-memory {}: {found}", exact(bytes))));
    let multiple = |bytes: u64| exact(bytes.max(page.bytes()) & !(page.bytes() - 1));
    if bytes == 0 {
        return refuse(format!("a device needs memory; the least is one page, {page}"));
    }
    if bytes < page.bytes() {
        return refuse(format!("smaller than one page of {page}; the least is {page}, or use a smaller --page-size"));
    }
    if !bytes.is_multiple_of(page.bytes()) {
        return refuse(format!("not a multiple of the page size {page}; {} would be", multiple(bytes)));
    }
    if bytes > machine.total {
        let refused = BuildError::MoreThanMachine { asked: ByteLen(bytes), has: ByteLen(machine.total) };
        return refuse(format!("{refused}; use at most {}", multiple(machine.total)));
    }
    if device == DeviceKind::Integrated {
        if asked.is_some() {
            output::note("the integrated device has no memory of its own: --device-memory is not used");
        }
        return Ok(0);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::permissive(8 << 30, 6 << 30)
    }

    fn needs() -> Needs {
        Needs { page_size: PageSize::Size2M, buffers: vec![32 << 20; 4], launches: vec![vec![2 << 20; 3]] }
    }

    fn resolve(common: &Common) -> Result<Setup, Failure> {
        Setup::resolve(common, &needs(), &machine())
    }

    #[test]
    fn defaults_follow_the_device_and_the_needs() {
        let setup = resolve(&Common::default()).unwrap();
        assert_eq!((setup.device_memory, setup.mode, setup.cores, setup.replay), (32 << 20, Mode::CoherentExclusive, 2, true));
        let integrated = resolve(&Common { device: Some(DeviceKind::Integrated), ..Default::default() }).unwrap();
        assert_eq!((integrated.device_memory, integrated.mode), (0, Mode::Share));
    }

    #[test]
    fn impossible_sizes_are_usage_errors_that_name_what_would_work() {
        for (bytes, words) in [
            (0, "one page"),
            (4096, "smaller than one page"),
            (3 << 20, "2 MiB would be"),
            (5_000_000, "5000000 B: not a multiple"),
            (16 << 30, "at most 8 GiB"),
        ] {
            match resolve(&Common { device_memory: Some(bytes), ..Default::default() }) {
                Err(Failure::Usage(message)) => assert!(message.contains(words), "{message}"),
                other => panic!("{bytes}: {other:?}"),
            }
        }
        assert!(matches!(resolve(&Common { page_size: Some(8192), ..Default::default() }), Err(Failure::Usage(_))));
        let small = Common { page_size: Some(4096), device_memory: Some(12288), ..Default::default() };
        assert_eq!(resolve(&small).unwrap().device_memory, 12288);
    }

    #[test]
    fn modes_the_device_cannot_do_are_refused() {
        for (device, mode, fine) in [
            (DeviceKind::Discrete, ModeArg::Exclusive, true),
            (DeviceKind::Discrete, ModeArg::Replicate, true),
            (DeviceKind::Discrete, ModeArg::Share, false),
            (DeviceKind::Integrated, ModeArg::Share, true),
            (DeviceKind::Integrated, ModeArg::Exclusive, false),
            (DeviceKind::Peer, ModeArg::Exclusive, true),
            (DeviceKind::Peer, ModeArg::Replicate, false),
        ] {
            let result = resolve(&Common { device: Some(device), mode: Some(mode), ..Default::default() });
            assert_eq!(result.is_ok(), fine, "{device:?} {mode:?}: {result:?}");
        }
        let private = Common { mode: Some(ModeArg::Replicate), backing: Some(BackingArg::Private), ..Default::default() };
        assert!(matches!(resolve(&private), Err(Failure::Usage(_))));
    }

    #[test]
    fn without_userfaultfd_the_faulting_thread_resolves_unless_told_otherwise() {
        let mut refusing = machine();
        refusing.probe.uffd = gmem::UffdAccess::Refused;
        let ask = |delivery, backing| Setup::resolve(&Common { delivery, backing, ..Default::default() }, &needs(), &refusing);
        let setup = ask(None, None).unwrap();
        assert_eq!((setup.delivery, setup.system_calls), (Delivery::InThread, false));
        match ask(Some(DeliveryArg::Service), None) {
            Err(Failure::Usage(message)) => assert!(message.contains("unprivileged_userfaultfd=1"), "{message}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(ask(None, Some(BackingArg::Private)), Err(Failure::Usage(_))));
        let mut user_only = machine();
        user_only.probe.uffd = gmem::UffdAccess::UserModeOnly;
        let setup = Setup::resolve(&Common::default(), &needs(), &user_only).unwrap();
        assert_eq!((setup.delivery, setup.system_calls), (Delivery::Service, false));
    }

    #[test]
    fn pairs_of_options_that_contradict_each_other_are_refused() {
        let pair = Common { delivery: Some(DeliveryArg::Inthread), backing: Some(BackingArg::Private), ..Default::default() };
        match resolve(&pair) {
            Err(Failure::Usage(message)) => assert!(message.contains("--backing shared --delivery inthread"), "{message}"),
            other => panic!("{other:?}"),
        }
        let replay = Common { device: Some(DeviceKind::Integrated), no_replay: true, ..Default::default() };
        assert!(matches!(resolve(&replay), Err(Failure::Usage(_))));
    }

    #[test]
    fn data_larger_than_the_machine_is_refused_before_anything_is_made() {
        let ask = |len: u64| Setup::resolve(&Common::default(), &Needs { buffers: vec![len; 3], ..needs() }, &machine());
        assert!(matches!(ask(4 << 30), Err(Failure::Usage(_))));
        assert!(matches!(ask(u64::MAX / 2), Err(Failure::Usage(_))));
        assert!(matches!(ask((7 << 30) / 3), Err(Failure::Failed(_))));
        assert!(ask(1 << 30).is_ok());
    }
}
