//! Either side sees what the other wrote.

use crate::check::{Applies, Check, Outcome};
use crate::world::{at, get_bytes, pattern, same_bytes, set_bytes};
use crate::{Case, ensure_eq};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "device-reads-what-the-cpu-wrote",
        rule: "A load by a device sees every earlier store of the CPU.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: device_reads_what_the_cpu_wrote,
    },
    Check {
        name: "cpu-reads-what-the-device-wrote",
        rule: "A load by the CPU sees every earlier store of a device.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: cpu_reads_what_the_device_wrote,
    },
];

fn device_reads_what_the_cpu_wrote(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    let expected = pattern(1, len);
    set_bytes(at(&region, 0), &expected);
    let mut seen = vec![0; len];
    world.unit.read(at(&region, 0), &mut seen)?;
    same_bytes("what the device reads", &seen, &expected)?;
    world.verify()
}

fn cpu_reads_what_the_device_wrote(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    let expected = pattern(2, len);
    world.unit.write(at(&region, 0), &expected)?;
    same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len), &expected)?;
    world.unit.add(at(&region, 0), 5)?;
    let word = u64::from_ne_bytes(expected[..8].try_into().expect("eight bytes"));
    ensure_eq!("the word the device added to", crate::world::get(at(&region, 0)), word.wrapping_add(5));
    world.verify()
}
