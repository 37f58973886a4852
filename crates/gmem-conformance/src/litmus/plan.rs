//! What a seed draws: the devices of a world, and for each round who takes part, where the words are and how the participants run.

use super::participant::{CORES, YIELD};
use super::program::{PARTICIPANTS, Repetition, Test};
use super::rng::Rng;
use gmem::{Backing, Delivery, PageSize};
use std::fmt::Write;

/// A kind of device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A process with memory of its own, which pages move to.
    Exclusive,
    /// The same with an operating system of its own.
    Peer,
    /// A process that maps the host's memory.
    Replicate,
    /// Cores that use the CPU's page table.
    Integrated,
}

/// Who a participant is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// A thread of the program.
    Cpu,
    /// A core of a device, by number.
    Core { device: usize, core: usize },
}

/// How the words get from one participant to the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// All participants use one page table.
    OneTable,
    /// They have tables of their own that map one page of host memory.
    OneHome,
    /// Some can only have the page if it is taken from the others.
    Moving,
}

impl Traffic {
    /// In words, for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OneTable => "one page table",
            Self::OneHome => "one page, several tables",
            Self::Moving => "pages that move",
        }
    }
}

/// A region to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionPlan {
    pub(crate) size: PageSize,
    pub(crate) backing: Backing,
    pub(crate) delivery: Delivery,
    pub(crate) pages: u64,
}

/// How near to each other the words of one iteration are, if they are in one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nearness {
    Anywhere,
    OnePage,
    OneLine,
}

/// One round of a test.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) roles: Vec<Role>,
    pub(crate) traffic: Traffic,
    pub(crate) regions: Vec<RegionPlan>,
    /// The region of each place.
    pub(crate) homes: Vec<usize>,
    pub(crate) nearness: Nearness,
    pub(crate) iterations: usize,
    pub(crate) stride: u32,
    pub(crate) pause: u32,
    pub(crate) gap: u32,
    /// How many of the largest pages each exclusive device has room for.
    pub(crate) room: u64,
    /// Who gives the words their first value, and who says what they hold in the end.
    pub(crate) clears: Role,
    pub(crate) collects: Role,
    pub(crate) disturbed: bool,
}

/// The devices of a world.
pub(crate) fn devices(rng: &mut Rng, count: usize) -> Vec<Kind> {
    // Private backing is for worlds without replicas.
    let kinds: &[Kind] = if rng.coin() {
        &[Kind::Exclusive, Kind::Replicate, Kind::Replicate, Kind::Peer, Kind::Integrated]
    } else {
        &[Kind::Exclusive, Kind::Exclusive, Kind::Peer, Kind::Integrated]
    };
    (0..count).map(|_| rng.one(kinds)).collect()
}

/// The largest page of a world's regions. A peer counts its pages itself, so it evicts if it has been given little memory for pages of this size.
pub(crate) fn largest(rng: &mut Rng, devices: &[Kind]) -> PageSize {
    let sizes = [PageSize::Size4K, PageSize::Size64K, PageSize::Size2M];
    if devices.contains(&Kind::Peer) { rng.one(&sizes) } else { PageSize::Size2M }
}

impl Plan {
    /// Draws a round of `test` in a world of these devices, whose pages are of size `bound` at most. `plain` leaves out what a driver that is broken on purpose cannot serve.
    pub(crate) fn draw(rng: &mut Rng, test: &Test, devices: &[Kind], bound: PageSize, plain: bool) -> Self {
        let roles = roles(rng, test.programs.len(), devices);
        let traffic = traffic(&roles, devices);
        let private = !plain && !devices.contains(&Kind::Replicate);
        let places = test.places();
        let regions: Vec<_> = (0..1 + rng.below(places as u64)).map(|_| region(rng, bound, private, plain)).collect();
        let largest = regions.iter().map(|r| r.size).max().unwrap_or(PageSize::Size4K);
        let iterations = match (traffic, largest) {
            (Traffic::OneTable | Traffic::OneHome, _) => super::block::ITERATIONS,
            (Traffic::Moving, PageSize::Size4K) => 256,
            (Traffic::Moving, PageSize::Size64K) => 128,
            (Traffic::Moving, PageSize::Size2M) => 24,
        };
        let homes = (0..places).map(|_| rng.below(regions.len() as u64) as usize).collect();
        let someone =
            |rng: &mut Rng| if rng.coin() { Role::Cpu } else { Role::Core { device: rng.below(devices.len() as u64) as usize, core: 0 } };
        // What takes a fault is met by a longer pause than what takes a cache miss. Who gets the page would be done with it before another one has it.
        let (pauses, gaps): (&[u32], &[u32]) = match traffic {
            Traffic::Moving => (&[0, 64, 512, 4096], &[0, 512, 4096, 16384, YIELD]),
            _ if roles.len() > 2 => (&[0, 2, 8, YIELD], &[0, 8, YIELD, YIELD]),
            _ => (&[0, 2, 4, 8], &[0, 0, 2, 4, 8]),
        };
        let mut plan = Self {
            traffic,
            homes,
            nearness: rng.one(&[Nearness::Anywhere, Nearness::OnePage, Nearness::OneLine]),
            iterations,
            stride: rng.one(&[1, 1, 1, 4, 32]),
            pause: rng.one(pauses),
            gap: rng.one(gaps),
            room: 2 + rng.below(2),
            clears: someone(rng),
            collects: someone(rng),
            disturbed: rng.below(4) > 0,
            roles,
            regions,
        };
        plan.make_room(test.repetition);
        plan
    }

    /// Has every region hold twice the words it needs, so that places are found by trying.
    fn make_room(&mut self, repetition: Repetition) {
        let iterations = if repetition == Repetition::Counting { 1 } else { self.iterations };
        for (index, region) in self.regions.iter_mut().enumerate() {
            let words = iterations * self.homes.iter().filter(|home| **home == index).count();
            region.pages = region.pages.max((2 * 8 * words as u64).div_ceil(region.size.bytes()));
        }
    }

    /// The largest page of the round, in bytes.
    pub(crate) fn largest_page(&self) -> u64 {
        self.regions.iter().map(|r| r.size.bytes()).max().unwrap_or(4096)
    }

    /// For a person who wants to know where something happened.
    pub(crate) fn text(&self, devices: &[Kind]) -> String {
        let mut text = String::new();
        for (participant, role) in self.roles.iter().enumerate() {
            let _ = match role {
                Role::Cpu => write!(text, "{participant} on the CPU, "),
                Role::Core { device, core } => write!(text, "{participant} on device {device} ({:?}) core {core}, ", devices[*device]),
            };
        }
        for (place, home) in self.homes.iter().enumerate() {
            let RegionPlan { size, backing, delivery, pages } = self.regions[*home];
            let _ = write!(text, "{} in {pages} pages of {size} ({backing:?}, {delivery:?}, region {home}), ", ["x", "y", "z"][place]);
        }
        let Self { nearness, stride, pause, gap, room, clears, collects, .. } = self;
        let _ = write!(
            text,
            "{nearness:?}, stride {stride}, pause {pause}, gap {gap}, room {room}, cleared by {clears:?}, collected by {collects:?}"
        );
        text
    }
}

/// Draws who takes part: threads of the program and cores of devices, of which one at least. Where there are replicas, every other time only those who can map one page.
fn roles(rng: &mut Rng, count: usize, devices: &[Kind]) -> Vec<Role> {
    let near = devices.contains(&Kind::Replicate) && rng.coin();
    let fits = |device: &usize| !near || matches!(devices[*device], Kind::Replicate | Kind::Integrated);
    let cores = |device: usize| (0..CORES).map(move |core| Role::Core { device, core });
    let mut all: Vec<Role> = (0..devices.len()).filter(fits).flat_map(cores).collect();
    rng.shuffle(&mut all);
    let first = all.pop();
    all.extend([Role::Cpu; PARTICIPANTS - 1]);
    rng.shuffle(&mut all);
    let mut roles: Vec<_> = first.into_iter().chain(all).take(count).collect();
    rng.shuffle(&mut roles);
    roles
}

fn traffic(roles: &[Role], devices: &[Kind]) -> Traffic {
    // The number of the table that a participant uses; that of the CPU is the number of devices.
    let table = |role: &Role| match role {
        Role::Core { device, .. } if devices[*device] != Kind::Integrated => *device,
        _ => devices.len(),
    };
    let moves = |role: &Role| matches!(role, Role::Core { device, .. } if matches!(devices[*device], Kind::Exclusive | Kind::Peer));
    if roles.iter().all(|role| table(role) == table(&roles[0])) {
        Traffic::OneTable
    } else if roles.iter().any(moves) {
        Traffic::Moving
    } else {
        Traffic::OneHome
    }
}

fn region(rng: &mut Rng, bound: PageSize, private: bool, plain: bool) -> RegionPlan {
    let size =
        rng.one(&[PageSize::Size4K, PageSize::Size4K, PageSize::Size4K, PageSize::Size64K, PageSize::Size64K, PageSize::Size2M]).min(bound);
    let (shared, service) = (Backing::Shared, Delivery::Service);
    let kinds = [(shared, service), (shared, Delivery::InThread), (Backing::Private, service)];
    let (backing, delivery) = rng.one(&kinds[..if plain { 1 } else { 2 + usize::from(private) }]);
    RegionPlan { size, backing, delivery, pages: 1 + rng.below(5) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::litmus::TESTS;

    #[test]
    fn every_plan_has_a_device_in_it_and_room_for_its_words() {
        for seed in 0..200 {
            let mut rng = Rng::stream(seed, 0);
            let count = 1 + rng.below(4) as usize;
            let devices = devices(&mut rng, count);
            let test = &TESTS[seed as usize % TESTS.len()];
            let bound = largest(&mut rng, &devices);
            let plan = Plan::draw(&mut rng, test, &devices, bound, false);
            assert!(plan.largest_page() <= bound.bytes(), "a peer has no room for such pages: {plan:?}");
            assert_eq!(plan.roles.len(), test.programs.len());
            assert!(plan.roles.iter().any(|role| matches!(role, Role::Core { .. })), "{plan:?}");
            let cores: Vec<_> = plan.roles.iter().filter(|role| **role != Role::Cpu).collect();
            assert!(cores.iter().enumerate().all(|(i, core)| !cores[..i].contains(core)), "a core takes part twice: {plan:?}");
            let private = plan.regions.iter().any(|r| r.backing == Backing::Private);
            assert!(!(private && devices.contains(&Kind::Replicate)), "{plan:?}");
        }
    }

    #[test]
    fn traffic_is_told_by_the_tables() {
        let devices = [Kind::Exclusive, Kind::Replicate, Kind::Integrated];
        let on = |device| Role::Core { device, core: 0 };
        assert_eq!(traffic(&[Role::Cpu, on(2)], &devices), Traffic::OneTable);
        assert_eq!(traffic(&[on(0), Role::Core { device: 0, core: 1 }], &devices), Traffic::OneTable);
        assert_eq!(traffic(&[Role::Cpu, on(1), on(2)], &devices), Traffic::OneHome);
        assert_eq!(traffic(&[Role::Cpu, on(0)], &devices), Traffic::Moving);
    }
}
