//! The configuration file: what is accepted, and the one line that each mistake gets.

use std::net::Ipv4Addr;

use greyhound::control::config::{Config, Mtu, Workers, XdpMode};
use greyhound::tunnel::{Mode, Tos, Ttl};

/// The example of the documentation, as far as this version goes.
const EXAMPLE: &str = r#"
[router]
underlay = ["eth0"]
overlay  = ["eth1"]
workers  = [2, 3]
xdp      = "zero-copy"
control  = "/run/greyhound/a.sock"
persist  = false

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
    let [tunnel] = &config.tunnels[..] else {
        panic!("one tunnel, not {}", config.tunnels.len());
    };
    assert_eq!((&tunnel.name[..], tunnel.mode), ("gre1", Mode::Gre));
    assert_eq!(tunnel.local, Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(tunnel.remote, Ipv4Addr::new(192, 0, 2, 2));
    assert_eq!((tunnel.ikey, tunnel.okey), (Some(42), Some(42)));
    assert_eq!((tunnel.icsum, tunnel.ocsum), (false, false));
    assert_eq!((tunnel.iseq, tunnel.oseq), (true, false));
    assert_eq!((tunnel.ttl, tunnel.tos), (Ttl::Fixed(64), Tos::Inherit));
    assert_eq!((tunnel.pmtudisc, tunnel.ignore_df), (false, true));
    assert_eq!(tunnel.dev.as_deref(), Some("eth0"));
    assert_eq!(tunnel.mtu, Mtu::Fixed(1400));
    assert_eq!(tunnel.address[0].to_string(), "172.16.0.1/30");
    assert_eq!(tunnel.address[1].to_string(), "2001:db8::1/64");
    assert_eq!(tunnel.routes[1].to_string(), "::/0");
}

#[test]
fn absent_keys_have_the_kernels_defaults() {
    let config = parse(&with("", "")).unwrap();
    assert_eq!(config.router.workers, Workers::Auto);
    assert_eq!(config.router.xdp, XdpMode::Auto);
    assert_eq!(config.router.control.to_str(), Some("/run/greyhound/control.sock"));
    assert!(config.router.persist);
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.ikey, tunnel.okey), (None, None));
    assert!(!(tunnel.icsum || tunnel.ocsum || tunnel.iseq || tunnel.oseq));
    assert_eq!((tunnel.ttl, tunnel.tos), (Ttl::Inherit, Tos::Fixed(0)));
    assert_eq!((tunnel.pmtudisc, tunnel.ignore_df), (true, false));
    assert_eq!((tunnel.mtu, &tunnel.dev), (Mtu::Auto, &None));
    assert!(tunnel.address.is_empty() && tunnel.routes.is_empty());
}

#[test]
fn a_key_may_be_a_dotted_quad_or_hexadecimal_and_differ_by_direction() {
    let config = parse(&with("", "ikey = \"1.2.3.4\"\nokey = 0xffffffff")).unwrap();
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.ikey, tunnel.okey), (Some(0x0102_0304), Some(u32::MAX)));
}

#[test]
fn the_overhead_is_linuxs() {
    for (options, overhead) in [
        ("", 24),
        ("key = 1", 28),
        ("key = 1\ncsum = true", 32),
        ("key = 1\ncsum = true\nseq = true", 36),
        ("ikey = 1\nicsum = true\niseq = true", 24),
    ] {
        let config = parse(&with("", options)).unwrap();
        assert_eq!(config.tunnels[0].overhead(), overhead, "{options}");
    }
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
    let second = |options: &str| {
        let tunnel = "[[tunnel]]\nname = \"gre2\"\nmode = \"gre\"\nlocal = \"192.0.2.1\"";
        with("", "address = [\"10.9.9.9/32\", \"fe80::1/64\"]\nttl = 9\npmtudisc = false")
            + &format!("\n{tunnel}\n{options}\naddress = [\"10.9.9.9/32\", \"fe80::1/64\"]\n")
    };
    parse(&second("remote = \"192.0.2.3\"")).unwrap();
    parse(&second("remote = \"192.0.2.2\"\nkey = 0")).unwrap();
    parse(&second("remote = \"192.0.2.2\"\ndev = \"eth0\"")).unwrap();
}

/// A good configuration with further lines in `[router]` (from line 4) and in its tunnel (from line 9, when `router` is
/// empty).
fn with(router: &str, tunnel: &str) -> String {
    format!(
        "[router]
underlay = [\"eth0\"]
overlay = [\"eth1\"]
{router}
[[tunnel]]
mode = \"gre\"
local = \"192.0.2.1\"
{}{tunnel}
{}",
        if tunnel.contains("name = ") { "" } else { "name = \"gre1\"\n" },
        if tunnel.contains("remote = ") { "" } else { "remote = \"192.0.2.2\"\n" },
    )
}
