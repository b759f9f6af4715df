//! Which tunnels have something in common that [`rules::tunnel_beside`](super::rules::tunnel_beside) may refuse: so that each
//! need not be compared with each.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::TunnelConfig;
use crate::tunnel::Mode;

type Ends = (Mode, IpAddr, IpAddr, Option<String>);

/// Something that a tunnel has, or what must not be another's.
#[derive(PartialEq, Eq, Hash)]
enum Mark {
    Name(String),
    Dev(String),
    Bridge(String),
    Identity(Ends, bool, bool, Option<u32>),
    /// A virtual subnet, and a plain key's share that could be one.
    Subnet(Ends, u32),
    Plain(Ends, u32),
    Address(IpAddr),
    Remote(IpAddr),
    Route(IpNet),
}

/// The tunnels so far, by what they have.
#[derive(Default)]
pub(super) struct Known {
    marks: HashMap<Mark, Vec<usize>>,
    count: usize,
}

impl Known {
    pub fn add(&mut self, tunnel: &TunnelConfig) {
        for mark in has(tunnel) {
            self.marks.entry(mark).or_default().push(self.count);
        }
        self.count += 1;
    }

    /// The places of those that a tunnel has to be compared with, in order.
    pub fn beside(&self, tunnel: &TunnelConfig) -> BTreeSet<usize> {
        let all = minds(tunnel).into_iter();
        let places = all.filter_map(|mark| self.marks.get(&mark));
        places.flatten().copied().collect()
    }
}

fn ends(tunnel: &TunnelConfig) -> Ends {
    let (local, remote) = (tunnel.local, tunnel.remote);
    (tunnel.mode, local, remote, tunnel.dev.clone())
}

fn identity(tunnel: &TunnelConfig) -> Mark {
    let in_udp = tunnel.udp.is_some();
    Mark::Identity(ends(tunnel), in_udp, tunnel.nvgre, tunnel.ikey)
}

fn has(tunnel: &TunnelConfig) -> Vec<Mark> {
    let mut marks = vec![Mark::Name(tunnel.name.clone()), identity(tunnel)];
    marks.extend(tunnel.dev.clone().map(Mark::Dev));
    marks.extend(tunnel.bridge.clone().map(Mark::Bridge));
    marks.extend(tunnel.ikey.map(|key| match tunnel.nvgre {
        true => Mark::Subnet(ends(tunnel), key),
        false => Mark::Plain(ends(tunnel), key >> 8),
    }));
    let addresses = tunnel.address.iter();
    marks.extend(addresses.map(|net| Mark::Address(net.addr())));
    marks.extend(tunnel.remotes().iter().copied().map(Mark::Remote));
    marks.extend(tunnel.routes.iter().copied().map(Mark::Route));
    marks
}

fn minds(tunnel: &TunnelConfig) -> Vec<Mark> {
    let mut marks = vec![
        Mark::Name(tunnel.name.clone()),
        Mark::Dev(tunnel.name.clone()),
        identity(tunnel),
    ];
    marks.extend(tunnel.dev.clone().map(Mark::Name));
    marks.extend(tunnel.bridge.clone().map(Mark::Bridge));
    marks.extend(tunnel.ikey.map(|key| match tunnel.nvgre {
        true => Mark::Plain(ends(tunnel), key),
        false => Mark::Subnet(ends(tunnel), key >> 8),
    }));
    for net in &tunnel.address {
        // What several devices may have is common, and is compared with the others' far ends alone.
        if !super::rules::may_be_shared(net) {
            marks.push(Mark::Address(net.addr()));
        }
        marks.push(Mark::Remote(net.addr()));
    }
    let remotes = tunnel.remotes().iter().copied();
    marks.extend(remotes.map(Mark::Address));
    marks.extend(tunnel.routes.iter().copied().map(Mark::Route));
    marks
}

#[cfg(test)]
mod tests {
    use crate::control::config::{Config, ConfigError};

    /// Few values, so that most tunnels have something in common with others: what is refused is what comparing each with
    /// each refuses.
    #[test]
    fn what_is_passed_over_is_never_refused() {
        let mut random = 12345u64;
        let mut pick = |n: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let (mut refused, mut passed) = (0, 0);
        for _ in 0..3000 {
            let mut text =
                String::from("[router]\nunderlay = [\"u0\", \"u1\"]\noverlay = [\"i0\", \"i1\"]\n");
            for _ in 0..3 {
                let tap = pick(3) == 0;
                let mode = if tap { "gretap" } else { "gre" };
                text += &format!("[[tunnel]]\nname = \"t{}\"\nmode = \"{mode}\"\n", pick(9));
                text += &format!(
                    "local = \"192.0.2.1\"\nremote = \"192.0.2.{}\"\n",
                    2 + pick(4)
                );
                match (pick(3), tap) {
                    (0, true) => text += &format!("nvgre = true\nkey = {}\n", 4096 + pick(2)),
                    (1, _) => text += &format!("key = {}\n", (4096 + pick(2)) << 8),
                    _ => {}
                }
                if pick(3) == 0 {
                    text += &format!("dev = \"{}\"\n", ["u0", "u1", "t1", "t2"][pick(4) as usize]);
                }
                if tap && pick(2) == 0 {
                    text += &format!("bridge = \"i{}\"\n", pick(2));
                } else {
                    let len = [24, 32][pick(2) as usize];
                    text += &format!("address = [\"192.0.2.{}/{len}\"]\n", 3 + pick(8));
                    text += &format!("routes = [\"10.{}.0.0/16\"]\n", pick(9));
                }
            }
            let quick = Config::parse(&text, "t");
            let each = Config::parse_comparing_each(&text, "t");
            assert_eq!(quick, each, "{text}");
            match quick {
                Ok(_) => passed += 1,
                Err(ConfigError::Refused { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(
            refused > 300 && passed > 30,
            "{refused} refused, {passed} passed"
        );
    }
}
