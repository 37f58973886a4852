//! The integrated device.

use crate::common::*;
use gmem_accel::{Integrated, kernel};
use gmem_hal::*;
use std::sync::{Arc, Weak};

struct NoCore;

impl Upcalls for NoCore {
    fn device_fault(&self, _: DeviceId, _: PmapId, _: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        panic!("an integrated device has no faults of its own");
    }

    fn device_evict(&self, _: DeviceId, _: PmapId, _: VirtRange) -> EvictOutcome {
        panic!("an integrated device has no memory");
    }

    fn device_lost(&self, _: DeviceId, _: PmapId) {}

    fn host_fault(&self, _: VirtAddr, _: Access, _: bool) -> HostFault {
        HostFault::NotOurs
    }
}

fn started(cores: usize) -> Arc<Integrated> {
    let device = Integrated::builder().cores(cores).build().unwrap();
    device.start(DEVICE, Weak::<NoCore>::new()).unwrap();
    device
}

fn launch(device: &Integrated, kernel: &str, args: &[u64]) -> Result<(), LaunchError> {
    let compute = device.compute().unwrap();
    compute.wait(compute.start(&LaunchRequest { pmap: None, kernel, args, replay: true })?)
}

kernel!(MASK = "mask", |_, args| {
    let mut mask: libc::sigset_t = core::mem::zeroed();
    libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut mask);
    *(args[0] as *mut u64) =
        u64::from(libc::sigismember(&mask, libc::SIGSEGV) == 1) | u64::from(libc::sigismember(&mask, libc::SIGINT) == 1) << 1;
});

#[test]
fn kernels_run_on_the_programs_own_memory() {
    let _dog = watchdog("integrated");
    let device = started(2);
    assert_eq!((device.info().modes, device.info().mmu_cookie), (Modes::SHARE, DeviceInfo::CPU_COOKIE));
    let (a, b, mut c) = (vec![3u64; 1000], vec![4u64; 1000], vec![0u64; 1000]);
    launch(&device, "vector-add", &[a.as_ptr() as u64, b.as_ptr() as u64, c.as_mut_ptr() as u64, 1000]).unwrap();
    assert!(c.iter().all(|x| *x == 7));
    let mut word = 1u64;
    let at = &raw mut word as u64;
    let compute = device.compute().unwrap();
    let start = |kernel, args: &[u64]| compute.start(&LaunchRequest { pmap: None, kernel, args, replay: true }).unwrap();
    let tickets: Vec<_> = (0..50).flat_map(|i| [start("store", &[at, i]), start("increment", &[at, 1000])]).collect();
    tickets.into_iter().for_each(|t| compute.wait(t).unwrap());
    assert_eq!(word, 1049);
    launch(&device, "mask", &[at]).unwrap();
    assert_eq!(word, 2, "SIGSEGV reaches a core, SIGINT does not");
}

#[test]
fn what_goes_wrong_is_said() {
    let _dog = watchdog("integrated errors");
    let device = started(2);
    assert_eq!(launch(&device, "no such kernel", &[]), Err(LaunchError::UnknownKernel));
    assert_eq!(launch(&device, "nothing", &[0; 17]), Err(LaunchError::TooManyArgs { given: 17, most: 16 }));
    assert_eq!(launch(&device, "panic", &[7]), Err(LaunchError::Panicked("a kernel panics, as the test wants: 7".into())));
    assert_eq!(launch(&device, "panic-with", &[]), Err(LaunchError::Panicked(String::new())));
    launch(&device, "nothing", &[]).unwrap();
    assert_eq!(device.compute().unwrap().wait(Ticket(2)), Err(LaunchError::BadRequest), "a ticket is good once");
    let range = VirtRange::from_len(VirtAddr::new(START), ByteLen(PAGE)).unwrap();
    let request = PmapRequest { space: SpaceId(0), range, mode: Mode::Share, host: None };
    assert_eq!(device.mmu().pmap_create(&request), Err(DeviceError::Unsupported));
    device.stop();
    assert_eq!(launch(&device, "nothing", &[]), Err(LaunchError::Device(DeviceError::Dead)));
}
