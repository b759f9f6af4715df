//! Whether an inner packet fits, and what becomes of it otherwise.

use super::{Family, Tunnel};
use crate::packet::{Ipv4, Ipv6};

/// Every path carries IPv6 packets of this many bytes (RFC 8200 section 5): so does every tunnel, in outer fragments where
/// it must be (v6-2; RFC 2473 section 7.1, RFC 4213 section 3.2).
const IPV6_MIN_MTU: usize = 1280;

/// What becomes of an inner packet on a path of limited size (mtu-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The outer packet fits.
    Fits,
    /// It does not, and is cut itself.
    CutOuter,
    /// The inner IP packet is cut into pieces of at most so many bytes, and each of them encapsulated.
    CutInner(usize),
    /// The inner packet is refused, and its sender told to send no more than so many bytes at a time.
    Refused(u16),
    /// It is refused, and there is nobody to tell.
    Lost,
}

impl Size {
    /// What becomes of `inner`, a whole packet, where outer packets of at most `path` bytes get through.
    ///
    /// As the kernel (`tnl_update_pmtu` in net/ipv4/ip_tunnel.c, `ip6_tnl_xmit`), but for two things: where the outer packet
    /// may not be cut the kernel drops IPv4 packets without DF unheard (over IPv6 it answers them), and IPv6 packets of up to
    /// 1280 bytes.
    ///
    /// What is said of a frame is said of the IP packet in it. Over a wire nobody is told, and no inner packet is cut: there is no
    /// router on it.
    pub fn of(tunnel: &Tunnel, inner: &[u8], path: usize) -> Size {
        let room = path.saturating_sub(tunnel.overhead_of(inner));
        if inner.len() <= room {
            return Size::Fits;
        }
        let Some(packet) = tunnel.packet_in(inner) else {
            return Size::of_other(tunnel);
        };
        let room = room.saturating_sub(inner.len() - packet.len());
        if let Ok(ip) = Ipv4::parse(packet) {
            let whole = ip.dont_fragment();
            return match (tunnel.sends_whole(whole), tunnel.wire) {
                (false, _) => Size::CutOuter,
                (true, Some(_)) => Size::Lost,
                (true, None) if whole => Size::Refused(told(room)),
                (true, None) => Size::CutInner(room),
            };
        }
        match Ipv6::parse(packet) {
            Ok(_) if Size::must_pass(packet) || !tunnel.sends_whole(false) => Size::CutOuter,
            Ok(_) if tunnel.wire.is_none() => Size::Refused(told(room.max(IPV6_MIN_MTU))),
            _ => Size::of_other(tunnel),
        }
    }

    /// The same of what is no IP packet.
    fn of_other(tunnel: &Tunnel) -> Size {
        match tunnel.sends_whole(false) {
            true => Size::Lost,
            false => Size::CutOuter,
        }
    }

    /// Whether an inner IP packet gets through whatever the path: an IPv6 packet that no sender has to make smaller.
    pub fn must_pass(packet: &[u8]) -> bool {
        packet.len() <= IPV6_MIN_MTU && Ipv6::parse(packet).is_ok()
    }
}

fn told(room: usize) -> u16 {
    u16::try_from(room).unwrap_or(u16::MAX)
}

impl Tunnel {
    /// Whether an outer packet is not to be cut on its way; `inner` says it of the inner one. Over IPv6 no router would cut it
    /// anyhow, over IPv4 this is DF.
    #[inline]
    pub fn sends_whole(&self, inner: bool) -> bool {
        let v6 = self.mode.kind().underlay == Family::V6;
        v6 || self.pmtudisc || inner && !self.ignore_df
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Mode;
    use etherparse::PacketBuilder;

    fn v4(len: usize, dont_fragment: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64)
            .udp(1, 2)
            .write(&mut bytes, &vec![0; len - 28])
            .unwrap();
        bytes[6] = u8::from(dont_fragment) << 6;
        bytes
    }

    fn v6(len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
            .udp(1, 2)
            .write(&mut bytes, &vec![0; len - 48])
            .unwrap();
        bytes
    }

    fn over_v4() -> Tunnel {
        Tunnel::new(Mode::Gre, [192, 0, 2, 1], [192, 0, 2, 2])
    }

    fn over_v6() -> Tunnel {
        let ends = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse::<std::net::IpAddr>().unwrap());
        Tunnel::new(Mode::Ip6gre, ends[0], ends[1])
    }

    #[test]
    fn mtu_2_what_may_not_be_cut_outside_is_cut_inside_or_refused() {
        for (tunnel, overhead) in [(over_v4(), 24), (over_v6(), 52)] {
            let room = 1400 - overhead;
            let of = |packet: Vec<u8>| Size::of(&tunnel, &packet, 1400);
            for fits in [v4(room, true), v4(room, false), v6(room)] {
                assert_eq!(of(fits), Size::Fits);
            }
            assert_eq!(of(v4(room + 1, true)), Size::Refused(room as u16));
            assert_eq!(of(v4(room + 1, false)), Size::CutInner(room));
            assert_eq!(of(v6(room + 1)), Size::Refused(room as u16));
        }
    }

    #[test]
    fn without_path_mtu_discovery_the_outer_packet_is_cut_where_the_inner_one_may_be() {
        let tunnel = Tunnel {
            pmtudisc: false,
            ..over_v4()
        };
        let of = |tunnel: &Tunnel, packet: Vec<u8>| Size::of(tunnel, &packet, 1400);
        assert_eq!(of(&tunnel, v4(1377, true)), Size::Refused(1376));
        assert_eq!(of(&tunnel, v4(1377, false)), Size::CutOuter);
        assert_eq!(of(&tunnel, v6(1377)), Size::CutOuter);
        let tunnel = Tunnel {
            ignore_df: true,
            ..tunnel
        };
        assert_eq!(of(&tunnel, v4(1377, true)), Size::CutOuter);
        // Over IPv6 neither means anything.
        let tunnel = Tunnel {
            pmtudisc: false,
            ignore_df: true,
            ..over_v6()
        };
        assert_eq!(of(&tunnel, v4(1349, true)), Size::Refused(1348));
    }

    #[test]
    fn v6_2_1280_bytes_get_through_whatever_the_path() {
        for tunnel in [over_v4(), over_v6()] {
            for path in [552, 1280, 1290] {
                let of = |len| Size::of(&tunnel, &v6(len), path);
                assert_eq!(of(1280), Size::CutOuter);
                assert_eq!(of(1281), Size::Refused(1280));
            }
            let path = 1290 - tunnel.overhead();
            assert_eq!(
                Size::of(&tunnel, &v4(1280, true), 1290),
                Size::Refused(path as u16)
            );
        }
    }

    #[test]
    fn of_a_frame_the_packet_in_it_counts_and_over_a_wire_nothing_is_said() {
        let frame = |kind: [u8; 2], packet: Vec<u8>| [&[2; 12][..], &kind, &packet].concat();
        let tunnel = Tunnel::new(Mode::Gretap, [192, 0, 2, 1], [192, 0, 2, 2]);
        let wire = Tunnel {
            wire: Some(1500),
            ..tunnel.clone()
        };
        let cuts = |t: &Tunnel| Tunnel {
            pmtudisc: false,
            ..t.clone()
        };
        // 1400 less 20, 4 and 14.
        let room = 1362;
        let of = |t: &Tunnel, kind, packet| Size::of(t, &frame(kind, packet), 1400);
        let (ip4, ip6, other) = ([8, 0], [0x86, 0xdd], [0x88, 0x47]);
        for tunnel in [&tunnel, &wire, &cuts(&tunnel), &cuts(&wire)] {
            assert_eq!(of(tunnel, ip4, v4(room, true)), Size::Fits);
            assert_eq!(of(tunnel, ip6, v6(room)), Size::Fits);
        }
        let over = |t: &Tunnel| {
            let [df, cut] = [true, false].map(|df| of(t, ip4, v4(room + 1, df)));
            let labelled = of(t, other, v4(room + 1, true));
            [df, cut, of(t, ip6, v6(room + 1)), labelled]
        };
        let (told, cut) = (Size::Refused(room as u16), Size::CutInner(room));
        assert_eq!(over(&tunnel), [told, cut, told, Size::Lost]);
        assert_eq!(over(&wire), [Size::Lost; 4]);
        let outer = Size::CutOuter;
        assert_eq!(over(&cuts(&tunnel)), [told, outer, outer, outer]);
        assert_eq!(over(&cuts(&wire)), [Size::Lost, outer, outer, outer]);
        // A tag takes its bytes.
        let tagged = |df| [&[0, 7], &ip4[..], &v4(room, df)].concat();
        assert_eq!(
            [true, false].map(|df| of(&tunnel, [0x81, 0], tagged(df))),
            [Size::Refused(room as u16 - 4), Size::CutInner(room - 4)]
        );
    }

    #[test]
    fn v6_2_1280_bytes_get_through_in_a_frame_too() {
        let header = [&[2; 12][..], &[0x86, 0xdd]].concat();
        let tagged = [&[2; 12][..], &[0x81, 0, 0, 7, 0x86, 0xdd]].concat();
        let tunnel = Tunnel::new(Mode::Gretap, [192, 0, 2, 1], [192, 0, 2, 2]);
        let wire = Tunnel {
            wire: Some(1500),
            ..tunnel.clone()
        };
        for header in [header, tagged] {
            let of = |t, len| Size::of(t, &[&header[..], &v6(len)].concat(), 1290);
            assert_eq!([&tunnel, &wire].map(|t| of(t, 1280)), [Size::CutOuter; 2]);
            assert_eq!(of(&tunnel, 1281), Size::Refused(1280));
            assert_eq!(of(&wire, 1281), Size::Lost);
        }
    }

    #[test]
    fn what_is_no_packet_is_lost_only_where_it_does_not_fit() {
        assert_eq!(Size::of(&over_v4(), &[0; 100], 124), Size::Fits);
        assert_eq!(Size::of(&over_v4(), &[0; 101], 124), Size::Lost);
        assert_eq!(Size::of(&over_v4(), &v4(100, true), 10), Size::Refused(0));
    }
}
