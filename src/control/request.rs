//! What is asked of the kernel, as messages and in words.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::LinkAttribute,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
        route::{RouteMessage, RouteScope},
    },
};

use super::netlink::{Device, Handle};

/// Something to ask of the kernel. Each is idempotent: what is already so is success.
#[derive(Debug, Clone)]
pub enum KernelRequest {
    SetUp(Device, bool),
    /// Bytes.
    SetMtu(Device, u32),
    /// Gives the device its carrier, or takes it away (`ip link set DEVICE carrier on`); a TUN device has that
    /// (drivers/net/tun.c, `tun_net_change_carrier`).
    SetCarrier(Device, bool),
    SetGroup(Device, u32),
    /// Removes the device, and with it its addresses and routes.
    DeleteLink(Device),
    /// Tells the kernel that a neighbour is in use (NTF_USE), so that it resolves the address, or probes it when stale,
    /// as if it sent a packet there. Not for permanent entries (`Nud::is_static`): they would lose that.
    Refresh(Device, IpAddr),
    AddAddress(Device, IpNet),
    DeleteAddress(Device, IpNet),
    /// Installs a route out of the device in table main, protocol static, default metric. Somebody else's route of the same
    /// prefix and metric stays, and is an error: it may be the way to the tunnel's far end. The device must be up.
    AddRoute(Device, IpNet),
    /// In the place of another tunnel's route of that prefix: at no moment is there none.
    ReplaceRoute(Device, IpNet),
    /// Removes a route that `AddRoute` installed.
    DeleteRoute(Device, IpNet),
    RemoveClsact(Device),
}

use KernelRequest::*;

impl KernelRequest {
    pub fn device(&self) -> &Device {
        match self {
            SetUp(device, _) | SetMtu(device, _) | SetCarrier(device, _) => device,
            SetGroup(device, _) | DeleteLink(device) | Refresh(device, _) => device,
            AddAddress(device, _) | DeleteAddress(device, _) => device,
            AddRoute(device, _) | ReplaceRoute(device, _) | DeleteRoute(device, _) => device,
            RemoveClsact(device) => device,
        }
    }

    /// For "cannot …".
    pub(super) fn attempt(&self) -> String {
        let on = |on: &bool, words: [&'static str; 2]| words[usize::from(!on)];
        match self {
            SetUp(_, up) => format!("set the link {}", on(up, ["up", "down"])),
            SetMtu(_, mtu) => format!("set the MTU {mtu}"),
            SetCarrier(_, carrier) => format!("set the carrier {}", on(carrier, ["on", "off"])),
            SetGroup(_, group) => format!("set the group {group}"),
            DeleteLink(_) => "delete the link".to_owned(),
            Refresh(_, ip) => format!("resolve the neighbour {ip}"),
            AddAddress(_, address) => format!("add the address {address}"),
            DeleteAddress(_, address) => format!("delete the address {address}"),
            AddRoute(_, prefix) => format!("add the route {prefix}"),
            ReplaceRoute(_, prefix) => format!("replace the route {prefix}"),
            DeleteRoute(_, prefix) => format!("delete the route {prefix}"),
            RemoveClsact(_) => "remove the qdisc clsact".to_owned(),
        }
    }

    /// The one message that asks for it, and its flags; none where it takes several.
    pub(super) fn message(&self) -> io::Result<Option<(RouteNetlinkMessage, u16)>> {
        let link = |device: &Device| LinkUnspec::new_with_index(device.index);
        let set =
            |link: LinkMessageBuilder<LinkUnspec>| (RouteNetlinkMessage::SetLink(link.build()), 0);
        Ok(Some(match self {
            SetUp(device, true) => set(link(device).up()),
            SetUp(device, false) => set(link(device).down()),
            SetMtu(device, mtu) => set(link(device).mtu(*mtu)),
            SetCarrier(device, on) => {
                let attribute = LinkAttribute::Carrier((*on).into());
                set(link(device).append_extra_attribute(attribute))
            }
            SetGroup(device, group) => {
                let attribute = LinkAttribute::Group(*group);
                set(link(device).append_extra_attribute(attribute))
            }
            DeleteLink(device) => (RouteNetlinkMessage::DelLink(link(device).build()), 0),
            Refresh(device, ip) => {
                // With NLM_F_EXCL an entry that exists would be an error.
                let flags = NLM_F_CREATE | NLM_F_REPLACE;
                let message = neighbour_in_use(device, *ip);
                (RouteNetlinkMessage::NewNeighbour(message), flags)
            }
            AddAddress(device, net) => {
                let flags = NLM_F_CREATE | NLM_F_REPLACE;
                let (index, len) = (device.index, net.prefix_len());
                let message = match net.addr() {
                    IpAddr::V4(ip) => {
                        let new = AddressMessageBuilder::<Ipv4Addr>::new();
                        new.index(index).address(ip, len).build()
                    }
                    IpAddr::V6(ip) => {
                        let new = AddressMessageBuilder::<Ipv6Addr>::new();
                        new.index(index).address(ip, len).build()
                    }
                };
                (RouteNetlinkMessage::NewAddress(message), flags)
            }
            DeleteAddress(device, net) => {
                (RouteNetlinkMessage::DelAddress(address(device, *net)), 0)
            }
            AddRoute(device, prefix) => {
                let flags = NLM_F_CREATE | NLM_F_EXCL;
                (
                    RouteNetlinkMessage::NewRoute(route(device, *prefix)?),
                    flags,
                )
            }
            ReplaceRoute(device, prefix) => {
                let flags = NLM_F_CREATE | NLM_F_REPLACE;
                (
                    RouteNetlinkMessage::NewRoute(route(device, *prefix)?),
                    flags,
                )
            }
            DeleteRoute(device, prefix) => {
                (RouteNetlinkMessage::DelRoute(route(device, *prefix)?), 0)
            }
            RemoveClsact(_) => return Ok(None),
        }))
    }

    /// Whether the kernel's refusal says that it is so already: what was to be removed and is not there is removed; with its
    /// device everything on it goes.
    pub(super) fn is_so_already(&self, errno: i32) -> bool {
        match self {
            DeleteLink(_) => errno == libc::ENODEV,
            DeleteAddress(..) | DeleteRoute(..) => {
                matches!(errno, libc::EADDRNOTAVAIL | libc::ESRCH | libc::ENODEV)
            }
            RemoveClsact(_) => matches!(errno, libc::ENODEV | libc::ENOENT | libc::EINVAL),
            _ => false,
        }
    }
}

/// Where there is nobody to tell that one failed but the log.
pub(super) async fn carry_out(requests: &[KernelRequest], handle: &Handle) {
    for outcome in handle.all(requests).await {
        if let Err(why) = outcome {
            tracing::warn!("{why}");
        }
    }
}

fn address(device: &Device, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = device.index;
    message.header.prefix_len = net.prefix_len();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    for attribute in [AddressAttribute::Local, AddressAttribute::Address] {
        message.attributes.push(attribute(net.addr()));
    }
    message
}

fn neighbour_in_use(device: &Device, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device.index;
    message.header.family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.flags = NeighbourFlags::Use;
    let destination = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    let destination = NeighbourAttribute::Destination(destination);
    message.attributes.push(destination);
    message
}

/// A route of table main, protocol static, default metric.
fn route(device: &Device, prefix: IpNet) -> io::Result<RouteMessage> {
    let prefix = prefix.trunc();
    Ok(RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error.to_string()))?
        .output_interface(device.index)
        // As iproute2: without a gateway the destinations are on the link. IPv6 knows no scopes.
        .scope(match prefix {
            IpNet::V4(_) => RouteScope::Link,
            IpNet::V6(_) => RouteScope::Universe,
        })
        .build())
}
