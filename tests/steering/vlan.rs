//! VLAN devices on the device that the program is attached to: whose frame it is, and that a tag is never lost.

use greyhound::{
    packet::Vid,
    xdp::{OnDevice, Plan, PortPlan},
};

use crate::{bench::*, frames::*};

/// Interface indexes of VLANs 100 and 7; nothing is ever attached to them.
const BLUE: u32 = 100;
const RED: u32 = 107;

fn on(port: PortPlan, number: u16) -> PortPlan {
    PortPlan {
        vlan: Some(OnDevice {
            ifindex: LO,
            vid: Vid::new(number).unwrap(),
        }),
        ..port
    }
}

/// The usual plan with `own` for the device itself, and these VLANs.
fn vlans(own: PortPlan, vlans: &[(u32, PortPlan)]) -> Plan {
    let mut plan = plan(own);
    plan.ports.extend(vlans.iter().copied());
    plan
}

/// Puts tags with these types and this control information into a frame.
pub fn tag(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for (kind, control) in tags {
        out.extend(kind.to_be_bytes());
        out.extend(control.to_be_bytes());
    }
    out.extend(&frame[12..]);
    out
}

fn q(control: u16, frame: &[u8]) -> Vec<u8> {
    tag(&[(0x8100, control)], frame)
}

#[test]
#[rustfmt::skip]
fn each_vlan_has_its_own_role() {
    let none = PortPlan::default();
    let (tunnel, inner) = (ours(0, 0), udp(INNER_B));
    let other = ether(OTHER_MAC, 0x0800, &inner[14..]);
    let plan = vlans(none, &[(BLUE, on(UNDERLAY, 100)), (RED, on(PortPlan { mac: OTHER_MAC, ..OVERLAY }, 7))]);
    Bench::new().check_plan(&plan, vec![
        ("underlay", q(100, &tunnel), REDIRECTED_U),
        ("priority and drop eligibility", q(0xf000 | 100, &tunnel), REDIRECTED_U),
        ("underlay over IPv6", q(100, &udp6("2001:db8:2::5")), "not_tunnel"),
        ("overlay, by its own link address", q(7, &other), REDIRECTED_O),
        ("overlay, by the other's", q(7, &inner), "other_mac"),
        ("inner packet on the underlay", q(100, &inner), "not_tunnel"),
        ("no tag", tunnel.clone(), "port_off"),
        ("no tag, inner packet", other.clone(), "port_off"),
        ("a VLAN that is no port", q(8, &tunnel), "vlan_tag"),
        ("number above the bits", q(4095, &tunnel), "vlan_tag"),
        ("a priority alone", q(0, &tunnel), "vlan_tag"),
        ("a priority alone, set", q(0xe000, &tunnel), "vlan_tag"),
        ("802.1ad", tag(&[(0x88a8, 100)], &tunnel), "vlan_tag"),
        ("QinQ", tag(&[(0x88a8, 8), (0x8100, 100)], &tunnel), "vlan_tag"),
        ("twice ours", tag(&[(0x8100, 100), (0x8100, 100)], &tunnel), "vlan_tag"),
        ("ours, then a provider's", tag(&[(0x8100, 100), (0x88a8, 7)], &tunnel), "vlan_tag"),
        ("the inner tag ours", tag(&[(0x8100, 8), (0x8100, 100)], &tunnel), "vlan_tag"),
        ("ARP", q(100, &ether([0xff; 6], 0x0806, &[0; 28])), "not_ip"),
        ("cut within the tag", q(100, &tunnel)[..17].to_vec(), "vlan_tag"),
        ("ends with the tag", q(100, &tunnel)[..18].to_vec(), "bad_header"),
        ("options", q(100, &edit(tunnel.clone(), |ip| ip[0] = 0x46)), "ip_options"),
        ("as large as the tunnel takes", q(7, &ether(OTHER_MAC, 0x0800, &sized4(1476)[14..])), REDIRECTED_O),
        ("one byte more", q(7, &ether(OTHER_MAC, 0x0800, &sized4(1477)[14..])), "too_big"),
    ]);
}

#[test]
#[rustfmt::skip]
fn the_device_itself_may_be_a_port_beside_them() {
    let plan = vlans(OVERLAY, &[(BLUE, on(UNDERLAY, 100))]);
    Bench::new().check_plan(&plan, vec![
        ("its own", udp(INNER_B), REDIRECTED_O),
        ("its own, tagged", q(100, &udp(INNER_B)), "not_tunnel"),
        ("the VLAN's", q(100, &ours(0, 0)), REDIRECTED_U),
        ("the VLAN's, without its tag", ours(0, 0), "kernel_route"),
        ("another VLAN's", q(101, &udp(INNER_B)), "vlan_tag"),
    ]);
}

#[test]
fn vlans_come_and_go_with_the_plan() {
    let mut bench = Bench::new();
    let none = PortPlan::default();
    let (blue, red) = (on(BOTH, 100), on(BOTH, 7));
    let [as_blue, as_red] = [100, 7].map(|number| q(number, &udp(INNER_B)));
    for (ports, blue, red) in [
        (vec![(BLUE, blue)], REDIRECTED_O, "vlan_tag"),
        (vec![(BLUE, blue), (RED, red)], REDIRECTED_O, REDIRECTED_O),
        // The same device has another number now.
        (vec![(BLUE, red)], "vlan_tag", REDIRECTED_O),
        (vec![], "vlan_tag", "vlan_tag"),
        // Not on this device.
        (
            vec![(
                BLUE,
                PortPlan {
                    vlan: blue.vlan.map(|on| OnDevice { ifindex: 9, ..on }),
                    ..blue
                },
            )],
            "vlan_tag",
            "vlan_tag",
        ),
    ] {
        let plan = vlans(none, &ports);
        bench.check_plan(
            &plan,
            vec![
                ("blue", as_blue.clone(), blue),
                ("red", as_red.clone(), red),
                ("no tag", udp(INNER_B), "port_off"),
            ],
        );
        assert!(bench.steer.verify().unwrap());
    }
}

#[test]
#[rustfmt::skip]
fn a_wire_from_a_vlan_takes_all_of_it_and_nothing_else() {
    let wire = PortPlan { underlay: false, forward4: false, forward6: false, wire: Some(1484), ..UNDERLAY };
    let sized = |len: usize| ether(OTHER_MAC, 0x88b5, &vec![7; len - 14]);
    let plan = vlans(UNDERLAY, &[(RED, on(wire, 7))]);
    Bench::new().check_plan(&plan, vec![
        ("ARP", q(7, &ether([0xff; 6], 0x0806, &[0; 28])), REDIRECTED_O),
        ("to anybody", q(7, &udp(INNER_B)), REDIRECTED_O),
        ("another tag within", tag(&[(0x8100, 7), (0x8100, 9)], &udp(INNER_B)), REDIRECTED_O),
        ("as large as it may be, without its tag", q(7, &sized(1484)), REDIRECTED_O),
        ("one byte more", q(7, &sized(1485)), "too_big"),
        ("another VLAN", q(8, &udp(INNER_B)), "vlan_tag"),
        ("its number within", tag(&[(0x8100, 8), (0x8100, 7)], &udp(INNER_B)), "vlan_tag"),
        ("no tag", ours(0, 0), REDIRECTED_U),
        ("no tag, ARP", ether([0xff; 6], 0x0806, &[0; 28]), "not_ip"),
    ]);
    // A wire from the device itself takes everything, whatever VLANs there are.
    let plan = vlans(wire, &[(BLUE, on(UNDERLAY, 100))]);
    Bench::new().check_plan(&plan, vec![
        ("tagged", q(100, &ours(0, 0)), REDIRECTED_O),
        ("no tag", ours(0, 0), REDIRECTED_O),
    ]);
}
