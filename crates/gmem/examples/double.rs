//! A kernel that doubles numbers in memory four times larger than its device's.

use gmem::{Args, Gmem, Mode, accel};

gmem::kernel!(DOUBLE = "double", |grid, args| {
    let (data, len) = (args[0] as *mut u64, args[1] as usize);
    for i in grid.share(len) {
        *data.add(i) *= 2;
    }
});

fn main() -> Result<(), gmem::Error> {
    let gmem = Gmem::new()?;
    let device = gmem.add_device(accel::Discrete::builder().memory(8 << 20).build()?)?;
    let space = gmem.address_space().create()?;
    let context = space.attach(&device, Mode::CoherentExclusive)?;
    let mut data = space.vec::<u64>(4 << 20)?;
    data.iter_mut().enumerate().for_each(|(i, x)| *x = i as u64);
    let len = data.len();
    // SAFETY: `DOUBLE` takes the address and the number of 64-bit integers, which it reads and writes.
    unsafe { context.run(&DOUBLE, Args::new().write(&mut data).number(len as u64))? };
    assert!(data.iter().enumerate().all(|(i, x)| *x == 2 * i as u64));
    println!("{:#?}", gmem.stats());
    Ok(())
}
