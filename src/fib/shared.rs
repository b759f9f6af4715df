//! Containers whose clones share what is equal: a change copies a piece, not the whole.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use rustc_hash::FxBuildHasher;

const PAGE: usize = 64;

/// A vector in pages. A place that was never set holds the default.
#[derive(Debug, Clone)]
pub struct Paged<T>(Arc<Vec<Arc<[T; PAGE]>>>);

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Default> Paged<T> {
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        Some(&self.0.get(at / PAGE)?[at % PAGE])
    }

    pub fn set(&mut self, at: usize, value: T) {
        let pages = Arc::make_mut(&mut self.0);
        while pages.len() <= at / PAGE {
            pages.push(Arc::new(std::array::from_fn(|_| T::default())));
        }
        Arc::make_mut(&mut pages[at / PAGE])[at % PAGE] = value;
    }
}

type Shard<K, V> = HashMap<K, V, FxBuildHasher>;

const SHARDS: usize = 64;

/// A hash map in pieces.
#[derive(Debug, Clone)]
pub struct Sharded<K, V>(Arc<[Arc<Shard<K, V>>; SHARDS]>);

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| Arc::default())))
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Sharded<K, V> {
    #[inline]
    fn shard(key: &K) -> usize {
        // The maps themselves begin with the upper seven bits and the lower ones.
        (FxBuildHasher.hash_one(key) >> 32) as usize % SHARDS
    }

    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0[Self::shard(key)].get(key)
    }

    fn shard_mut(&mut self, key: &K) -> &mut Shard<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[Self::shard(key)])
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.shard_mut(&key).insert(key, value);
    }

    pub fn remove(&mut self, key: &K) {
        if self.get(key).is_some() {
            self.shard_mut(key).remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_stays_as_it_was() {
        let mut paged = Paged::default();
        paged.set(70, 1);
        let before = paged.clone();
        paged.set(70, 2);
        paged.set(200, 3);
        assert_eq!((before.get(70), before.get(0)), (Some(&1), Some(&0)));
        assert_eq!((before.get(200), paged.get(200)), (None, Some(&3)));

        let mut sharded = Sharded::default();
        (0..1000).for_each(|n| sharded.insert(n, n));
        let before = sharded.clone();
        (0..1000).step_by(2).for_each(|n| sharded.remove(&n));
        sharded.insert(1, 0);
        assert!((0..1000).all(|n| before.get(&n) == Some(&n)));
        assert_eq!((sharded.get(&0), sharded.get(&1)), (None, Some(&0)));
    }

    #[test]
    fn keys_spread_over_the_pieces() {
        let mut sharded = Sharded::default();
        (0..6400u64).for_each(|n| sharded.insert(n, ()));
        let sizes: Vec<usize> = sharded.0.iter().map(|shard| shard.len()).collect();
        assert!(sizes.iter().all(|n| (40..200).contains(n)), "{sizes:?}");
    }
}
