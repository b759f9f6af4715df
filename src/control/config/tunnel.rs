//! One `[[tunnel]]`: each key by itself. What keys mean to each other is in [`rules`](super::rules).

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use super::{
    ConfigError, Mtu, TunnelConfig, encap, ends, keepalive, keys,
    reader::{Section, Value},
    router::{DEVICE_NAME, is_device_name},
};
use crate::tunnel::{Family, FlowLabel, Mode, Payload, Shim, Tos, Ttl};

/// Whether a kind has something.
type Has = fn(Mode) -> bool;

/// Keys that not every kind has, and which have them.
const PARTICULAR: &[(&[&str], Has)] = &[
    (
        &[
            "key",
            "ikey",
            "okey",
            "csum",
            "icsum",
            "ocsum",
            "seq",
            "iseq",
            "oseq",
            "encap",
            "encap_sport",
            "encap_csum",
        ],
        |mode| mode.kind().shim == Shim::Gre,
    ),
    (
        &["hoplimit", "tclass", "dscp", "flowlabel", "encaplimit"],
        is_v6,
    ),
    (&["encap_csum6"], |mode| {
        is_v6(mode) && mode.kind().shim == Shim::Gre
    }),
    (&["pmtudisc"], |mode| !is_v6(mode)),
    (&["ignore_df"], |mode| {
        matches!(mode, Mode::Gre | Mode::Gretap)
    }),
    (&["bridge", "nvgre"], is_frames),
    (&["keepalive"], |mode| mode.kind().has_keepalives()),
];

/// The encapsulation limit where none is configured (IPV6_DEFAULT_TNL_ENCAP_LIMIT).
const ENCAPLIMIT: u8 = 4;
/// The hop limit over IPv6 where none is configured, as iproute2 sets it.
const HOPLIMIT: u8 = 64;
/// A flow label has 20 bits (RFC 8200 section 3).
const FLOWLABEL_MAX: u32 = 0xf_ffff;

/// The smallest MTU that an IPv4 link may have (RFC 791).
const MTU_MIN: u16 = 68;

/// The smallest MTU that an IPv6 link may have (RFC 8200 section 5).
const MTU_MIN_V6: u16 = 1280;

pub(super) fn parse(section: &Section<'_>) -> Result<TunnelConfig, ConfigError> {
    section.only(&keys::names(keys::TUNNEL), &[])?;
    let name = device(&section.need("name", DEVICE_NAME)?)?;
    let mode = mode(&section.need("mode", &words(&Mode::ALL, "or"))?)?;
    particular(section, mode)?;
    let local = ends::local(section, mode)?;
    let remote = ends::remote(section, mode)?;
    let peers = ends::peers(section, mode)?;
    let (ikey, okey) = both(section, "key", "ikey", "okey", |v| key(v).map(Some))?;
    let group = group_key(mode, remote);
    let (icsum, ocsum) = both(section, "csum", "icsum", "ocsum", |v| v.boolean())?;
    let (iseq, oseq) = both(section, "seq", "iseq", "oseq", |v| v.boolean())?;
    let (default_ttl, default_limit) = match mode.kind().underlay {
        Family::V4 => (Ttl::Inherit, None),
        Family::V6 => (Ttl::Fixed(HOPLIMIT), Some(ENCAPLIMIT)),
    };
    let mut tunnel = TunnelConfig {
        kernels: false,
        name,
        mode,
        local,
        remote,
        peers,
        ikey: ikey.or(group),
        okey: okey.or(group),
        icsum,
        ocsum,
        iseq,
        oseq,
        nvgre: section.optional("nvgre", false, |v| v.boolean())?,
        ttl: section.optional(either(section, "ttl", "hoplimit")?, default_ttl, ttl)?,
        tos: section.optional(either(section, "tos", "tclass")?, Tos::Fixed(0), tos)?,
        copy_dscp: section.optional("dscp", false, dscp)?,
        flow_label: section.optional("flowlabel", FlowLabel::Hash, flow_label)?,
        encaplimit: section.optional("encaplimit", default_limit, encaplimit)?,
        udp: encap::parse(section, is_v6(mode))?,
        pmtudisc: section.optional("pmtudisc", true, |v| v.boolean())?,
        ignore_df: section.optional("ignore_df", false, |v| v.boolean())?,
        mtu: Mtu::Auto,
        clamp_mss: section.optional("clamp_mss", false, |v| v.boolean())?,
        keepalive: section.optional("keepalive", None, keepalive::parse)?,
        dev: section.optional("dev", None, |v| device(v).map(Some))?,
        address: section.optional("address", Vec::new(), addresses)?,
        routes: section.optional("routes", Vec::new(), routes)?,
        bridge: section.optional("bridge", None, |v| device(v).map(Some))?,
    };
    let bounds = mtu_min(mode)..=u16::MAX - tunnel.overhead();
    tunnel.mtu = section.optional("mtu", Mtu::Auto, |v| mtu(v, bounds))?;
    Ok(tunnel)
}

fn is_frames(mode: Mode) -> bool {
    mode.kind().payload == Payload::Ethernet
}

pub(super) fn is_v6(mode: Mode) -> bool {
    mode.kind().underlay == Family::V6
}

/// The kinds by name: `gre, ipip or sit`.
fn words(modes: &[Mode], conjunction: &str) -> String {
    let words: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// Refuses keys that this kind does not have.
fn particular(section: &Section<'_>, mode: Mode) -> Result<(), ConfigError> {
    for (keys, has) in PARTICULAR.iter().filter(|(_, has)| !has(mode)) {
        if let Some(value) = keys.iter().find_map(|key| section.get(key)) {
            let others: Vec<Mode> = Mode::ALL.into_iter().filter(|mode| has(*mode)).collect();
            let (mode, others) = (mode.as_str(), words(&others, "and"));
            let message = format!("not with mode {mode}; accepted with {others}");
            return Err(value.complain(&message));
        }
    }
    Ok(())
}

/// The one of two names for the same thing that is there.
pub(super) fn either<'k>(
    section: &Section<'_>,
    name: &'k str,
    other: &'k str,
) -> Result<&'k str, ConfigError> {
    match section.get(other) {
        None => Ok(name),
        Some(_) if section.get(name).is_none() => Ok(other),
        Some(value) => Err(value.complain(&format!("{name} is set too: expected one of them"))),
    }
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
    let accepted = words(&Mode::ALL, "or");
    let mode = value.text().and_then(Mode::from_word);
    mode.ok_or_else(|| value.refuse(&accepted))
}

/// A tunnel to an IPv4 group has the group as its key where none is given: iproute2 says so to the kernel (link_gre.c).
fn group_key(mode: Mode, remote: IpAddr) -> Option<u32> {
    match remote {
        IpAddr::V4(group) if group.is_multicast() && mode.kind().shim == Shim::Gre => {
            Some(group.into())
        }
        _ => None,
    }
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

/// iproute2's `dscp inherit`.
fn dscp(value: &Value<'_>) -> Result<bool, ConfigError> {
    match value.text() {
        Some("inherit") => Ok(true),
        Some("none") => Ok(false),
        _ => Err(value.refuse(r#""inherit" or "none""#)),
    }
}

/// A number, also as text, which is how iproute2 prints it.
fn flow_label(value: &Value<'_>) -> Result<FlowLabel, ConfigError> {
    match value.text() {
        Some("hash") => return Ok(FlowLabel::Hash),
        Some("inherit") => return Ok(FlowLabel::Inherit),
        _ => {}
    }
    let number = value
        .integer(0..=i64::from(FLOWLABEL_MAX))
        .map(|n| n as u32);
    let text = || {
        let digits = value.text()?.strip_prefix("0x")?;
        let number = u32::from_str_radix(digits, 16).ok()?;
        (number <= FLOWLABEL_MAX).then_some(number)
    };
    let label = number.or_else(text).map(FlowLabel::Fixed);
    label.ok_or_else(|| value.refuse(r#"0..0xfffff, "hash" or "inherit""#))
}

fn encaplimit(value: &Value<'_>) -> Result<Option<u8>, ConfigError> {
    if value.text() == Some("none") {
        return Ok(None);
    }
    let limit = value.integer(0..=255).map(|n| Some(n as u8));
    limit.ok_or_else(|| value.refuse(r#"0..255 or "none""#))
}

/// The kernel's bounds: a sit or ip6ip6 device is there for IPv6 (sit_tunnel_setup(), ip6_tnl_change_mtu()).
fn mtu_min(mode: Mode) -> u16 {
    match mode {
        Mode::Sit | Mode::Ip6ip6 => MTU_MIN_V6,
        _ => MTU_MIN,
    }
}

fn mtu(value: &Value<'_>, bounds: RangeInclusive<u16>) -> Result<Mtu, ConfigError> {
    if value.text() == Some("auto") {
        return Ok(Mtu::Auto);
    }
    let (least, most) = bounds.into_inner();
    let mtu = value.integer(i64::from(least)..=i64::from(most));
    let mtu = mtu.map(|n| Mtu::Fixed(n as u16));
    mtu.ok_or_else(|| value.refuse(&format!(r#"{least}..{most} or "auto""#)))
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
