//! The program on a veth pair: VLAN tags in the frame and beside it, offloads, and programs of others.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use greyhound::{
    datapath::Port,
    packet::{PacketBuf, Vid},
    xdp::{
        Attached, Limits, OnDevice, PortPlan, PortSpec, RingOptions, Steer, SteerError,
        TagsInFrame, Want, open_ports,
    },
};
use socket2::{Domain, Socket, Type};

use crate::{
    bench::*,
    frames::*,
    host::{self, Namespace, ip, no_op_xdp, packet_socket, push_tag_on_egress},
};

/// A veth pair in a namespace of its own, the program on the near end and packets sent by the far end.
struct Pair {
    steer: Steer,
    attached: Attached,
    near: u32,
    far: u32,
    mac: [u8; 6],
    sent: u64,
    _socket: Socket,
    _namespace: Namespace,
}

impl Pair {
    fn new(generic: bool) -> Pair {
        let namespace = Namespace::enter("veth");
        let veth = "link add near numtxqueues 1 numrxqueues 1 \
                    type veth peer name far numtxqueues 1 numrxqueues 1";
        ip(&veth.split_whitespace().collect::<Vec<_>>());
        for device in ["near", "far"] {
            // Without IPv6 the kernel itself sends nothing on these devices.
            let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            std::fs::write(path, "1").unwrap();
            ip(&["link", "set", device, "up"]);
        }
        let (near, far) = (host::ifindex("near"), host::ifindex("far"));
        let mac = host::mac("near");
        let mut steer = Steer::load(Limits::default()).unwrap();
        let port = PortPlan { mac, ..BOTH };
        let mut plan = plan(port);
        plan.ports = [(near, port)].into();
        steer.apply(&plan).unwrap();
        let attached = steer.attach(near, "near", how(1, generic)).unwrap();
        let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
        steer.set_socket(near, 0, socket.as_fd()).unwrap();
        Pair {
            steer,
            attached,
            near,
            far,
            mac,
            sent: 0,
            _socket: socket,
            _namespace: namespace,
        }
    }

    /// Sends a frame from the far end and returns the reason under which the near end counts it.
    fn reason(&mut self, mut frame: Vec<u8>) -> &'static str {
        frame[..6].copy_from_slice(&self.mac);
        let before = counters(&self.steer);
        host::send_frame(self.far, &frame);
        self.sent += 1;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let after = counters(&self.steer);
            if after.values().sum::<u64>() == self.sent {
                let new = after.iter().find(|(name, count)| before[*name] != **count);
                return new.unwrap().0;
            }
            assert!(Instant::now() < deadline, "the frame never came: {after:?}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn tags_in_the_frame_and_beside_it_are_never_lost() {
    let mut pair = Pair::new(false);
    assert!(pair.attached.native);
    assert!(
        pair.attached.sees_tags,
        "this kernel cannot tell tags beside the frame (Linux 6.8 is needed)"
    );
    assert_eq!(pair.reason(ours(0, 0)), REDIRECTED_U);
    assert_eq!(pair.reason(udp(INNER_B)), REDIRECTED_O);
    let in_frame = ether(MAC, 0x8100, &[&[0, 42, 8, 0], &ours(0, 0)[14..]].concat());
    assert_eq!(pair.reason(in_frame), "vlan_tag");

    let listener = packet_socket(pair.near);
    push_tag_on_egress(pair.far);
    for txvlan in ["on", "off", "on"] {
        host::run("ethtool", &["-K", "far", "txvlan", txvlan]);
        for frame in [ours(0, 0), udp(INNER_B), udp6("2001:db8:2::5")] {
            let payload = frame[14..].to_vec();
            assert_eq!(pair.reason(frame), "vlan_tag", "txvlan {txvlan}");
            // And the kernel gets it, tag and all: as a tagged frame it is stripped again for a packet socket.
            let (tag, got) = host::receive_tagged(&listener);
            assert_eq!(tag, Some(42));
            assert_eq!(got[14..], payload);
        }
    }
}

#[test]
fn a_workers_frame_has_its_tag_in_it_wherever_it_was_before() {
    let mut pair = Pair::new(false);
    let specs = [PortSpec {
        device: "near".into(),
        queue: 0,
        mtu: 1500,
    }];
    let (mut ports, _memory) = open_ports(&specs, Want::Copy, RingOptions::default())
        .unwrap()
        .into_parts();
    pair.steer.set_socket(pair.near, 0, ports[0].fd()).unwrap();
    let port = PortPlan {
        mac: pair.mac,
        vlan: Some(OnDevice {
            ifindex: pair.near,
            vid: Vid::new(42).unwrap(),
        }),
        ..BOTH
    };
    let mut plan = plan(port);
    plan.ports = [(4242, port)].into();
    pair.steer.apply(&plan).unwrap();
    assert_eq!(pair.reason(ours(0, 0)), "port_off");
    push_tag_on_egress(pair.far);
    // Beside the frame, in it, and both: which are two tags.
    for txvlan in ["on", "off"] {
        host::run("ethtool", &["-K", "far", "txvlan", txvlan]);
        for (frame, reason) in [(ours(0, 0), REDIRECTED_U), (udp(INNER_B), REDIRECTED_O)] {
            assert_eq!(pair.reason(frame.clone()), reason, "txvlan {txvlan}");
            let mut burst = Vec::new();
            eventually(|| {
                ports[0].service().unwrap();
                ports[0].rx_burst(&mut burst, 1) == 1
            });
            let got = burst[0].data();
            assert_eq!(got[..6], pair.mac);
            assert_eq!(got[6..12], frame[6..12]);
            assert_eq!(got[12..16], [0x81, 0, 0, 42], "txvlan {txvlan}");
            assert_eq!(got[16..], frame[12..]);
            ports[0].recycle(&mut burst);
        }
        let twice = ether(MAC, 0x8100, &[&[0, 42, 8, 0], &ours(0, 0)[14..]].concat());
        assert_eq!(pair.reason(twice), "vlan_tag", "txvlan {txvlan}");
    }
}

#[test]
fn a_program_that_sees_no_tags_says_so() {
    let mut pair = Pair::new(true);
    assert_eq!(
        pair.attached,
        Attached {
            native: false,
            sees_tags: false
        }
    );
    push_tag_on_egress(pair.far);
    // This is what the flag warns of, and the device's own offload makes no difference.
    host::run("ethtool", &["-K", "far", "txvlan", "on"]);
    assert_eq!(pair.reason(udp(INNER_B)), REDIRECTED_O);
    let switched_off = TagsInFrame::switch_off("near").unwrap();
    assert_eq!(pair.reason(udp(INNER_B)), REDIRECTED_O);
    assert!(TagsInFrame::stripped_by("near").unwrap());
    let error = TagsInFrame::keep("near").unwrap_err();
    assert!(error.to_string().contains("peer of near"), "{error}");
    drop(switched_off);
    host::run("ethtool", &["-K", "far", "txvlan", "off"]);
    assert_eq!(pair.reason(udp(INNER_B)), "vlan_tag");
}

#[test]
fn stripping_is_switched_off_and_on_again() {
    let pair = Pair::new(true);
    let state = || host::run("ethtool", &["-k", "near"]);
    let on = |text: &str| text.contains("rx-vlan-offload: on");
    assert!(on(&state()));
    let switched_off = TagsInFrame::switch_off("near").unwrap();
    assert!(!on(&state()));
    let nothing_to_do = TagsInFrame::switch_off("near").unwrap();
    drop(nothing_to_do);
    assert!(!on(&state()));
    drop(switched_off);
    assert!(on(&state()));
    // Loopback has no such offload.
    assert!(!TagsInFrame::stripped_by("lo").unwrap());
    TagsInFrame::keep("lo").unwrap();
    assert!(TagsInFrame::stripped_by("absent").is_err());
    drop(pair);
}

#[test]
fn other_programs_are_named_and_ours_goes_with_us() {
    let pair = Pair::new(false);
    let near = pair.near;
    assert_eq!(Steer::foreign_program(near).unwrap(), None);
    let mut second = Steer::load(Limits::default()).unwrap();
    let error = second.attach(near, "near", how(1, false)).unwrap_err();
    assert!(
        matches!(&error, SteerError::Busy { device, program } if device == "near" && *program > 0)
    );

    let Pair {
        steer,
        _socket,
        _namespace,
        ..
    } = pair;
    drop(steer);
    let other = no_op_xdp(near);
    let id = Steer::foreign_program(near).unwrap().unwrap();
    let error = second.attach(near, "near", how(1, false)).unwrap_err();
    assert!(matches!(error, SteerError::Busy { program, .. } if program == id));
    assert!(error.to_string().contains(&format!("id {id}")), "{error}");
    drop(other);
    eventually(|| Steer::foreign_program(near).unwrap().is_none());
    second.attach(near, "near", how(1, false)).unwrap();
}

#[test]
fn a_refusal_to_attach_says_what_to_do() {
    let _namespace = Namespace::enter("refuse");
    let veth = "link add near numrxqueues 2 type veth peer name far numtxqueues 2";
    ip(&veth.split_whitespace().collect::<Vec<_>>());
    host::run("ethtool", &["-L", "far", "tx", "2"]);
    host::run("ethtool", &["-L", "near", "rx", "1"]);
    let near = host::ifindex("near");
    let mut steer = Steer::load(Limits::default()).unwrap();
    let mut refused = |ifindex| {
        steer
            .attach(ifindex, "near", how(1, false))
            .unwrap_err()
            .to_string()
    };
    let error = refused(near);
    assert!(error.contains("`ethtool -L PEER tx 1`"), "{error}");
    host::run("ethtool", &["-L", "far", "tx", "1"]);
    ip(&["link", "set", "far", "mtu", "9000"]);
    let error = refused(near);
    assert!(error.contains("MTU"), "{error}");
    let error = refused(LO);
    assert!(error.contains("no native XDP"), "{error}");
    assert!(refused(9999).contains("may be gone"));
}
