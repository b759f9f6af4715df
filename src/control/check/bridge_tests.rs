//! Judging the device at the other end of a tunnel's wire.

use crate::control::{
    check::{
        host::{Host, Link},
        tests::{complaints, host},
    },
    config::Config,
};

fn config(router: &str, tunnel: &str) -> Config {
    let text = format!(
        "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\n{router}\n[[tunnel]]\nname = \"gre1\"\nmode = \"gretap\"\n\
         local = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n{tunnel}\n"
    );
    Config::parse(&text, "test.toml").unwrap()
}

/// What is wrong with a host whose eth1 carries no more than the tunnel, after one change.
#[track_caller]
fn bridged(router: &str, change: impl Fn(&mut Host), expected: &[&str]) {
    let mut host = host();
    host.change("eth1", |link| link.mtu = 1462);
    change(&mut host);
    let config = config(router, "bridge = \"eth1\"");
    assert_eq!(complaints(&config, &host), expected);
}

#[test]
fn a_device_of_its_own_is_in_order_with_xdp_and_without() {
    bridged("", |_| {}, &[]);
    bridged("xdp = \"off\"", |_| {}, &[]);
}

#[test]
fn frames_that_the_tunnel_does_not_carry_are_announced() {
    bridged(
        "",
        |host| host.change("eth1", |link| link.mtu = 1500),
        &[
            "warn eth1 bridge: has MTU 1500, and tunnel gre1 carries 1462: larger frames are dropped | set the MTU of all \
             stations there, and of eth1, to 1462; or carry 1500 all the way: ip link set eth0 mtu 1538",
        ],
    );
    bridged(
        "",
        |host| {
            host.change("eth0", |link| link.mtu = 1538);
            host.change("eth1", |link| link.mtu = 1500);
        },
        &[],
    );
}

#[test]
fn addresses_on_the_device_are_out_of_reach() {
    bridged(
        "",
        |host| {
            let addresses = host.addresses.as_mut().unwrap();
            addresses.push((3, "10.1.0.1/24".parse().unwrap()));
            addresses.push((3, "fe80::1/64".parse().unwrap()));
        },
        &[
            "warn eth1 bridge: has 10.1.0.1/24, fe80::1/64: nobody reaches this host there, as all frames go into the \
             tunnel | sysctl -w net.ipv6.conf.eth1.disable_ipv6=1; ip address flush dev eth1",
        ],
    );
}

#[test]
fn a_device_in_use_is_none_for_a_wire() {
    let enslave = |host: &mut Host| {
        host.change("eth1", |link| link.master = Some(9));
        host.links.as_mut().unwrap().push(Link {
            index: 9,
            name: "br0".to_owned(),
            kind: Some("bridge".to_owned()),
            ..Link::default()
        });
    };
    bridged(
        "xdp = \"off\"",
        enslave,
        &[
            "fail eth1 bridge: is a port of br0, which would not see its frames any more | ip link set eth1 nomaster",
        ],
    );
    bridged(
        "xdp = \"off\"",
        |host| host.change("eth1", |link| link.ethernet = false),
        &[
            "fail eth1 bridge: is no Ethernet device: there are no frames on it | name an Ethernet device",
        ],
    );
}

#[test]
fn an_old_kernel_hides_tags_of_a_veth() {
    bridged(
        "",
        |host| host.veth_with_peer("eth1", 1),
        &[
            "warn eth1 bridge: before Linux 6.8 a veth hides VLAN tags from XDP: its frames go by the slow path | ethtool -K \
             PEER txvlan off, or use Linux 6.8 or later",
        ],
    );
    bridged("xdp = \"off\"", |host| host.veth_with_peer("eth1", 1), &[]);
    bridged(
        "",
        |host| {
            host.veth_with_peer("eth1", 1);
            host.kernel = "6.8.0".to_owned();
        },
        &[],
    );
}

#[test]
fn nothing_is_forwarded_over_a_wire_and_its_own_filters_are_no_strangers() {
    let off = |host: &mut Host| {
        for settings in host.settings.values_mut() {
            (settings.forwarding_v4, settings.forwarding_v6) = (Some(0), Some(0));
        }
    };
    bridged("", off, &[]);
    let clsact = |host: &mut Host| host.qdiscs.as_mut().unwrap().push((3, "clsact".to_owned()));
    let running = |host: &mut Host| {
        clsact(host);
        host.running = Some(7);
    };
    bridged("", running, &[]);
    bridged(
        "",
        clsact,
        &[
            "warn eth1 tc: the fast path goes past tc: clsact | tc qdisc show dev eth1; tc filter show dev eth1 ingress",
        ],
    );
}

#[test]
fn the_programs_need_their_capability_without_xdp_too() {
    bridged(
        "xdp = \"off\"",
        |host| host.capabilities = Ok(1 << 12 | 1 << 13),
        &[
            "fail host capabilities: missing: CAP_BPF (the steering program), CAP_PERFMON (the steering program's packet pointers) | \
             run as root, or: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep \"$(command -v greyhound)\"",
        ],
    );
}

#[test]
fn the_tunnels_device_is_one_for_frames() {
    let there = |ethernet| {
        move |host: &mut Host| {
            host.links.as_mut().unwrap().push(Link {
                index: 11,
                name: "gre1".to_owned(),
                kind: Some("tun".to_owned()),
                ethernet,
                ..Link::default()
            });
        }
    };
    bridged("", there(true), &[]);
    bridged(
        "",
        there(false),
        &[
            "fail gre1 name: a device of this name exists and is no TAP device (TUN) | ip link delete gre1, or choose another \
             name",
        ],
    );
}
