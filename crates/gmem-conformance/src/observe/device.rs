//! The calls on the device as a whole.

use super::relay::Relay;
use super::{Observed, rules};
use gmem::hal::{Compute, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, Frames, HnodeId, Mmu, Peer, PhysRange, PmapId, Upcalls};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};

impl Observed {
    /// Has the driver stop a context by force, of which the core does not know: what is then answered in its name, or said of it by
    /// [`Upcalls::device_lost`], is the driver's to know.
    ///
    /// # Errors
    /// The driver's, if it cannot.
    pub fn stop_by_force(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.fence_once(pmap)?;
        self.shadow().died(pmap);
        Ok(())
    }

    /// Starts the driver once more, for another core as it seems to it. `None` before the device is started, or after it was stopped.
    pub fn start_again(&self) -> Option<Result<(), DeviceError>> {
        let (DeviceId(id), core) = self.upcalls()?;
        Some(self.inner.start(DeviceId(id + 1), Arc::downgrade(&core)))
    }

    /// Has the driver fence a context, which is asked of it once: who asks again, the core after [`Observed::stop_by_force`], has the first answer again.
    fn fence_once(&self, pmap: PmapId) -> Result<(), DeviceError> {
        if let Some(table) = self.shadow().tables.get_mut(&pmap) {
            // Until it answers, it has not answered.
            let first = table.fence_answer.replace(Err(DeviceError::NoAnswer));
            if let Some(answer) = first {
                table.fence_answer = first;
                return answer;
            }
        }
        let answer = self.inner.fence(pmap);
        if let Some(table) = self.shadow().tables.get_mut(&pmap) {
            table.fence_answer = Some(answer);
        }
        answer
    }
}

impl Device for Observed {
    fn info(&self) -> &DeviceInfo {
        let info = self.inner.info();
        let mut shadow = self.shadow();
        match &shadow.info {
            None => shadow.info = Some(info.clone()),
            Some(first) if first == info => {}
            Some(first) => {
                let seen = format!("{info:?}, at first {first:?}");
                shadow.breach(rules::FACTS, seen);
            }
        }
        info
    }

    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        {
            let mut shadow = self.shadow();
            if shadow.started {
                shadow.breach(rules::START_FIRST, "it was started before");
            }
            shadow.started = true;
            shadow.core = Some((id, upcalls.clone()));
        }
        let relay = self.relay.get_or_init(|| Relay::of(&upcalls, id, self.me.clone()));
        let relay: Weak<Relay> = Arc::downgrade(relay);
        let me = self.me.clone();
        // Without a thread to watch, lateness is noticed when the callback returns.
        let _watch = std::thread::Builder::new().name("gmem-observer".into()).spawn(move || Self::watch(me));
        let (calls, jobs) = channel::<super::Job>();
        let work = move || jobs.into_iter().for_each(|job| job());
        if std::thread::Builder::new().name("gmem-observer".into()).spawn(work).is_ok() {
            self.set_calls(Some(calls));
        }
        self.told_if_it_panics("start", || self.inner.start(id, relay as Weak<dyn Upcalls>))
    }

    fn physical_memory(&self) -> Vec<PhysRange> {
        self.inner.physical_memory()
    }

    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| shadow.memory.push((hnode, range));
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            if answer.is_err() {
                shadow.memory.retain(|(id, _)| *id != hnode);
            }
        };
        self.pass("memory_registered", None, before, || self.inner.memory_registered(hnode, range), after)
    }

    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        let after = |shadow: &mut super::Shadow, (): &()| shadow.memory.retain(|(id, _)| *id != hnode);
        self.pass("memory_unregistered", None, |_| {}, || self.inner.memory_unregistered(hnode, range), after);
    }

    fn stop(&self) {
        self.set_calls(None);
        self.inner.stop();
        let mut shadow = self.shadow();
        if shadow.stopped {
            shadow.breach(rules::STOP_LAST, "it was stopped before");
        }
        if let Some(call) = shadow.calls.first().map(|call| call.name) {
            shadow.breach(rules::STOP_LAST, format_args!("{call} is still under way"));
        }
        let left: Vec<_> = shadow.tables.iter().filter(|(_, table)| !table.destroyed).map(|(pmap, _)| *pmap).collect();
        if !left.is_empty() {
            shadow.breach(rules::DESTROY_EACH, format_args!("{left:?} are left"));
        }
        shadow.stopped = true;
    }

    fn mmu(&self) -> &dyn Mmu {
        self
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.inner.peer().is_some().then_some(self)
    }

    fn frames(&self) -> Option<&dyn Frames> {
        self.inner.frames().is_some().then_some(self)
    }

    fn compute(&self) -> Option<&dyn Compute> {
        self.inner.compute()
    }

    fn switch_context(&self, pmap: Option<PmapId>) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            if let Some(pmap) = pmap.filter(|pmap| !shadow.tables.contains_key(pmap)) {
                shadow.breach(rules::KNOWN_PMAP, format_args!("switch_context to {pmap}"));
            }
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            if answer.is_ok() {
                shadow.current = pmap;
            }
        };
        self.pass("switch_context", None, before, || self.refuse("switch_context").and_then(|()| self.inner.switch_context(pmap)), after)
    }

    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| match shadow.tables.get_mut(&pmap) {
            Some(table) => {
                table.fenced = true;
                if std::mem::replace(&mut table.asked_to_stop, true) {
                    shadow.breach(rules::FENCE_ONCE, format_args!("{pmap} is fenced again"));
                }
            }
            None => shadow.breach(rules::KNOWN_PMAP, format_args!("fence names {pmap}")),
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            if answer.is_ok() {
                shadow.died(pmap);
            }
        };
        self.pass("fence", None, before, || self.refuse("fence").and_then(|()| self.fence_once(pmap)), after)
    }
}
