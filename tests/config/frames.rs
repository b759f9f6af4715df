//! The kinds that carry frames: bridges and virtual subnets.

use super::{kind, parse, refusal, with};
use greyhound::{packet::GreKey, tunnel::TunnelId};

/// Edits of a tunnel of a kind (`mode` is line 6, new keys begin at 9) and the complaint.
const BROKEN: &[(&str, &[&str], &str)] = &[
    (
        "gre",
        &["bridge = \"eth1\""],
        r#"9: bridge = "eth1": not with mode gre; accepted with gretap and ip6gretap"#,
    ),
    (
        "ip6ip6",
        &["nvgre = false"],
        "9: nvgre = false: not with mode ip6ip6; accepted with gretap and ip6gretap",
    ),
    (
        "gretap",
        &["bridge = [\"eth1\"]"],
        r#"9: bridge = ["eth1"]: expected a device name: 1 to 15 bytes without space, '/', ':' or '%'"#,
    ),
    (
        "gretap",
        &["bridge = \"gre1\""],
        r#"9: bridge = "gre1": the tunnel itself: expected an overlay device"#,
    ),
    (
        "ip6gretap",
        &["bridge = \"eth0\""],
        r#"9: bridge = "eth0": an underlay device, whose packets are not the tunnel's alone: expected an overlay device"#,
    ),
    (
        "gretap",
        &["bridge = \"eth2\""],
        r#"9: bridge = "eth2": not an overlay device: expected one that router.overlay names"#,
    ),
    (
        "gretap",
        &["bridge = \"eth1\"", "address = [\"10.0.0.1/24\"]"],
        r#"10: address = ["10.0.0.1/24"]: not with bridge = "eth1", where all frames of the tunnel go: expected one of the two"#,
    ),
    (
        "gretap",
        &["routes = [\"10.0.0.0/24\"]", "bridge = \"eth1\""],
        r#"9: routes = ["10.0.0.0/24"]: not with bridge = "eth1", where all frames of the tunnel go: expected one of the two"#,
    ),
    (
        "gretap",
        &["nvgre = 1", "key = 5000"],
        "9: nvgre = 1: expected true or false",
    ),
    (
        "gretap",
        &["nvgre = true"],
        "9: nvgre = true: needs the virtual subnet beside it: expected key = 4096..16777214",
    ),
    (
        "gretap",
        &["nvgre = true", "key = 0xfff"],
        "10: key = 0xfff: RFC 7637 reserves virtual subnets below 0x1000: expected 4096..16777214",
    ),
    (
        "ip6gretap",
        &["nvgre = true", "key = 0xffffff"],
        "10: key = 0xffffff: RFC 7637 reserves virtual subnet 0xffffff for vendors: expected 4096..16777214",
    ),
    (
        "gretap",
        &["key = \"1.0.0.0\"", "nvgre = true"],
        r#"9: key = "1.0.0.0": a virtual subnet has 24 bits: expected 4096..16777214"#,
    ),
    (
        "gretap",
        &["nvgre = true", "ikey = 5000", "okey = 5000"],
        "10: ikey = 5000: not with nvgre, whose virtual subnet is the same both ways: expected key = 4096..16777214",
    ),
    (
        "gretap",
        &["nvgre = true", "key = 5000", "ocsum = true"],
        "11: ocsum = true: not with nvgre: RFC 7637 has neither checksums nor sequence numbers; expected false",
    ),
    (
        "gretap",
        &["nvgre = true", "key = 5000", "seq = true"],
        "11: seq = true: not with nvgre: RFC 7637 has neither checksums nor sequence numbers; expected false",
    ),
    (
        "gretap",
        &["nvgre = true", "key = 5000", "encap = \"gre-in-udp\""],
        r#"11: encap = "gre-in-udp": not with nvgre, which is GRE right behind the IP header: expected "none""#,
    ),
];

#[test]
fn every_broken_tunnel_of_frames_gets_its_line() {
    for (mode, edits, complaint) in BROKEN {
        let (line, complaint) = complaint.split_once(": ").unwrap();
        let complaint = format!("{line}: tunnel \"gre1\": {complaint}");
        assert_eq!(refusal(&kind(mode, edits)), complaint);
    }
}

/// A file with a gretap and a second one, each with edits.
fn two(first: &[&str], second: &[&str]) -> String {
    let second = kind("gretap", &[&["name = \"gre2\""], second].concat());
    let (_, tunnel) = second.split_once("[[tunnel]]").unwrap();
    format!("{}[[tunnel]]{tunnel}", kind("gretap", first))
}

#[test]
fn two_tunnels_have_each_their_device_and_their_subnet() {
    let subnet = |n: &'static str| ["nvgre = true", n];
    parse(&two(&subnet("key = 5000"), &subnet("key = 5001"))).unwrap();
    // As a key of 32 bits it is another one.
    parse(&two(&subnet("key = 5000"), &["key = 5000"])).unwrap();
    let within = two(&subnet("key = 5000"), &["key = 1280001"]);
    assert_eq!(
        refusal(&within),
        "16: tunnel \"gre2\": key = 1280001: virtual subnet 5000 of the one is within the key of the other, \
         tunnel \"gre1\": expected another key"
    );
    let within = two(&["key = 1280001"], &subnet("key = 5000"));
    assert!(refusal(&within).contains("expected another key"));
    let elsewhere = [subnet("key = 5000").as_slice(), &["remote = \"192.0.2.3\""]].concat();
    parse(&two(&["key = 1280001"], &elsewhere)).unwrap();
    let same = two(&["bridge = \"eth1\""], &["key = 1", "bridge = \"eth1\""]);
    assert_eq!(
        refusal(&same),
        "16: tunnel \"gre2\": bridge = \"eth1\": tunnel \"gre1\" has it already: expected a device of its own"
    );
}

#[test]
fn a_virtual_subnet_is_the_key_of_both_directions() {
    let config = parse(&kind("gretap", &["nvgre = true", "key = 0x1000"])).unwrap();
    let tunnel = config.tunnels[0].tunnel(TunnelId(0), None, 1458, true);
    let subnet = Some(GreKey(0x1000));
    assert_eq!(
        (tunnel.nvgre, tunnel.ikey, tunnel.okey),
        (true, subnet, subnet)
    );
    parse(&kind("ip6gretap", &["nvgre = true", "key = 0xfffffe"])).unwrap();
}

#[test]
fn a_bridge_needs_its_device_without_xdp_too() {
    let bridged = &["mode = \"gretap\"", "bridge = \"eth1\""];
    parse(&with(&["xdp = \"off\""], bridged)).unwrap();
    let none = with(&["overlay = []", "xdp = \"off\""], bridged);
    assert!(refusal(&none).ends_with("expected one that router.overlay names"));
}
