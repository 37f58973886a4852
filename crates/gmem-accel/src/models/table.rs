//! The table that faults look contexts up in, while these come and go.

use super::Both;
use crate::context::Context;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::table::Table;
use gmem_hal::PmapId;
use gmem_loom::{model, model_within, together};
use std::sync::Arc;

/// A table, and whether the context that was in it first is gone for its users.
struct Tables {
    table: Table,
    gone: AtomicU32,
    context: Arc<Context>,
}

impl Tables {
    fn new() -> (Arc<Self>, PmapId) {
        let table = Table::new();
        let pmap = table.reserve().expect("it is empty");
        let context = Both::new(0).context.clone();
        table.insert(pmap, context.clone());
        (Arc::new(Self { table, gone: AtomicU32::default(), context }), pmap)
    }

    /// Uses the first context, if it is there.
    fn look(&self, pmap: PmapId) -> bool {
        let found = self.table.with(pmap, |_| assert_eq!(self.gone.load(SeqCst), 0, "a context was found that is gone"));
        found.is_some()
    }

    /// Takes the first context out, which then may be freed.
    fn free(&self, pmap: PmapId) -> bool {
        let taken = self.table.remove(pmap).is_some();
        if taken {
            self.gone.store(1, SeqCst);
        }
        taken
    }
}

#[test]
fn loom_nobody_uses_a_context_that_was_taken_out() {
    model(|| {
        let (tables, pmap) = Tables::new();
        together(
            &tables,
            vec![Box::new(move |t| _ = t.look(pmap)), Box::new(move |t| _ = t.look(pmap)), Box::new(move |t| assert!(t.free(pmap)))],
        );
        assert!(!tables.look(pmap));
        assert_eq!(Arc::strong_count(&tables.context), 1, "a context was kept or dropped twice");
    });
}

#[test]
fn loom_of_two_who_take_a_context_out_one_gets_it() {
    model(|| {
        let (tables, pmap) = Tables::new();
        let taken = Arc::new((tables.clone(), AtomicU32::default()));
        let take = move |(tables, taken): &(Arc<Tables>, AtomicU32)| {
            taken.fetch_add(u32::from(tables.free(pmap)), Relaxed);
        };
        together(&taken, vec![Box::new(take), Box::new(take), Box::new(move |(t, _)| _ = t.look(pmap))]);
        assert_eq!(taken.1.load(Relaxed), 1);
    });
}

#[test]
fn loom_a_place_that_is_used_again_is_not_found_by_the_old_id() {
    model_within(2, || {
        let (tables, old) = Tables::new();
        together(
            &tables,
            vec![
                Box::new(move |t| _ = t.look(old)),
                Box::new(move |t| {
                    assert!(t.free(old));
                    let new = t.table.reserve().expect("there is room");
                    assert_ne!(new, old);
                    t.table.insert(new, t.context.clone());
                    assert_eq!(t.table.with(new, |_| ()), Some(()));
                    assert!(!t.look(old));
                }),
            ],
        );
    });
}
