//! What the kernel says of its own tunnel devices: IFLA_INFO_DATA of the kinds gre, ip6gre, ipip, sit and ip6tnl
//! (linux/if_tunnel.h; `ipgre_fill_info` and its siblings).

use super::{
    attribute::Attribute,
    model::{KernelTunnel, TunnelKind},
};

/// What an attribute says, whatever its number.
#[derive(Debug, Clone, Copy)]
enum Field {
    Link,
    IFlags,
    OFlags,
    IKey,
    OKey,
    Local,
    Remote,
    Ttl,
    Tos,
    PmtuDisc,
    EncapLimit,
    FlowInfo,
    Flags,
    EncapType,
    External,
    IgnoreDf,
    Fwmark,
    Protocol,
    SixRdPrefixLen,
    /// Nothing that counts beside the others.
    Nothing,
}

impl TunnelKind {
    /// The field of an attribute's number; none of one that is not known.
    fn field(self, number: u16) -> Option<Field> {
        use Field::*;
        let gre = [
            Nothing, Link, IFlags, OFlags, IKey, OKey, Local, Remote, Ttl, Tos, PmtuDisc,
            EncapLimit, FlowInfo, Flags, EncapType, Nothing, Nothing, Nothing, External, IgnoreDf,
            Fwmark,
        ];
        let iptun = [
            Nothing,
            Link,
            Local,
            Remote,
            Ttl,
            Tos,
            EncapLimit,
            FlowInfo,
            Flags,
            Protocol,
            PmtuDisc,
            Nothing,
            Nothing,
            SixRdPrefixLen,
            Nothing,
            EncapType,
            Nothing,
            Nothing,
            Nothing,
            External,
            Fwmark,
        ];
        let fields = match self {
            TunnelKind::Gre | TunnelKind::Ip6gre => gre,
            TunnelKind::Ipip | TunnelKind::Sit | TunnelKind::Ip6tnl => iptun,
        };
        fields.get(usize::from(number)).copied()
    }
}

/// What stands in IFLA_INFO_DATA. An attribute that is shorter than its field says nothing.
pub fn tunnel(kind: TunnelKind, data: &Attribute<'_>) -> KernelTunnel {
    let mut tunnel = KernelTunnel::new(kind);
    for attribute in data.nested() {
        let a = &attribute;
        match kind.field(a.kind) {
            Some(Field::Link) => tunnel.link = a.u32().unwrap_or(0),
            Some(Field::IFlags) => tunnel.iflags = a.be16().unwrap_or(0),
            Some(Field::OFlags) => tunnel.oflags = a.be16().unwrap_or(0),
            Some(Field::IKey) => tunnel.ikey = a.be32().unwrap_or(0),
            Some(Field::OKey) => tunnel.okey = a.be32().unwrap_or(0),
            Some(Field::Local) => tunnel.local = a.ip(),
            Some(Field::Remote) => tunnel.remote = a.ip(),
            Some(Field::Ttl) => tunnel.ttl = a.u8().unwrap_or(0),
            Some(Field::Tos) => tunnel.tos = a.u8().unwrap_or(0),
            Some(Field::PmtuDisc) => tunnel.pmtudisc = a.u8() == Some(1),
            Some(Field::EncapLimit) => tunnel.encap_limit = a.u8().unwrap_or(0),
            Some(Field::FlowInfo) => tunnel.flowinfo = a.be32().unwrap_or(0),
            // Two bytes of sit's and ipip's, four of those over IPv6.
            Some(Field::Flags) if a.value.len() == 2 => tunnel.flags = a.be16().unwrap_or(0).into(),
            Some(Field::Flags) => tunnel.flags = a.u32().unwrap_or(0),
            Some(Field::EncapType) => tunnel.encap = a.u16().unwrap_or(0),
            Some(Field::External) => tunnel.external = true,
            Some(Field::IgnoreDf) => tunnel.ignore_df = a.u8().unwrap_or(0) != 0,
            Some(Field::Fwmark) => tunnel.fwmark = a.u32().unwrap_or(0),
            Some(Field::Protocol) => tunnel.protocol = a.u8().unwrap_or(0),
            Some(Field::SixRdPrefixLen) => tunnel.six_rd_prefix_len = a.u16(),
            Some(Field::Nothing) => {}
            None => tunnel.unknown = Some(a.kind),
        }
    }
    tunnel
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn read(kind: TunnelKind, attributes: &[(u16, &[u8])]) -> KernelTunnel {
        let data: Vec<u8> = attributes
            .iter()
            .flat_map(|(kind, value)| attribute(*kind, value))
            .collect();
        tunnel(
            kind,
            &Attribute {
                kind: 2,
                value: &data,
            },
        )
    }

    #[test]
    fn a_gre_device_is_read_with_all_its_options() {
        let t = read(
            TunnelKind::Gre,
            &[
                (1, &7u32.to_ne_bytes()),
                (2, &[0x20, 0]),
                (3, &[0xa0, 0]),
                (4, &[0, 0, 0, 42]),
                (5, &[0, 0, 0, 43]),
                (6, &[192, 0, 2, 1]),
                (7, &[192, 0, 2, 2]),
                (8, &[64]),
                (9, &[1]),
                (10, &[1]),
                (14, &0u16.to_ne_bytes()),
                (16, &[0, 0]),
                (17, &[0, 0]),
                (15, &[0, 0]),
                (19, &[1]),
                (20, &5u32.to_ne_bytes()),
            ],
        );
        let expected = KernelTunnel {
            link: 7,
            iflags: 0x2000,
            oflags: 0xa000,
            ikey: 42,
            okey: 43,
            local: Some([192, 0, 2, 1].into()),
            remote: Some([192, 0, 2, 2].into()),
            ttl: 64,
            tos: 1,
            pmtudisc: true,
            ignore_df: true,
            fwmark: 5,
            ..KernelTunnel::new(TunnelKind::Gre)
        };
        assert_eq!(t, expected);
        assert!(read(TunnelKind::Gre, &[(18, &[])]).external);
        assert_eq!(read(TunnelKind::Gre, &[(25, &[1])]).unknown, Some(25));
    }

    #[test]
    fn the_other_kinds_have_other_numbers() {
        let local = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let t = read(
            TunnelKind::Ip6tnl,
            &[
                (2, &local),
                (4, &[64]),
                (6, &[4]),
                (7, &[0x0b, 0x81, 0x23, 0x45]),
                (8, &3u32.to_ne_bytes()),
                (9, &[41]),
                (15, &[0, 0]),
            ],
        );
        let expected = KernelTunnel {
            local: Some(local.into()),
            ttl: 64,
            encap_limit: 4,
            flowinfo: 0x0b81_2345,
            flags: 3,
            protocol: 41,
            ..KernelTunnel::new(TunnelKind::Ip6tnl)
        };
        assert_eq!(t, expected);
        let sit = read(
            TunnelKind::Sit,
            &[
                (8, &[0, 1]),
                (13, &16u16.to_ne_bytes()),
                (15, &1u16.to_ne_bytes()),
            ],
        );
        assert_eq!(
            (sit.flags, sit.six_rd_prefix_len, sit.encap),
            (1, Some(16), 1)
        );
    }

    proptest! {
        #[test]
        fn nothing_that_a_message_claims_makes_it_panic(data: Vec<u8>, n in 0usize..5) {
            let kinds = [TunnelKind::Gre, TunnelKind::Ip6gre, TunnelKind::Ipip, TunnelKind::Sit, TunnelKind::Ip6tnl];
            tunnel(kinds[n], &Attribute { kind: 2, value: &data });
        }
    }
}
