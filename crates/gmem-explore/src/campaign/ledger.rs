//! What memory must contain and who may touch it, while several threads of control change both.
//!
//! Control passes only at yield points, so there is one order of all accesses, and the ledger follows it: a store is entered at the moment it is made, a load is
//! compared at the moment it ends. What an operation does in the middle of its time cannot be told from outside; while one that changes rights is under way,
//! both answers are right, and a page that is being discarded may become zero once, which is seen after the step in which it does.

#[cfg(test)]
mod tests;

use gmem_hal::{Access, Backing, Mode, Prot};
use gmem_sim::random::{PageRun, Shape, Spot};

/// A point in time, in steps.
pub(super) type Step = u64;

/// Whether something is so. It takes time to change, and meanwhile it is open.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// `None` while it changes.
    now: Option<bool>,
    /// When it was last not false, and not true.
    last: [Step; 2],
}

const NEVER: Step = 0;

impl Fact {
    const FALSE: Fact = Fact { now: Some(false), last: [NEVER; 2] };

    /// It is so, or not, or is changing, from `now` on.
    fn set(&mut self, so: Option<bool>, now: Step) {
        match self.now {
            Some(was) => self.last[usize::from(was)] = now,
            None => self.last = [now; 2],
        }
        self.now = so;
    }

    /// Whether it could be `so` at a moment since `since`.
    pub fn could_be(&self, so: bool, since: Step) -> bool {
        self.now.is_none_or(|now| now == so) || self.last[usize::from(so)] >= since.max(1)
    }

    /// Whether it is so for certain.
    pub fn is(&self) -> bool {
        self.now == Some(true)
    }
}

/// A store that is nobody's: the core may take the bytes from where it went, or from where it did not.
#[derive(Clone, Debug)]
struct Stray {
    spot: Spot,
    fill: u8,
    /// What was there.
    before: Vec<u8>,
}

impl Stray {
    /// Whether a byte can be as it is because of this, or because it was in vain.
    fn explains(&self, at: u64, byte: u8) -> bool {
        let inside = (self.spot.offset..self.spot.offset + self.spot.len).contains(&at);
        inside && (byte == self.fill ^ (at as u8) ^ ((at >> 8) as u8) || byte == self.before[(at - self.spot.offset) as usize])
    }
}

/// One page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its bytes; none is all zeros.
    bytes: Option<Box<[u8]>>,
    /// Its region's number; 0: none.
    region: u32,
    prot: Prot,
    /// The backing of its region.
    pub backing: Backing,
    may: [Fact; 2],
    /// A thread of control changes what is mapped here, or how.
    pub changing: bool,
    /// It is being unmapped: until that ends, what is here is nobody's.
    pub unmapping: bool,
    /// How many discards of it are under way.
    discards: u32,
    /// How many of them may still make it zero: each does once.
    zeroings: u32,
    /// Since when its bytes are lost with a device: until it is discarded or unmapped, every access to it must end with an error.
    lost: Option<Step>,
    last_zero: Step,
    /// Stores of contexts that the core had given up, as long as the page may be where they went.
    strays: Vec<Stray>,
    /// How often the kernel holds it, and when it last did.
    pub held: u32,
    last_held: Step,
    /// About how often the program pinned it.
    pub pins: u32,
}

impl Page {
    fn new() -> Self {
        Self {
            bytes: None,
            region: 0,
            prot: Prot::empty(),
            backing: Backing::Shared,
            may: [Fact::FALSE; 2],
            changing: false,
            unmapping: false,
            discards: 0,
            zeroings: 0,
            lost: None,
            last_zero: NEVER,
            strays: Vec::new(),
            held: 0,
            last_held: NEVER,
            pins: 0,
        }
    }

    /// Its bytes; none is all zeros.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// Whether it is mapped, and nobody is changing that.
    pub fn is_mapped(&self) -> bool {
        self.region != 0 && !self.changing
    }

    /// What anybody can be allowed there: while that changes, all.
    pub fn most(&self) -> Prot {
        if self.changing { Prot::RW } else { self.prot }
    }

    /// Whether it may be touched like this.
    pub fn may(&self, access: Access) -> &Fact {
        &self.may[usize::from(access == Access::Write)]
    }

    /// Whether the kernel held it at a moment since `since`.
    pub fn was_held(&self, since: Step) -> bool {
        self.held > 0 || self.last_held >= since.max(1)
    }

    /// Whether a byte of it can be this.
    fn may_hold(&self, at: u64, byte: u8) -> bool {
        self.bytes().map_or(0, |bytes| bytes[at as usize]) == byte || self.strays.iter().any(|stray| stray.explains(at, byte))
    }

    fn allow(&mut self, prot: Option<Prot>, now: Step) {
        for access in [Access::Read, Access::Write] {
            self.may[usize::from(access == Access::Write)].set(prot.map(|prot| prot.allows(access)), now);
        }
    }
}

/// One context.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Whether the device is attached.
    pub attached: Fact,
    /// How many calls that change it are under way.
    changers: u32,
    /// How many there were.
    pub changes: u64,
    /// How it was last attached.
    pub mode: Option<Mode>,
}

/// The ledger of a world.
pub struct Ledger {
    /// The world's size.
    pub shape: Shape,
    /// By address space, then by number.
    pub pages: Vec<Vec<Page>>,
    /// By address space, then by device.
    pub links: Vec<Vec<Link>>,
    /// Devices that are in the machine.
    pub present: Vec<bool>,
    /// How many steps were made.
    pub now: Step,
    /// Pages whose bytes changed here since the auditor last looked.
    pub touched: Vec<(usize, usize)>,
    /// How often a page was lost with a device.
    pub losses: u64,
    regions: u32,
}

impl Ledger {
    /// Of a world in which nothing has happened.
    pub fn new(shape: &Shape) -> Self {
        let link = Link { attached: Fact::FALSE, changers: 0, changes: 0, mode: None };
        Self {
            pages: shape.spaces.iter().map(|space| vec![Page::new(); space.pages as usize]).collect(),
            links: vec![vec![link; shape.devices.len()]; shape.spaces.len()],
            present: vec![true; shape.devices.len()],
            shape: shape.clone(),
            now: 1,
            touched: Vec::new(),
            losses: 0,
            regions: 0,
        }
    }

    /// One page.
    pub fn page(&self, spot: &Spot) -> &Page {
        &self.pages[spot.space][spot.page as usize]
    }

    /// Some pages.
    pub fn run(&self, run: &PageRun) -> &[Page] {
        &self.pages[run.space][run.first as usize..(run.first + run.count) as usize]
    }

    fn run_mut(&mut self, run: &PageRun) -> &mut [Page] {
        &mut self.pages[run.space][run.first as usize..(run.first + run.count) as usize]
    }

    /// Whether the run is a part of one region that nobody changes.
    pub fn is_one_region(&self, run: &PageRun) -> bool {
        let region = self.run(run)[0].region;
        region != 0 && self.run(run).iter().all(|page| page.region == region && !page.changing)
    }

    /// Whether the run is free and nobody is about to map something there, and its pages have one size.
    pub fn is_free(&self, run: &PageRun) -> bool {
        self.shape.is_of_one_size(run) && self.run(run).iter().all(|page| page.region == 0 && !page.changing)
    }

    /// A call begins that changes what these pages are.
    pub fn begin_change(&mut self, run: &PageRun, unmapping: bool) {
        let now = self.now;
        for page in self.run_mut(run) {
            (page.changing, page.unmapping) = (true, unmapping);
            page.allow(None, now);
        }
    }

    /// It has ended, and the pages are as before.
    pub fn end_unchanged(&mut self, run: &PageRun) {
        let now = self.now;
        for page in self.run_mut(run) {
            (page.changing, page.unmapping) = (false, false);
            let prot = if page.region == 0 { Prot::empty() } else { page.prot };
            page.allow(Some(prot), now);
        }
        // While it was being unmapped it could be anything.
        self.touch(run);
    }

    /// It has ended: a region is mapped here.
    pub fn end_map(&mut self, run: &PageRun, prot: Prot, backing: Backing) {
        self.regions += 1;
        let (now, region) = (self.now, self.regions);
        for page in self.run_mut(run) {
            // The region was there for others before the call ended: what they did to it counts.
            (page.region, page.prot, page.backing, page.changing) = (region, prot, backing, false);
            page.allow(Some(prot), now);
        }
        self.touch(run);
    }

    /// It has ended: nothing is mapped here.
    pub fn end_unmap(&mut self, run: &PageRun) {
        let now = self.now;
        for page in self.run_mut(run) {
            let last_held = if page.held > 0 { now } else { page.last_held };
            // A discard that has not come to the page yet finds what is mapped there then.
            let Page { may, discards, zeroings, .. } = *page;
            *page = Page { may, discards, zeroings, last_held, last_zero: now, ..Page::new() };
            page.allow(Some(Prot::empty()), now);
        }
        self.touch(run);
    }

    /// It has ended: the pages allow this.
    pub fn end_protect(&mut self, run: &PageRun, prot: Prot) {
        self.run_mut(run).iter_mut().for_each(|page| page.prot = prot);
        self.end_unchanged(run);
    }

    fn touch(&mut self, run: &PageRun) {
        self.touched.extend((run.first..run.first + run.count).map(|page| (run.space, page as usize)));
    }

    /// A store was made.
    pub fn store(&mut self, spot: &Spot, fill: u8) {
        let size = self.shape.size_of(spot.space, spot.page).bytes() as usize;
        let page = &mut self.pages[spot.space][spot.page as usize];
        let bytes = page.bytes.get_or_insert_with(|| vec![0; size].into_boxed_slice());
        for (byte, at) in bytes[spot.offset as usize..].iter_mut().zip(spot.offset..spot.offset + spot.len) {
            *byte = fill ^ (at as u8) ^ ((at >> 8) as u8);
        }
        self.touched.push((spot.space, spot.page as usize));
    }

    /// A store was made by a context that the core had given up: it may have been made to the page.
    pub fn stray_store(&mut self, spot: &Spot, fill: u8) {
        let page = &mut self.pages[spot.space][spot.page as usize];
        let range = spot.offset as usize..(spot.offset + spot.len) as usize;
        let before = page.bytes().map_or(vec![0; spot.len as usize], |bytes| bytes[range].to_vec());
        page.strays.push(Stray { spot: *spot, fill, before });
        self.touched.push((spot.space, spot.page as usize));
    }

    /// Whether stores strayed that may have been made to the page.
    pub fn has_strays(&self, space: usize, page: usize) -> bool {
        !self.pages[space][page].strays.is_empty()
    }

    /// The auditor saw these bytes in a page that is idle: whether stray stores explain them, which then are what is there.
    pub fn became(&mut self, space: usize, page: usize, bytes: &[u8]) -> bool {
        let now = self.now;
        let page = &mut self.pages[space][page];
        let right = (0..).zip(bytes).all(|(at, byte)| page.may_hold(at, *byte));
        if right && bytes.iter().all(|byte| *byte == 0) {
            (page.bytes, page.last_zero) = (None, now);
        } else if right {
            page.bytes = Some(bytes.into());
        }
        right
    }

    /// The page is where nothing strays to.
    pub fn settled(&mut self, space: usize, page: usize) {
        self.pages[space][page].strays.clear();
    }

    /// A load was made: whether it loaded what is there.
    pub fn load(&self, spot: &Spot, loaded: &[u8]) -> Result<(), String> {
        if self.page(spot).lost.is_some() && !self.page(spot).unmapping {
            return Err(format!("page {} of space {} was loaded, but its bytes are lost", spot.page, spot.space));
        }
        let right = |at: u64| self.page(spot).bytes().map_or(0, |bytes| bytes[at as usize]);
        let wrong = (spot.offset..).zip(loaded).find(|(at, byte)| !self.page(spot).may_hold(*at, **byte));
        match wrong {
            // While it is being unmapped, whoever still has the page may see it, or what a discard made of it.
            _ if self.page(spot).unmapping => Ok(()),
            None => Ok(()),
            Some((at, byte)) => Err(format!(
                "byte {at:#x} of page {} of space {} was loaded as {byte:#04x}, but is {:#04x}",
                spot.page,
                spot.space,
                right(at)
            )),
        }
    }

    /// The auditor saw that the page is only in memory that died: its bytes are lost.
    pub fn lose(&mut self, space: usize, page: usize) {
        let now = self.now;
        let page = &mut self.pages[space][page];
        if page.lost.is_none() {
            self.losses += 1;
        }
        page.lost.get_or_insert(now);
        page.bytes = None;
        page.strays.clear();
    }

    /// Whether the bytes of the page are lost.
    pub fn is_lost(&self, space: usize, page: usize) -> bool {
        self.pages[space][page].lost.is_some()
    }

    /// The auditor saw that a page is somewhere whose bytes were lost: whether a discard can have brought it back, as zeros, or it is being unmapped.
    pub fn came_back(&mut self, space: usize, page: usize) -> bool {
        let now = self.now;
        let page = &mut self.pages[space][page];
        if page.unmapping {
            return true;
        }
        if page.lost.is_some() && page.zeroings > 0 {
            page.zeroings -= 1;
            (page.lost, page.last_zero) = (None, now);
        }
        page.lost.is_none()
    }

    /// A discard begins. Answers the time, for [`Ledger::end_discard`].
    pub fn begin_discard(&mut self, run: &PageRun) -> Step {
        let now = self.now;
        for page in self.run_mut(run) {
            page.discards += 1;
            page.zeroings += 1;
            if page.bytes.is_none() {
                page.last_zero = now;
            }
        }
        now
    }

    /// It has ended; if it was done, every page must have been zero meanwhile.
    pub fn end_discard(&mut self, run: &PageRun, since: Step, done: bool) -> Result<(), String> {
        let mut first = None;
        for (at, page) in (run.first..).zip(self.run_mut(run)) {
            // It may have been unmapped meanwhile, which ends the discard of what was there.
            page.discards = page.discards.saturating_sub(1);
            page.zeroings = page.zeroings.min(page.discards);
            // The auditor sees no change in a page to which only zeros were stored.
            let holds = || page.bytes().is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
            let kept = || page.last_zero < since && holds() || page.lost.is_some_and(|lost| lost <= since);
            if done && !page.unmapping && kept() {
                first = first.or(Some(at));
            }
        }
        first.map_or(Ok(()), |page| Err(format!("page {page} of space {} was discarded, but is as before", run.space)))
    }

    /// The auditor saw that a page is zero which was not: whether a discard can have made it so.
    pub fn became_zero(&mut self, space: usize, page: usize) -> bool {
        let now = self.now;
        let page = &mut self.pages[space][page];
        if page.zeroings == 0 {
            return false;
        }
        // While it is being unmapped that may have done it, and a discard still comes to what is mapped next.
        page.zeroings -= u32::from(!page.unmapping);
        page.bytes = None;
        page.last_zero = now;
        true
    }

    /// The kernel holds the page once more.
    pub fn hold(&mut self, spot: &Spot) {
        self.pages[spot.space][spot.page as usize].held += 1;
    }

    /// The kernel holds the page once less.
    pub fn unhold(&mut self, spot: &Spot) {
        let now = self.now;
        let page = &mut self.pages[spot.space][spot.page as usize];
        page.held = page.held.saturating_sub(1);
        page.last_held = now;
    }

    /// The program pinned pages, or took pins back.
    pub fn pin(&mut self, run: &PageRun, add: bool) {
        for page in self.run_mut(run) {
            page.pins = if add { page.pins + 1 } else { page.pins.saturating_sub(1) };
        }
    }

    /// A call begins that changes whether a device is attached.
    pub fn begin_link(&mut self, space: usize, device: usize) {
        let now = self.now;
        let link = &mut self.links[space][device];
        link.changers += 1;
        link.changes += 1;
        link.attached.set(None, now);
    }

    /// It has ended. If no other is under way, it is known from now on whether it is: `attached`.
    pub fn end_link(&mut self, space: usize, device: usize, attached: bool) {
        let now = self.now;
        let link = &mut self.links[space][device];
        link.changers -= 1;
        link.changes += 1;
        if link.changers == 0 {
            link.attached.set(Some(attached), now);
        }
    }

    /// Whether a device could be attached to the address space as a replica at a moment since `since`.
    pub fn could_have_replica(&self, space: usize, since: Step) -> bool {
        let links = self.links[space].iter().zip(&self.shape.devices);
        links.into_iter().any(|(link, modes)| modes.contains(&Mode::Replicate) && link.attached.could_be(true, since))
    }

    /// Whether only one call that changes it is under way.
    pub fn is_only_changer(&self, space: usize, device: usize) -> bool {
        self.links[space][device].changers == 1
    }
}
