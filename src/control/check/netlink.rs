//! What the kernel's tables say, read once over rtnetlink.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{Stream, TryStreamExt, pin_mut};
use ipnet::IpNet;
use rtnetlink::{
    Error, Handle, IpVersion, RouteMessageBuilder,
    packet_core::Emitable,
    packet_route::{
        address::AddressAttribute,
        link::{
            InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
            LinkXdp, VlanFlags, VlanProtocol,
        },
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType},
        tc::TcAttribute,
    },
};

use super::host::{Link, RouteTo, Seen};
use crate::control::{
    config::{Config, TunnelConfig},
    mirror::{Rule, Vlan, read_rule},
};

/// The kernel's tables, each by itself: one that cannot be read hides no other.
pub(super) struct Tables {
    pub links: Seen<Vec<Link>>,
    pub addresses: Seen<Vec<(u32, IpNet)>>,
    pub rules: Seen<Vec<Rule>>,
    pub qdiscs: Seen<Vec<(u32, String)>>,
    pub routes: BTreeMap<(String, IpAddr), Seen<RouteTo>>,
}

pub(super) async fn tables(config: &Config) -> Tables {
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(connection) => connection,
        Err(e) => return blind(&format!("netlink: {e}")),
    };
    let connection = tokio::spawn(connection);
    let links = links(&handle).await;
    let mut routes = BTreeMap::new();
    for tunnel in &config.tunnels {
        for remote in tunnel.remotes() {
            let links = links.as_deref().unwrap_or_default();
            let route = route(&handle, (tunnel, *remote), links).await;
            routes.insert((tunnel.name.clone(), *remote), route);
        }
    }
    let tables = Tables {
        links,
        addresses: addresses(&handle).await,
        rules: rules(&handle).await,
        qdiscs: qdiscs(&handle).await,
        routes,
    };
    connection.abort();
    tables
}

fn blind(why: &str) -> Tables {
    Tables {
        links: Err(why.to_owned()),
        addresses: Err(why.to_owned()),
        rules: Err(why.to_owned()),
        qdiscs: Err(why.to_owned()),
        routes: BTreeMap::new(),
    }
}

async fn all<T>(messages: impl Stream<Item = Result<T, Error>>) -> Seen<Vec<T>> {
    messages.try_collect().await.map_err(|e| plain(&e))
}

/// The kernel's error in its own words.
fn plain(error: &Error) -> String {
    match error {
        Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

async fn links(handle: &Handle) -> Seen<Vec<Link>> {
    let messages = all(handle.link().get().execute()).await?;
    Ok(messages.iter().map(link).collect())
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        multicast: flags.contains(LinkFlags::Multicast),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        ..Link::default()
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::NumRxQueues(n) => link.queues.0 = *n,
            LinkAttribute::NumTxQueues(n) => link.queues.1 = *n,
            LinkAttribute::Xdp(xdp) => link.xdp = program(xdp).map(|id| (id, None)),
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.vlan = info.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(vlan(data)),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if elsewhere {
        link.lower = None;
    }
    link
}

fn vlan(data: &[InfoVlan]) -> Vlan {
    let mut vlan = Vlan::default();
    for attribute in data {
        match attribute {
            InfoVlan::Id(id) => vlan.id = *id,
            InfoVlan::Flags((flags, _)) => vlan.reorders = flags.contains(VlanFlags::ReorderHdr),
            InfoVlan::EgressQos(map) => vlan.marks = !map.is_empty(),
            InfoVlan::Protocol(protocol) => vlan.provider = *protocol != VlanProtocol::Ieee8021Q,
            _ => {}
        }
    }
    vlan
}

fn program(xdp: &[LinkXdp]) -> Option<u32> {
    xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => (*id != 0).then_some(*id),
        _ => None,
    })
}

async fn addresses(handle: &Handle) -> Seen<Vec<(u32, IpNet)>> {
    let messages = all(handle.address().get().execute()).await?;
    let mut addresses = Vec::new();
    for message in messages {
        let prefix_len = message.header.prefix_len;
        // IFA_LOCAL is the device's own address; IFA_ADDRESS is the peer's on a point-to-point device.
        let own = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        };
        let any = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        let attributes = &message.attributes;
        let address = attributes
            .iter()
            .find_map(own)
            .or_else(|| attributes.iter().find_map(any));
        if let Some(Ok(address)) = address.map(|address| IpNet::new(address, prefix_len)) {
            addresses.push((message.header.index, address));
        }
    }
    Ok(addresses)
}

async fn rules(handle: &Handle) -> Seen<Vec<Rule>> {
    let mut rules = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        for message in all(handle.rule().get(version).execute()).await? {
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            rules.extend(read_rule(&bytes).ok().flatten());
        }
    }
    Ok(rules)
}

async fn qdiscs(handle: &Handle) -> Seen<Vec<(u32, String)>> {
    let messages = all(handle.qdisc().get().execute()).await?;
    let mut qdiscs = Vec::new();
    for message in messages {
        let kind = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.clone()),
                _ => None,
            });
        if let (Some(kind), Ok(index)) = (kind, u32::try_from(message.header.index)) {
            qdiscs.push((index, kind));
        }
    }
    Ok(qdiscs)
}

/// Asks the kernel twice: where a packet would go, and which prefix decides that.
async fn route(
    handle: &Handle,
    (tunnel, remote): (&TunnelConfig, IpAddr),
    links: &[Link],
) -> Seen<RouteTo> {
    let lookup = match remote {
        IpAddr::V4(remote) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(remote, 32)
            .build(),
        IpAddr::V6(remote) => {
            let lookup = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(remote, 128);
            // Every device has a route to fe80::/64: only the tunnel's own counts.
            let bound = (tunnel.dev.as_ref()).filter(|_| remote.is_unicast_link_local());
            match bound.and_then(|dev| links.iter().find(|link| link.name == *dev)) {
                Some(device) => lookup.output_interface(device.index).build(),
                None => lookup.build(),
            }
        }
    };
    let mut entry = lookup.clone();
    entry.header.flags |= RouteFlags::FibMatch;
    let found = first(handle, lookup).await?;
    let entry = first(handle, entry).await?;
    let device = found
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    let gateway = found
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some((*gateway).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some((*gateway).into()),
            _ => None,
        });
    Ok(RouteTo {
        device: device.ok_or("the route names no device")?,
        gateway,
        prefix_len: entry.header.destination_prefix_length,
        local: found.header.kind == RouteType::Local,
        mtu: metric(&entry),
    })
}

/// The MTU that the route was given (`ip route … mtu`); what the kernel has learned of the path is not in its table.
fn metric(entry: &RouteMessage) -> Option<u32> {
    let mtu = |metric: &RouteMetric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(mtu),
            _ => None,
        })
}

async fn first(handle: &Handle, lookup: RouteMessage) -> Seen<RouteMessage> {
    let answers = handle.route().get(lookup).execute();
    pin_mut!(answers);
    let answer = answers.try_next().await.map_err(|e| plain(&e))?;
    answer.ok_or_else(|| "no answer".to_owned())
}
