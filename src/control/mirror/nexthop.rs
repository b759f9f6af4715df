//! Nexthop objects (ip-nexthop(8)): hops that routes share by number.

use std::collections::BTreeMap;

use super::route::Hop;

/// What a nexthop object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nexthop {
    Hop(Hop),
    /// Other objects and their weights, 1..=65535. One that goes leaves the group without a word.
    Group(Vec<(u32, u16)>),
    /// Packets are dropped, or treated in a way that only the kernel can.
    Other,
}

/// All nexthop objects, by number.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Nexthops {
    objects: BTreeMap<u32, Nexthop>,
    /// The hops of each: of a group those of its members.
    hops: BTreeMap<u32, Vec<Hop>>,
}

impl Nexthops {
    /// The hops of an object; none where there is no such, or only the kernel can follow it.
    pub(super) fn hops(&self, id: u32) -> &[Hop] {
        self.hops.get(&id).map_or(&[], Vec::as_slice)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.objects.keys().copied()
    }

    /// Whether something changed.
    pub(super) fn insert(&mut self, id: u32, object: Nexthop) -> bool {
        let changed = self.objects.get(&id) != Some(&object);
        if changed {
            self.objects.insert(id, object);
            self.follow();
        }
        changed
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let was = self.objects.remove(&id).is_some();
        if was {
            self.follow();
        }
        was
    }

    /// The objects that lead out of a device.
    pub(super) fn by_device(&self, ifindex: u32) -> Vec<u32> {
        let uses = |object: &Nexthop| matches!(object, Nexthop::Hop(hop) if hop.oif == ifindex);
        let objects = self.objects.iter().filter(|(_, object)| uses(object));
        objects.map(|(id, _)| *id).collect()
    }

    fn follow(&mut self) {
        let hops_of = |object: &Nexthop| match object {
            Nexthop::Hop(hop) => vec![*hop],
            Nexthop::Group(members) => {
                let member = |(id, weight): &(u32, u16)| match self.objects.get(id)? {
                    Nexthop::Hop(hop) => Some(Hop {
                        weight: *weight,
                        ..*hop
                    }),
                    _ => None,
                };
                // A group with a member that is not a hop is the kernel's.
                let known = |(id, _): &&(u32, u16)| self.objects.contains_key(id);
                let hops: Option<_> = members.iter().filter(known).map(member).collect();
                hops.unwrap_or_default()
            }
            Nexthop::Other => Vec::new(),
        };
        let all = self
            .objects
            .iter()
            .map(|(id, object)| (*id, hops_of(object)));
        self.hops = all.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(oif: u32) -> Hop {
        Hop {
            oif,
            gateway: None,
            weight: 1,
            encap: false,
            dead: false,
            linkdown: false,
            onlink: false,
        }
    }

    #[test]
    fn a_group_has_the_hops_that_its_members_have() {
        let mut nexthops = Nexthops::default();
        let outs = |nexthops: &Nexthops| -> Vec<_> {
            nexthops
                .hops(9)
                .iter()
                .map(|hop| (hop.oif, hop.weight))
                .collect()
        };
        assert!(nexthops.insert(1, Nexthop::Hop(hop(4))));
        assert!(!nexthops.insert(1, Nexthop::Hop(hop(4))));
        nexthops.insert(2, Nexthop::Hop(hop(5)));
        nexthops.insert(9, Nexthop::Group(vec![(1, 3), (2, 1)]));
        assert_eq!(outs(&nexthops), [(4, 3), (5, 1)]);
        nexthops.insert(2, Nexthop::Hop(hop(6)));
        assert_eq!(outs(&nexthops), [(4, 3), (6, 1)]);
        assert_eq!(nexthops.by_device(6), [2]);
        assert!(nexthops.remove(2));
        assert_eq!(outs(&nexthops), [(4, 3)]);
        nexthops.insert(1, Nexthop::Other);
        assert_eq!(outs(&nexthops), []);
        assert!(!nexthops.remove(2));
    }
}
