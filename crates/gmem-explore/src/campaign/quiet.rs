//! Panics of a campaign are its findings: they are told by whoever ran it, and not as they come.

use std::cell::Cell;
use std::sync::Once;

thread_local! {
    static QUIET: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, panics of this thread print nothing.
pub(super) struct Quiet(());

/// Begins to be quiet.
pub(super) fn quiet() -> Quiet {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() == 0 {
                usual(info);
            }
        }));
    });
    QUIET.set(QUIET.get() + 1);
    Quiet(())
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(QUIET.get() - 1);
    }
}
