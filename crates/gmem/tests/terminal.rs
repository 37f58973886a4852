//! On a terminal that stops whoever writes to it from the background (`stty tostop`), which device processes are in, they may say what they have to say.

mod common;

use common::*;
use gmem::Mode;
use std::ffi::CStr;

/// Makes this process the leader of a session of its own, on a terminal of its own that its messages go to. The end at which they come out stays open.
fn on_a_terminal_that_stops_the_background() {
    // SAFETY: plain calls on descriptors of this process, which is alone in it; the buffers are as long as is said.
    unsafe {
        assert!(libc::setsid() > 0);
        let ours = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        assert!(ours >= 0 && libc::grantpt(ours) == 0 && libc::unlockpt(ours) == 0);
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(ours, name.as_mut_ptr(), name.len()), 0);
        let terminal = libc::open(CStr::from_ptr(name.as_ptr()).as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        assert!(terminal >= 0 && libc::ioctl(terminal, libc::TIOCSCTTY, 0) == 0);
        let mut how: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal, &raw mut how), 0);
        how.c_lflag |= libc::TOSTOP;
        assert_eq!(libc::tcsetattr(terminal, libc::TCSANOW, &raw const how), 0);
        assert_eq!(libc::dup2(terminal, 2), 2);
    }
}

/// Makes this thread, and what it starts, find a kernel without filters for system calls.
fn without_filters() {
    let op = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_seccomp as u32, 0, 1),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is copied before the call returns.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn what_a_device_says_at_its_start_does_not_stop_it() {
    alone("what_a_device_says_at_its_start_does_not_stop_it", || {
        without_filters();
        on_a_terminal_that_stops_the_background();
        let world = World::new(gmem::accel::Discrete::builder().memory(4 * PAGE).cores(1), Mode::CoherentExclusive);
        let region = world.pages(1);
        world.run(&ADD, &[at(&region, 0), 5]).unwrap();
        assert_eq!(get(at(&region, 0)), 5);
    });
}
