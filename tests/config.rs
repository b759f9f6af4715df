//! The configuration file: what is accepted, and the one line that each mistake gets.

use std::net::{IpAddr, Ipv4Addr};

use greyhound::control::config::{Config, Mtu, Spread, Workers, XdpMode};
use greyhound::packet::GreKey;
use greyhound::tunnel::{FlowLabel, Mode, Tos, Ttl, TunnelId, UdpEncap};

#[path = "config/frames.rs"]
mod frames;

/// The example of the documentation, as far as this version goes.
const EXAMPLE: &str = r#"
[router]
underlay = ["eth0"]
overlay  = ["eth1"]
workers  = [2, 3]
xdp      = "zero-copy"
control  = "/run/greyhound/a.sock"
persist  = false
metrics  = "127.0.0.1:9747"

[[tunnel]]
name   = "gre1"
mode   = "gre"
local  = "192.0.2.1"
remote = "192.0.2.2"
key    = 42
csum   = false
iseq   = true
ttl    = 64
tos    = "inherit"
pmtudisc = false
ignore_df = true
dev    = "eth0"
mtu    = 1400
clamp_mss = true
address = ["172.16.0.1/30", "2001:db8::1/64"]
routes  = ["10.0.2.0/24", "::/0"]
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, "greyhound.toml").map_err(|e| e.to_string())
}

#[test]
fn the_documented_example_means_what_it_says() {
    let config = parse(EXAMPLE).unwrap();
    let router = &config.router;
    assert_eq!(router.devices(), ["eth0", "eth1"]);
    assert_eq!(router.workers, Workers::Cpus(vec![2, 3]));
    assert_eq!(router.xdp, XdpMode::ZeroCopy);
    assert_eq!(router.control.to_str(), Some("/run/greyhound/a.sock"));
    assert!(!router.persist);
    assert_eq!(router.metrics, "127.0.0.1:9747".parse().ok());
    let [tunnel] = &config.tunnels[..] else {
        panic!("one tunnel, not {}", config.tunnels.len());
    };
    assert_eq!((&tunnel.name[..], tunnel.mode), ("gre1", Mode::Gre));
    assert_eq!(tunnel.local, IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(tunnel.remote, IpAddr::from(Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!((tunnel.ikey, tunnel.okey), (Some(42), Some(42)));
    assert_eq!((tunnel.icsum, tunnel.ocsum), (false, false));
    assert_eq!((tunnel.iseq, tunnel.oseq), (true, false));
    assert_eq!((tunnel.ttl, tunnel.tos), (Ttl::Fixed(64), Tos::Inherit));
    assert_eq!((tunnel.pmtudisc, tunnel.ignore_df), (false, true));
    assert_eq!(tunnel.dev.as_deref(), Some("eth0"));
    assert_eq!((tunnel.mtu, tunnel.clamp_mss), (Mtu::Fixed(1400), true));
    assert_eq!(tunnel.address[0].to_string(), "172.16.0.1/30");
    assert_eq!(tunnel.address[1].to_string(), "2001:db8::1/64");
    assert_eq!(tunnel.routes[1].to_string(), "::/0");
}

#[test]
fn absent_keys_have_the_kernels_defaults() {
    let config = parse(&with(&[], &[])).unwrap();
    assert_eq!(config.router.workers, Workers::Auto);
    assert_eq!(config.router.xdp, XdpMode::Auto);
    assert_eq!(
        config.router.control.to_str(),
        Some("/run/greyhound/control.sock")
    );
    assert!(config.router.persist && config.router.metrics.is_none());
    assert_eq!(config.router.spread, Spread::Auto);
    assert!(!config.router.busy_poll);
    for (value, spread) in [("true", Spread::On), ("false", Spread::Off)] {
        let config = parse(&with(&[&format!("spread = {value}")], &[])).unwrap();
        assert_eq!(config.router.spread, spread);
    }
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.ikey, tunnel.okey), (None, None));
    assert!(!(tunnel.icsum || tunnel.ocsum || tunnel.iseq || tunnel.oseq));
    assert_eq!((tunnel.ttl, tunnel.tos), (Ttl::Inherit, Tos::Fixed(0)));
    assert_eq!((tunnel.pmtudisc, tunnel.ignore_df), (true, false));
    assert_eq!((tunnel.mtu, tunnel.clamp_mss), (Mtu::Auto, false));
    assert_eq!(tunnel.dev, None);
    assert!(tunnel.address.is_empty() && tunnel.routes.is_empty());
}

#[test]
fn a_key_may_be_a_dotted_quad_or_hexadecimal_and_differ_by_direction() {
    let config = parse(&with(&[], &["ikey = \"1.2.3.4\"", "okey = 0xffffffff"])).unwrap();
    let tunnel = &config.tunnels[0];
    assert_eq!(
        (tunnel.ikey, tunnel.okey),
        (Some(0x0102_0304), Some(u32::MAX))
    );
}

/// The edits that make the good configuration one of this kind.
fn kind(mode: &str, edits: &[&str]) -> String {
    let ends = match mode {
        "ip6gre" | "ip6gretap" | "ip6ip6" | "ipip6" => {
            ["local = \"2001:db8::1\"", "remote = \"2001:db8::2\""]
        }
        _ => ["local = \"192.0.2.1\"", "remote = \"192.0.2.2\""],
    };
    let mode = format!("mode = \"{mode}\"");
    with(&[], &[&[mode.as_str()], &ends[..], edits].concat())
}

#[test]
fn every_kind_has_the_kernels_defaults() {
    for (word, mode, is_v6) in [
        ("gre", Mode::Gre, false),
        ("gretap", Mode::Gretap, false),
        ("ip6gre", Mode::Ip6gre, true),
        ("ip6gretap", Mode::Ip6gretap, true),
        ("ipip", Mode::Ipip, false),
        ("sit", Mode::Sit, false),
        ("ip6ip6", Mode::Ip6ip6, true),
        ("ipip6", Mode::Ipip6, true),
    ] {
        let config = parse(&kind(word, &[])).unwrap();
        let tunnel = &config.tunnels[0];
        assert_eq!(tunnel.mode, mode);
        assert_eq!(
            (tunnel.local.is_ipv6(), tunnel.remote.is_ipv6()),
            (is_v6, is_v6)
        );
        let (ttl, limit) = if is_v6 {
            (Ttl::Fixed(64), Some(4))
        } else {
            (Ttl::Inherit, None)
        };
        assert_eq!((tunnel.ttl, tunnel.encaplimit), (ttl, limit), "{word}");
        assert_eq!(
            (tunnel.tos, tunnel.flow_label),
            (Tos::Fixed(0), FlowLabel::Hash)
        );
        assert!(tunnel.pmtudisc && !tunnel.ignore_df);
    }
}

#[test]
fn over_ipv6_the_header_has_other_names() {
    let tunnel = |edits: &[&str]| parse(&kind("ip6gre", edits)).unwrap().tunnels.remove(0);
    for (edit, ttl) in [
        ("hoplimit = 1", Ttl::Fixed(1)),
        ("hoplimit = \"inherit\"", Ttl::Inherit),
        ("ttl = 255", Ttl::Fixed(255)),
    ] {
        assert_eq!(tunnel(&[edit]).ttl, ttl);
    }
    for (edit, tos) in [
        ("tclass = 0xb8", Tos::Fixed(0xb8)),
        ("tclass = \"inherit\"", Tos::Inherit),
        ("tos = 4", Tos::Fixed(4)),
    ] {
        assert_eq!(tunnel(&[edit]).tos, tos);
    }
    for (edit, copied) in [("dscp = \"inherit\"", true), ("dscp = \"none\"", false)] {
        assert_eq!(tunnel(&[edit]).copy_dscp, copied);
    }
    for (edit, label) in [
        ("flowlabel = \"hash\"", FlowLabel::Hash),
        ("flowlabel = \"inherit\"", FlowLabel::Inherit),
        ("flowlabel = 0", FlowLabel::Fixed(0)),
        ("flowlabel = 0xfffff", FlowLabel::Fixed(0xf_ffff)),
        ("flowlabel = \"0x12345\"", FlowLabel::Fixed(0x1_2345)),
    ] {
        assert_eq!(tunnel(&[edit]).flow_label, label);
    }
    for (edit, limit) in [
        ("encaplimit = 0", Some(0)),
        ("encaplimit = 255", Some(255)),
        ("encaplimit = \"none\"", None),
    ] {
        assert_eq!(tunnel(&[edit]).encaplimit, limit);
    }
    assert_eq!(tunnel(&["mtu = 65483"]).mtu, Mtu::Fixed(65483));
}

#[test]
fn packets_see_the_tunnel_as_configured() {
    let lines = [
        "ikey = 1",
        "okey = 2",
        "csum = true",
        "iseq = true",
        "hoplimit = 9",
        "tclass = 8",
        "flowlabel = 7",
        "encaplimit = 6",
        "clamp_mss = true",
    ];
    let config = parse(&kind("ip6gre", &lines)).unwrap();
    let tunnel = config.tunnels[0].tunnel(TunnelId(3), Some(2), 1400, true);
    assert_eq!(
        (tunnel.id, tunnel.dev, tunnel.mtu, tunnel.up),
        (TunnelId(3), Some(2), 1400, true)
    );
    assert_eq!((&*tunnel.name, tunnel.mode), ("gre1", Mode::Ip6gre));
    assert_eq!(tunnel.local.to_string(), "2001:db8::1");
    assert_eq!(tunnel.remote.to_string(), "2001:db8::2");
    assert_eq!(
        (tunnel.ikey, tunnel.okey),
        (Some(GreKey(1)), Some(GreKey(2)))
    );
    let flags = [tunnel.icsum, tunnel.ocsum, tunnel.iseq, tunnel.oseq];
    assert_eq!(flags, [true, true, true, false]);
    assert_eq!((tunnel.ttl, tunnel.tos), (Ttl::Fixed(9), Tos::Fixed(8)));
    assert_eq!(tunnel.flow_label, FlowLabel::Fixed(7));
    assert_eq!(tunnel.encaplimit, Some(6));
    assert_eq!((tunnel.mtu, tunnel.clamp_mss), (1400, Some(1400)));
    assert_eq!(tunnel.overhead(), 40 + 8 + 12);
    assert_eq!(usize::from(config.tunnels[0].overhead()), tunnel.overhead());
}

#[test]
fn gre_in_udp_has_a_checksum_where_the_rfc_wants_one() {
    let udp = |mode: &str, options: &[&str]| parse(&kind(mode, options)).unwrap().tunnels[0].udp;
    let encap = |source_port, checksum| {
        Some(UdpEncap {
            source_port,
            checksum,
        })
    };
    let on = "encap = \"gre-in-udp\"";
    for (mode, options, expected) in [
        ("gre", &[][..], None),
        ("gre", &["encap = \"none\""], None),
        ("gre", &[on], encap(None, false)),
        ("gre", &[on, "encap_csum = true"], encap(None, true)),
        ("gre", &[on, "encap_sport = \"auto\""], encap(None, false)),
        ("gre", &[on, "encap_sport = 1"], encap(Some(1), false)),
        (
            "gre",
            &[on, "encap_sport = 65535"],
            encap(Some(65535), false),
        ),
        ("ip6gre", &[on], encap(None, true)),
        ("ip6gre", &[on, "encap_csum = false"], encap(None, false)),
        ("ip6gre", &[on, "encap_csum6 = false"], encap(None, false)),
    ] {
        assert_eq!(udp(mode, options), expected, "{mode} {options:?}");
    }
    let config = parse(&kind("ip6gre", &[on, "key = 1"])).unwrap();
    let tunnel = config.tunnels[0].tunnel(TunnelId(0), None, 1400, true);
    assert_eq!(tunnel.udp, encap(None, true));
    assert_eq!(tunnel.overhead(), 40 + 8 + 8 + 8);
    assert_eq!(usize::from(config.tunnels[0].overhead()), tunnel.overhead());
}

#[test]
fn without_xdp_the_overlay_may_be_empty() {
    let config = parse("[router]\nunderlay = [\"eth0\"]\nxdp = \"off\"").unwrap();
    assert!(config.router.overlay.is_empty() && config.tunnels.is_empty());
}

#[test]
fn one_device_may_be_both() {
    let config = parse("[router]\nunderlay = [\"eth0\"]\noverlay = [\"eth0\"]").unwrap();
    assert_eq!(config.router.devices(), ["eth0"]);
}

#[test]
fn tunnels_may_share_what_linux_lets_them_share() {
    let shared = "address = [\"10.9.9.9/32\", \"fe80::1/64\"]";
    let first = with(&[], &[shared, "ttl = 9", "pmtudisc = false"]);
    let second = |options: &str| {
        let tunnel = "[[tunnel]]\nname = \"gre2\"\nmode = \"gre\"\nlocal = \"192.0.2.1\"";
        format!("{first}{tunnel}\n{shared}\n{options}\n")
    };
    parse(&second("remote = \"192.0.2.3\"")).unwrap();
    parse(&second("remote = \"192.0.2.2\"\nkey = 0")).unwrap();
    parse(&second("remote = \"192.0.2.2\"\nencap = \"gre-in-udp\"")).unwrap();
    parse(&second("remote = \"192.0.2.2\"\ndev = \"eth0\"")).unwrap();
}

#[test]
fn kinds_do_not_get_into_each_others_way() {
    let more = |first: &str, second: &str| {
        let second = kind(second, &["name = \"gre2\""]);
        let (_, tunnel) = second.split_once("[[tunnel]]").unwrap();
        parse(&format!("{}[[tunnel]]{tunnel}", kind(first, &[])))
    };
    more("ipip", "sit").unwrap();
    more("gre", "ipip").unwrap();
    more("gre", "ip6gre").unwrap();
    for mode in ["ipip", "sit"] {
        assert_eq!(
            more(mode, mode).unwrap_err(),
            "greyhound.toml:9: tunnel \"gre2\": local 192.0.2.1, remote 192.0.2.2 are those of tunnel \"gre1\": \
             expected other addresses"
        );
    }
    assert_eq!(
        more("ip6gre", "ip6gre").unwrap_err(),
        "greyhound.toml:9: tunnel \"gre2\": local 2001:db8::1, remote 2001:db8::2 and no key are those of tunnel \
         \"gre1\": expected another ikey"
    );
}

/// A good configuration, edited: `key = value` replaces the key's line, or is a new one at the section's end; a bare key
/// removes its line.
fn with(router: &[&str], tunnel: &[&str]) -> String {
    let edit = |lines: &[&str], edits: &[&str]| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        for edit in edits {
            let key = edit.split(' ').next().unwrap();
            let old = lines
                .iter()
                .position(|line| line.split(' ').next() == Some(key));
            match (old, edit.contains('=')) {
                (Some(old), true) => lines[old] = (*edit).to_owned(),
                (Some(old), false) => drop(lines.remove(old)),
                (None, _) => lines.push((*edit).to_owned()),
            }
        }
        lines.join("\n")
    };
    let router = edit(
        &["[router]", "underlay = [\"eth0\"]", "overlay = [\"eth1\"]"],
        router,
    );
    let first = ["[[tunnel]]", "name = \"gre1\"", "mode = \"gre\""];
    let ends = ["local = \"192.0.2.1\"", "remote = \"192.0.2.2\""];
    format!(
        "{router}\n{}\n",
        edit(&[first.as_slice(), &ends].concat(), tunnel)
    )
}

const TUNNEL_KEYS: &str = "name, mode, local, remote, peer, key, ikey, okey, csum, icsum, ocsum, seq, iseq, oseq, ttl, hoplimit, \
     tos, tclass, dscp, flowlabel, encaplimit, encap, encap_sport, encap_csum, encap_csum6, pmtudisc, ignore_df, mtu, \
     clamp_mss, keepalive, bridge, nvgre, dev, address, routes";
const ROUTER_KEYS: &str =
    "underlay, overlay, workers, xdp, spread, busy_poll, control, persist, accelerate, metrics";

/// Edits of the good configuration's `[router]` (`underlay` is line 2, `overlay` 3, new keys 4) and the complaint.
const BROKEN_ROUTERS: &[(&str, &str)] = &[
    (
        "underlay",
        r#"1: [router]: underlay is missing: expected a list of device names such as ["eth0"]"#,
    ),
    (
        "underlay = []",
        r#"1: [router]: underlay names no device: expected a list of device names such as ["eth0"]"#,
    ),
    (
        "overlay",
        r#"1: [router]: overlay names no device: expected a list of device names such as ["eth0"], or xdp = "off""#,
    ),
    (
        "underlay = \"eth0\"",
        r#"2: [router]: underlay = "eth0": expected a list of device names such as ["eth0"]"#,
    ),
    (
        "overlay = [\"eth1\", 7]",
        "3: [router]: overlay = 7: expected a device name: 1 to 15 bytes without space, '/', ':' or '%'",
    ),
    (
        "overlay = [\"a-name-of-sixteen\"]",
        "3: [router]: overlay = \"a-name-of-sixteen\": expected a device name: 1 to 15 bytes without space, '/', ':' or '%'",
    ),
    (
        "overlay = [\"eth1\", \"eth1\"]",
        "3: [router]: overlay = \"eth1\": named twice: expected each device once",
    ),
    (
        "xdp = \"zerocopy\"",
        r#"4: [router]: xdp = "zerocopy": expected auto, zero-copy, copy, generic or off"#,
    ),
    (
        "xdp = false",
        "4: [router]: xdp = false: expected auto, zero-copy, copy, generic or off",
    ),
    (
        "workers = 2",
        r#"4: [router]: workers = 2: expected "auto" or a list of CPUs such as [2, 3]"#,
    ),
    (
        "workers = []",
        r#"4: [router]: workers = []: expected "auto" or a list of CPUs such as [2, 3]"#,
    ),
    (
        "workers = [0, -1]",
        "4: [router]: workers = -1: expected a CPU, 0..8191",
    ),
    (
        "workers = [1, 1]",
        "4: [router]: workers = 1: named twice: expected each CPU once",
    ),
    (
        "control = \"greyhound.sock\"",
        r#"4: [router]: control = "greyhound.sock": expected an absolute path of at most 107 bytes"#,
    ),
    (
        "persist = 1",
        "4: [router]: persist = 1: expected true or false",
    ),
    (
        "metrics = \"localhost\"",
        r#"4: [router]: metrics = "localhost": expected an address and a port such as 127.0.0.1:9747 or [::1]:9747"#,
    ),
    (
        "metrics = \"[::1]:0\"",
        r#"4: [router]: metrics = "[::1]:0": expected an address and a port such as 127.0.0.1:9747 or [::1]:9747"#,
    ),
    (
        "spread = \"always\"",
        r#"4: [router]: spread = "always": expected "auto", true or false"#,
    ),
    (
        "accelerate = \"gre1\"",
        r#"4: [router]: accelerate = "gre1": expected true, false or a list of the kernel's tunnel devices such as ["gre1"]"#,
    ),
    (
        "accelerate = []",
        r#"4: [router]: accelerate = []: expected true, false or a list of the kernel's tunnel devices such as ["gre1"]"#,
    ),
    (
        "accelerate = [\"gre2\", \"gre2\"]",
        r#"4: [router]: accelerate = "gre2": named twice: expected each device once"#,
    ),
    (
        "accelerate = [\"gre 2\"]",
        r#"4: [router]: accelerate = "gre 2": expected a device name: 1 to 15 bytes without space, '/', ':' or '%'"#,
    ),
    (
        "accelerate = [\"eth1\"]",
        r#"4: [router]: accelerate = "eth1": an underlay or overlay device: expected a tunnel device of the kernel's"#,
    ),
    (
        "accelerate = true\nxdp = \"off\"",
        r#"4: [router]: accelerate = true: not with xdp = "off", which leaves no fast path: expected false, or another xdp"#,
    ),
    (
        "accelerate = [\"gre1\"]",
        r#"6: tunnel "gre1": name = "gre1": in router.accelerate, which names devices of the kernel's own: expected another name"#,
    ),
    (
        "busy_poll = 50",
        "4: [router]: busy_poll = 50: expected true or false",
    ),
    (
        "persists = true",
        r#"4: [router]: unknown key "persists" (did you mean persist?); accepted: {router}"#,
    ),
    (
        "colour = \"red\"",
        r#"4: [router]: unknown key "colour"; accepted: {router}"#,
    ),
];

/// Edits of the good configuration's tunnel (`name` is line 5, `mode` 6, `local` 7, `remote` 8, new keys 9) and the complaint,
/// which begins with the tunnel's name.
const BROKEN_TUNNELS: &[(&str, &str)] = &[
    ("mode", "4: mode is missing: expected {modes}"),
    ("mode = \"vxlan\"", r#"6: mode = "vxlan": expected {modes}"#),
    (
        "local",
        "4: local is missing: expected a unicast IPv4 address",
    ),
    (
        "local = \"192.0.2\"",
        r#"7: local = "192.0.2": expected a unicast IPv4 address"#,
    ),
    (
        "local = \"0.0.0.0\"",
        r#"7: local = "0.0.0.0": expected a unicast IPv4 address, not multicast, loopback, broadcast or zero"#,
    ),
    (
        "local = \"2001:db8::1\"",
        r#"7: local = "2001:db8::1": wrong family for mode gre: expected a unicast IPv4 address"#,
    ),
    (
        "local = \"224.0.0.5\"",
        r#"7: local = "224.0.0.5": expected a unicast IPv4 address, not multicast, loopback, broadcast or zero"#,
    ),
    (
        "remote = \"here\"",
        r#"8: remote = "here": expected a unicast IPv4 address or a multicast group"#,
    ),
    (
        "remote = \"ff05::1\"",
        r#"8: remote = "ff05::1": wrong family for mode gre: expected a group such as 239.1.1.1"#,
    ),
    (
        "remote = \"255.255.255.255\"",
        r#"8: remote = "255.255.255.255": expected a unicast IPv4 address, not multicast, loopback, broadcast or zero"#,
    ),
    (
        "remote = \"127.0.0.1\"",
        r#"8: remote = "127.0.0.1": expected a unicast IPv4 address, not multicast, loopback, broadcast or zero"#,
    ),
    (
        "remote = \"192.0.2.1\"",
        r#"8: remote = "192.0.2.1": same as local: expected the other end's address"#,
    ),
    (
        "key = -3",
        "9: key = -3: expected 0..4294967295 or a dotted quad",
    ),
    (
        "key = 4294967296",
        "9: key = 4294967296: expected 0..4294967295 or a dotted quad",
    ),
    (
        "okey = \"1.2.3\"",
        r#"9: okey = "1.2.3": expected 0..4294967295 or a dotted quad"#,
    ),
    (
        "csum = \"yes\"",
        r#"9: csum = "yes": expected true or false"#,
    ),
    ("ttl = 0", r#"9: ttl = 0: expected 1..255 or "inherit""#),
    ("ttl = 256", r#"9: ttl = 256: expected 1..255 or "inherit""#),
    ("tos = 256", r#"9: tos = 256: expected 0..255 or "inherit""#),
    ("tos = 1.5", r#"9: tos = 1.5: expected 0..255 or "inherit""#),
    ("mtu = 67", r#"9: mtu = 67: expected 68..65511 or "auto""#),
    (
        "mtu = 65512",
        r#"9: mtu = 65512: expected 68..65511 or "auto""#,
    ),
    (
        "ignore_df = true",
        "9: ignore_df = true: not with pmtudisc = true: expected pmtudisc = false beside it",
    ),
    (
        "dev = \"gre1\"",
        r#"9: dev = "gre1": the tunnel itself: expected an underlay device"#,
    ),
    (
        "address = \"172.16.0.1/30\"",
        r#"9: address = "172.16.0.1/30": expected a list such as ["172.16.0.1/30"]"#,
    ),
    (
        "address = [\"172.16.0.1\"]",
        r#"9: address = "172.16.0.1": expected an address and a prefix length such as "172.16.0.1/30""#,
    ),
    (
        "address = [\"172.16.0.1/33\"]",
        r#"9: address = "172.16.0.1/33": expected an address and a prefix length such as "172.16.0.1/30""#,
    ),
    (
        "address = [\"ff02::1/64\"]",
        r#"9: address = "ff02::1/64": expected an address that a device can have"#,
    ),
    (
        "address = [\"10.0.0.1/8\", \"10.0.0.1/8\"]",
        r#"9: address = "10.0.0.1/8": given twice: expected each once"#,
    ),
    (
        "routes = [\"10.0.2.1/24\"]",
        r#"9: routes = "10.0.2.1/24": host bits are set: expected 10.0.2.0/24"#,
    ),
    (
        "routes = [\"2001:db8::1/32\"]",
        r#"9: routes = "2001:db8::1/32": host bits are set: expected 2001:db8::/32"#,
    ),
    (
        "routes = [\"224.0.0.0/4\"]",
        r#"9: routes = "224.0.0.0/4": expected a unicast prefix"#,
    ),
    (
        "hoplimit = 64",
        "9: hoplimit = 64: not with mode gre; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6",
    ),
    (
        "tclass = 0",
        "9: tclass = 0: not with mode gre; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6",
    ),
    (
        "flowlabel = \"hash\"",
        r#"9: flowlabel = "hash": not with mode gre; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6"#,
    ),
    (
        "dscp = \"inherit\"",
        r#"9: dscp = "inherit": not with mode gre; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6"#,
    ),
    (
        "encaplimit = 4",
        "9: encaplimit = 4: not with mode gre; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6",
    ),
    (
        "address = [\"192.0.2.2/30\"]",
        r#"9: address = "192.0.2.2/30": a tunnel's remote: expected an address of this host's own"#,
    ),
    (
        "routes = [\"192.0.2.2/32\"]",
        r#"9: routes = "192.0.2.2/32": the way to the other end itself: expected prefixes behind it"#,
    ),
    (
        "clamp_mss = 1400",
        "9: clamp_mss = 1400: expected true or false",
    ),
    (
        "encap = \"fou\"",
        r#"9: encap = "fou": expected "gre-in-udp" or "none""#,
    ),
    (
        "encap = true",
        r#"9: encap = true: expected "gre-in-udp" or "none""#,
    ),
    (
        "encap_sport = 50000",
        r#"9: encap_sport = 50000: not without encap: expected encap = "gre-in-udp" beside it"#,
    ),
    (
        "encap_csum = true",
        r#"9: encap_csum = true: not without encap: expected encap = "gre-in-udp" beside it"#,
    ),
    (
        "encap_csum6 = true",
        "9: encap_csum6 = true: not with mode gre; accepted with ip6gre and ip6gretap",
    ),
    (
        "encap_sport = 0",
        r#"9: encap_sport = 0: expected 1..65535 or "auto""#,
    ),
    (
        "encap_sport = 65536",
        r#"9: encap_sport = 65536: expected 1..65535 or "auto""#,
    ),
    (
        "encap_csum = 1",
        "9: encap_csum = 1: expected true or false",
    ),
    (
        "encap-dport = 4754",
        r#"9: unknown key "encap-dport" (did you mean encap_sport?); accepted: {tunnel}"#,
    ),
    (
        "ignore-df = true",
        r#"9: unknown key "ignore-df" (did you mean ignore_df?); accepted: {tunnel}"#,
    ),
    (
        "Key = 1",
        r#"9: unknown key "Key" (did you mean key?); accepted: {tunnel}"#,
    ),
];

/// The same for other kinds (see [`kind`]).
const BROKEN_KINDS: &[(&str, &[&str], &str)] = &[
    (
        "ip6gre",
        &["dscp = true"],
        "9: dscp = true: expected \"inherit\" or \"none\"",
    ),
    (
        "ipip",
        &["key = 42"],
        "9: key = 42: not with mode ipip; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ipip",
        &["ocsum = true"],
        "9: ocsum = true: not with mode ipip; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ipip",
        &["encap = \"gre-in-udp\""],
        "9: encap = \"gre-in-udp\": not with mode ipip; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ip6ip6",
        &["encap_sport = 4754"],
        "9: encap_sport = 4754: not with mode ip6ip6; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ip6ip6",
        &["encap_csum6 = false"],
        "9: encap_csum6 = false: not with mode ip6ip6; accepted with ip6gre and ip6gretap",
    ),
    (
        "ip6gre",
        &["encap_csum = true", "encap_csum6 = true"],
        "10: encap_csum6 = true: encap_csum is set too: expected one of them",
    ),
    (
        "sit",
        &["csum = true"],
        "9: csum = true: not with mode sit; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "sit",
        &["iseq = true"],
        "9: iseq = true: not with mode sit; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ip6ip6",
        &["okey = 1"],
        "9: okey = 1: not with mode ip6ip6; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ipip6",
        &["seq = true"],
        "9: seq = true: not with mode ipip6; accepted with gre, gretap, ip6gre and ip6gretap",
    ),
    (
        "ip6gre",
        &["pmtudisc = true"],
        "9: pmtudisc = true: not with mode ip6gre; accepted with gre, gretap, ipip and sit",
    ),
    (
        "ipip6",
        &["pmtudisc = false"],
        "9: pmtudisc = false: not with mode ipip6; accepted with gre, gretap, ipip and sit",
    ),
    (
        "ip6ip6",
        &["ignore_df = true"],
        "9: ignore_df = true: not with mode ip6ip6; accepted with gre and gretap",
    ),
    (
        "ipip",
        &["pmtudisc = false", "ignore_df = true"],
        "10: ignore_df = true: not with mode ipip; accepted with gre and gretap",
    ),
    (
        "sit",
        &["hoplimit = 64"],
        "9: hoplimit = 64: not with mode sit; accepted with ip6gre, ip6gretap, ip6ip6 and ipip6",
    ),
    (
        "ipip",
        &["ttl = 64", "pmtudisc = false"],
        r#"9: ttl = 64: not with pmtudisc = false on ipip: expected ttl = "inherit", or pmtudisc = true"#,
    ),
    (
        "sit",
        &["pmtudisc = false", "ttl = 1"],
        r#"10: ttl = 1: not with pmtudisc = false on sit: expected ttl = "inherit", or pmtudisc = true"#,
    ),
    (
        "ip6gre",
        &["hoplimit = 0"],
        r#"9: hoplimit = 0: expected 1..255 or "inherit""#,
    ),
    (
        "ip6gre",
        &["hoplimit = 64", "ttl = 64"],
        "9: hoplimit = 64: ttl is set too: expected one of them",
    ),
    (
        "ip6gre",
        &["tos = 0", "tclass = 0"],
        "10: tclass = 0: tos is set too: expected one of them",
    ),
    (
        "ip6gre",
        &["tclass = 256"],
        r#"9: tclass = 256: expected 0..255 or "inherit""#,
    ),
    (
        "ip6gre",
        &["flowlabel = 0x100000"],
        r#"9: flowlabel = 0x100000: expected 0..0xfffff, "hash" or "inherit""#,
    ),
    (
        "ip6gre",
        &["flowlabel = \"0x100000\""],
        r#"9: flowlabel = "0x100000": expected 0..0xfffff, "hash" or "inherit""#,
    ),
    (
        "ip6gre",
        &["encaplimit = 256"],
        r#"9: encaplimit = 256: expected 0..255 or "none""#,
    ),
    (
        "ip6gre",
        &["encaplimit = \"inherit\""],
        r#"9: encaplimit = "inherit": expected 0..255 or "none""#,
    ),
    (
        "ip6gre",
        &["mtu = 65484"],
        r#"9: mtu = 65484: expected 68..65483 or "auto""#,
    ),
    (
        "ipip",
        &["keepalive = true"],
        "9: keepalive = true: not with mode ipip; accepted with gre and ip6gre",
    ),
    (
        "gre",
        &["encap = \"gre-in-udp\"", "keepalive = true"],
        "10: keepalive = true: not with encap: what is to come back is plain GRE, which such a tunnel does not take",
    ),
    (
        "ip6ip6",
        &["encaplimit = \"none\"", "mtu = 1279"],
        r#"10: mtu = 1279: expected 1280..65495 or "auto""#,
    ),
    (
        "gre",
        &["mtu = 1279", "address = [\"10.0.0.1/30\", \"fd00::1/64\"]"],
        r#"10: address = "fd00::1/64": not with mtu = 1279: IPv6 needs 1280 bytes: expected that mtu, or more"#,
    ),
    (
        "ip6gre",
        &["mtu = 68", "routes = [\"::/0\"]"],
        r#"10: routes = "::/0": not with mtu = 68: IPv6 needs 1280 bytes: expected that mtu, or more"#,
    ),
    (
        "sit",
        &["mtu = 1279"],
        r#"9: mtu = 1279: expected 1280..65515 or "auto""#,
    ),
    (
        "ip6gre",
        &["local"],
        "4: local is missing: expected a unicast IPv6 address",
    ),
    (
        "ip6gre",
        &["local = \"192.0.2.1\""],
        r#"7: local = "192.0.2.1": wrong family for mode ip6gre: expected a unicast IPv6 address"#,
    ),
    (
        "sit",
        &["remote = \"2001:db8::2\""],
        r#"8: remote = "2001:db8::2": wrong family for mode sit: expected a unicast IPv4 address or a multicast group"#,
    ),
    (
        "ipip6",
        &["remote = \"239.1.1.1\""],
        r#"8: remote = "239.1.1.1": wrong family for mode ipip6: expected a group such as ff05::4242"#,
    ),
    (
        "ip6gre",
        &["remote = \"ff01::1\""],
        r#"8: remote = "ff01::1": expected a group whose packets leave the host, such as ff05::4242"#,
    ),
    (
        "ip6gre",
        &["local = \"ff02::1\""],
        r#"7: local = "ff02::1": expected a unicast IPv6 address, not multicast, loopback, IPv4-mapped or zero"#,
    ),
    (
        "ip6gre",
        &["local = \"::\""],
        r#"7: local = "::": expected a unicast IPv6 address, not multicast, loopback, IPv4-mapped or zero"#,
    ),
    (
        "ip6gre",
        &["remote = \"::1\""],
        r#"8: remote = "::1": expected a unicast IPv6 address, not multicast, loopback, IPv4-mapped or zero"#,
    ),
    (
        "ip6gre",
        &["remote = \"::ffff:192.0.2.2\""],
        r#"8: remote = "::ffff:192.0.2.2": expected a unicast IPv6 address, not multicast, loopback, IPv4-mapped or zero"#,
    ),
    (
        "ip6gre",
        &["remote = \"2001:db8:0::1\""],
        r#"8: remote = "2001:db8:0::1": same as local: expected the other end's address"#,
    ),
    (
        "ip6ip6",
        &["remote = \"fe80::2\""],
        r#"8: remote = "fe80::2": link-local: expected dev beside it, the underlay device"#,
    ),
    (
        "ip6ip6",
        &["local = \"fe80::1\""],
        r#"7: local = "fe80::1": link-local: expected dev beside it, the underlay device"#,
    ),
];

/// Whole files.
const BROKEN_FILES: &[(&str, &str)] = &[
    ("", "1: section [router] is missing"),
    ("router = 3", "1: router = 3: expected a section [router]"),
    (
        "[router]\n[tunnels]",
        "2: unknown key \"tunnels\" (did you mean tunnel?); accepted: router, tunnel",
    ),
    (
        "[router]\nxdp = \"off\"\nunderlay = [\"a\"]\n[tunnel]\n",
        "4: expected [[tunnel]] in double brackets, once per tunnel",
    ),
    (
        "[router]\nxdp =\n",
        "2: not valid TOML at column 6: string values must be quoted, expected literal string",
    ),
    (
        "[router]\nxdp = \"off\"\nxdp = \"copy\"",
        "3: not valid TOML at column 1: duplicate key",
    ),
];

fn refusal(text: &str) -> String {
    let message = parse(text).expect_err(text);
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = message
        .replace(TUNNEL_KEYS, "{tunnel}")
        .replace(ROUTER_KEYS, "{router}")
        .replace(
            "gre, gretap, ip6gre, ip6gretap, ipip, sit, ip6ip6 or ipip6",
            "{modes}",
        );
    message.strip_prefix("greyhound.toml:").unwrap().to_owned()
}

#[test]
fn every_broken_router_gets_its_line() {
    for (edit, complaint) in BROKEN_ROUTERS {
        assert_eq!(refusal(&with(&[edit], &[])), *complaint);
    }
}

#[test]
fn every_broken_tunnel_gets_its_line() {
    for (edit, complaint) in BROKEN_TUNNELS {
        let (line, complaint) = complaint.split_once(": ").unwrap();
        let complaint = format!("{line}: tunnel \"gre1\": {complaint}");
        assert_eq!(refusal(&with(&[], &[edit])), complaint);
    }
}

#[test]
fn every_combination_that_cannot_be_gets_its_line() {
    for (mode, edits, complaint) in BROKEN_KINDS {
        let (line, complaint) = complaint.split_once(": ").unwrap();
        let complaint = format!("{line}: tunnel \"gre1\": {complaint}");
        assert_eq!(refusal(&kind(mode, edits)), complaint);
    }
}

/// A tunnel of this kind without a remote, and with these tables behind it; the first `[[tunnel.peer]]` is line 8, its
/// keys follow.
fn many(mode: &str, edits: &[&str], peers: &[&str]) -> String {
    let mut text = kind(mode, &[&["remote"], edits].concat());
    for peer in peers {
        text += &format!("[[tunnel.peer]]\n{peer}\n");
    }
    text
}

#[test]
fn a_tunnel_without_a_remote_has_peers() {
    let peers = [
        "address = \"172.16.0.3\"\nremote = \"192.0.2.3\"",
        "address = \"10.0.3.0/24\"\nremote = \"192.0.2.3\"",
        "address = \"fd00::/64\"\nremote = \"192.0.2.4\"",
    ];
    let config = parse(&many("gre", &[], &peers)).unwrap();
    let tunnel = &config.tunnels[0];
    assert_eq!(tunnel.remote, IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let known: Vec<String> = (tunnel.peers.iter())
        .map(|(inner, outer)| format!("{inner} {outer}"))
        .collect();
    assert_eq!(
        known,
        [
            "10.0.3.0/24 192.0.2.3",
            "172.16.0.3/32 192.0.2.3",
            "fd00::/64 192.0.2.4"
        ]
    );
    // Routes can name them all.
    for mode in ["gre", "ip6gre", "ipip", "sit", "ip6ip6", "ipip6"] {
        let config = parse(&many(mode, &[], &[])).unwrap();
        let remote = config.tunnels[0].remote;
        assert!(remote.is_unspecified() && remote.is_ipv6() == mode.contains("6") || mode == "sit");
    }
    let v6 = "address = \"10.0.3.0/24\"\nremote = \"2001:db8::3\"";
    parse(&many("ip6gre", &[], &[v6])).unwrap();
    let near = "address = \"::/0\"\nremote = \"fe80::3\"";
    parse(&many("ip6ip6", &["dev = \"eth0\""], &[near])).unwrap();
}

#[test]
fn every_broken_peer_gets_its_line() {
    let good = "address = \"172.16.0.3\"\nremote = \"192.0.2.3\"";
    let with_peers = |peers: &[&str]| many("gre", &[], peers);
    let one = |address: &str, remote: &str| {
        with_peers(&[&format!("address = {address}\nremote = {remote}")])
    };
    let inner = r#"an inner address or prefix such as "172.16.0.3" or "10.0.3.0/24""#;
    for (text, complaint) in [
        (
            kind("gre", &[]) + "[[tunnel.peer]]\n" + good,
            "9: tunnel \"gre1\": peer number 1: not beside remote: expected no remote, which then each peer has".to_owned(),
        ),
        (
            with_peers(&[good, &format!("{good}\nmetric = 1")]),
            "14: tunnel \"gre1\": peer number 2: unknown key \"metric\"; accepted: address, remote".to_owned(),
        ),
        (
            with_peers(&["adress = \"172.16.0.3\""]),
            "9: tunnel \"gre1\": peer number 1: unknown key \"adress\" (did you mean address?); accepted: address, remote".to_owned(),
        ),
        (
            with_peers(&["remote = \"192.0.2.3\""]),
            format!("8: tunnel \"gre1\": peer number 1: address is missing: expected {inner}"),
        ),
        (
            with_peers(&["address = \"172.16.0.3\""]),
            "8: tunnel \"gre1\": peer number 1: remote is missing: expected a unicast IPv4 address".to_owned(),
        ),
        (
            one("7", "\"192.0.2.3\""),
            format!("9: tunnel \"gre1\": peer number 1: address = 7: expected {inner}"),
        ),
        (
            one("\"10.0.3.1/24\"", "\"192.0.2.3\""),
            "9: tunnel \"gre1\": peer number 1: address = \"10.0.3.1/24\": host bits are set: expected 10.0.3.0/24".to_owned(),
        ),
        (
            one("\"224.0.0.5\"", "\"192.0.2.3\""),
            format!("9: tunnel \"gre1\": peer number 1: address = \"224.0.0.5\": expected {inner}, not multicast: such packets go to each peer"),
        ),
        (
            one("\"172.16.0.3\"", "\"2001:db8::3\""),
            "10: tunnel \"gre1\": peer number 1: remote = \"2001:db8::3\": wrong family for mode gre: expected a unicast IPv4 address".to_owned(),
        ),
        (
            one("\"172.16.0.3\"", "\"239.1.1.1\""),
            "10: tunnel \"gre1\": peer number 1: remote = \"239.1.1.1\": expected a unicast IPv4 address, not multicast, loopback, broadcast or zero".to_owned(),
        ),
        (
            one("\"172.16.0.3\"", "\"192.0.2.1\""),
            "10: tunnel \"gre1\": peer number 1: remote = \"192.0.2.1\": same as local: expected the other end's address".to_owned(),
        ),
        (
            with_peers(&[good, "address = \"172.16.0.3/32\"\nremote = \"192.0.2.4\""]),
            "12: tunnel \"gre1\": peer number 2: address = \"172.16.0.3/32\": another peer's already: expected each address once".to_owned(),
        ),
        (
            with_peers(&[]) + "peer = 3\n",
            "8: tunnel \"gre1\": expected [[peer]] in double brackets, once per peer".to_owned(),
        ),
        (
            many("ipip", &[], &["address = \"fd00::3\"\nremote = \"192.0.2.3\""]),
            "9: tunnel \"gre1\": peer number 1: address = \"fd00::3\": mode ipip does not carry that family".to_owned(),
        ),
        (
            many("ip6ip6", &[], &["address = \"10.0.0.3\"\nremote = \"2001:db8::3\""]),
            "9: tunnel \"gre1\": peer number 1: address = \"10.0.0.3\": mode ip6ip6 does not carry that family".to_owned(),
        ),
        (
            many("ip6gre", &[], &["address = \"10.0.0.3\"\nremote = \"fe80::3\""]),
            "10: tunnel \"gre1\": peer number 1: remote = \"fe80::3\": link-local: expected dev beside it, the underlay device".to_owned(),
        ),
    ] {
        assert_eq!(refusal(&text), complaint);
    }
}

#[test]
fn two_tunnels_without_a_remote_need_different_keys() {
    let second = |lines: &str| {
        let first = many("gre", &["address = [\"10.0.0.1/30\"]"], &[]);
        first + "[[tunnel]]\nname = \"gre2\"\nmode = \"gre\"\nlocal = \"192.0.2.1\"\n" + lines
    };
    assert_eq!(
        refusal(&second("")),
        "9: tunnel \"gre2\": local 192.0.2.1, remote any and no key are those of tunnel \"gre1\": expected another ikey"
    );
    parse(&second("key = 1")).unwrap();
    parse(&second("remote = \"192.0.2.2\"")).unwrap();
}

#[test]
fn a_group_is_joined_on_one_device() {
    for (mode, group) in [("gre", "239.1.1.1"), ("ip6gre", "ff05::4242")] {
        let remote = format!("remote = \"{group}\"");
        let config = parse(&kind(mode, &[&remote])).unwrap();
        let tunnel = &config.tunnels[0];
        assert_eq!(tunnel.remote.to_string(), group);
        assert_eq!(tunnel.dev.as_deref(), Some("eth0"));
        // As iproute2 makes them: 239.1.1.1 is also the key.
        let key = (mode == "gre").then_some(0xef01_0101);
        assert_eq!((tunnel.ikey, tunnel.okey), (key, key));
    }
    let keyed = kind("gre", &["remote = \"239.1.1.1\"", "ikey = 5"]);
    let tunnel = &parse(&keyed).unwrap().tunnels[0];
    assert_eq!((tunnel.ikey, tunnel.okey), (Some(5), Some(0xef01_0101)));
    let two = |edits: &[&str]| with(&["underlay = [\"eth0\", \"eth2\"]"], edits);
    assert_eq!(
        refusal(&two(&["remote = \"239.1.1.1\""])),
        "8: tunnel \"gre1\": remote = \"239.1.1.1\": a group is joined on one device: expected dev beside it, one of eth0, eth2"
    );
    let config = parse(&two(&["remote = \"239.1.1.1\"", "dev = \"eth2\""])).unwrap();
    assert_eq!(config.tunnels[0].dev.as_deref(), Some("eth2"));
}

#[test]
fn keepalives_are_ciscos() {
    let asked = |value: &str| {
        let config = parse(&with(&[], &[&format!("keepalive = {value}")])).unwrap();
        let found = config.tunnels[0].keepalive;
        found.map(|keepalive| (keepalive.interval, keepalive.retries))
    };
    assert_eq!(asked("false"), None);
    assert_eq!(asked("true"), Some((10, 3)));
    assert_eq!(asked("{}"), Some((10, 3)));
    assert_eq!(asked("{interval = 32767}"), Some((32767, 3)));
    assert_eq!(asked("{retries = 255, interval = 1}"), Some((1, 255)));
    let broken = |value: &str| refusal(&with(&[], &[&format!("keepalive = {value}")]));
    let table = "true, false or a table such as {interval = 10, retries = 3}";
    for (value, complaint) in [
        ("10", format!("keepalive = 10: expected {table}")),
        ("\"on\"", format!("keepalive = \"on\": expected {table}")),
        ("[10, 3]", format!("keepalive = [10, 3]: expected {table}")),
    ] {
        assert_eq!(broken(value), format!("9: tunnel \"gre1\": {complaint}"));
    }
    for (value, complaint) in [
        ("{interval = 0}", "interval = 0: expected 1 to 32767"),
        (
            "{interval = 32768}",
            "interval = 32768: expected 1 to 32767",
        ),
        ("{interval = 1.5}", "interval = 1.5: expected 1 to 32767"),
        ("{retries = 0}", "retries = 0: expected 1 to 255"),
        ("{retries = 256}", "retries = 256: expected 1 to 255"),
        (
            "{retry = 3}",
            "unknown key \"retry\"; accepted: interval, retries",
        ),
    ] {
        let complaint = format!("9: tunnel \"gre1\": keepalive: {complaint}");
        assert_eq!(broken(value), complaint);
    }
    let many_ends = "keepalive = true: not without one far end that could answer: expected a unicast remote beside it";
    for text in [
        many("gre", &["keepalive = true"], &[]),
        with(&[], &["remote = \"239.1.1.1\"", "keepalive = true"]),
    ] {
        let message = refusal(&text);
        assert!(message.ends_with(many_ends), "{message}");
    }
}

#[test]
fn link_local_endpoints_are_told_apart_by_dev() {
    let ends = ["local = \"fe80::1\"", "remote = \"fe80::2\""];
    let bound = kind("ip6ip6", &[&ends[..], &["dev = \"eth0\""]].concat());
    assert_eq!(
        parse(&bound).unwrap().tunnels[0].dev.as_deref(),
        Some("eth0")
    );
}

#[test]
fn every_broken_file_gets_its_line() {
    for (text, complaint) in BROKEN_FILES {
        assert_eq!(refusal(text), *complaint);
    }
}

#[test]
fn a_tunnel_without_a_name_is_counted() {
    assert_eq!(
        refusal(&with(&[], &["name"])),
        "4: tunnel number 1: name is missing: expected a device name: 1 to 15 bytes without space, '/', ':' or '%'"
    );
    assert_eq!(
        refusal(&with(&[], &["name = \"default\""])),
        r#"5: tunnel "default": name = "default": what the kernel calls the settings of other devices: expected another name"#
    );
    assert_eq!(
        refusal(&with(&[], &["name = \"eth1\""])),
        r#"5: tunnel "eth1": name = "eth1": an underlay or overlay device already: expected a name of its own"#
    );
}

#[test]
fn one_key_for_both_directions_excludes_the_single_ones() {
    assert_eq!(
        refusal(&with(&[], &["key = 1", "okey = 2"])),
        r#"9: tunnel "gre1": key = 1: okey is set too: expected key alone, or ikey and okey"#
    );
}

#[test]
fn a_second_tunnel_must_differ() {
    let first = with(
        &[],
        &["address = [\"10.0.0.1/30\"]", "routes = [\"10.2.0.0/16\"]"],
    );
    let second = |lines: &str| {
        refusal(&format!(
            "{first}[[tunnel]]\nmode = \"gre\"\nlocal = \"192.0.2.1\"\n{lines}\n"
        ))
    };
    assert_eq!(
        second("name = \"gre1\"\nremote = \"192.0.2.3\""),
        r#"14: tunnel "gre1": name = "gre1": another tunnel's already: expected each name once"#
    );
    assert_eq!(
        second("name = \"gre2\"\nremote = \"192.0.2.2\"\nokey = 5"),
        r#"11: tunnel "gre2": local 192.0.2.1, remote 192.0.2.2 and no key are those of tunnel "gre1": expected another ikey"#
    );
    let other = "name = \"gre2\"\nremote = \"192.0.2.3\"\n";
    assert_eq!(
        second(&format!(
            "{other}address = [\"10.9.0.1/30\", \"10.0.0.1/24\"]"
        )),
        r#"16: tunnel "gre2": address = "10.0.0.1/24": tunnel "gre1" has it already: expected each once"#
    );
    assert_eq!(
        second(&format!("{other}routes = [\"10.2.0.0/16\"]")),
        r#"16: tunnel "gre2": routes = "10.2.0.0/16": tunnel "gre1" has it already: expected each once"#
    );
    assert_eq!(
        second(&format!("{other}address = [\"192.0.2.2/30\"]")),
        r#"16: tunnel "gre2": address = "192.0.2.2/30": a tunnel's remote: expected an address of this host's own"#
    );
    assert_eq!(
        second("name = \"gre2\"\nremote = \"10.0.0.1\""),
        r#"11: tunnel "gre2": 10.0.0.1 is an address of tunnel "gre1": expected the other end's"#
    );
    assert_eq!(
        second(&format!("{other}dev = \"gre1\"")),
        r#"11: tunnel "gre2": dev of tunnel "gre2" is tunnel "gre1": expected an underlay device"#
    );
}

#[test]
fn a_missing_file_is_named() {
    let missing = std::path::Path::new("/nonexistent/greyhound.toml");
    assert_eq!(
        Config::load(missing).unwrap_err().to_string(),
        "/nonexistent/greyhound.toml: cannot read the configuration: No such file or directory (os error 2)"
    );
}
