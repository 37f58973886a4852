//! The accelerators that gmem ships, as subjects.

mod bytes;
mod kernels;

use crate::subject::{Cannot, Shape, Storing, Subject, fault_of};
use crate::target::Target;
use bytes::Bytes;
use gmem::hal::FaultError;
use gmem::{Access, Args, ByteLen, Context, Kernel, PageSize, VirtAddr, accel};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The software accelerator in a process of its own, in every shape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discrete;

/// The software accelerator that walks the CPU's page table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Integrated;

/// The names of the targets that [`shipped`] makes.
pub const SHIPPED: [&str; 4] = ["discrete", "discrete-no-replay", "peer", "integrated"];

/// The shipped target of this name, or all of them for `"all"`; none for any other name.
///
/// # Panics
/// If the system refuses the memory or the descriptors for one.
pub fn shipped(name: &str) -> Vec<Target> {
    let make = |name: &str| match name {
        "discrete-no-replay" => Target::new(name, Arc::new(Discrete), false, false),
        "peer" => Target::new(name, Arc::new(Discrete), true, true),
        "integrated" => Target::new(name, Arc::new(Integrated), true, false),
        _ => Target::new(name, Arc::new(Discrete), true, false),
    };
    let named = SHIPPED.iter().filter(|one| name == "all" || name == **one);
    named.map(|name| make(name).unwrap_or_else(|cannot| panic!("{name} has this shape: {}", cannot.0))).collect()
}

impl Subject for Discrete {
    type Driver = accel::Discrete;

    fn name(&self) -> String {
        "discrete".to_owned()
    }

    fn device(&self, shape: &Shape) -> Result<Arc<accel::Discrete>, Cannot> {
        let builder = accel::Discrete::builder().memory(shape.memory).cores(1).replay(shape.replay).peer(shape.peer);
        if shape.memory == 0 || !shape.memory.is_multiple_of(PageSize::Size4K.bytes()) {
            return Err(Cannot("its memory must be a positive multiple of 4 KiB"));
        }
        Ok(builder.build().unwrap_or_else(|error| panic!("the accelerator cannot be built: {error}")))
    }

    fn read(&self, _: &accel::Discrete, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        read(context, va, bytes)
    }

    fn write(&self, _: &accel::Discrete, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        write(context, va, bytes)
    }

    fn add(&self, _: &accel::Discrete, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        launch(context, &kernels::ADD, va, 8, Access::Write, [n, 0, 0])
    }

    fn store_on(&self, _: &accel::Discrete, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError> {
        store_on(context, va, storing)
    }

    fn kill(&self, driver: &accel::Discrete, context: &Context) -> bool {
        let process = context.pmap().and_then(|pmap| driver.process(pmap)).and_then(|pid| i32::try_from(pid).ok());
        // SAFETY: sends a signal to a process of the device, which its driver reaps only once it has told of its end.
        process.is_some_and(|pid| unsafe { libc::kill(pid, libc::SIGKILL) } == 0)
    }
}

impl Subject for Integrated {
    type Driver = accel::Integrated;

    fn name(&self) -> String {
        "integrated".to_owned()
    }

    fn device(&self, shape: &Shape) -> Result<Arc<accel::Integrated>, Cannot> {
        if !shape.replay || shape.peer {
            return Err(Cannot("its faults are the CPU's own: always replayed, and no peer's"));
        }
        Ok(accel::Integrated::builder().cores(1).build().unwrap_or_else(|error| panic!("the accelerator cannot be built: {error}")))
    }

    fn read(&self, _: &accel::Integrated, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        read(context, va, bytes)
    }

    fn write(&self, _: &accel::Integrated, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        write(context, va, bytes)
    }

    fn add(&self, _: &accel::Integrated, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        launch(context, &kernels::ADD, va, 8, Access::Write, [n, 0, 0])
    }

    fn store_on(&self, _: &accel::Integrated, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError> {
        store_on(context, va, storing)
    }
}

/// The kernel has no memory but unified memory, which must stay as it is: the bytes travel by an object that both processes open.
fn read(context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
    let object = Bytes::of_len(bytes.len());
    launch(context, &kernels::READ, va, bytes.len(), Access::Read, object.words(bytes.len()))?;
    object.read(bytes);
    Ok(())
}

fn write(context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
    let object = Bytes::holding(bytes);
    launch(context, &kernels::WRITE, va, bytes.len(), Access::Write, object.words(bytes.len()))
}

/// One kernel, beside which a thread carries word between its object and `storing`.
fn store_on(context: &Context, va: VirtAddr, storing: &Storing) -> Result<(), FaultError> {
    let (object, ended) = (Bytes::of_len(16), AtomicBool::new(false));
    storing.tell_ahead(kernels::TELL);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                storing.tell(object.word(0));
                object.set_word(1, u64::from(storing.is_over()));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let stored = launch(context, &kernels::STORE_ON, va, 8, Access::Write, object.words(0));
        ended.store(true, Ordering::Release);
        // What the kernel said since the thread last looked.
        storing.tell(object.word(0));
        stored
    })
}

fn launch(context: &Context, kernel: &Kernel, va: VirtAddr, len: usize, access: Access, words: [u64; 3]) -> Result<(), FaultError> {
    let args = words.into_iter().fold(Args::new().number(va.get()), |args, word| args.number(word));
    // SAFETY: the kernels take these numbers and touch the `len` bytes at `va`. A device that cannot replay is told of them without a Rust reference, since
    // nothing may be mapped there, which is then its fault.
    unsafe { context.run(kernel, args.range(va, ByteLen(len as u64), access)) }.map_err(fault_of)
}
