//! A map that is one sorted run of items, and never calls the allocator while it is used: room is made beforehand, with no lock held.
//!
//! The core's locks are taken on the fault path, and a program's thread may fault while it is inside the allocator. If whoever holds such a lock had
//! to wait for the allocator, the two would wait for each other.

use alloc::vec::Vec;
use gmem_hal::OutOfMemory;
use gmem_hal::lock_api::{Mutex, MutexGuard, RawMutex};

pub(crate) struct Sorted<K, V> {
    items: Vec<(K, V)>,
}

impl<K: Ord + Copy, V> Sorted<K, V> {
    /// Bytes that one item takes.
    pub(crate) const ITEM: usize = size_of::<(K, V)>();

    pub(crate) const fn new() -> Self {
        Self { items: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many items lie below `key`, which is the place of the first that does not.
    fn below(&self, key: K) -> usize {
        self.items.partition_point(|(k, _)| *k < key)
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.items.get(self.below(key)).filter(|(k, _)| *k == key).map(|(_, v)| v)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let at = self.below(key);
        self.items.get_mut(at).filter(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// The item with the largest key that is not above `key`.
    pub(crate) fn at_or_below(&self, key: K) -> Option<&V> {
        let end = self.items.partition_point(|(k, _)| *k <= key);
        self.items[..end].last().map(|(_, v)| v)
    }

    /// The items whose keys are not below `key`, in order.
    pub(crate) fn from(&self, key: K) -> impl Iterator<Item = (K, &V)> {
        self.items[self.below(key)..].iter().map(|(k, v)| (*k, v))
    }

    /// The items with keys in `[from, end)`, in order, to be changed.
    pub(crate) fn range_mut(&mut self, from: K, end: K) -> impl Iterator<Item = &mut V> {
        let (from, end) = (self.below(from), self.below(end));
        self.items[from..end.max(from)].iter_mut().map(|(_, v)| v)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.items.iter().map(|(_, v)| v)
    }

    /// Whether `extra` more items have room.
    pub(crate) fn has_room(&self, extra: usize) -> bool {
        self.items.capacity() - self.items.len() >= extra
    }

    /// Adds an item, or replaces the one of this key. Room was made for it.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let at = self.below(key);
        match self.items.get_mut(at) {
            Some((k, v)) if *k == key => *v = value,
            _ => {
                assert!(self.has_room(1), "no room was made for an item beside {} others", self.items.len());
                self.items.insert(at, (key, value));
            }
        }
    }

    /// Takes an item out. Its room stays.
    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let at = self.below(key);
        self.get(key)?;
        Some(self.items.remove(at).1)
    }
}

/// Makes room for `extra` more items in the map that `of` names behind `lock`, and answers with the lock held, so that the room is still there. The
/// allocator is called while it is free.
pub(crate) fn lock_with_room<'a, R: RawMutex, T, K: Ord + Copy, V>(
    lock: &'a Mutex<R, T>,
    extra: usize,
    of: impl Fn(&mut T) -> &mut Sorted<K, V>,
) -> Result<MutexGuard<'a, R, T>, OutOfMemory> {
    loop {
        let mut guard = lock.lock();
        let map = of(&mut guard);
        if map.has_room(extra) {
            return Ok(guard);
        }
        // Twice as much as there is, so that many items cost few moves.
        let wanted = (2 * map.len()).max(map.len() + extra).max(8);
        drop(guard);
        let mut storage = Vec::new();
        storage.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        let mut guard = lock.lock();
        let map = of(&mut guard);
        // Somebody may have been faster; the next look tells whether there is room now.
        if storage.capacity() > map.items.capacity() {
            storage.append(&mut map.items);
            core::mem::swap(&mut map.items, &mut storage);
        }
        drop(guard);
        // The former storage is dropped here, with the lock free.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn items_stay_in_order_and_are_found() {
        let mut map = Sorted::new();
        map.items.reserve(8);
        for key in [5, 1, 9, 3] {
            map.insert(key, key * 10);
        }
        map.insert(9, 99);
        assert_eq!(map.len(), 4);
        assert_eq!((map.get(3), map.get(4), map.at_or_below(4), map.at_or_below(0)), (Some(&30), None, Some(&30), None));
        assert_eq!(map.from(3).map(|(k, _)| k).collect::<Vec<_>>(), [3, 5, 9]);
        map.range_mut(2, 9).for_each(|v| *v += 1);
        assert_eq!(map.values().copied().collect::<Vec<_>>(), [10, 31, 51, 99]);
        assert_eq!((map.remove(5), map.remove(5), map.has_room(5), map.len()), (Some(51), None, true, 3));
    }
}
