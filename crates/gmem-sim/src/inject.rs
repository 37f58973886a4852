//! Making any callback fail on demand.

use crate::Rng;
use gmem_hal::{DeviceError, HostError, PeerError};

macro_rules! callbacks {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The calls the core makes downwards.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Callback {
            $($(#[$doc])* $variant,)*
        }

        impl Callback {
            /// Every callback.
            pub const ALL: &'static [Callback] = &[$(Callback::$variant,)*];

            /// The name of the function in the contract.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Callback::$variant => $name,)*
                }
            }
        }
    };
}

callbacks! {
    /// [`gmem_hal::Mmu::pmap_create`].
    PmapCreate = "pmap_create",
    /// [`gmem_hal::Mmu::pmap_destroy`].
    PmapDestroy = "pmap_destroy",
    /// [`gmem_hal::Mmu::pmap_enter`].
    PmapEnter = "pmap_enter",
    /// [`gmem_hal::Mmu::pmap_release`].
    PmapRelease = "pmap_release",
    /// [`gmem_hal::Mmu::pmap_protect`].
    PmapProtect = "pmap_protect",
    /// [`gmem_hal::Mmu::tlb_invalidate`].
    TlbInvalidate = "tlb_invalidate",
    /// [`gmem_hal::Mmu::tlb_invalidate_coalesced`].
    TlbInvalidateCoalesced = "tlb_invalidate_coalesced",
    /// [`gmem_hal::CopyEngine::zero`].
    Zero = "zero",
    /// [`gmem_hal::CopyEngine::copy`].
    Copy = "copy",
    /// [`gmem_hal::Peer::va_alloc_fixed`].
    VaAllocFixed = "va_alloc_fixed",
    /// [`gmem_hal::Peer::va_free`].
    VaFree = "va_free",
    /// [`gmem_hal::Peer::map`].
    PeerMap = "peer_map",
    /// [`gmem_hal::Peer::unmap`].
    PeerUnmap = "peer_unmap",
    /// [`gmem_hal::Frames::alloc_frame`].
    AllocFrame = "alloc_frame",
    /// [`gmem_hal::Device::switch_context`].
    SwitchContext = "switch_context",
    /// [`gmem_hal::Device::fence`].
    Fence = "fence",
    /// [`gmem_hal::Device::start`].
    DeviceStart = "device_start",
    /// [`gmem_hal::Host::space_create`].
    SpaceCreate = "space_create",
    /// [`gmem_hal::Host::region_map`].
    RegionMap = "region_map",
    /// [`gmem_hal::Host::region_protect`].
    RegionProtect = "region_protect",
    /// [`gmem_hal::Host::populate`].
    Populate = "populate",
    /// [`gmem_hal::Host::cpu_map`].
    CpuMap = "cpu_map",
    /// [`gmem_hal::Host::cpu_unmap`].
    CpuUnmap = "cpu_unmap",
    /// [`gmem_hal::Platform::charge`].
    Charge = "charge",
}

/// The error that an injected failure answers with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Injected {
    /// A device callback's. [`DeviceError::Dead`] kills the device: it answers `Dead` to everything until it is revived.
    Device(DeviceError),
    /// A peer callback's.
    Peer(PeerError),
    /// A host call's.
    Host(HostError),
    /// A refused charge of metadata.
    OutOfMemory,
}

impl Injected {
    /// Whether it says that there is no memory.
    fn is_shortage(&self) -> bool {
        const SHORTAGES: [Injected; 4] = [
            Injected::Device(DeviceError::NoMemory),
            Injected::Peer(PeerError::NoMemory),
            Injected::Host(HostError::NoMemory),
            Injected::OutOfMemory,
        ];
        SHORTAGES.contains(self)
    }
}

impl Callback {
    /// Errors that this callback may answer with at any time by its contract. Those that say something about a page, such as [`PeerError::Migrating`], are left
    /// to the device, which knows when they are true.
    pub fn errors(self) -> &'static [Injected] {
        use Callback as C;
        use Injected::{Device, Host, OutOfMemory, Peer};
        const GRANT: &[Injected] = &[Device(DeviceError::NoMemory), Device(DeviceError::NoAnswer), Device(DeviceError::Dead)];
        const REVOKE: &[Injected] = &[Device(DeviceError::NoAnswer), Device(DeviceError::Dead)];
        const COPY: &[Injected] = &[Device(DeviceError::CopyFailed), Device(DeviceError::NoAnswer), Device(DeviceError::Dead)];
        const HOST: &[Injected] = &[Host(HostError::NoMemory), Host(HostError::TooManyMappings)];
        match self {
            C::PmapCreate | C::PmapEnter | C::SwitchContext | C::DeviceStart => GRANT,
            C::PmapDestroy | C::PmapRelease | C::PmapProtect | C::TlbInvalidate | C::TlbInvalidateCoalesced | C::VaFree => REVOKE,
            C::Zero | C::Copy | C::PeerUnmap => COPY,
            C::VaAllocFixed => &[Peer(PeerError::Conflict), Peer(PeerError::NoMemory), Peer(PeerError::Device(DeviceError::Dead))],
            C::PeerMap => &[
                Peer(PeerError::NoMemory),
                Peer(PeerError::Device(DeviceError::CopyFailed)),
                Peer(PeerError::Device(DeviceError::NoAnswer)),
                Peer(PeerError::Device(DeviceError::Dead)),
            ],
            C::AllocFrame => &[Device(DeviceError::NoMemory)],
            C::Fence => &[Device(DeviceError::NoAnswer), Device(DeviceError::Unsupported)],
            C::SpaceCreate => &[Host(HostError::NoMemory), Host(HostError::AddressInUse)],
            C::RegionMap | C::RegionProtect | C::Populate | C::CpuMap => HOST,
            C::CpuUnmap => &[Host(HostError::Pinned), Host(HostError::NoMemory)],
            C::Charge => &[OutOfMemory],
        }
    }
}

/// No callback has more kinds of errors.
const MOST_ERRORS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum When {
    /// At this call, counted from one over the life of the simulation.
    Nth(u64),
    /// Each call, with this probability.
    PerMille(u16),
    /// Each call, until the shortage is over.
    Short,
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    callback: Callback,
    device: Option<u32>,
    when: When,
    error: Injected,
}

/// How often a callback was called and made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// Calls so far.
    pub calls: u64,
    /// Calls that an injection made fail.
    pub failed: u64,
}

/// Decides which calls fail. One for the whole simulation, reached by [`crate::Sim`].
#[derive(Debug)]
pub(crate) struct Injector {
    rng: Rng,
    rules: Vec<Rule>,
    coverage: [Coverage; Callback::ALL.len()],
    /// How often each error was answered, in the order of [`Callback::errors`].
    answered: [[u64; MOST_ERRORS]; Callback::ALL.len()],
    enabled: bool,
}

impl Injector {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            rules: Vec::new(),
            coverage: [Coverage::default(); Callback::ALL.len()],
            answered: [[0; MOST_ERRORS]; Callback::ALL.len()],
            enabled: true,
        }
    }

    fn add(&mut self, callback: Callback, device: Option<u32>, when: When, error: Injected) {
        let fits = match error {
            Injected::OutOfMemory => callback == Callback::Charge,
            Injected::Peer(_) => matches!(callback, Callback::VaAllocFixed | Callback::PeerMap),
            Injected::Host(_) => (Callback::SpaceCreate..=Callback::CpuUnmap).contains(&callback),
            Injected::Device(_) => callback < Callback::SpaceCreate,
        };
        assert!(fits, "{} cannot answer with {error:?}", callback.name());
        self.rules.push(Rule { callback, device, when, error });
    }

    /// The `n`th call from now fails, once. `n` counts from one.
    pub(crate) fn nth(&mut self, callback: Callback, device: Option<u32>, n: u64, error: Injected) {
        assert_ne!(n, 0, "calls are counted from one");
        // A rule for one device counts the calls of every device and fails the first call of its own from then on.
        let at = self.coverage(callback).calls + n;
        self.add(callback, device, When::Nth(at), error);
    }

    pub(crate) fn chance(&mut self, callback: Callback, device: Option<u32>, per_mille: u16, error: Injected) {
        self.add(callback, device, When::PerMille(per_mille), error);
    }

    /// Memory is short, the host's or that of one device: every call that needs some is refused.
    pub(crate) fn begin_shortage(&mut self, device: Option<u32>) {
        for &callback in Callback::ALL {
            let of_device = callback < Callback::SpaceCreate;
            let error = callback.errors().iter().find(|error| error.is_shortage());
            if let Some(error) = error.filter(|_| of_device == device.is_some()) {
                self.add(callback, device, When::Short, *error);
            }
        }
    }

    pub(crate) fn end_shortage(&mut self) {
        self.rules.retain(|rule| !matches!(rule.when, When::Short));
    }

    pub(crate) fn is_short(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.when, When::Short))
    }

    pub(crate) fn is_pending(&self, callback: Callback) -> bool {
        self.rules.iter().any(|rule| rule.callback == callback)
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(crate) fn coverage(&self, callback: Callback) -> Coverage {
        self.coverage[callback as usize]
    }

    /// How often a call of `callback` was made to answer with `error`.
    pub(crate) fn answered(&self, callback: Callback, error: Injected) -> u64 {
        let at = callback.errors().iter().position(|e| *e == error);
        at.map_or(0, |n| self.answered[callback as usize][n])
    }

    /// A call that was to fail with `error` failed with another one, because the device was dead by then: it does not count.
    pub(crate) fn forestalled(&mut self, callback: Callback, error: Injected) {
        if let Some(n) = callback.errors().iter().position(|one| *one == error) {
            self.coverage[callback as usize].failed -= 1;
            self.answered[callback as usize][n] -= 1;
        }
    }

    /// Counts a call and says whether it is to fail.
    pub(crate) fn check(&mut self, callback: Callback, device: Option<u32>) -> Option<Injected> {
        let coverage = &mut self.coverage[callback as usize];
        coverage.calls += 1;
        let call = coverage.calls;
        if !self.enabled {
            return None;
        }
        let mut hit = None;
        for (i, rule) in self.rules.iter().enumerate() {
            if rule.callback != callback || rule.device.is_some_and(|d| Some(d) != device) {
                continue;
            }
            let fails = match rule.when {
                When::Nth(n) => n <= call,
                When::PerMille(p) => self.rng.chance(p),
                When::Short => true,
            };
            if fails {
                hit = Some((i, *rule));
                break;
            }
        }
        let (i, rule) = hit?;
        if matches!(rule.when, When::Nth(_)) {
            self.rules.remove(i);
        }
        self.coverage[callback as usize].failed += 1;
        if let Some(n) = callback.errors().iter().position(|error| *error == rule.error) {
            self.answered[callback as usize][n] += 1;
        }
        Some(rule.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_once() {
        let mut injector = Injector::new(Rng::new(0));
        injector.check(Callback::Copy, None);
        injector.nth(Callback::Copy, None, 2, Injected::Device(DeviceError::CopyFailed));
        let answers: Vec<bool> = (0..4).map(|_| injector.check(Callback::Copy, None).is_some()).collect();
        assert_eq!(answers, [false, true, false, false]);
        assert_eq!(injector.coverage(Callback::Copy), Coverage { calls: 5, failed: 1 });
    }

    #[test]
    fn chances_and_devices_are_obeyed() {
        let mut injector = Injector::new(Rng::new(0));
        injector.chance(Callback::Zero, Some(1), 500, Injected::Device(DeviceError::NoMemory));
        assert!((0..100).all(|_| injector.check(Callback::Zero, Some(0)).is_none()));
        let failed = (0..1000).filter(|_| injector.check(Callback::Zero, Some(1)).is_some()).count();
        assert!((400..600).contains(&failed), "{failed} of 1000 calls failed");
        injector.set_enabled(false);
        assert!((0..100).all(|_| injector.check(Callback::Zero, Some(1)).is_none()));
    }

    #[test]
    fn a_shortage_refuses_what_needs_memory_until_it_is_over() {
        let mut injector = Injector::new(Rng::new(0));
        let refused = |injector: &mut Injector, callback| (0..9).filter(|_| injector.check(callback, Some(1)).is_some()).count();
        injector.begin_shortage(Some(1));
        let calls = [Callback::PmapEnter, Callback::PmapRelease, Callback::Populate];
        assert_eq!(calls.map(|callback| refused(&mut injector, callback)), [9, 0, 0]);
        assert!(injector.is_short() && injector.check(Callback::PmapEnter, Some(2)).is_none());
        injector.end_shortage();
        assert_eq!(refused(&mut injector, Callback::PmapEnter), 0);
    }

    #[test]
    #[should_panic(expected = "populate cannot answer with")]
    fn an_error_of_another_contract_is_refused() {
        Injector::new(Rng::new(0)).nth(Callback::Populate, None, 1, Injected::Device(DeviceError::Dead));
    }

    #[test]
    fn every_callback_has_errors_that_fit() {
        for &callback in Callback::ALL {
            for &error in callback.errors() {
                Injector::new(Rng::new(0)).nth(callback, None, 1, error);
            }
        }
    }
}
