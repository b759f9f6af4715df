//! Longest-prefix match for IPv4: tables that are indexed by the address's bits, 6, 6, 12 and the last 8.
//!
//! As DIR-24-8 (Gupta, Lin, McKeown, INFOCOM 1998), in pieces that snapshots share: a change copies the pieces that it
//! touches, and a clone of the whole costs one reference. A piece says nothing about addresses that only shorter
//! prefixes cover; so a change of the default route touches no piece below the first.

use std::{fmt, sync::Arc};

/// What a table says about an address, and by how long a prefix; or which [`Block`] says it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Entry(u32);

/// Values are below 2^24.
pub const MAX_VALUE: u32 = (1 << 24) - 1;

impl Entry {
    const NOTHING: Entry = Entry(0);
    const BLOCK: u32 = 1 << 31;

    fn new(len: u8, value: u32) -> Self {
        Self((u32::from(len) + 1) << 24 | value)
    }

    fn block(at: usize) -> Self {
        Self(Self::BLOCK | at as u32)
    }

    #[inline]
    fn as_block(self) -> Option<usize> {
        (self.0 & Self::BLOCK != 0).then_some((self.0 & !Self::BLOCK) as usize)
    }

    #[inline]
    fn value(self) -> u32 {
        self.0 & MAX_VALUE
    }

    fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// One more than the prefix length; 0 for nothing.
    fn rank(self) -> u32 {
        self.0 >> 24
    }
}

/// A change of one prefix: what becomes of each entry within it.
#[derive(Clone, Copy)]
enum Change {
    /// Entries of the same prefix and of shorter ones give way.
    Insert(Entry),
    /// Entries of this length are the prefix's, and what covers it takes their place.
    Remove(u8, Entry),
}

impl Change {
    fn of(self, entry: Entry) -> Entry {
        match self {
            Change::Insert(new) if entry.rank() <= new.rank() => new,
            Change::Remove(len, cover) if entry.rank() == u32::from(len) + 1 => cover,
            _ => entry,
        }
    }

    /// As the change is seen by a table whose prefixes are all longer than `len`: a cover that is not is not its to tell.
    fn beneath(self, len: u8) -> Self {
        match self {
            Change::Remove(own, cover) if cover.rank() <= u32::from(len) + 1 => {
                Change::Remove(own, Entry::NOTHING)
            }
            other => other,
        }
    }
}

/// The entries of 64 neighbouring blocks of addresses, and the tables with more about each.
struct Level<T> {
    entries: [Entry; 64],
    below: [Option<Arc<T>>; 64],
}

/// 4096 networks of 256 addresses.
#[derive(Clone)]
struct Chunk {
    entries: [Entry; 4096],
    blocks: Vec<Block>,
}

/// The 256 addresses of a network that has prefixes longer than 24 bits: where runs of equal entries begin.
#[derive(Clone)]
struct Block(Arc<[(u8, Entry)]>);

type Middle = Level<Chunk>;

/// Prefixes and their values. A clone is a snapshot.
#[derive(Clone, Default)]
pub struct Direct(Arc<Level<Middle>>);

impl<T> Clone for Level<T> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries,
            below: self.below.clone(),
        }
    }
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self {
            entries: [Entry::NOTHING; 64],
            below: [const { None }; 64],
        }
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            entries: [Entry::NOTHING; 4096],
            blocks: Vec::new(),
        }
    }
}

/// Bits `from..to` of an address, as a number.
#[inline(always)]
fn bits(address: u32, from: u32, to: u32) -> usize {
    (address << from >> (32 - (to - from))) as usize
}

/// How many entries a prefix of `len` bits fills in a table that is indexed by the bits up to `end`.
fn width(len: u8, end: u8) -> usize {
    1 << (end - len)
}

impl Direct {
    /// Adds a prefix, or gives it another value. Bits beyond `len` must be zero, `value` at most [`MAX_VALUE`].
    pub fn insert(&mut self, network: u32, len: u8, value: u32) {
        debug_assert!(value <= MAX_VALUE);
        let new = Change::Insert(Entry::new(len, value & MAX_VALUE));
        self.change(network, len, new);
    }

    /// Removes a prefix that is there; `cover` is the length and value of the longest one that contains it.
    pub fn remove(&mut self, network: u32, len: u8, cover: Option<(u8, u32)>) {
        let cover = cover.map_or(Entry::NOTHING, |(len, value)| Entry::new(len, value));
        self.change(network, len, Change::Remove(len, cover));
    }

    fn change(&mut self, network: u32, len: u8, change: Change) {
        let top = Arc::make_mut(&mut self.0);
        let at = bits(network, 0, 6);
        if len <= 6 {
            return top.paint(at, width(len, 6), change);
        }
        top.descend(at, |middle: &mut Middle| {
            let change = change.beneath(6);
            let at = bits(network, 6, 12);
            if len <= 12 {
                middle.paint(at, width(len, 12), change);
            } else {
                middle.descend(at, |chunk| chunk.change(network, len, change.beneath(12)));
            }
        });
    }

    /// Whether the prefixes lie in many pieces.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.0.below.iter().flatten().count() > 2
    }

    /// The value of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<u32> {
        let at = bits(address, 0, 6);
        let mut found = Entry::NOTHING;
        if let Some(middle) = &self.0.below[at] {
            let at = bits(address, 6, 12);
            if let Some(chunk) = &middle.below[at] {
                found = chunk.lookup(address);
            }
            if found.is_nothing() {
                found = middle.entries[at];
            }
        }
        if found.is_nothing() {
            found = self.0.entries[at];
        }
        (!found.is_nothing()).then_some(found.value())
    }
}

trait Piece: Clone + Default {
    fn is_empty(&self) -> bool;
}

impl<T> Piece for Level<T> {
    fn is_empty(&self) -> bool {
        self.entries.iter().all(|e| e.is_nothing()) && self.below.iter().all(Option::is_none)
    }
}

impl Piece for Chunk {
    fn is_empty(&self) -> bool {
        self.entries.iter().all(|e| e.is_nothing())
    }
}

impl<T> Level<T> {
    fn paint(&mut self, at: usize, n: usize, change: Change) {
        for entry in &mut self.entries[at..at + n] {
            *entry = change.of(*entry);
        }
    }
}

impl<T: Piece> Level<T> {
    /// Changes the table below, which is there as long as it says anything.
    fn descend(&mut self, at: usize, change: impl FnOnce(&mut T)) {
        let below = Arc::make_mut(self.below[at].get_or_insert_default());
        change(below);
        if below.is_empty() {
            self.below[at] = None;
        }
    }
}

impl Chunk {
    #[inline]
    fn lookup(&self, address: u32) -> Entry {
        let entry = self.entries[bits(address, 12, 24)];
        match entry.as_block() {
            Some(at) => self.blocks[at].lookup(address as u8),
            None => entry,
        }
    }

    fn change(&mut self, network: u32, len: u8, change: Change) {
        let at = bits(network, 12, 24);
        if len > 24 {
            let first = usize::from(network as u8);
            return self.edit(at, |all| {
                for entry in &mut all[first..first + width(len, 32)] {
                    *entry = change.of(*entry);
                }
            });
        }
        for at in at..at + width(len, 24) {
            match self.entries[at].as_block() {
                Some(_) => self.edit(at, |all| {
                    for entry in all {
                        *entry = change.of(*entry);
                    }
                }),
                None => self.entries[at] = change.of(self.entries[at]),
            }
        }
    }

    /// Changes the entries of the addresses in one network, which has a block as long as they differ.
    fn edit(&mut self, at: usize, change: impl FnOnce(&mut [Entry; 256])) {
        let entry = self.entries[at];
        let mut all = match entry.as_block() {
            Some(block) => self.blocks[block].entries(),
            None => [entry; 256],
        };
        change(&mut all);
        let uniform = all.iter().all(|entry| *entry == all[0]);
        match (entry.as_block(), uniform) {
            (Some(block), false) => self.blocks[block] = Block::new(&all),
            (None, false) => {
                self.entries[at] = Entry::block(self.blocks.len());
                self.blocks.push(Block::new(&all));
            }
            (None, true) => self.entries[at] = all[0],
            (Some(block), true) => {
                self.entries[at] = all[0];
                self.blocks.swap_remove(block);
                let moved = Entry::block(self.blocks.len());
                if let Some(entry) = self.entries.iter_mut().find(|entry| **entry == moved) {
                    *entry = Entry::block(block);
                }
            }
        }
    }
}

impl Block {
    fn new(all: &[Entry; 256]) -> Self {
        let mut runs: Vec<(u8, Entry)> = Vec::new();
        for (at, entry) in (0..=255).zip(all) {
            if runs.last().is_none_or(|(_, last)| last != entry) {
                runs.push((at, *entry));
            }
        }
        Self(runs.into())
    }

    fn entries(&self) -> [Entry; 256] {
        let mut all = [Entry::NOTHING; 256];
        for (start, entry) in self.0.iter() {
            all[usize::from(*start)..].fill(*entry);
        }
        all
    }

    #[inline]
    fn lookup(&self, last: u8) -> Entry {
        // The first run begins at 0.
        let after = self.0.partition_point(|(start, _)| *start <= last);
        let run = self.0.get(after.wrapping_sub(1));
        run.map_or(Entry::NOTHING, |(_, entry)| *entry)
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}
