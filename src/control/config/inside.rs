//! What is put on a tunnel's device, and what the device can bear.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{ConfigError, Mtu, TunnelConfig, reader::Section, rules::complain_about};

/// The smallest MTU that an IPv6 link may have (RFC 8200 section 5); below it the kernel takes no IPv6 address.
const MTU_MIN_V6: u16 = 1280;

pub(super) fn alone(section: &Section<'_>, tunnel: &TunnelConfig) -> Result<(), ConfigError> {
    if let Mtu::Fixed(mtu @ ..MTU_MIN_V6) = tunnel.mtu {
        let six = |net: &&IpNet| net.addr().is_ipv6();
        for (key, nets) in [("address", &tunnel.address), ("routes", &tunnel.routes)] {
            if let Some(net) = nets.iter().find(six) {
                let message = format!(
                    "not with mtu = {mtu}: IPv6 needs {MTU_MIN_V6} bytes: expected that mtu, or more"
                );
                return Err(complain_about(section, key, net, &message));
            }
        }
    }
    for remote in tunnel.remotes() {
        ours(section, tunnel, *remote)?;
        if let Some(route) = tunnel.routes.iter().find(|r| **r == IpNet::from(*remote)) {
            let message = "the way to the other end itself: expected prefixes behind it";
            return Err(complain_about(section, "routes", route, message));
        }
    }
    Ok(())
}

/// Of two tunnels, neither may make the other's far end an address of this host.
pub(super) fn beside(
    section: &Section<'_>,
    tunnel: &TunnelConfig,
    other: &TunnelConfig,
) -> Result<(), ConfigError> {
    for remote in other.remotes() {
        ours(section, tunnel, *remote)?;
    }
    let has = |remote: &&IpAddr| other.address.iter().any(|own| own.addr() == **remote);
    match tunnel.remotes().iter().find(has) {
        Some(remote) => {
            let name = &other.name;
            let message =
                format!("{remote} is an address of tunnel {name:?}: expected the other end's");
            Err(section.error(&message))
        }
        None => Ok(()),
    }
}

/// An address of the device is this host's, and what is sent there does not leave.
fn ours(section: &Section<'_>, tunnel: &TunnelConfig, remote: IpAddr) -> Result<(), ConfigError> {
    match tunnel.address.iter().find(|own| own.addr() == remote) {
        Some(own) => {
            let message = "a tunnel's remote: expected an address of this host's own";
            Err(complain_about(section, "address", own, message))
        }
        None => Ok(()),
    }
}
