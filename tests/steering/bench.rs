//! A steering program on a loopback device, and the plan that most tests share.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use greyhound::xdp::{
    Attached, Attachment, Limits, Plan, PortPlan, PrefixAction, PrefixPlan, Steer, TunnelClass,
    TunnelMatch,
};
use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use crate::{
    frames::{LOCAL, MAC, REMOTE},
    host::Namespace,
};

pub const LO: u32 = 1;

/// An attachment to a device with an ordinary MTU.
pub fn how(queues: u32, generic: bool) -> Attachment {
    Attachment {
        queues,
        generic,
        mtu: 1500,
    }
}

pub fn tunnel(
    local: impl Into<IpAddr>,
    remote: impl Into<IpAddr>,
    key: Option<u32>,
) -> TunnelMatch {
    TunnelMatch {
        key,
        ..bare(TunnelClass::Gre, local, remote)
    }
}

/// A tunnel without a key.
pub fn bare(
    class: TunnelClass,
    local: impl Into<IpAddr>,
    remote: impl Into<IpAddr>,
) -> TunnelMatch {
    TunnelMatch {
        class,
        local: local.into(),
        remote: remote.into(),
        key: None,
        fast: true,
        socket: true,
    }
}

/// Tunnels without a key and with keys 0 (on another address) and 42; 10.0.2.0/24 and 2001:db8:2::/48 lead into one.
pub fn plan(port: PortPlan) -> Plan {
    let (wide, narrow) = (PrefixAction::Hop(1), PrefixAction::Hop(2));
    let prefixes = [
        ("10.0.2.0/24", wide),
        ("10.0.2.128/25", PrefixAction::Kernel),
        ("10.0.2.192/26", narrow),
        ("10.0.0.0/14", wide),
        ("0.0.0.0/0", PrefixAction::Kernel),
        ("224.0.0.0/3", wide),
        ("169.254.0.0/16", wide),
        ("127.0.0.0/8", wide),
        ("2001:db8:2::/48", wide),
        ("2001:db8:2:1::/64", PrefixAction::Kernel),
        ("fe80::/10", wide),
        ("ff00::/8", wide),
        ("::/64", wide),
    ];
    Plan {
        ports: [(LO, port)].into(),
        tunnels: [
            tunnel(LOCAL, REMOTE, None),
            tunnel(LOCAL, REMOTE, Some(42)),
            tunnel(LOCAL, Ipv4Addr::new(192, 0, 2, 3), Some(0)),
        ]
        .into(),
        hops: vec![0, 1476, 1400],
        prefixes: PrefixPlan::All(
            prefixes
                .map(|(net, action)| (net.parse().unwrap(), action))
                .into(),
        ),
        ..Plan::default()
    }
}

/// The prefixes of a plan that names all.
pub fn prefixes(plan: &mut Plan) -> &mut BTreeMap<IpNet, PrefixAction> {
    match &mut plan.prefixes {
        PrefixPlan::All(all) => all,
        PrefixPlan::Changes(_) => panic!("only changes"),
    }
}

pub const UNDERLAY: PortPlan = PortPlan {
    mac: MAC,
    underlay: true,
    overlay: false,
    forward4: true,
    forward6: true,
    partial_checksums: false,
    wire: None,
    vlan: None,
};
pub const OVERLAY: PortPlan = PortPlan {
    underlay: false,
    overlay: true,
    ..UNDERLAY
};
pub const BOTH: PortPlan = PortPlan {
    overlay: true,
    ..UNDERLAY
};

/// A steering program on the namespace's loopback device, with a socket that is never bound: enough to see a redirect.
pub struct Bench {
    pub steer: Steer,
    pub socket: Socket,
    _namespace: Namespace,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::of_mtu(1500)
    }

    /// As if the device had this MTU.
    pub fn of_mtu(mtu: u32) -> Bench {
        let namespace = Namespace::enter("bench");
        let mut steer = Steer::load(Limits::default()).unwrap();
        let wanted = Attachment {
            mtu,
            ..how(1, true)
        };
        let attached = steer.attach(LO, "lo", wanted).unwrap();
        assert_eq!(
            attached,
            Attached {
                native: false,
                sees_tags: false
            }
        );
        let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
        steer.set_socket(LO, 0, socket.as_fd()).unwrap();
        Bench {
            steer,
            socket,
            _namespace: namespace,
        }
    }

    /// The one reason under which the program counts this frame; panics unless the verdict fits to it.
    pub fn reason(&self, frame: &[u8]) -> &'static str {
        let before = counters(&self.steer);
        let redirected = self.steer.judge(LO, frame).unwrap();
        let after = counters(&self.steer);
        let counted: Vec<_> = after
            .into_iter()
            .filter(|(name, count)| before[name] != *count)
            .collect();
        let [(name, count)] = counted[..] else {
            panic!("not counted under exactly one reason: {counted:?}");
        };
        assert_eq!(count, before[name] + 1);
        assert_eq!(redirected, name.starts_with("redirected_"), "{name}");
        name
    }

    pub fn check(&mut self, port: PortPlan, cases: Vec<(&str, Vec<u8>, &str)>) {
        self.check_plan(&plan(port), cases);
    }

    pub fn check_plan(&mut self, plan: &Plan, cases: Vec<(&str, Vec<u8>, &str)>) {
        self.steer.apply(plan).unwrap();
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(what, frame, expected)| (what, expected, self.reason(&frame)))
            .filter(|(_, expected, got)| expected != got)
            .collect();
        assert!(wrong.is_empty(), "(case, expected, got): {wrong:#?}");
    }
}

/// Waits for what the kernel does after the last copy of a descriptor is closed: another test's child process may hold one
/// until it executes its program.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        std::thread::yield_now();
    }
}

pub fn counters(steer: &Steer) -> BTreeMap<&'static str, u64> {
    steer.counters().unwrap().into_iter().collect()
}

pub const REDIRECTED_U: &str = "redirected_underlay";
pub const REDIRECTED_O: &str = "redirected_overlay";
