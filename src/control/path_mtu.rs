//! What routers on the way said about a tunnel's paths: their MTU, and that there is none.
//!
//! The slow path has found each error to be about a packet that the tunnel could have sent. Here it is decided what follows
//! from it, and for how long.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long a path that was said not to be there is believed to be none (IPTUNNEL_ERR_TIMEO in net/ip_tunnels.h).
const UNREACHABLE: Duration = Duration::from_secs(30);
/// No IPv6 path is narrower (RFC 8200 section 5); who says so is not believed (RFC 8201 section 4).
const MIN_V6: u32 = 1280;

/// What the kernel does with path MTUs of one family, and so do we.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long one is believed.
    pub lifetime: Duration,
    /// What one is at least, in bytes: 0, and what is less, count as this over IPv4.
    pub min: u16,
}

impl Rules {
    /// The kernel's settings as of now, for the family of `remote` (net.ipv4.route.mtu_expires and min_pmtu, and their
    /// sibling).
    pub fn of(remote: IpAddr) -> Rules {
        let number = |path: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/sys/net/{path}"));
            text.ok()?.trim().parse().ok()
        };
        let (expires, min) = match remote {
            IpAddr::V4(_) => ("ipv4/route/mtu_expires", number("ipv4/route/min_pmtu")),
            IpAddr::V6(_) => ("ipv6/route/mtu_expires", None),
        };
        Rules {
            lifetime: Duration::from_secs(number(expires).unwrap_or(600)),
            min: min.and_then(|min| u16::try_from(min).ok()).unwrap_or(552),
        }
    }
}

/// Where outer packets go first: the device's index, and the neighbour.
pub type FirstHop = (u32, IpAddr);

/// One of [`PathMtus`] for another process to go on with: outer address, bytes, how long it is still believed, and of which
/// way it was said.
pub type Handed = (IpAddr, u16, Duration, FirstHop);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Learned {
    mtu: u16,
    until: Instant,
    by: FirstHop,
}

/// The path MTUs of one tunnel, by outer address.
#[derive(Debug, Default)]
pub struct PathMtus(BTreeMap<IpAddr, Learned>);

impl PathMtus {
    /// A router has said that packets to `remote` must not be larger than `said` bytes; without that they may have
    /// `route_mtu`. True when they have to become smaller: a path is never said to be wider, it only comes to be believed
    /// wider (`__ip_rt_update_pmtu` in net/ipv4/route.c).
    pub fn learn(
        &mut self,
        remote: IpAddr,
        said: u32,
        (route_mtu, by): (u16, FirstHop),
        rules: Rules,
        now: Instant,
    ) -> bool {
        if remote.is_ipv6() && said < MIN_V6 {
            return false;
        }
        let mtu = u16::try_from(said).unwrap_or(u16::MAX).max(match remote {
            IpAddr::V4(_) => rules.min,
            IpAddr::V6(_) => 0,
        });
        let before = self.get(remote).unwrap_or(route_mtu).min(route_mtu);
        if mtu > before || mtu >= route_mtu {
            return false;
        }
        let until = now + rules.lifetime;
        self.0.insert(remote, Learned { mtu, until, by });
        mtu < before
    }

    /// Bytes of the largest packet that the path to `remote` is believed to carry, if less than the route says.
    pub fn get(&self, remote: IpAddr) -> Option<u16> {
        self.0.get(&remote).map(|learned| learned.mtu)
    }

    /// Forgets what is too old, and what was said of paths that begin otherwise now. Whether there was any.
    pub fn prune(&mut self, now: Instant, first_hop: impl Fn(IpAddr) -> Option<FirstHop>) -> bool {
        let before = self.0.len();
        self.0.retain(|remote, learned| {
            learned.until > now && first_hop(*remote).is_none_or(|hop| hop == learned.by)
        });
        self.0.len() != before
    }

    /// What another process goes on with.
    pub fn hand(&self, now: Instant) -> Vec<Handed> {
        let all = self.0.iter();
        let left = |l: &Learned| l.until.saturating_duration_since(now);
        all.map(|(remote, l)| (*remote, l.mtu, left(l), l.by))
            .collect()
    }

    /// What another process knew.
    pub fn handed(all: &[Handed], now: Instant) -> Self {
        let all = all.iter().filter_map(|(remote, mtu, left, by)| {
            let (mtu, until, by) = (*mtu, now.checked_add(*left)?, *by);
            Some((*remote, Learned { mtu, until, by }))
        });
        Self(all.collect())
    }

    /// Every one of them, and how long it is still believed.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (IpAddr, u16, Duration)> + '_ {
        let all = self.0.iter();
        all.map(move |(remote, l)| (*remote, l.mtu, l.until.saturating_duration_since(now)))
    }
}

/// The last word that a remote cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable {
    pub remote: IpAddr,
    /// Who said so, and with which code.
    pub from: IpAddr,
    pub code: u8,
    pub at: Instant,
    /// Packets that had come out of the tunnel by then.
    pub received: u64,
}

impl Unreachable {
    /// Whether it is still believed: not for long, and not once something has come out of the tunnel again.
    pub fn holds(&self, received: u64, now: Instant) -> bool {
        received == self.received && now.saturating_duration_since(self.at) < UNREACHABLE
    }

    /// The code in words.
    pub fn word(&self) -> &'static str {
        match (self.remote, self.code) {
            (IpAddr::V4(_), code) => match code {
                0 | 6 | 11 => "network",
                1 | 7 | 8 | 12 => "host",
                2 => "protocol",
                3 => "port",
                5 => "source route",
                9 | 10 | 13 => "prohibited",
                _ => "precedence",
            },
            (IpAddr::V6(_), code) => match code {
                0 => "no route",
                1 => "prohibited",
                2 => "scope",
                3 => "address",
                4 => "port",
                5 => "source policy",
                _ => "rejected",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const RULES: Rules = Rules {
        lifetime: Duration::from_secs(600),
        min: 552,
    };
    const FIRST: FirstHop = (2, IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 254)));

    fn remote(v6: bool) -> IpAddr {
        match v6 {
            true => "2001:db8::2".parse().unwrap(),
            false => "198.51.100.1".parse().unwrap(),
        }
    }

    /// What is believed of a path of 1500 bytes after these words, one after the other; and whether each was news.
    fn after(v6: bool, said: &[u32]) -> (Option<u16>, Vec<bool>) {
        let mut paths = PathMtus::default();
        let now = Instant::now();
        let way = (1500, FIRST);
        let mut learn = |said: &u32| paths.learn(remote(v6), *said, way, RULES, now);
        let news = said.iter().map(&mut learn).collect();
        (paths.get(remote(v6)), news)
    }

    #[test]
    fn mtu_3_a_path_becomes_narrower_and_never_wider() {
        for v6 in [false, true] {
            assert_eq!(after(v6, &[1400]), (Some(1400), vec![true]));
            assert_eq!(after(v6, &[1400, 1300]), (Some(1300), vec![true, true]));
            assert_eq!(after(v6, &[1400, 1450]), (Some(1400), vec![true, false]));
            assert_eq!(after(v6, &[1400, 1400]), (Some(1400), vec![true, false]));
            // What the route carries anyhow is no news, nor is more.
            assert_eq!(after(v6, &[1500, 9000, 70_000]), (None, vec![false; 3]));
        }
    }

    #[test]
    fn mtu_3_no_path_is_narrower_than_the_minimum() {
        // Old routers do not say (RFC 1191 section 5).
        for said in [0, 1, 68, 551, 552] {
            assert_eq!(after(false, &[said]), (Some(552), vec![true]));
        }
        assert_eq!(after(true, &[1280]), (Some(1280), vec![true]));
        assert_eq!(after(true, &[0, 68, 1279]), (None, vec![false; 3]));
    }

    #[test]
    fn mtu_3_it_is_believed_for_its_lifetime_and_anew_when_said_anew() {
        let mut paths = PathMtus::default();
        let start = Instant::now();
        let (remote, way) = (remote(false), (1500, FIRST));
        let same = |_| Some(FIRST);
        paths.learn(remote, 1400, way, RULES, start);
        assert!(!paths.prune(start + 9 * MINUTE, same));
        let left: Vec<_> = paths.iter(start + 9 * MINUTE).collect();
        assert_eq!(left, [(remote, 1400, MINUTE)]);
        // No news, but said again.
        paths.learn(remote, 1400, way, RULES, start + 9 * MINUTE);
        assert!(!paths.prune(start + 18 * MINUTE, same));
        assert!(paths.prune(start + 19 * MINUTE, same));
        assert_eq!(paths.get(remote), None);
        // Wider than before, now that the old word is gone.
        assert!(paths.learn(remote, 1450, way, RULES, start + 20 * MINUTE));
    }

    #[test]
    fn mtu_3_another_way_has_to_be_learned_anew() {
        let mut paths = PathMtus::default();
        let now = Instant::now();
        paths.learn(remote(false), 1400, (1500, FIRST), RULES, now);
        // As long as there is none, nothing is known of another.
        assert!(!paths.prune(now, |_| None));
        assert!(paths.prune(now, |_| Some((3, FIRST.1))));
        assert_eq!(paths.get(remote(false)), None);
    }

    #[test]
    fn mtu_3_another_process_goes_on_with_what_is_known() {
        let mut paths = PathMtus::default();
        let start = Instant::now();
        paths.learn(remote(false), 1400, (1500, FIRST), RULES, start);
        let later = start + 9 * MINUTE;
        let mut theirs = PathMtus::handed(&paths.hand(later), later);
        assert_eq!(theirs.0, paths.0);
        assert!(theirs.prune(later + MINUTE, |_| Some(FIRST)));
    }

    #[test]
    fn mtu_3_a_route_that_became_narrower_needs_no_router_to_say_so() {
        let mut paths = PathMtus::default();
        let now = Instant::now();
        paths.learn(remote(false), 1400, (1500, FIRST), RULES, now);
        assert!(!paths.learn(remote(false), 1350, (1300, FIRST), RULES, now));
        assert!(paths.learn(remote(false), 1250, (1300, FIRST), RULES, now));
    }

    #[test]
    fn mtu_4_unreachable_is_believed_until_something_comes_or_some_time_has_passed() {
        let at = Instant::now();
        let said = Unreachable {
            remote: remote(false),
            from: remote(false),
            code: 1,
            at,
            received: 7,
        };
        assert_eq!(said.word(), "host");
        assert!(said.holds(7, at + UNREACHABLE / 2));
        assert!(!said.holds(8, at));
        assert!(!said.holds(7, at + UNREACHABLE));
    }
}
