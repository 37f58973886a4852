//! A right world passes, and each kind of wrong one is found.

use super::{Failure, Generator, Model, Op, Outcome, PageRun, Refusal, Shape, Spot, Tolerance, Weights, World, explore, replay, shrink};
use gmem_hal::{Access, Prot};

/// What is wrong with a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    LostWrite,
    StaleAfterUnmap,
    ProtectIgnored,
    WriteAfterDetach,
    DiscardKeeps,
    RefusesValid,
}

const DEFECTS: [Defect; 6] = [
    Defect::LostWrite,
    Defect::StaleAfterUnmap,
    Defect::ProtectIgnored,
    Defect::WriteAfterDetach,
    Defect::DiscardKeeps,
    Defect::RefusesValid,
];

/// Memory as flat as the model's, written another way: bytes of a whole space in one piece.
struct Flat {
    shape: Shape,
    bytes: Vec<Vec<u8>>,
    prot: Vec<Vec<Option<Prot>>>,
    pins: Vec<Vec<u32>>,
    attached: Vec<Vec<bool>>,
    defect: Defect,
}

impl Flat {
    fn new(shape: &Shape, defect: Defect) -> Self {
        let per_page = |n: u64| n as usize;
        Self {
            bytes: shape.spaces.iter().map(|s| vec![0; per_page(s.pages * shape.page_size.bytes())]).collect(),
            prot: shape.spaces.iter().map(|s| vec![None; per_page(s.pages)]).collect(),
            pins: shape.spaces.iter().map(|s| vec![0; per_page(s.pages)]).collect(),
            attached: vec![vec![false; shape.devices.len()]; shape.spaces.len()],
            shape: shape.clone(),
            defect,
        }
    }

    fn pages(run: &PageRun) -> std::ops::Range<usize> {
        run.first as usize..(run.first + run.count) as usize
    }

    fn zero(&mut self, run: &PageRun) {
        let size = self.shape.page_size.bytes() as usize;
        let pages = Self::pages(run);
        self.bytes[run.space][pages.start * size..pages.end * size].fill(0);
    }

    fn access(&mut self, spot: &Spot, access: Access, fill: u8) -> Outcome {
        let prot = self.prot[spot.space][spot.page as usize];
        let ignored = self.defect == Defect::ProtectIgnored && prot.is_some();
        if !prot.is_some_and(|prot| prot.allows(access)) && !ignored {
            return Outcome::Refused(Refusal::Invalid);
        }
        let from = (spot.page * self.shape.page_size.bytes() + spot.offset) as usize;
        let bytes = &mut self.bytes[spot.space][from..from + spot.len as usize];
        match access {
            Access::Read => Outcome::Loaded(bytes.to_vec()),
            Access::Write => {
                let lost = self.defect == Defect::LostWrite && fill % 16 == 3;
                if !lost {
                    bytes.copy_from_slice(&spot.bytes(fill));
                }
                Outcome::Done
            }
        }
    }

    fn device_access(&mut self, device: usize, spot: &Spot, access: Access, fill: u8) -> Outcome {
        let attached = self.attached[spot.space][device] || self.defect == Defect::WriteAfterDetach;
        if attached { self.access(spot, access, fill) } else { Outcome::Refused(Refusal::Invalid) }
    }

    fn map(&mut self, run: &PageRun, prot: Prot) -> Outcome {
        if self.prot[run.space][Self::pages(run)].iter().any(Option::is_some) {
            return Outcome::Refused(Refusal::Invalid);
        }
        self.prot[run.space][Self::pages(run)].fill(Some(prot));
        if self.defect != Defect::StaleAfterUnmap {
            self.zero(run);
        }
        Outcome::Done
    }
}

impl World for Flat {
    fn apply(&mut self, op: &Op) -> Outcome {
        let invalid = Outcome::Refused(Refusal::Invalid);
        match *op {
            Op::Map(run, prot, _) => self.map(&run, prot),
            Op::Unmap(run) => {
                self.prot[run.space][Self::pages(&run)].fill(None);
                self.pins[run.space][Self::pages(&run)].fill(0);
                Outcome::Done
            }
            Op::Protect(run, prot) => {
                self.prot[run.space][Self::pages(&run)].iter_mut().flatten().for_each(|p| *p = prot);
                Outcome::Done
            }
            Op::CpuRead(spot) | Op::CpuWrite(spot, _) if !self.shape.spaces[spot.space].cpu_visible => invalid,
            Op::CpuRead(spot) => self.access(&spot, Access::Read, 0),
            Op::CpuWrite(spot, fill) => self.access(&spot, Access::Write, fill),
            Op::DevRead(device, spot) => self.device_access(device, &spot, Access::Read, 0),
            Op::DevWrite(device, spot, fill) => self.device_access(device, &spot, Access::Write, fill),
            Op::Attach { space, device, .. } if self.attached[space][device] => invalid,
            Op::Attach { space, device, .. } => {
                self.attached[space][device] = true;
                Outcome::Done
            }
            Op::Detach(space, device) if !self.attached[space][device] => invalid,
            Op::Detach(space, device) => {
                self.attached[space][device] = false;
                Outcome::Done
            }
            Op::Discard(run) => {
                if self.defect != Defect::DiscardKeeps {
                    self.zero(&run);
                }
                Outcome::Done
            }
            Op::Pin(run) => {
                let mapped = self.prot[run.space].iter().map(Option::is_some);
                self.pins[run.space]
                    .iter_mut()
                    .zip(mapped)
                    .take(Self::pages(&run).end)
                    .skip(run.first as usize)
                    .for_each(|(p, m)| *p += u32::from(m));
                Outcome::Done
            }
            Op::Unpin(run) if self.pins[run.space][Self::pages(&run)].contains(&0) => invalid,
            Op::Unpin(run) => {
                self.pins[run.space][Self::pages(&run)].iter_mut().for_each(|p| *p -= 1);
                Outcome::Done
            }
            Op::Prefetch(run, Some(device)) if !self.attached[run.space][device] => invalid,
            Op::Evict(..) if self.defect == Defect::RefusesValid => Outcome::Refused(Refusal::NoRoom),
            Op::Evict(..) | Op::Prefetch(..) => Outcome::Done,
            Op::Switch(device, Some(space)) if !self.attached[space][device] => invalid,
            Op::Switch(..) => Outcome::Done,
            Op::Launch(..) | Op::Lose(..) | Op::Limit(..) | Op::Memory(_) | Op::KernelPin(_) | Op::KernelUnpin(_) => {
                unreachable!("no weight is on it")
            }
        }
    }
}

fn run(defect: Defect, seed: u64, steps: usize) -> (Vec<Op>, Result<Model, Box<Failure>>) {
    let shape = Shape::standard();
    let mut generator = Generator::new(seed, Weights::default());
    let mut ops = Vec::new();
    let result = explore(&mut Flat::new(&shape, defect), &shape, &mut generator, steps, Tolerance::default(), &mut ops);
    (ops, result)
}

#[test]
fn a_right_world_passes() {
    for seed in 0..20 {
        let model = run(Defect::None, seed, 3000).1.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        assert!(!model.sweep().is_empty(), "seed {seed} ended with nothing mapped: nothing was tested");
    }
}

#[test]
fn every_defect_is_found_and_told_in_a_few_operations() {
    let shape = Shape::standard();
    for defect in DEFECTS {
        let found = (0..20).map(|seed| run(defect, seed, 3000)).find(|(_, result)| result.is_err());
        let (ops, _) = found.unwrap_or_else(|| panic!("{defect:?} was not found"));
        let fails = |ops: &[Op]| replay(&mut Flat::new(&shape, defect), &shape, ops, Tolerance::default()).is_err();
        let short = shrink(ops, fails);
        assert!(short.len() <= 4, "{defect:?} takes {} operations: {short:#?}", short.len());
    }
}

#[test]
fn a_seed_gives_one_list_of_operations() {
    let draw = |seed| {
        let mut ops = run(Defect::None, seed, 50).0;
        ops.truncate(50);
        ops
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn refusals_are_excused_only_for_a_reason() {
    let mut model = Model::new(Shape::standard());
    let refused = Outcome::Refused(Refusal::Failed);
    assert!(model.judge(&Op::Evict(0, 1), &refused, Tolerance::default()).is_err());
    assert!(model.judge(&Op::Evict(0, 1), &refused, Tolerance { failures: true }).is_ok());
}
