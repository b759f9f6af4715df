//! What values mean to each other: within a tunnel, between a tunnel and the router, and between tunnels.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Accelerate, ConfigError, RouterConfig, TunnelConfig, frames, inside, reader::Section};
use crate::tunnel::{Mode, Shim, Ttl};

/// The kernel's rules for one tunnel by itself.
pub(super) fn tunnel_alone(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
) -> Result<(), ConfigError> {
    // sysctl_dev_name_is_allowed()
    if matches!(&*tunnel.name, "all" | "default") {
        let expected = "what the kernel calls the settings of other devices: expected another name";
        return Err(complain(section, "name", expected));
    }
    if tunnel.remote == tunnel.local {
        let expected = "same as local: expected the other end's address";
        return Err(complain(section, "remote", expected));
    }
    let link_local = "link-local: expected dev beside it, the underlay device";
    for (key, address) in [("local", tunnel.local), ("remote", tunnel.remote)] {
        if is_link_local_v6(address) && tunnel.dev.is_none() {
            return Err(complain(section, key, link_local));
        }
    }
    for peer in section.tables("peer")? {
        let remote = peer.get("remote").and_then(|v| v.text()?.parse().ok());
        if remote == Some(tunnel.local) {
            let expected = "same as local: expected the other end's address";
            return Err(complain(&peer, "remote", expected));
        }
        if remote.is_some_and(is_link_local_v6) && tunnel.dev.is_none() {
            return Err(complain(&peer, "remote", link_local));
        }
    }
    // As iproute2: "ttl != 0 and nopmtudisc are incompatible". For gre, `ip link` lets it pass.
    let is_bare_v4 = matches!(tunnel.mode, Mode::Ipip | Mode::Sit);
    if is_bare_v4 && !tunnel.pmtudisc && tunnel.ttl != Ttl::Inherit {
        let expected = format!(
            r#"not with pmtudisc = false on {}: expected ttl = "inherit", or pmtudisc = true"#,
            tunnel.mode.as_str()
        );
        return Err(complain(section, "ttl", &expected));
    }
    let many = tunnel.remote.is_unspecified() || tunnel.remote.is_multicast();
    if many && tunnel.keepalive.is_some() {
        let expected =
            "not without one far end that could answer: expected a unicast remote beside it";
        return Err(complain(section, "keepalive", expected));
    }
    if tunnel.udp.is_some() && tunnel.keepalive.is_some() {
        let expected =
            "not with encap: what is to come back is plain GRE, which such a tunnel does not take";
        return Err(complain(section, "keepalive", expected));
    }
    if tunnel.ignore_df && tunnel.pmtudisc {
        let expected = "not with pmtudisc = true: expected pmtudisc = false beside it";
        return Err(complain(section, "ignore_df", expected));
    }
    inside::alone(section, tunnel)?;
    frames::alone(section, tunnel)
}

/// The device by which a group is joined: the only underlay device, where `dev` does not say.
pub(super) fn group_device(
    section: &Section<'_>,
    tunnel: &mut TunnelConfig,
    router: &RouterConfig,
) -> Result<(), ConfigError> {
    if !tunnel.remote.is_multicast() || tunnel.dev.is_some() {
        return Ok(());
    }
    let [only] = &router.underlay[..] else {
        let devices = router.underlay.join(", ");
        let expected =
            format!("a group is joined on one device: expected dev beside it, one of {devices}");
        return Err(complain(section, "remote", &expected));
    };
    tunnel.dev = Some(only.clone());
    Ok(())
}

/// A tunnel is a device of its own, not one that the router takes packets from.
pub(super) fn tunnel_on_router(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
    router: &RouterConfig,
) -> Result<(), ConfigError> {
    if router.devices().contains(&tunnel.name.as_str()) {
        let expected = "an underlay or overlay device already: expected a name of its own";
        return Err(complain(section, "name", expected));
    }
    if let Accelerate::Named(names) = &router.accelerate
        && names.contains(&tunnel.name)
    {
        let expected =
            "in router.accelerate, which names devices of the kernel's own: expected another name";
        return Err(complain(section, "name", expected));
    }
    if tunnel.dev.as_ref() == Some(&tunnel.name) {
        let expected = "the tunnel itself: expected an underlay device";
        return Err(complain(section, "dev", expected));
    }
    frames::on_router(section, tunnel, router)
}

/// A tunnel beside one that stands before it in the file.
pub(super) fn tunnel_beside(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
    other: &TunnelConfig,
) -> Result<(), ConfigError> {
    if tunnel.name == other.name {
        return Err(complain(
            section,
            "name",
            "another tunnel's already: expected each name once",
        ));
    }
    // As ip_tunnel_find(), in a table per kind: the device that a tunnel is bound to tells it from another as well.
    // Packets in UDP and packets by themselves are different ones, and so are keys and virtual subnets.
    let identity = |t: &TunnelConfig| {
        let ends = (t.local, t.remote, t.dev.clone());
        (t.mode, t.udp.is_some(), t.nvgre, t.ikey, ends)
    };
    if identity(tunnel) == identity(other) {
        let (key, expected) = match (tunnel.mode.kind().shim, tunnel.ikey) {
            (Shim::None, _) => (String::new(), "other addresses"),
            (Shim::Gre, None) => (" and no key".to_owned(), "another ikey"),
            (Shim::Gre, Some(key)) => (format!(" and key {key}"), "another ikey"),
        };
        let local = tunnel.local;
        let remote = match tunnel.remote.is_unspecified() {
            true => "any".to_owned(),
            false => tunnel.remote.to_string(),
        };
        return Err(section.error(&format!(
            "local {local}, remote {remote}{key} are those of tunnel {:?}: expected {expected}",
            other.name
        )));
    }
    frames::beside(section, tunnel, other)?;
    inside::beside(section, tunnel, other)?;
    for (bound, by) in [(tunnel, other), (other, tunnel)] {
        if bound.dev.as_ref() == Some(&by.name) {
            let message = format!(
                "dev of tunnel {:?} is tunnel {:?}: expected an underlay device",
                bound.name, by.name
            );
            return Err(section.error(&message));
        }
    }
    let address = tunnel.address.iter().find(|address| {
        !may_be_shared(address) && other.address.iter().any(|a| a.addr() == address.addr())
    });
    if let Some(address) = address {
        return Err(complain_about(section, "address", address, &taken(other)));
    }
    match tunnel
        .routes
        .iter()
        .find(|route| other.routes.contains(route))
    {
        Some(route) => Err(complain_about(section, "routes", route, &taken(other))),
        None => Ok(()),
    }
}

/// Addresses that several devices may have: unnumbered links share a host address, and link-local ones are per link.
pub(super) fn may_be_shared(address: &IpNet) -> bool {
    let link_local = match address.addr() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.prefix_len() == address.max_prefix_len()
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

pub(super) fn complain(section: &Section<'_>, key: &str, message: &str) -> ConfigError {
    match section.get(key) {
        Some(value) => value.complain(message),
        None => section.error(message),
    }
}

fn taken(other: &TunnelConfig) -> String {
    format!("tunnel {:?} has it already: expected each once", other.name)
}

/// Complains about one item of a list.
pub(super) fn complain_about(
    section: &Section<'_>,
    key: &str,
    item: &IpNet,
    message: &str,
) -> ConfigError {
    let items = section
        .get(key)
        .and_then(|list| list.items())
        .unwrap_or_default();
    let parses = |text: Option<&str>| text.and_then(|t| t.parse().ok()) == Some(*item);
    match items.iter().find(|value| parses(value.text())) {
        Some(value) => value.complain(message),
        None => complain(section, key, message),
    }
}
