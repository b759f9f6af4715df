//! Tunnel devices that go, by the thousand at once.
//!
//! The kernel waits for all of its CPUs when a device goes, and walks its routing tables for each. So the routes out of the
//! devices go first, one by one, which walks nothing; then the devices move into a group of their own, and the group is
//! deleted by one request (`ip link del group N`), which waits once for all of them (`rtnl_group_dellink`).

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    io,
    pin::pin,
};

use futures_util::StreamExt;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteScope},
};

use super::{
    bulk,
    netlink::{Device, Handle, device_of},
    request::{self, KernelRequest},
};

/// So few go one by one.
const FEW: usize = 8;

/// Removes devices, and with them their addresses and routes. Those that are not there any more are no failure.
pub async fn remove(devices: &[Device], handle: &Handle) {
    let mut left = devices.to_vec();
    if devices.len() > FEW {
        remove_routes(devices, handle).await;
        match remove_together(devices, handle).await {
            Ok(others) => left = others,
            Err(why) => tracing::warn!("devices are removed one by one: {why}"),
        }
    }
    let each: Vec<_> = left.into_iter().map(KernelRequest::DeleteLink).collect();
    request::carry_out(&each, handle).await;
}

/// In the kernel's order: the first of a list is found at once.
async fn remove_routes(devices: &[Device], handle: &Handle) {
    let indexes: HashSet<u32> = devices.iter().map(|device| device.index).collect();
    let mut deletions = Vec::new();
    for v6 in [false, true] {
        let mut routes = pin!(handle.routes(v6));
        while let Some(route) = routes.next().await {
            if device_of(&route).is_some_and(|index| indexes.contains(&index)) {
                deletions.push((RouteNetlinkMessage::DelRoute(as_deleted(route)), 0));
            }
        }
    }
    // What remains goes with its device.
    if let Err(why) = bulk::ask(&deletions) {
        tracing::debug!("routes are left to the kernel: {why}");
    }
}

/// What names the route: the other attributes are for reading.
fn as_deleted(mut route: RouteMessage) -> RouteMessage {
    use RouteAttribute::*;
    let names = |a: &RouteAttribute| matches!(a, Destination(_) | Oif(_) | Table(_) | Priority(_));
    route.attributes.retain(names);
    route.header.flags = Default::default();
    if route.header.address_family == rtnetlink::packet_route::AddressFamily::Inet {
        route.header.scope = RouteScope::NoWhere;
    }
    route
}

/// Gives those back that it could not remove.
async fn remove_together(devices: &[Device], handle: &Handle) -> io::Result<Vec<Device>> {
    let group = free_group(handle).await;
    let moves = devices.iter().cloned();
    let moves: Vec<_> = moves
        .map(|device| KernelRequest::SetGroup(device, group))
        .collect();
    let mut others = Vec::new();
    let mut moved = false;
    for (device, outcome) in devices.iter().zip(handle.all(&moves).await) {
        match outcome {
            Ok(()) => moved = true,
            Err(why) if why.errno() == Some(libc::ENODEV) => {}
            Err(_) => others.push(device.clone()),
        }
    }
    if moved {
        let mut all = LinkMessage::default();
        all.attributes.push(LinkAttribute::Group(group));
        let outcomes = bulk::ask(&[(RouteNetlinkMessage::DelLink(all), 0)])?;
        outcomes.into_iter().collect::<io::Result<()>>()?;
    }
    Ok(others)
}

/// A group that no device is in.
async fn free_group(handle: &Handle) -> u32 {
    let mut taken = HashSet::new();
    let mut links = pin!(handle.links());
    while let Some(link) = links.next().await {
        let group = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Group(group) => Some(*group),
            _ => None,
        });
        taken.extend(group);
    }
    // Random, so that two routers that end at the same time do not choose the same.
    let mut group = RandomState::new().hash_one(std::process::id()) as u32 | 1 << 30;
    group &= i32::MAX as u32;
    while taken.contains(&group) {
        group += 1;
    }
    group
}
