//! What policy rules mean to the fast path, which looks up destinations alone.
//!
//! A rule is told off only where it is certain that it concerns none of the packets that workers carry: those that come in
//! by our ports or out of our tunnels, and the outer packets that leave for them. What a mark would say is never certain:
//! netfilter and tc set marks.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use super::mirror::Rule;

/// Outer packets, as all that this host sends itself, come in by it.
const LOOPBACK: &str = "lo";

/// What of this host packets of the fast path have to do with.
#[derive(Debug, Default)]
pub struct Ours<'a> {
    /// The names of ports and tunnel devices.
    pub devices: HashSet<&'a str>,
    /// The router's own addresses. Nobody else's packets come from them.
    pub addresses: HashSet<IpAddr>,
    /// One of these devices belongs to a VRF.
    pub in_vrf: bool,
}

/// Which packets of the fast path a rule may concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    None,
    /// The outer packets of tunnels with this local address.
    Outer(IpAddr),
    All,
}

/// The packets that a rule of the administrator's may concern.
pub fn concern(rule: &Rule, ours: &Ours<'_>) -> Concern {
    if rule.inverted {
        return Concern::All;
    }
    let elsewhere = |device: &Option<Box<str>>| {
        (device.as_deref()).is_some_and(|name| name != LOOPBACK && !ours.devices.contains(name))
    };
    // With a VRF the kernel takes that for the device, too.
    let elsewhere = !ours.in_vrf && (elsewhere(&rule.iif) || elsewhere(&rule.oif));
    if elsewhere || rule.l3mdev && !ours.in_vrf {
        return Concern::None;
    }
    match rule.from {
        Some(from) if is_host(from) && ours.addresses.contains(&from.addr()) => {
            Concern::Outer(from.addr())
        }
        _ => Concern::All,
    }
}

fn is_host(net: ipnet::IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// All rules together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// They may concern every packet.
    pub all: bool,
    locals: BTreeSet<IpAddr>,
}

impl Rules {
    /// `altered`: one of the kernel's own rules is gone.
    pub fn of<'r>(foreign: impl Iterator<Item = &'r Rule>, altered: bool, ours: &Ours<'_>) -> Self {
        let mut rules = Self {
            all: altered,
            ..Self::default()
        };
        for rule in foreign {
            match concern(rule, ours) {
                Concern::None => {}
                Concern::All => rules.all = true,
                Concern::Outer(local) => drop(rules.locals.insert(local)),
            }
        }
        rules
    }

    /// Whether rules may decide where the outer packets of a tunnel with this local address go. Without one the kernel
    /// chooses it.
    pub fn decide_outer(&self, local: IpAddr) -> bool {
        self.all
            || self.locals.contains(&local)
            || local.is_unspecified() && !self.locals.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Ours<'static> {
        Ours {
            devices: ["eth0", "eth1", "gre1"].into(),
            addresses: ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
            in_vrf: false,
        }
    }

    fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule {
            priority: 100,
            table: 100,
            ..Rule::default()
        };
        change(&mut rule);
        rule
    }

    fn device(name: &str) -> Option<Box<str>> {
        Some(name.into())
    }

    #[test]
    fn a_rule_concerns_what_it_may_match() {
        let own = "192.0.2.1".parse().unwrap();
        let cases = [
            ("all", rule(|_| ()), Concern::All),
            (
                "iif elsewhere",
                rule(|r| r.iif = device("eth7")),
                Concern::None,
            ),
            ("iif a port", rule(|r| r.iif = device("eth1")), Concern::All),
            (
                "iif a tunnel",
                rule(|r| r.iif = device("gre1")),
                Concern::All,
            ),
            ("iif lo", rule(|r| r.iif = device("lo")), Concern::All),
            (
                "oif elsewhere",
                rule(|r| r.oif = device("eth7")),
                Concern::None,
            ),
            ("oif a port", rule(|r| r.oif = device("eth0")), Concern::All),
            (
                "iif ours, oif elsewhere",
                rule(|r| (r.iif, r.oif) = (device("eth1"), device("eth7"))),
                Concern::None,
            ),
            (
                "not iif elsewhere",
                rule(|r| (r.inverted, r.iif) = (true, device("eth7"))),
                Concern::All,
            ),
            ("VRFs of others", rule(|r| r.l3mdev = true), Concern::None),
            (
                "from ourselves",
                rule(|r| r.from = Some("192.0.2.1/32".parse().unwrap())),
                Concern::Outer(own),
            ),
            (
                "from our network",
                rule(|r| r.from = Some("192.0.2.0/24".parse().unwrap())),
                Concern::All,
            ),
            (
                "from somebody",
                rule(|r| r.from = Some("192.0.2.9/32".parse().unwrap())),
                Concern::All,
            ),
            (
                "not from ourselves",
                rule(|r| (r.inverted, r.from) = (true, Some("192.0.2.1/32".parse().unwrap()))),
                Concern::All,
            ),
            (
                "to somewhere",
                rule(|r| r.to = Some("10.0.0.0/8".parse().unwrap())),
                Concern::All,
            ),
        ];
        for (name, rule, expected) in cases {
            assert_eq!(concern(&rule, &ours()), expected, "{name}");
            let in_vrf = Ours {
                in_vrf: true,
                ..ours()
            };
            let none = concern(&rule, &in_vrf) == Concern::None;
            assert!(!none, "{name}: a VRF of ours is never told off");
        }
    }

    #[test]
    fn the_rules_of_an_address_are_its_tunnels() {
        let own = rule(|r| r.from = Some("192.0.2.1/32".parse().unwrap()));
        let elsewhere = rule(|r| r.iif = device("eth7"));
        let rules = Rules::of([&own, &elsewhere].into_iter(), false, &ours());
        let decide = |local: &str| rules.decide_outer(local.parse().unwrap());
        assert!(!rules.all);
        assert!(decide("192.0.2.1") && decide("0.0.0.0") && !decide("192.0.2.2"));
        let none = Rules::of([&elsewhere].into_iter(), false, &ours());
        assert_eq!(none, Rules::default());
        assert!(!none.decide_outer("0.0.0.0".parse().unwrap()));
        assert!(
            Rules::of([].into_iter(), true, &ours()).decide_outer("192.0.2.2".parse().unwrap())
        );
    }
}
