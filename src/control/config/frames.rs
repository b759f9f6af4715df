//! What is particular to the kinds that carry Ethernet frames: the wire to another device, and virtual subnets.

use super::{ConfigError, RouterConfig, TunnelConfig, reader::Section, rules::complain};

/// Virtual subnets that RFC 7637 section 3.2 leaves for use.
const FIRST_VSID: u32 = 0x1000;
const LAST_VSID: u32 = 0xff_fffe;

pub(super) fn alone(section: &Section<'_>, tunnel: &TunnelConfig) -> Result<(), ConfigError> {
    if tunnel.nvgre {
        virtual_subnet(section, tunnel)?;
    }
    let Some(bridge) = &tunnel.bridge else {
        return Ok(());
    };
    if *bridge == tunnel.name {
        let expected = "the tunnel itself: expected an overlay device";
        return Err(complain(section, "bridge", expected));
    }
    for (key, empty) in [
        ("address", tunnel.address.is_empty()),
        ("routes", tunnel.routes.is_empty()),
    ] {
        if !empty {
            let expected = format!(
                "not with bridge = {bridge:?}, where all frames of the tunnel go: expected one of the two"
            );
            return Err(complain(section, key, &expected));
        }
    }
    Ok(())
}

/// One number stands for the subnet at both ends (RFC 7637 section 3.2), and the GRE header has no other options (3.1).
fn virtual_subnet(section: &Section<'_>, tunnel: &TunnelConfig) -> Result<(), ConfigError> {
    let accepted = format!("{FIRST_VSID}..{LAST_VSID}");
    for key in ["ikey", "okey"] {
        if section.get(key).is_some() {
            let expected = format!(
                "not with nvgre, whose virtual subnet is the same both ways: expected key = {accepted}"
            );
            return Err(complain(section, key, &expected));
        }
    }
    if tunnel.udp.is_some() {
        let expected = "not with nvgre, which is GRE right behind the IP header: expected \"none\"";
        return Err(complain(section, "encap", expected));
    }
    match tunnel.ikey {
        Some(FIRST_VSID..=LAST_VSID) => {}
        None => {
            let expected = format!("needs the virtual subnet beside it: expected key = {accepted}");
            return Err(complain(section, "nvgre", &expected));
        }
        Some(vsid) => {
            let why = match vsid {
                0..FIRST_VSID => "RFC 7637 reserves virtual subnets below 0x1000",
                0xff_ffff => "RFC 7637 reserves virtual subnet 0xffffff for vendors",
                _ => "a virtual subnet has 24 bits",
            };
            let expected = format!("{why}: expected {accepted}");
            return Err(complain(section, "key", &expected));
        }
    }
    let is_on = |key: &&&str| {
        section
            .get(key)
            .is_some_and(|value| value.boolean() == Ok(true))
    };
    let options = ["csum", "icsum", "ocsum", "seq", "iseq", "oseq"];
    match options.iter().find(is_on) {
        Some(option) => Err(complain(
            section,
            option,
            "not with nvgre: RFC 7637 has neither checksums nor sequence numbers; expected false",
        )),
        None => Ok(()),
    }
}

/// The device at the other end of the wire is one of the router's, and faces the inner networks.
pub(super) fn on_router(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
    router: &RouterConfig,
) -> Result<(), ConfigError> {
    let Some(bridge) = &tunnel.bridge else {
        return Ok(());
    };
    let expected = if router.underlay.contains(bridge) {
        "an underlay device, whose packets are not the tunnel's alone: expected an overlay device"
    } else if !router.overlay.contains(bridge) {
        "not an overlay device: expected one that router.overlay names"
    } else {
        return Ok(());
    };
    Err(complain(section, "bridge", expected))
}

/// Beside a tunnel that stands before it in the file.
pub(super) fn beside(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
    other: &TunnelConfig,
) -> Result<(), ConfigError> {
    if tunnel.bridge.is_some() && tunnel.bridge == other.bridge {
        let expected = format!(
            "tunnel {:?} has it already: expected a device of its own",
            other.name
        );
        return Err(complain(section, "bridge", &expected));
    }
    let ends = |t: &TunnelConfig| (t.mode, t.local, t.remote, t.dev.clone());
    let (subnet, plain) = match (tunnel.nvgre, other.nvgre) {
        (true, false) => (tunnel, other),
        (false, true) => (other, tunnel),
        _ => return Ok(()),
    };
    let within = |key: u32| Some(key >> 8) == subnet.ikey;
    if ends(tunnel) == ends(other) && plain.ikey.is_some_and(within) {
        let expected = format!(
            "virtual subnet {} of the one is within the key of the other, tunnel {:?}: expected another key",
            subnet.ikey.unwrap_or(0),
            other.name
        );
        return Err(complain(section, "key", &expected));
    }
    Ok(())
}
