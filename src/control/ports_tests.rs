use super::*;
use crate::{
    control::{
        config::{Workers, XdpMode},
        mirror::Event,
    },
    packet::MacAddr,
};

const ETH0: u32 = 2;
const ETH1: u32 = 3;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
        mtu: 1500,
        up: true,
        carrier: true,
        running: true,
        rx_queues: 1,
        tx_queues: 1,
        ..Link::default()
    }
}

fn vlan(index: u32, name: &str, (beneath, id): (u32, u16)) -> Link {
    Link {
        kind: Some("vlan".into()),
        link: Some(beneath),
        vlan: Some(Vlan {
            id,
            reorders: true,
            ..Vlan::default()
        }),
        ..link(index, name)
    }
}

fn config(underlay: &[&str], overlay: &[&str]) -> RouterConfig {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    RouterConfig {
        underlay: names(underlay),
        overlay: names(overlay),
        workers: Workers::Auto,
        xdp: XdpMode::Auto,
        control: "/run/control".into(),
        persist: true,
        metrics: None,
        accelerate: Default::default(),
        spread: Default::default(),
        busy_poll: false,
    }
}

fn found(links: Vec<Link>, underlay: &[&str], overlay: &[&str]) -> Found {
    let mut state = State::default();
    for link in [link(ETH0, "eth0"), link(ETH1, "eth1")]
        .into_iter()
        .chain(links)
    {
        state.apply(Event::NewLink(link));
    }
    find(&config(underlay, overlay), &state).unwrap()
}

/// Name, role, and the device beneath with the VLAN's number.
fn words(found: &Found) -> Vec<String> {
    let word = |d: &FoundDevice| {
        let role = [(d.underlay, "u"), (d.overlay, "o")];
        let role: String = role.iter().filter(|r| r.0).map(|r| r.1).collect();
        let on = d
            .vlan
            .map_or(String::new(), |on| format!(" {}@{}", on.vid, on.ifindex));
        format!("{} {role}{on}", d.name)
    };
    found.devices.iter().map(word).collect()
}

#[test]
fn a_vlan_device_brings_the_one_beneath() {
    let links = || {
        vec![
            vlan(10, "eth0.100", (ETH0, 100)),
            vlan(11, "blue", (ETH0, 7)),
        ]
    };
    // Router on a stick.
    let stick = found(links(), &["eth0.100"], &["blue"]);
    assert_eq!(words(&stick), ["eth0 ", "eth0.100 u 100@2", "blue o 7@2"]);
    // The device beneath may be a port itself, and it stands before the VLAN device then too.
    let both = found(links(), &["eth0.100"], &["eth1", "eth0"]);
    assert_eq!(words(&both), ["eth1 o", "eth0 o", "eth0.100 u 100@2"]);
    assert_eq!(
        claimed(&config(&["eth0.100"], &[]), &stick),
        ["eth0.100", "eth0", "blue"]
    );
}

#[test]
fn what_cannot_be_done_alike_is_left_to_the_kernel() {
    let of = |change: fn(&mut Link)| {
        let mut vlan = self::vlan(10, "eth0.100", (ETH0, 100));
        change(&mut vlan);
        let bridge = Link {
            kind: Some("bridge".into()),
            ..link(20, "br0")
        };
        let below = self::vlan(21, "eth0.5", (ETH0, 5));
        let found = found(vec![vlan, bridge, below], &["eth0.100"], &["eth1"]);
        (words(&found).join(", "), found.left)
    };
    let (devices, left) = of(|_| ());
    assert_eq!(devices, "eth1 o, eth0 , eth0.100 u 100@2");
    assert_eq!(left, []);
    type Change = fn(&mut Link);
    let cases: [(Change, &str); 7] = [
        (|l| l.link_elsewhere = true, "another namespace"),
        (|l| l.link = Some(20), "on br0"),
        (|l| l.link = Some(21), "QinQ"),
        (|l| l.vlan.as_mut().unwrap().provider = true, "802.1ad"),
        (|l| l.vlan.as_mut().unwrap().marks = true, "egress-qos-map"),
        (
            |l| l.vlan.as_mut().unwrap().reorders = false,
            "reorder_hdr off",
        ),
        (|l| l.kind = Some("bond".into()), "bond"),
    ];
    for (change, word) in cases {
        let (devices, left) = of(change);
        assert_eq!(devices, "eth1 o", "{word}");
        assert!(
            left[0].0 == "eth0.100" && left[0].1.contains(word),
            "{left:?}"
        );
    }
}
