//! What a GRE tunnel's packets stand in: nothing, or UDP.

use super::{
    ConfigError,
    reader::{Section, Value},
};
use crate::tunnel::UdpEncap;

const IN_UDP: &str = "gre-in-udp";
const EXPECTED: &str = r#""gre-in-udp" or "none""#;

/// Reads `encap` and its companions; `ipv6` is the underlay's family. Without `encap` the others have no meaning.
pub(super) fn parse(section: &Section<'_>, ipv6: bool) -> Result<Option<UdpEncap>, ConfigError> {
    let in_udp = section.optional("encap", false, |v| match v.text() {
        Some(IN_UDP) => Ok(true),
        Some("none") => Ok(false),
        _ => Err(v.refuse(EXPECTED)),
    })?;
    let csum = super::tunnel::either(section, "encap_csum", "encap_csum6")?;
    let encap = UdpEncap {
        source_port: section.optional("encap_sport", None, source_port)?,
        // RFC 8086 section 6: over IPv4 it may be left out, over IPv6 nothing else protects the addresses.
        checksum: section.optional(csum, ipv6, |v| v.boolean())?,
    };
    let stray = ["encap_sport", csum]
        .into_iter()
        .find_map(|key| section.get(key));
    match (in_udp, stray) {
        (true, _) => Ok(Some(encap)),
        (false, None) => Ok(None),
        (false, Some(value)) => {
            let expected = format!("not without encap: expected encap = \"{IN_UDP}\" beside it");
            Err(value.complain(&expected))
        }
    }
}

fn source_port(value: &Value<'_>) -> Result<Option<u16>, ConfigError> {
    if value.text() == Some("auto") {
        return Ok(None);
    }
    let port = value.integer(1..=i64::from(u16::MAX)).map(|n| n as u16);
    match port {
        Some(port) => Ok(Some(port)),
        None => Err(value.refuse(r#"1..65535 or "auto""#)),
    }
}
