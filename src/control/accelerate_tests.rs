use super::*;
use crate::control::mirror::{Event, Neighbour, Nud};

const SETTINGS: Settings = Settings { flow_labels: true };

fn config(accelerate: &str, tunnels: &str) -> Config {
    let text = format!(
        "[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth1\"]\naccelerate = {accelerate}\n{tunnels}"
    );
    Config::parse(&text, "test.toml").unwrap()
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        mtu: 1476,
        up: true,
        carrier: true,
        running: true,
        no_arp: true,
        rx_queues: 1,
        tx_queues: 1,
        ..Link::default()
    }
}

/// As `ip link add` makes it when told no more than the addresses.
fn device(kind: TunnelKind) -> KernelTunnel {
    let v6 = matches!(kind, TunnelKind::Ip6gre | TunnelKind::Ip6tnl);
    let end = |n: u8| -> IpAddr {
        match v6 {
            true => Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()]).into(),
            false => Ipv4Addr::new(192, 0, 2, n).into(),
        }
    };
    KernelTunnel {
        local: Some(end(1)),
        remote: Some(end(2)),
        ttl: if v6 { 64 } else { 0 },
        pmtudisc: !v6,
        encap_limit: if v6 { 4 } else { 0 },
        flags: if v6 { 0x3_0000 } else { 0 },
        six_rd_prefix_len: (kind == TunnelKind::Sit).then_some(16),
        ..KernelTunnel::new(kind)
    }
}

fn word(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Gre => "gre",
        TunnelKind::Ip6gre => "ip6gre",
        TunnelKind::Ipip => "ipip",
        TunnelKind::Sit => "sit",
        TunnelKind::Ip6tnl => "ip6tnl",
    }
}

fn state(tunnel: KernelTunnel) -> State {
    let mut state = State::default();
    state.apply(Event::NewLink(link(2, "eth0", None)));
    state.apply(Event::NewLink(link(3, "eth1", None)));
    let tunnel = Link {
        tunnel: Some(Box::new(tunnel.clone())),
        ..link(9, "t", Some(word(tunnel.kind)))
    };
    state.apply(Event::NewLink(tunnel));
    state
}

fn verdict(tunnel: KernelTunnel) -> Result<TunnelConfig, String> {
    let mut found = find(&state(tunnel), &config("true", ""), SETTINGS);
    assert_eq!(found.len(), 1);
    found.remove(0).verdict
}

#[test]
fn every_kind_becomes_the_tunnel_that_it_is() {
    use TunnelKind::*;
    for (kind, protocol, mode) in [
        (Gre, 0, Mode::Gre),
        (Ip6gre, 0, Mode::Ip6gre),
        (Ipip, 0, Mode::Ipip),
        (Ipip, 4, Mode::Ipip),
        (Sit, 0, Mode::Sit),
        (Sit, 41, Mode::Sit6),
        (Ip6tnl, 0, Mode::Ip6tnl),
        (Ip6tnl, 41, Mode::Ip6ip6),
        (Ip6tnl, 4, Mode::Ipip6),
    ] {
        let t = verdict(KernelTunnel {
            protocol,
            ..device(kind)
        })
        .unwrap();
        assert_eq!((t.mode, t.kernels, t.name.as_str()), (mode, true, "t"));
        // What iproute2 leaves unsaid is what a packet's tunnel has by default.
        let made = crate::tunnel::Tunnel::new(mode, t.local, t.remote);
        let ours = t.tunnel(made.id, None, made.mtu, true);
        let expected = crate::tunnel::Tunnel {
            name: "t".into(),
            kernels: true,
            ..made
        };
        assert_eq!(ours, expected, "{kind:?} {protocol}");
    }
}

#[test]
fn options_are_taken_over() {
    let gre = verdict(KernelTunnel {
        iflags: 0xa000,
        oflags: 0x2000,
        ikey: 7,
        okey: 8,
        ttl: 64,
        tos: 0xb8,
        pmtudisc: false,
        ignore_df: true,
        link: 2,
        ..device(TunnelKind::Gre)
    })
    .unwrap();
    assert_eq!(
        (gre.ikey, gre.okey, gre.icsum, gre.ocsum),
        (Some(7), Some(8), true, false)
    );
    assert_eq!((gre.ttl, gre.tos), (Ttl::Fixed(64), Tos::Fixed(0xb8)));
    assert_eq!(
        (gre.pmtudisc, gre.ignore_df, gre.dev.as_deref()),
        (false, true, Some("eth0"))
    );
    let inherit = verdict(KernelTunnel {
        tos: 1,
        ..device(TunnelKind::Ipip)
    })
    .unwrap();
    assert_eq!((inherit.ttl, inherit.tos), (Ttl::Inherit, Tos::Inherit));
    let six = verdict(KernelTunnel {
        flowinfo: 0x0b81_2345,
        flags: IGN_ENCAP_LIMIT | RCV_DSCP_COPY,
        ttl: 0,
        ..device(TunnelKind::Ip6tnl)
    })
    .unwrap();
    assert_eq!(
        (six.tos, six.flow_label),
        (Tos::Fixed(0xb8), FlowLabel::Fixed(0x1_2345))
    );
    assert_eq!(
        (six.encaplimit, six.copy_dscp, six.ttl),
        (None, true, Ttl::Inherit)
    );
    let six = verdict(KernelTunnel {
        flags: USE_ORIG_TCLASS | USE_ORIG_FLOWLABEL,
        ..device(TunnelKind::Ip6gre)
    })
    .unwrap();
    assert_eq!(
        (six.tos, six.flow_label),
        (Tos::Inherit, FlowLabel::Inherit)
    );
}

#[test]
fn what_cannot_be_done_alike_is_left_alone_and_says_why() {
    use TunnelKind::*;
    let rows: Vec<(KernelTunnel, &str)> = vec![
        (
            KernelTunnel {
                external: true,
                ..device(Gre)
            },
            "external",
        ),
        (
            KernelTunnel {
                encap: 1,
                ..device(Gre)
            },
            "encap",
        ),
        (
            KernelTunnel {
                fwmark: 1,
                ..device(Ipip)
            },
            "fwmark",
        ),
        (
            KernelTunnel {
                iflags: GRE_SEQ,
                ..device(Gre)
            },
            "seq",
        ),
        (
            KernelTunnel {
                oflags: GRE_SEQ,
                ..device(Ip6gre)
            },
            "seq",
        ),
        (
            KernelTunnel {
                oflags: 0x4000,
                ..device(Gre)
            },
            "GRE flags",
        ),
        (
            KernelTunnel {
                unknown: Some(25),
                ..device(Gre)
            },
            "option 25",
        ),
        (
            KernelTunnel {
                local: None,
                ..device(Gre)
            },
            "no local address",
        ),
        (
            KernelTunnel {
                local: Some([0, 0, 0, 0].into()),
                ..device(Ipip)
            },
            "no local address",
        ),
        (
            KernelTunnel {
                remote: Some([239, 1, 1, 1].into()),
                ..device(Gre)
            },
            "its remote is a multicast group",
        ),
        (
            KernelTunnel {
                remote: None,
                ..device(Sit)
            },
            "no remote: 6to4",
        ),
        (
            KernelTunnel {
                remote: None,
                ..device(Ipip)
            },
            "no remote",
        ),
        (
            KernelTunnel {
                remote: None,
                ..device(Ip6gre)
            },
            "no remote",
        ),
        (
            KernelTunnel {
                local: Some("fe80::1".parse().unwrap()),
                ..device(Ip6gre)
            },
            "link-local",
        ),
        (
            KernelTunnel {
                protocol: 137,
                ..device(Ipip)
            },
            "ipip for protocol 137",
        ),
        (
            KernelTunnel {
                protocol: 4,
                ..device(Sit)
            },
            "sit for protocol 4",
        ),
        (
            KernelTunnel {
                flags: SIT_ISATAP,
                ..device(Sit)
            },
            "isatap",
        ),
        (
            KernelTunnel {
                six_rd_prefix_len: Some(32),
                ..device(Sit)
            },
            "6rd",
        ),
        (
            KernelTunnel {
                flags: USE_ORIG_FWMARK,
                ..device(Ip6tnl)
            },
            "fwmark inherit",
        ),
        (
            KernelTunnel {
                flags: 8,
                ..device(Ip6tnl)
            },
            "flags 0x8 are not known",
        ),
        (
            KernelTunnel {
                link: 3,
                ..device(Gre)
            },
            "it is bound to eth1, which is no underlay device",
        ),
        (
            KernelTunnel {
                link: 77,
                ..device(Gre)
            },
            "the device that it is bound to is not there",
        ),
    ];
    for (tunnel, expected) in rows {
        let why = verdict(tunnel.clone()).expect_err(expected);
        assert!(why.starts_with(expected), "{why:?} for {tunnel:?}");
    }
}

#[test]
fn the_device_itself_may_be_a_reason() {
    let mut state = state(device(TunnelKind::Gre));
    let gre = state.link(9).unwrap().clone();
    let why = |state: &State| {
        let all = find(state, &config("true", ""), SETTINGS);
        all[0].verdict.clone().unwrap_err()
    };
    state.apply(Event::NewLink(Link {
        master: Some(3),
        ..gre.clone()
    }));
    assert_eq!(why(&state), "it belongs to eth1");
    state.apply(Event::NewLink(Link {
        link_elsewhere: true,
        ..gre
    }));
    assert_eq!(why(&state), "its underlay is in another network namespace");
    state.apply(Event::NewLink(link(9, "t", Some("gretap"))));
    assert_eq!(why(&state), "gretap: it carries Ethernet frames");
}

#[test]
fn names_say_which_and_true_means_all_but_the_fallbacks() {
    let mut state = state(device(TunnelKind::Gre));
    let fallback = KernelTunnel::new(TunnelKind::Gre);
    state.apply(Event::NewLink(Link {
        tunnel: Some(Box::new(fallback)),
        ..link(10, "gre0", Some("gre"))
    }));
    let names = |accelerate: &str| -> Vec<(String, bool)> {
        let all = find(&state, &config(accelerate, ""), SETTINGS);
        all.iter()
            .map(|f| (f.name.to_string(), f.verdict.is_ok()))
            .collect()
    };
    let of = |name: &str, taken| (name.to_owned(), taken);
    assert_eq!(names("true"), [of("t", true)]);
    assert_eq!(names("false"), []);
    assert_eq!(names(r#"["t"]"#), [of("t", true)]);
    assert_eq!(
        names(r#"["gre0", "other"]"#),
        [of("gre0", false), of("other", false)]
    );
}

#[test]
fn what_a_configured_tunnel_receives_is_not_taken_twice() {
    let state = state(KernelTunnel {
        iflags: GRE_KEY,
        ikey: 5,
        ..device(TunnelKind::Gre)
    });
    let with = |key: u32| {
        let tunnel = format!(
            "[[tunnel]]\nname = \"own\"\nmode = \"gre\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nkey = {key}\n"
        );
        find(&state, &config("true", &tunnel), SETTINGS)[0]
            .verdict
            .clone()
    };
    assert_eq!(
        with(5).unwrap_err(),
        "its packets are those of [[tunnel]] own"
    );
    assert!(with(6).is_ok());
}

#[test]
fn neighbours_of_a_device_without_a_remote_are_its_peers() {
    let mut state = state(KernelTunnel {
        remote: None,
        ..device(TunnelKind::Gre)
    });
    let mut add = |inner: &str, outer: &str, nud| {
        let outer = Some(outer.parse().unwrap());
        state.apply(Event::NewNeighbour(
            9,
            inner.parse().unwrap(),
            Neighbour {
                mac: None,
                outer,
                nud,
            },
        ));
    };
    add("172.16.0.3", "198.51.100.3", Nud::Permanent);
    add("172.16.0.4", "198.51.100.4", Nud::Failed);
    // What the kernel makes up by itself.
    add("172.16.0.5", "192.0.2.1", Nud::NoArp);
    add("224.0.0.5", "224.0.0.5", Nud::NoArp);
    add("2001:db8::7", "198.51.100.7", Nud::Reachable);
    let found = find(&state, &config("true", ""), SETTINGS);
    let tunnel = found[0].verdict.clone().unwrap();
    let peers: Vec<String> = tunnel
        .peers
        .iter()
        .map(|(net, to)| format!("{net} {to}"))
        .collect();
    assert_eq!(
        peers,
        ["172.16.0.3/32 198.51.100.3", "2001:db8::7/128 198.51.100.7"]
    );
    // A gateway that is no neighbour is nobody's outer address.
    let gateway = "198.51.100.9".parse().unwrap();
    assert_eq!(
        tunnel.peers.remote_of(Family::V4, Some(gateway), gateway),
        None
    );
}

#[test]
fn without_automatic_labels_there_is_none() {
    let config = config("true", "");
    let off = Settings { flow_labels: false };
    let judge = |t: KernelTunnel| find(&state(t), &config, off)[0].verdict.clone();
    assert_eq!(
        judge(device(TunnelKind::Ip6gre)).unwrap().flow_label,
        FlowLabel::Fixed(0)
    );
    let inherit = KernelTunnel {
        flags: USE_ORIG_FLOWLABEL,
        ..device(TunnelKind::Ip6gre)
    };
    assert!(judge(inherit).unwrap_err().starts_with("flowlabel inherit"));
}
