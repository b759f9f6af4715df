//! A tunnel's ends: `local`, `remote`, and the `[[tunnel.peer]]` tables of a tunnel that has no remote.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    ConfigError, keys,
    reader::{Section, Value},
    tunnel::is_v6,
};
use crate::tunnel::{Family, Mode, Payload, Peers};

pub(super) fn local(section: &Section<'_>, mode: Mode) -> Result<IpAddr, ConfigError> {
    let expected = unicast(mode);
    endpoint(&section.need("local", expected)?, mode, expected)
}

/// The other end, a group, or the unspecified address where there is neither.
pub(super) fn remote(section: &Section<'_>, mode: Mode) -> Result<IpAddr, ConfigError> {
    let expected = match mode.kind().underlay {
        Family::V4 => "a unicast IPv4 address or a multicast group",
        Family::V6 => "a unicast IPv6 address or a multicast group",
    };
    // A frame has no next hop that could name a peer.
    let is_optional = mode.kind().payload != Payload::Ethernet;
    if is_optional && section.get("remote").is_none() {
        return Ok(any(mode));
    }
    let value = section.need("remote", expected)?;
    let address = value.text().and_then(|text| text.parse::<IpAddr>().ok());
    match address.filter(IpAddr::is_multicast) {
        Some(group) => multicast(&value, mode, group),
        None => endpoint(&value, mode, expected),
    }
}

fn any(mode: Mode) -> IpAddr {
    match mode.kind().underlay {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn multicast(value: &Value<'_>, mode: Mode, group: IpAddr) -> Result<IpAddr, ConfigError> {
    match group {
        _ if group.is_ipv6() != is_v6(mode) => {
            let word = mode.as_str();
            let example = if is_v6(mode) {
                "ff05::4242"
            } else {
                "239.1.1.1"
            };
            Err(value.complain(&format!(
                "wrong family for mode {word}: expected a group such as {example}"
            )))
        }
        // Reserved, and interface-local (RFC 4291 section 2.7): no packet of theirs leaves the host.
        IpAddr::V6(v6) if v6.octets()[1] & 0xf <= 1 => {
            Err(value.refuse("a group whose packets leave the host, such as ff05::4242"))
        }
        _ => Ok(group),
    }
}

/// The peers of a tunnel without a remote; none is well too, for routes can name them.
pub(super) fn peers(section: &Section<'_>, mode: Mode) -> Result<Arc<Peers>, ConfigError> {
    let tables = section.tables("peer")?;
    if tables.is_empty() {
        return Ok(Peers::none());
    }
    let mut peers = Peers::default();
    if let (Some(first), true) = (tables.first(), section.get("remote").is_some()) {
        let message = "not beside remote: expected no remote, which then each peer has";
        return Err(first.error(message));
    }
    for table in tables {
        table.only(&keys::names(keys::PEER), &[])?;
        let value = table.need("address", INNER)?;
        let address = inner(&value, mode)?;
        if peers.iter().any(|(known, _)| known == address) {
            return Err(value.complain("another peer's already: expected each address once"));
        }
        let expected = unicast(mode);
        let remote = endpoint(&table.need("remote", expected)?, mode, expected)?;
        peers.insert(address, remote);
    }
    Ok(Arc::new(peers))
}

const INNER: &str = "an inner address or prefix such as \"172.16.0.3\" or \"10.0.3.0/24\"";

/// An address, or a prefix, that packets inside may have as their next hop.
fn inner(value: &Value<'_>, mode: Mode) -> Result<IpNet, ConfigError> {
    let text = value.text().unwrap_or_default();
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let net = address.or_else(|_| text.parse::<IpNet>());
    let net = net.map_err(|_| value.refuse(INNER))?;
    if net.addr() != net.network() {
        return Err(value.complain(&format!("host bits are set: expected {}", net.trunc())));
    }
    let is_carried = match mode.kind().payload {
        Payload::Ipv4 => net.addr().is_ipv4(),
        Payload::Ipv6 => net.addr().is_ipv6(),
        _ => true,
    };
    if !is_carried {
        let word = mode.as_str();
        return Err(value.complain(&format!("mode {word} does not carry that family")));
    }
    if net.addr().is_multicast() {
        return Err(value.refuse(&format!(
            "{INNER}, not multicast: such packets go to each peer"
        )));
    }
    Ok(net)
}

fn unicast(mode: Mode) -> &'static str {
    match mode.kind().underlay {
        Family::V4 => "a unicast IPv4 address",
        Family::V6 => "a unicast IPv6 address",
    }
}

fn endpoint(value: &Value<'_>, mode: Mode, expected: &str) -> Result<IpAddr, ConfigError> {
    let address = value.text().and_then(|text| text.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| value.refuse(expected))?;
    if address.is_ipv6() != is_v6(mode) {
        let word = mode.as_str();
        return Err(value.complain(&format!(
            "wrong family for mode {word}: expected {expected}"
        )));
    }
    let never = address.is_multicast() || address.is_loopback() || address.is_unspecified();
    let unicast = unicast(mode);
    match address {
        IpAddr::V4(v4) if never || v4.is_broadcast() => Err(value.refuse(&format!(
            "{unicast}, not multicast, loopback, broadcast or zero"
        ))),
        IpAddr::V6(v6) if never || v6.to_ipv4_mapped().is_some() => Err(value.refuse(&format!(
            "{unicast}, not multicast, loopback, IPv4-mapped or zero"
        ))),
        _ => Ok(address),
    }
}
