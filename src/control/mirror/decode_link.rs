//! Link messages (struct ifinfomsg).

use super::{
    attribute::{Attribute, attributes},
    decode::{AF_UNSPEC, Undecodable, header, u32_at},
    decode_tunnel::tunnel,
    model::{Link, TunnelKind, Vlan},
};

const IFINFOMSG: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_FLAGS: u16 = 2;
const IFLA_VLAN_EGRESS_QOS: u16 = 3;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const VLAN_FLAG_REORDER_HDR: u32 = 1;
const ETH_P_8021Q: [u8; 2] = [0x81, 0x00];

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_RUNNING: u32 = 1 << 6;
const IFF_NOARP: u32 = 1 << 7;
const IFF_LOWER_UP: u32 = 1 << 16;

/// The device that a link message is about. A bridge tells of its ports in messages of its own family: one that leaves
/// the bridge is "deleted" there, and lives on.
pub fn link_index(payload: &[u8]) -> Result<Option<u32>, Undecodable> {
    let header: &[u8; IFINFOMSG] = header(payload)?;
    let index = u32_at(header, 4)?;
    Ok((header[0] == AF_UNSPEC).then_some(index))
}

pub fn link(payload: &[u8]) -> Result<Option<Link>, Undecodable> {
    let Some(index) = link_index(payload)? else {
        return Ok(None);
    };
    let flags = u32_at(payload, 8)?;
    let has = |flag| flags & flag != 0;
    let mut link = Link {
        index,
        name: "".into(),
        mtu: 0,
        up: has(IFF_UP),
        carrier: has(IFF_UP) && has(IFF_LOWER_UP),
        running: has(IFF_UP) && has(IFF_RUNNING),
        no_arp: has(IFF_NOARP),
        loopback: has(IFF_LOOPBACK),
        rx_queues: 1,
        tx_queues: 1,
        ..Link::default()
    };
    for attribute in attributes(payload, IFINFOMSG) {
        match attribute.kind {
            IFLA_ADDRESS => link.mac = attribute.mac(),
            IFLA_IFNAME => link.name = attribute.text().unwrap_or_default(),
            IFLA_MTU => link.mtu = attribute.u32().unwrap_or(0),
            IFLA_LINK => link.link = attribute.u32(),
            IFLA_LINK_NETNSID => link.link_elsewhere = true,
            IFLA_MASTER => link.master = attribute.u32(),
            IFLA_NUM_RX_QUEUES => link.rx_queues = attribute.u32().unwrap_or(1),
            IFLA_NUM_TX_QUEUES => link.tx_queues = attribute.u32().unwrap_or(1),
            IFLA_XDP => {
                let id = attribute.nested().find(|a| a.kind == IFLA_XDP_PROG_ID);
                link.xdp_program = id.and_then(|a| a.u32());
            }
            IFLA_LINKINFO => link_info(&attribute, &mut link),
            _ => {}
        }
    }
    if link.name.is_empty() {
        return Err(Undecodable);
    }
    Ok(Some(link))
}

fn link_info(info: &Attribute<'_>, link: &mut Link) {
    let find = |kind| info.nested().find(|a| a.kind == kind);
    link.kind = find(IFLA_INFO_KIND).and_then(|a| a.text());
    let kind = link.kind.as_deref().and_then(TunnelKind::from_word);
    if let (Some(kind), Some(data)) = (kind, find(IFLA_INFO_DATA)) {
        link.tunnel = Some(Box::new(tunnel(kind, &data)));
    }
    if link.kind.as_deref() == Some("vlan") {
        link.vlan = find(IFLA_INFO_DATA).map(|data| vlan(&data));
    }
}

fn vlan(data: &Attribute<'_>) -> Vlan {
    let mut vlan = Vlan::default();
    for attribute in data.nested() {
        match attribute.kind {
            IFLA_VLAN_ID => vlan.id = attribute.u16().unwrap_or(0),
            // struct ifla_vlan_flags: flags, then a mask.
            IFLA_VLAN_FLAGS => {
                let flags = u32_at(attribute.value, 0).unwrap_or(0);
                vlan.reorders = flags & VLAN_FLAG_REORDER_HDR != 0;
            }
            IFLA_VLAN_EGRESS_QOS => vlan.marks = attribute.nested().next().is_some(),
            // In network order; 802.1Q where there is none.
            IFLA_VLAN_PROTOCOL => vlan.provider = attribute.value != ETH_P_8021Q,
            _ => {}
        }
    }
    vlan
}
