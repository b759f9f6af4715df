//! Longest-prefix match for IPv6: a trie with a node per byte of the address, which snapshots share.
//!
//! A node holds the prefixes that end within its byte and its children in arrays without gaps; sets of bits say which
//! there are (as the tree bitmap, Eatherton, Varghese, Dittia 2004, with a byte at a time as BART has it). A prefix that is
//! alone beneath a node is kept there whole. A change copies the nodes on its way, a clone of the whole costs one
//! reference.

use std::{fmt, sync::Arc};

/// A set of numbers below 64 · `W`, and how many members come before each word.
#[derive(Clone)]
struct Set<const W: usize> {
    words: [u64; W],
    before: [u16; W],
}

impl<const W: usize> Set<W> {
    const EMPTY: Self = Self {
        words: [0; W],
        before: [0; W],
    };

    #[inline(always)]
    fn has(&self, n: usize) -> bool {
        self.words[n / 64] >> (n % 64) & 1 != 0
    }

    /// How many members are less than `n`.
    #[inline(always)]
    fn rank(&self, n: usize) -> usize {
        let below = self.words[n / 64] & ((1 << (n % 64)) - 1);
        usize::from(self.before[n / 64]) + below.count_ones() as usize
    }

    /// Takes a member in, or out.
    fn flip(&mut self, n: usize) {
        self.words[n / 64] ^= 1 << (n % 64);
        let mut sum = 0;
        for (word, before) in self.words.iter().zip(&mut self.before) {
            *before = sum;
            sum += word.count_ones() as u16;
        }
    }
}

/// A prefix: its bits, and how many there are.
type Net = (u128, u8);

#[derive(Clone)]
enum Child {
    Node(Arc<Node>),
    /// The only prefix there.
    Only(Net, u32),
}

#[derive(Clone)]
struct Node {
    /// The prefixes that end in this byte after 0 to 8 bits of it, as a complete binary tree numbered from the root: see
    /// [`place`].
    ends: Set<8>,
    /// The bytes that longer prefixes have here.
    goes: Set<4>,
    values: Vec<u32>,
    children: Vec<Child>,
}

/// The number of the first `bits` bits of `byte`; half of it is the number of one bit less. 1 to 511.
#[inline(always)]
fn place(byte: u8, bits: usize) -> usize {
    (1 << bits) + (usize::from(byte) >> (8 - bits))
}

#[inline(always)]
fn byte(address: u128, depth: usize) -> u8 {
    (address >> (120 - 8 * depth)) as u8
}

#[inline(always)]
fn contains((network, len): Net, address: u128) -> bool {
    (network ^ address).leading_zeros() >= u32::from(len)
}

impl Node {
    const EMPTY: Self = Self {
        ends: Set::EMPTY,
        goes: Set::EMPTY,
        values: Vec::new(),
        children: Vec::new(),
    };

    /// The value of the longest prefix that ends within this byte.
    #[inline]
    fn longest(&self, byte: u8) -> Option<u32> {
        let mut at = place(byte, 8);
        while at > 0 {
            if self.ends.has(at) {
                return self.values.get(self.ends.rank(at)).copied();
            }
            at >>= 1;
        }
        None
    }

    #[inline]
    fn child(&self, byte: u8) -> Option<&Child> {
        let byte = usize::from(byte);
        (self.goes.has(byte)).then(|| &self.children[self.goes.rank(byte)])
    }

    fn lookup(&self, address: u128, depth: usize) -> Option<u32> {
        let byte = byte(address, depth);
        let below = match self.child(byte) {
            Some(Child::Node(node)) => node.lookup(address, depth + 1),
            Some(Child::Only(net, value)) => contains(*net, address).then_some(*value),
            None => None,
        };
        below.or_else(|| self.longest(byte))
    }

    fn insert(&mut self, net: Net, depth: usize, value: u32) {
        let byte = byte(net.0, depth);
        let bits = usize::from(net.1) - 8 * depth;
        if bits <= 8 {
            let place = place(byte, bits);
            let at = self.ends.rank(place);
            if self.ends.has(place) {
                self.values[at] = value;
            } else {
                self.ends.flip(place);
                self.values.insert(at, value);
            }
            return;
        }
        let at = self.goes.rank(byte.into());
        if !self.goes.has(byte.into()) {
            self.goes.flip(byte.into());
            self.children.insert(at, Child::Only(net, value));
            return;
        }
        match &mut self.children[at] {
            Child::Node(node) => Arc::make_mut(node).insert(net, depth + 1, value),
            Child::Only(only, old) if *only == net => *old = value,
            child => {
                if let Child::Only(only, old) = *child {
                    let mut node = Node::EMPTY;
                    node.insert(only, depth + 1, old);
                    node.insert(net, depth + 1, value);
                    *child = Child::Node(Arc::new(node));
                }
            }
        }
    }

    fn remove(&mut self, net: Net, depth: usize) {
        let byte = byte(net.0, depth);
        let bits = usize::from(net.1) - 8 * depth;
        if bits <= 8 {
            let place = place(byte, bits);
            if self.ends.has(place) {
                self.values.remove(self.ends.rank(place));
                self.ends.flip(place);
            }
            return;
        }
        if !self.goes.has(byte.into()) {
            return;
        }
        let at = self.goes.rank(byte.into());
        let gone = match &mut self.children[at] {
            Child::Only(only, _) => *only == net,
            Child::Node(node) => {
                let node = Arc::make_mut(node);
                node.remove(net, depth + 1);
                match node.only(net.0, depth + 1) {
                    Some((only, value)) => {
                        self.children[at] = Child::Only(only, value);
                        false
                    }
                    None => node.values.is_empty() && node.children.is_empty(),
                }
            }
        };
        if gone {
            self.children.remove(at);
            self.goes.flip(byte.into());
        }
    }

    /// The prefix and value of a node that has just one; the bytes before `depth` are those of `above`.
    fn only(&self, above: u128, depth: usize) -> Option<(Net, u32)> {
        match (&self.values[..], &self.children[..]) {
            ([], [Child::Only(net, value)]) => Some((*net, *value)),
            ([value], []) => {
                let place = (1..512).find(|place| self.ends.has(*place))?;
                let bits = place.ilog2() as usize;
                let byte = ((place - (1 << bits)) << (8 - bits)) as u128;
                let upper = above & !(u128::MAX >> (8 * depth));
                let network = upper | byte << (120 - 8 * depth);
                Some(((network, (8 * depth + bits) as u8), *value))
            }
            _ => None,
        }
    }
}

/// Prefixes and their values. A clone is a snapshot.
#[derive(Clone)]
pub struct Trie(Arc<Node>);

impl Default for Trie {
    fn default() -> Self {
        Self(Arc::new(Node::EMPTY))
    }
}

impl Trie {
    /// Adds a prefix, or gives it another value. Bits beyond `len` must be zero.
    pub fn insert(&mut self, network: u128, len: u8, value: u32) {
        Arc::make_mut(&mut self.0).insert((network, len), 0, value);
    }

    /// Removes a prefix, if it is there.
    pub fn remove(&mut self, network: u128, len: u8) {
        Arc::make_mut(&mut self.0).remove((network, len), 0);
    }

    /// The value of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<u32> {
        self.0.lookup(address, 0)
    }
}

impl fmt::Debug for Trie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trie").finish_non_exhaustive()
    }
}
