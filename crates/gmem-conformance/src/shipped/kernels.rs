//! The kernels by which the software accelerators touch memory.
//!
//! A kernel may be ended at any access to unified memory, so nothing here holds an allocation or a descriptor over one: the object is opened for each piece that is copied.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much is copied at a time, by way of the kernel's stack.
const PIECE: usize = 4096;

// args: address, process, descriptor, length.
gmem::kernel!(pub(super) READ = "conformance-read", |grid, args| {
    if grid.worker == 0 {
        let from = args[0] as *const u8;
        for offset in (0..args[3] as usize).step_by(PIECE) {
            let mut piece = [0u8; PIECE];
            let len = PIECE.min(args[3] as usize - offset);
            from.add(offset).copy_to_nonoverlapping(piece.as_mut_ptr(), len);
            let fd = open(args[1], args[2]);
            let done = libc::pwrite(fd, piece.as_ptr().cast(), len, offset as i64);
            libc::close(fd);
            assert_eq!(done, len as isize, "the object takes what was read");
        }
    }
});

// args: address, process, descriptor, length.
gmem::kernel!(pub(super) WRITE = "conformance-write", |grid, args| {
    if grid.worker == 0 {
        let to = args[0] as *mut u8;
        for offset in (0..args[3] as usize).step_by(PIECE) {
            let mut piece = [0u8; PIECE];
            let len = PIECE.min(args[3] as usize - offset);
            let fd = open(args[1], args[2]);
            let done = libc::pread(fd, piece.as_mut_ptr().cast(), len, offset as i64);
            libc::close(fd);
            assert_eq!(done, len as isize, "the object holds what is to be written");
            to.add(offset).copy_from_nonoverlapping(piece.as_ptr(), len);
        }
    }
});

// args: address, number.
gmem::kernel!(pub(super) ADD = "conformance-add", |grid, args| {
    if grid.worker == 0 {
        AtomicU64::from_ptr(args[0] as *mut u64).fetch_add(args[1], Ordering::SeqCst);
    }
});

// args: address, process, descriptor. In the object: how far it is, and whether it is over.
gmem::kernel!(pub(super) STORE_ON = "conformance-store-on", |grid, args| {
    if grid.worker == 0 {
        let word = AtomicU64::from_ptr(args[0] as *mut u64);
        for number in 1u64.. {
            word.store(number, Ordering::Release);
            if number % TELL == 0 {
                let fd = open(args[1], args[2]);
                let told = libc::pwrite(fd, number.to_ne_bytes().as_ptr().cast(), 8, 0);
                let mut over = [0u8; 8];
                let asked = libc::pread(fd, over.as_mut_ptr().cast(), 8, 8);
                libc::close(fd);
                assert!(told == 8 && asked == 8, "the object has two words");
                if over != [0; 8] {
                    break;
                }
            }
        }
    }
});

/// After how many stores a kernel says how far it is.
pub(super) const TELL: u64 = 64;

/// Opens another process's memory object.
fn open(process: u64, descriptor: u64) -> i32 {
    let mut path = [0u8; 64];
    write!(&mut path[..63], "/proc/{process}/fd/{descriptor}").expect("the path fits");
    // SAFETY: the path ends with a zero.
    let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    assert!(fd >= 0, "the object of process {process} cannot be opened");
    fd
}
