use gmem_conformance::{Cannot, Shape, Subject};

struct Proof;

impl Subject for Proof {
    type Driver = Toy;

    fn name(&self) -> String {
        "toy".into()
    }
    fn device(&self, shape: &Shape) -> Result<Arc<Toy>, Cannot> {
        match shape {
            Shape { replay: true, peer: false, memory } => Ok(Toy::new(*memory)),
            _ => Err(Cannot("it replays its accesses, and has no system of its own")),
        }
    }
    fn read(&self, toy: &Toy, context: &gmem::Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        let (pmap, len) = (context.pmap().ok_or(FaultError::NotAttached)?, bytes.len());
        let read = toy.run(move |toy| {
            let mut read = Vec::new();
            while read.len() < len {
                let (at, n) = piece(va, read.len(), len);
                // SAFETY: the bytes lie in one page, and are the device's to read while it holds its table.
                toy.touch(pmap, at, Access::Read, |at| read.extend_from_slice(unsafe { std::slice::from_raw_parts(at, n) }))?;
            }
            Ok::<_, FaultError>(read)
        })?;
        bytes.copy_from_slice(&read);
        Ok(())
    }
    fn write(&self, toy: &Toy, context: &gmem::Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        let (pmap, bytes) = (context.pmap().ok_or(FaultError::NotAttached)?, bytes.to_vec());
        toy.run(move |toy| {
            let mut done = 0;
            while done < bytes.len() {
                let (at, n) = piece(va, done, bytes.len());
                // SAFETY: the bytes lie in one page, and are the device's to write while it holds its table.
                toy.touch(pmap, at, Access::Write, |at| unsafe { at.copy_from_nonoverlapping(bytes[done..].as_ptr(), n) })?;
                done += n;
            }
            Ok(())
        })
    }
    fn add(&self, toy: &Toy, context: &gmem::Context, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        toy.add(context.pmap().ok_or(FaultError::NotAttached)?, va, n)
    }
}

/// Where byte `done` of `len` is, and how many there are from it to the end of its page.
fn piece(va: VirtAddr, done: usize, len: usize) -> (VirtAddr, usize) {
    let at = va.get() + done as u64;
    (VirtAddr::new(at), (4096 - at as usize % 4096).min(len - done))
}

gmem_conformance::main!(Proof);
