//! Somebody who moves pages about while a round is under way, as memory pressure and hints do.

use super::rng::Rng;
use super::world::World;
use gmem::{Access, ByteLen, Region, VirtAddr, VirtRange};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The longest pause between two disturbances, in microseconds.
const LONGEST_PAUSE: u64 = 400;

/// Evicts pages and brings others here and there, until told to stop. Says how many pages it moved.
pub(crate) fn disturb(world: &World, regions: &[Region], mut rng: Rng, stop: &AtomicBool) -> u64 {
    let mut moved = 0;
    while !stop.load(Ordering::Relaxed) {
        let unit = &world.units[rng.below(world.units.len() as u64) as usize];
        if rng.coin() {
            moved += unit.device.evict(1 + rng.below(2) as usize) as u64;
        } else {
            let region = &regions[rng.below(regions.len() as u64) as usize];
            let to = if rng.below(3) > 0 { Some(&unit.device) } else { None };
            let access = rng.one(&[Access::Read, Access::Write]);
            // No room, a page in use, or a device that has no memory: a hint that is not followed is no error here.
            moved += world.space.prefetch(any_page(&mut rng, region), to, access).unwrap_or(0) as u64;
        }
        std::thread::sleep(Duration::from_micros(rng.below(LONGEST_PAUSE)));
    }
    moved
}

fn any_page(rng: &mut Rng, region: &Region) -> VirtRange {
    let size = region.attrs().page_size.bytes();
    let page = rng.below(region.range().len().get() / size);
    let start = VirtAddr::new(region.range().start().get() + page * size);
    VirtRange::from_len(start, ByteLen(size)).expect("a page is not empty and lies in its region")
}
