//! One `[[tunnel]]`: each key by itself. What keys mean to each other is in [`rules`](super::rules).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    ConfigError, Mtu, TunnelConfig,
    reader::{Section, Value},
    router::{DEVICE_NAME, is_device_name},
};
use crate::tunnel::{Mode, Tos, Ttl};

const ACCEPTED: &[&str] = &[
    "name",
    "mode",
    "local",
    "remote",
    "key",
    "ikey",
    "okey",
    "csum",
    "icsum",
    "ocsum",
    "seq",
    "iseq",
    "oseq",
    "ttl",
    "tos",
    "pmtudisc",
    "ignore_df",
    "mtu",
    "dev",
    "address",
    "routes",
];
const LATER: &[&str] = &[
    "hoplimit",
    "tclass",
    "flowlabel",
    "encaplimit",
    "encap",
    "encap_sport",
    "bridge",
    "clamp_mss",
    "keepalive",
    "nvgre",
    "peer",
];
const LATER_MODES: &[&str] = &[
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ipip",
    "sit",
    "ip6ip6",
    "ipip6",
];

/// The smallest MTU that an IPv4 link may have (RFC 791).
const MTU_MIN: u16 = 68;

const UNICAST: &str = "a unicast IPv4 address";

pub(super) fn parse(section: &Section<'_>) -> Result<TunnelConfig, ConfigError> {
    section.only(ACCEPTED, LATER)?;
    let name = device(&section.need("name", DEVICE_NAME)?)?;
    let mode = mode(&section.need("mode", "gre")?)?;
    let local = endpoint(&section.need("local", UNICAST)?)?;
    let remote = remote(section)?;
    let (ikey, okey) = both(section, "key", "ikey", "okey", |v| key(v).map(Some))?;
    let (icsum, ocsum) = both(section, "csum", "icsum", "ocsum", |v| v.boolean())?;
    let (iseq, oseq) = both(section, "seq", "iseq", "oseq", |v| v.boolean())?;
    let mut tunnel = TunnelConfig {
        name,
        mode,
        local,
        remote,
        ikey,
        okey,
        icsum,
        ocsum,
        iseq,
        oseq,
        ttl: section.optional("ttl", Ttl::Inherit, ttl)?,
        tos: section.optional("tos", Tos::Fixed(0), tos)?,
        pmtudisc: section.optional("pmtudisc", true, |v| v.boolean())?,
        ignore_df: section.optional("ignore_df", false, |v| v.boolean())?,
        mtu: Mtu::Auto,
        dev: section.optional("dev", None, |v| device(v).map(Some))?,
        address: section.optional("address", Vec::new(), addresses)?,
        routes: section.optional("routes", Vec::new(), routes)?,
    };
    let overhead = tunnel.overhead();
    tunnel.mtu = section.optional("mtu", Mtu::Auto, |v| mtu(v, overhead))?;
    Ok(tunnel)
}

/// A setting that has one key for both directions, or one for each; (in, out).
fn both<T: Copy + Default>(
    section: &Section<'_>,
    key: &str,
    key_in: &str,
    key_out: &str,
    read: impl Fn(&Value<'_>) -> Result<T, ConfigError>,
) -> Result<(T, T), ConfigError> {
    if let Some(value) = section.get(key) {
        for single in [key_in, key_out] {
            if section.get(single).is_some() {
                let message =
                    format!("{single} is set too: expected {key} alone, or {key_in} and {key_out}");
                return Err(value.complain(&message));
            }
        }
        let both = read(&value)?;
        return Ok((both, both));
    }
    Ok((
        section.optional(key_in, T::default(), &read)?,
        section.optional(key_out, T::default(), &read)?,
    ))
}

fn device(value: &Value<'_>) -> Result<String, ConfigError> {
    let name = value.text().filter(|name| is_device_name(name));
    Ok(name.ok_or_else(|| value.refuse(DEVICE_NAME))?.to_owned())
}

fn mode(value: &Value<'_>) -> Result<Mode, ConfigError> {
    match value.text() {
        Some("gre") => Ok(Mode::Gre),
        Some(word) if LATER_MODES.contains(&word) => Err(value.later(&format!("{word} is"), "gre")),
        _ => Err(value.refuse("gre")),
    }
}

fn endpoint(value: &Value<'_>) -> Result<Ipv4Addr, ConfigError> {
    let text = value.text().ok_or_else(|| value.refuse(UNICAST))?;
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(value.later("IPv6 endpoints are", UNICAST));
    }
    let address: Ipv4Addr = text.parse().map_err(|_| value.refuse(UNICAST))?;
    let unicast = !(address.is_multicast() || address.is_broadcast());
    if !unicast || address.is_loopback() || address.is_unspecified() {
        let expected = format!("{UNICAST}, not multicast, loopback, broadcast or zero");
        return Err(value.refuse(&expected));
    }
    Ok(address)
}

fn remote(section: &Section<'_>) -> Result<Ipv4Addr, ConfigError> {
    let value = section.get("remote").ok_or_else(|| {
        section.error(&format!(
            "a tunnel without remote is not available in this version; accepted: remote = {UNICAST}"
        ))
    })?;
    let address = value.text().and_then(|text| text.parse::<IpAddr>().ok());
    if address.is_some_and(|address| address.is_multicast()) {
        return Err(value.later("multicast groups are", UNICAST));
    }
    endpoint(&value)
}

/// A number or, as iproute2 has it, a dotted quad.
fn key(value: &Value<'_>) -> Result<u32, ConfigError> {
    let number = value.integer(0..=i64::from(u32::MAX)).map(|n| n as u32);
    let quad = || value.text()?.parse::<Ipv4Addr>().ok().map(u32::from);
    number
        .or_else(quad)
        .ok_or_else(|| value.refuse("0..4294967295 or a dotted quad"))
}

fn ttl(value: &Value<'_>) -> Result<Ttl, ConfigError> {
    if value.text() == Some("inherit") {
        return Ok(Ttl::Inherit);
    }
    let ttl = value.integer(1..=255).map(|n| Ttl::Fixed(n as u8));
    ttl.ok_or_else(|| value.refuse(r#"1..255 or "inherit""#))
}

fn tos(value: &Value<'_>) -> Result<Tos, ConfigError> {
    if value.text() == Some("inherit") {
        return Ok(Tos::Inherit);
    }
    let tos = value.integer(0..=255).map(|n| Tos::Fixed(n as u8));
    tos.ok_or_else(|| value.refuse(r#"0..255 or "inherit""#))
}

fn mtu(value: &Value<'_>, overhead: u16) -> Result<Mtu, ConfigError> {
    if value.text() == Some("auto") {
        return Ok(Mtu::Auto);
    }
    let most = u16::MAX - overhead;
    let mtu = value.integer(i64::from(MTU_MIN)..=i64::from(most));
    let mtu = mtu.map(|n| Mtu::Fixed(n as u16));
    mtu.ok_or_else(|| value.refuse(&format!(r#"{MTU_MIN}..{most} or "auto""#)))
}

fn addresses(value: &Value<'_>) -> Result<Vec<IpNet>, ConfigError> {
    let addresses = prefixes(value, r#""172.16.0.1/30""#)?;
    for (item, address) in &addresses {
        let ip = address.addr();
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return Err(item.refuse("an address that a device can have"));
        }
    }
    Ok(addresses.into_iter().map(|(_, address)| address).collect())
}

fn routes(value: &Value<'_>) -> Result<Vec<IpNet>, ConfigError> {
    let routes = prefixes(value, r#""10.0.2.0/24""#)?;
    for (item, route) in &routes {
        if route.addr() != route.network() {
            return Err(item.complain(&format!("host bits are set: expected {}", route.trunc())));
        }
        if route.addr().is_multicast() {
            return Err(item.refuse("a unicast prefix"));
        }
    }
    Ok(routes.into_iter().map(|(_, route)| route).collect())
}

fn prefixes<'a>(value: &Value<'a>, example: &str) -> Result<Vec<(Value<'a>, IpNet)>, ConfigError> {
    let list = format!("a list such as [{example}]");
    let items = value.items().ok_or_else(|| value.refuse(&list))?;
    let mut prefixes: Vec<(Value<'a>, IpNet)> = Vec::new();
    for item in items {
        let prefix = item.text().and_then(|text| text.parse::<IpNet>().ok());
        let prefix = prefix.ok_or_else(|| {
            item.refuse(&format!("an address and a prefix length such as {example}"))
        })?;
        if prefixes.iter().any(|(_, other)| *other == prefix) {
            return Err(item.complain("given twice: expected each once"));
        }
        prefixes.push((item, prefix));
    }
    Ok(prefixes)
}
