//! Several runs at once.

use crate::failure::Failure;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

/// Does `work` for each number below `count` on `jobs` threads, and gives the results to `take` in order, until it answers false. Those that come after that one in the
/// order may have been worked on, and are not given: what is seen does not depend on `jobs`.
///
/// # Errors
/// The system refused a thread; those that it had permitted ended with what they had in hand.
pub(crate) fn in_order<R: Send>(
    jobs: usize,
    count: u64,
    work: impl Fn(u64) -> R + Sync,
    mut take: impl FnMut(u64, R) -> bool,
) -> Result<(), Failure> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (send, work, next, stop) = (send.clone(), &work, &next, &stop);
            let life = move || {
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count || send.send((n, work(n))).is_err() {
                        return;
                    }
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, life) {
                stop.store(true, Ordering::Relaxed);
                return Err(Failure::while_doing("no thread for a job: ask for fewer --jobs, or allow more (ulimit -u)", error));
            }
        }
        drop(send);
        let mut waiting = BTreeMap::new();
        let mut wanted = 0;
        for (n, result) in receive {
            waiting.insert(n, result);
            while let Some(result) = waiting.remove(&wanted) {
                if !take(wanted, result) {
                    stop.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                wanted += 1;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn results_come_in_order_and_end_where_they_are_told_to() {
        for jobs in [1, 2, 5] {
            let mut seen = Vec::new();
            in_order(
                jobs,
                100,
                |n| n * n,
                |n, square| {
                    assert_eq!(square, n * n);
                    seen.push(n);
                    n < 40
                },
            )
            .expect("there are threads");
            assert_eq!(seen, (0..=40).collect::<Vec<_>>(), "{jobs} jobs");
        }
    }
}
