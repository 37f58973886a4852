//! A peer's wishes to evict.

use super::Both;
use crate::sync::atomic::Ordering;
use gmem_hal::{ByteLen, EvictOutcome, VirtAddr, VirtRange};
use gmem_loom::{model_within, together};

fn page(va: u64) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(va), ByteLen(0x1000)).expect("it does not wrap")
}

#[test]
fn loom_each_wish_gets_its_own_outcome_and_the_end_ends_the_thread() {
    model_within(1, || {
        let both = Both::new(0);
        let ask = |both: &Both, va: u64, outcome: EvictOutcome| {
            assert_eq!(both.context.evictor.ask(&both.context, page(va)), outcome);
            if both.draining.fetch_add(1, Ordering::AcqRel) == 1 {
                both.context.set_dead(|| {});
            }
        };
        together(
            &both,
            vec![
                Box::new(move |b| ask(b, 0x1000, EvictOutcome::Evicted)),
                Box::new(move |b| ask(b, 0x2000, EvictOutcome::NotThere)),
                Box::new(|both| {
                    both.context.evictor.serve(&both.context, &|_, range| match range.start().get() {
                        0x1000 => EvictOutcome::Evicted,
                        0x2000 => EvictOutcome::NotThere,
                        other => panic!("a wish for {other:#x} that nobody had"),
                    });
                }),
            ],
        );
    });
}
