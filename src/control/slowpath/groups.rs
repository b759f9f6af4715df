//! The multicast groups that tunnels receive from, joined on the underlay.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
};

use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};

use crate::tunnel::TunnelTable;

/// A group, and the interface index of the device on which it is joined.
type Member = (IpAddr, u32);

/// The memberships in force. A raw socket hears every group that anybody on the host has joined (IP_MULTICAST_ALL in ip(7)),
/// so each has a socket of its own: receiving sockets come and go without them, and one socket may join few groups only
/// (net.ipv4.igmp_max_memberships). Closing it leaves the group.
#[derive(Default)]
pub(super) struct Groups {
    joined: HashMap<Member, Socket>,
    refused: HashSet<Member>,
}

impl Groups {
    /// Joins and leaves groups as the tunnels that are up need it. What is refused, because the device has no address yet for
    /// one, is logged once and tried again with the next call.
    pub fn follow(&mut self, tunnels: &TunnelTable) {
        let needed: HashMap<Member, &str> = (tunnels.iter())
            .filter(|tunnel| tunnel.up && tunnel.remote.is_multicast())
            .filter_map(|tunnel| Some(((tunnel.remote, tunnel.dev?), &*tunnel.name)))
            .collect();
        self.joined.retain(|member, _| needed.contains_key(member));
        self.refused.retain(|member| needed.contains_key(member));
        for (member, tunnel) in needed {
            if self.joined.contains_key(&member) {
                continue;
            }
            match join(member) {
                Ok(socket) => {
                    self.joined.insert(member, socket);
                    self.refused.remove(&member);
                }
                Err(why) if self.refused.insert(member) => {
                    let (group, _) = member;
                    tracing::warn!("tunnel {tunnel}: cannot join {group} on the underlay: {why}");
                }
                Err(_) => {}
            }
        }
    }
}

fn join((group, device): Member) -> io::Result<Socket> {
    // The kernel takes 0 for any device.
    if device == 0 {
        return Err(io::Error::other("the device is not there"));
    }
    let domain = match group {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    // Without a port it receives nothing.
    let socket = Socket::new(domain, Type::DGRAM.cloexec(), None)?;
    match group {
        IpAddr::V4(group) => {
            let device = InterfaceIndexOrAddress::Index(device);
            socket.join_multicast_v4_n(&group, &device)?;
        }
        IpAddr::V6(group) => socket.join_multicast_v6(&group, device)?,
    }
    Ok(socket)
}
