//! AF_XDP ports on real sockets: a veth pair in a network namespace of the test's own, copy mode.
//!
//! Each test runs in a thread that has left for a namespace without a name, so nothing is left to clean up:
//! the devices go with the thread. Needs root.

#![allow(unsafe_code)]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use greyhound::{
    datapath::Port,
    packet::PacketBuf,
    xdp::{
        Frame, Ledger, Memory, Mode, PortError, PortSpec, RingOptions, SINGLE_BUFFER_MTU, Want,
        XskPort, open_ports,
    },
};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};
use support::{RedirectAll, index_of};

/// An ethertype of no protocol (IEEE 802, local experimental use): only the test sends it.
const ETHERTYPE: u16 = 0x88b5;
/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test in a thread with a network namespace of its own.
fn in_namespace(test: fn()) {
    let body = move || {
        // SAFETY: no memory is involved; only this thread changes its namespace.
        let answer = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(answer, 0, "root is needed: {}", io::Error::last_os_error());
        // Nobody but the test is to speak on its devices.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    assert!(status.is_ok_and(|s| s.success()), "ip {args}");
}

/// A veth pair: `NAMEp` is the port's device, `NAMEw` the other end of its wire.
struct Wire {
    port: String,
    mtu: u32,
    far: Socket,
    _steer: Option<RedirectAll>,
    _link: Option<OwnedFd>,
}

impl Wire {
    fn new(name: &str) -> Self {
        Self::of_mtu(name, 1500)
    }

    fn of_mtu(name: &str, mtu: u32) -> Self {
        let (port, far) = (format!("{name}p"), format!("{name}w"));
        ip(&format!(
            "link add {port} numtxqueues 1 numrxqueues 1 type veth peer name {far} numtxqueues 1 numrxqueues 1"
        ));
        ip(&format!("link set {port} mtu {mtu} up"));
        ip(&format!("link set {far} mtu {mtu} up"));
        Self {
            far: packet_socket(&far),
            port,
            mtu,
            _steer: None,
            _link: None,
        }
    }

    fn spec(&self) -> PortSpec {
        PortSpec {
            device: self.port.clone(),
            queue: 0,
            mtu: self.mtu,
        }
    }

    /// Leads the device's packets into the socket.
    fn steer(&mut self, port: &XskPort) {
        let steer = RedirectAll::load(1).unwrap();
        steer.steer(0, port.fd().as_raw_fd()).unwrap();
        // Natively the program would have to say that it knows of several buffers.
        let native = self.mtu <= SINGLE_BUFFER_MTU;
        self._link = Some(
            steer
                .program
                .attach(index_of(&self.port).unwrap(), native)
                .unwrap(),
        );
        self._steer = Some(steer);
    }

    fn send(&self, frame: &[u8]) {
        self.far.send(frame).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buf = vec![0u8; 10_000];
        let n = rustix::net::recv(&self.far, &mut buf[..], rustix::net::RecvFlags::empty())
            .expect("a frame at the far end")
            .0;
        buf.truncate(n);
        buf
    }
}

/// A packet socket that speaks and hears the test's ethertype.
fn packet_socket(device: &str) -> Socket {
    let protocol = i32::from(ETHERTYPE.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol))).unwrap();
    // SAFETY: a `sockaddr_ll` is plain numbers, zero is valid for all of them, and it fits the storage.
    let address = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = ETHERTYPE.to_be();
            (*link).sll_ifindex = index_of(device).unwrap() as i32;
            *len = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
        .unwrap()
        .1
    };
    socket.bind(&address).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    bytes.extend(ETHERTYPE.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    while bytes.len() < len {
        bytes.push((bytes.len() as u32 ^ number) as u8);
    }
    bytes
}

const SMALL_RINGS: RingOptions = RingOptions { ring_size: 256 };

fn open(wires: &mut [Wire], options: RingOptions) -> (Vec<XskPort>, Memory) {
    let specs: Vec<_> = wires.iter().map(Wire::spec).collect();
    let (ports, memory) = open_ports(&specs, Want::Copy, options)
        .unwrap()
        .into_parts();
    for (wire, port) in wires.iter_mut().zip(&ports) {
        wire.steer(port);
    }
    (ports, memory)
}

/// Receives until `n` packets are there.
fn receive(port: &mut XskPort, n: usize) -> Vec<Frame> {
    let mut burst = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while burst.len() < n {
        assert!(Instant::now() < deadline, "{} of {n} packets", burst.len());
        port.service().unwrap();
        let missing = n - burst.len();
        if port.rx_burst(&mut burst, missing) == 0 {
            wait_readable(port);
        }
    }
    burst
}

fn wait_readable(port: &XskPort) {
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let fd = port.fd();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
}

fn quiet(memory: &Memory) -> Ledger {
    let ledger = memory.ledger();
    assert!(ledger.balances(), "{ledger:?}");
    ledger
}

#[test]
fn a_header_is_pushed_in_place_and_the_packet_leaves_by_another_port() {
    in_namespace(|| {
        let mut wires = [Wire::new("a"), Wire::new("b")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        assert!(ports.iter().all(|p| p.mode() == Mode::Copy));
        let sent = frame(7, 101);
        wires[0].send(&sent);
        let mut burst = receive(&mut ports[0], 1);
        assert_eq!(burst[0].data(), sent);
        let front: Vec<u8> = frame(8, 38);
        burst[0].prepend(38).unwrap()[..38].copy_from_slice(&front);
        assert_eq!(ports[1].tx_burst(&mut burst), 1);
        assert!(ports[1].drain(PATIENCE));
        assert_eq!(wires[1].receive(), [front, sent.clone()].concat());
        // And the other way: a header pulled off in place.
        wires[1].send(&[frame(9, 38), sent.clone()].concat());
        let mut burst = receive(&mut ports[1], 1);
        burst[0].trim_front(38).unwrap();
        burst[0].truncate(90).unwrap();
        ports[0].tx_burst(&mut burst);
        assert!(ports[0].drain(PATIENCE));
        assert_eq!(wires[0].receive(), sent[..90]);
        assert_eq!(quiet(&memory).worker, 0);
    });
}

#[test]
fn a_frame_taken_from_the_free_list_carries_a_packet_of_the_workers_own() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let mut own = ports[0].take(200).expect("a free frame");
        assert_eq!((own.data().len(), own.headroom()), (0, memory.frame_size()));
        let bytes = frame(1, 200);
        own.prepend(200).unwrap().copy_from_slice(&bytes);
        assert_eq!(quiet(&memory).worker, 1);
        ports[0].tx_burst(&mut vec![own]);
        assert!(ports[0].drain(PATIENCE));
        assert_eq!(wires[0].receive(), bytes);
        assert_eq!(quiet(&memory).worker, 0);
    });
}

/// Limits the kernel to 32 packets per call, as it was before Linux 6.17 (which older ones do without being asked).
fn limit_send_budget(port: &XskPort) {
    const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
    let budget = 32u32;
    // SAFETY: the socket is open, and the kernel reads four bytes.
    let _ = unsafe {
        libc::setsockopt(
            port.fd().as_raw_fd(),
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const budget).cast(),
            size_of::<u32>() as u32,
        )
    };
}

#[test]
fn one_turn_sends_a_thousand_frames_although_a_call_sends_32() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let (mut ports, memory) = open(&mut wires, RingOptions::default());
        let port = &mut ports[0];
        limit_send_budget(port);
        let mut burst: Vec<Frame> = (0..1000)
            .map(|n| {
                let mut own = port.take(64).unwrap();
                own.prepend(64).unwrap().copy_from_slice(&frame(n, 64));
                own
            })
            .collect();
        assert_eq!(port.tx_burst(&mut burst), 1000);
        assert!(burst.is_empty());
        port.service().unwrap();
        for n in 0..1000 {
            assert_eq!(wires[0].receive(), frame(n, 64));
        }
        assert!(port.counters().kicks >= 1000 / 32);
        assert!(port.drain(PATIENCE));
        assert_eq!(quiet(&memory).transmitting, 0);
        assert_eq!(port.statistics().unwrap().tx_invalid_descs, 0);
    });
}

#[test]
fn what_the_ring_refuses_stays_with_the_caller_in_order() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let port = &mut ports[0];
        let mut burst: Vec<Frame> = Vec::new();
        while let Some(mut own) = port.take(64) {
            let number = burst.len() as u32;
            own.prepend(64).unwrap().copy_from_slice(&frame(number, 64));
            burst.push(own);
        }
        let all = burst.len();
        assert!(all > 256, "more than a ring holds: {all}");
        // Nothing is kicked here, so the ring fills and then refuses.
        assert_eq!(port.tx_burst(&mut burst), 256);
        assert_eq!(port.tx_burst(&mut burst), 0);
        assert_eq!(burst.len(), all - 256);
        assert_eq!(burst[0].data(), frame(256, 64));
        assert!(port.drain(PATIENCE));
        while !burst.is_empty() {
            port.tx_burst(&mut burst);
            assert!(port.drain(PATIENCE));
        }
        for n in 0..all {
            assert_eq!(wires[0].receive(), frame(n as u32, 64));
        }
        quiet(&memory);
    });
}

#[test]
fn an_empty_packet_is_not_sent_and_its_frame_is_not_lost() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let free = quiet(&memory).free;
        let empty = ports[0].take(64).unwrap();
        assert_eq!(ports[0].tx_burst(&mut vec![empty]), 1);
        assert!(ports[0].drain(PATIENCE));
        assert_eq!(ports[0].counters().empty, 1);
        assert_eq!(quiet(&memory).free, free);
    });
}

#[test]
fn nothing_is_received_without_a_replacement_and_nothing_is_lost_by_waiting() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let port = &mut ports[0];
        let mut held: Vec<Frame> = std::iter::from_fn(|| port.take(64)).collect();
        assert_eq!(quiet(&memory).free, 0);
        for n in 0..10 {
            wires[0].send(&frame(n, 64));
        }
        wait_readable(port);
        let mut burst = Vec::new();
        assert_eq!(port.rx_burst(&mut burst, 64), 0);
        // Three frames come back, so three packets can be taken.
        port.recycle(&mut held.drain(..3).collect());
        assert_eq!(port.rx_burst(&mut burst, 64), 3);
        assert_eq!(port.rx_burst(&mut burst, 64), 0);
        port.recycle(&mut held);
        burst.extend(receive(port, 7));
        for (n, packet) in burst.iter().enumerate() {
            assert_eq!(packet.data(), frame(n as u32, 64));
        }
        assert_eq!(quiet(&memory).receiving, 256);
    });
}

/// A generator of numbers that gives the same ones in every run (xorshift).
struct Dice(u32);
impl Dice {
    fn roll(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % below
    }
}

#[test]
fn the_ledger_balances_through_bursts_drops_refusals_and_shutdown() {
    in_namespace(|| {
        churn([Wire::new("a"), Wire::new("b")], 1);
    });
}

#[test]
fn the_ledger_balances_with_packets_in_several_frames_too() {
    in_namespace(|| churn(jumbo_wires(), 3));
}

/// `run`: frames of the largest packet.
fn churn(mut wires: [Wire; 2], run: usize) {
    let most = wires[0].mtu - 100;
    let (mut ports, memory) = open(&mut wires, RingOptions { ring_size: 64 });
    let mut dice = Dice(0x9e37_79b9);
    let mut held: Vec<Frame> = Vec::new();
    for round in 0..2000 {
        let side = dice.roll(2) as usize;
        for n in 0..dice.roll(100) {
            // Sixty-four entries and a veth's queue overflow at times: that is wanted.
            let _ = wires[side]
                .far
                .send(&frame(n, 60 + dice.roll(most) as usize));
        }
        let port = &mut ports[dice.roll(2) as usize];
        match dice.roll(6) {
            0 => port.service().unwrap(),
            1 | 2 => {
                port.rx_burst(&mut held, 1 + dice.roll(64) as usize);
            }
            3 => {
                for packet in &mut held {
                    let _ = packet.prepend(dice.roll(300) as usize);
                    let _ = packet.trim_front(dice.roll(80) as usize);
                    let _ = packet.truncate(dice.roll(2000) as usize);
                }
                port.tx_burst(&mut held);
            }
            4 => port.recycle(&mut held),
            // A careless caller: dropped, not recycled.
            _ => drop(held.split_off(dice.roll(held.len() as u32 + 1) as usize)),
        }
        let ledger = quiet(&memory);
        let frames = held.len()..=run * held.len();
        assert!(frames.contains(&ledger.worker), "round {round}: {ledger:?}");
    }
    ports[0].recycle(&mut held);
    for port in &mut ports {
        assert!(port.drain(PATIENCE));
        port.service().unwrap();
    }
    let ledger = quiet(&memory);
    assert_eq!((ledger.worker, ledger.transmitting), (0, 0), "{ledger:?}");
    // Every frame still works: all of them go through the ring once more and come back.
    let mut all: Vec<Frame> = std::iter::from_fn(|| ports[0].take(64)).collect();
    all.extend(std::iter::from_fn(|| {
        (run > 1).then(|| ports[0].take(9000)).flatten()
    }));
    let now = quiet(&memory);
    assert_eq!((now.free, now.worker + now.receiving), (0, ledger.total));
    let places: HashSet<_> = all.iter().map(|f| f.data().as_ptr()).collect();
    assert_eq!(places.len(), all.len(), "two tokens for one frame");
    for packet in &mut all {
        packet.prepend(64).unwrap().copy_from_slice(&frame(0, 64));
    }
    while !all.is_empty() {
        ports[0].tx_burst(&mut all);
        assert!(ports[0].drain(PATIENCE));
    }
    for port in &ports {
        let statistics = port.statistics().unwrap();
        assert_eq!(statistics.tx_invalid_descs, 0, "{statistics:?}");
        assert_eq!(statistics.rx_invalid_descs, 0, "{statistics:?}");
    }
}

#[test]
fn a_device_that_goes_down_or_away_is_an_error_and_not_a_hang() {
    in_namespace(|| {
        let mut wires = [Wire::new("a"), Wire::new("b")];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        ip("link set ap down");
        let error = ports[0].service().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkDown, "{error}");
        ip("link set ap up");
        ports[0].service().unwrap();
        ip("link del ap");
        let error = ports[0].service().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO), "{error}");
        let mut own = ports[0].take(64).unwrap();
        own.prepend(64).unwrap().copy_from_slice(&frame(1, 64));
        ports[0].tx_burst(&mut vec![own]);
        assert!(ports[0].service().is_err());
        assert!(!ports[0].drain(Duration::from_secs(3600)));
        assert_eq!(ports[0].rx_burst(&mut Vec::new(), 64), 0);
        // The other port goes on working.
        wires[1].send(&frame(2, 64));
        let mut burst = receive(&mut ports[1], 1);
        ports[1].recycle(&mut burst);
        quiet(&memory);
    });
}

#[test]
fn a_port_can_be_opened_again_at_once() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        for round in 0..3 {
            let (mut ports, _memory) = open(&mut wires, SMALL_RINGS);
            wires[0].send(&frame(round, 64));
            assert_eq!(receive(&mut ports[0], 1)[0].data(), frame(round, 64));
            wires[0]._link = None;
        }
    });
}

#[test]
fn a_set_opened_here_works_in_another_thread() {
    in_namespace(|| {
        let mut wires = [Wire::new("a")];
        let set = open_ports(&[wires[0].spec()], Want::Auto, SMALL_RINGS).unwrap();
        wires[0].steer(&set.ports()[0]);
        let why = set.ports()[0].why_not_zero_copy().unwrap().to_owned();
        assert!(
            why.contains("ap queue 0") && why.contains("zero-copy"),
            "{why}"
        );
        wires[0].send(&frame(3, 64));
        let worker = thread::spawn(move || {
            let (mut ports, memory) = set.into_parts();
            let packets = receive(&mut ports[0], 1);
            let bytes = packets[0].data().to_vec();
            drop(packets);
            assert_eq!(quiet(&memory).worker, 0);
            bytes
        });
        assert_eq!(worker.join().unwrap(), frame(3, 64));
    });
}

#[test]
fn refusals_say_what_to_do() {
    in_namespace(|| {
        let wire = Wire::new("a");
        let refused = |spec: PortSpec, want| {
            let error = open_ports(&[spec], want, SMALL_RINGS)
                .err()
                .expect("refused");
            (error.to_string(), error)
        };
        let (text, error) = refused(
            PortSpec {
                mtu: 65_255,
                ..wire.spec()
            },
            Want::Auto,
        );
        assert!(matches!(
            error,
            PortError::MtuTooLarge {
                largest: 65_254,
                ..
            }
        ));
        assert!(text.contains("ip link set ap mtu 65254"), "{text}");
        let (text, _) = refused(
            PortSpec {
                queue: 5,
                ..wire.spec()
            },
            Want::Copy,
        );
        assert!(
            text.contains("ap queue 5") && text.contains("ethtool"),
            "{text}"
        );
        let (text, _) = refused(
            PortSpec {
                device: "nosuch".into(),
                ..wire.spec()
            },
            Want::Copy,
        );
        assert!(
            text.contains("nosuch") && text.contains("No such device"),
            "{text}"
        );
        let (text, _) = refused(wire.spec(), Want::ZeroCopy);
        assert!(text.contains("zero-copy"), "{text}");
        let held = open_ports(&[wire.spec()], Want::Copy, SMALL_RINGS).unwrap();
        let (text, _) = refused(wire.spec(), Want::Copy);
        assert!(text.contains("another AF_XDP socket"), "{text}");
        drop(held);
        let odd = open_ports(&[wire.spec()], Want::Copy, RingOptions { ring_size: 100 });
        assert!(matches!(odd.err(), Some(PortError::RingSize(100))));
    });
}

#[test]
fn a_larger_mtu_makes_all_frames_larger() {
    in_namespace(|| {
        let mut wires = [Wire::of_mtu("a", SINGLE_BUFFER_MTU)];
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        assert_eq!(memory.frame_size(), 4096);
        let sent = frame(1, SINGLE_BUFFER_MTU as usize + 14);
        wires[0].send(&sent);
        let mut burst = receive(&mut ports[0], 1);
        assert_eq!(burst[0].data(), sent);
        ports[0].recycle(&mut burst);
        quiet(&memory);
    });
}

/// Two ports that take packets in several frames each, and how many frames are at rest.
fn jumbo_wires() -> [Wire; 2] {
    [Wire::of_mtu("a", 9000), Wire::of_mtu("b", 9000)]
}

#[test]
fn a_packet_in_several_frames_is_one_and_leaves_in_pieces() {
    in_namespace(|| {
        let mut wires = jumbo_wires();
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let at_rest = quiet(&memory);
        // Around what one, two and three frames take, and around the ends of frames when headers are put in front.
        let edges = [3840, 4096, 7680, 8192, 9014];
        for len in edges
            .into_iter()
            .flat_map(|edge| edge - 80..=edge.min(9014 - 38))
        {
            let sent = frame(len as u32, len);
            wires[0].send(&sent);
            let mut burst = receive(&mut ports[0], 1);
            assert_eq!(burst[0].data(), sent, "{len} bytes");
            let front = frame(8, 38);
            burst[0].prepend(38).unwrap()[..38].copy_from_slice(&front);
            assert_eq!(ports[1].tx_burst(&mut burst), 1);
            assert!(ports[1].drain(PATIENCE));
            assert_eq!(
                wires[1].receive(),
                [front, sent.clone()].concat(),
                "{len} bytes"
            );
            // And the other way: shorter in front and behind.
            wires[1].send(&sent);
            let mut burst = receive(&mut ports[1], 1);
            burst[0].trim_front(38).unwrap();
            burst[0].truncate(len - 38 - 100).unwrap();
            // Its ethertype is what the far end listens for.
            burst[0].data_mut()[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
            let left = burst[0].data().to_vec();
            assert_eq!(left[14..], sent[52..len - 100]);
            ports[0].tx_burst(&mut burst);
            assert!(ports[0].drain(PATIENCE));
            assert_eq!(wires[0].receive(), left, "{len} bytes");
        }
        let now = quiet(&memory);
        assert_eq!(
            (now.worker, now.transmitting, now.free + now.receiving),
            (0, 0, at_rest.total)
        );
    });
}

#[test]
fn a_full_ring_takes_no_half_packet() {
    in_namespace(|| {
        let mut wires = jumbo_wires();
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let mut own = |number: u32, len: usize| {
            let mut own = ports[1].take(len).expect("a free frame");
            own.prepend(len)
                .unwrap()
                .copy_from_slice(&frame(number, len));
            own
        };
        // Small ones between them shift where the ring ends.
        let len = |number: u32| if number % 5 == 0 { 64 } else { 9000 };
        let mut burst: Vec<Frame> = (0..120).map(|n| own(n, len(n))).collect();
        // Nothing is kicked here: 256 frames, by threes and ones.
        let sent = ports[0].tx_burst(&mut burst);
        let frames = |n: u32| if len(n) == 64 { 1 } else { 3 };
        let taken: u32 = (0..sent as u32).map(frames).sum();
        assert!(
            taken <= 256 && taken + frames(sent as u32) > 256,
            "{sent} packets in {taken} frames"
        );
        assert_eq!(ports[0].tx_burst(&mut burst), 0);
        assert_eq!(quiet(&memory).transmitting, taken as usize);
        assert!(ports[0].drain(PATIENCE));
        while !burst.is_empty() {
            ports[0].tx_burst(&mut burst);
            assert!(ports[0].drain(PATIENCE));
        }
        for n in 0..120 {
            assert_eq!(wires[0].receive(), frame(n, len(n)), "packet {n}");
        }
        assert_eq!(ports[0].statistics().unwrap().tx_invalid_descs, 0);
        assert_eq!(quiet(&memory).worker, 0);
    });
}

#[test]
fn large_packets_wait_while_there_is_no_room_to_put_them_together() {
    in_namespace(|| {
        let mut wires = jumbo_wires();
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        let mut held: Vec<Frame> = std::iter::from_fn(|| ports[0].take(9000)).collect();
        for n in 0..20 {
            wires[0].send(&frame(n, 9000));
        }
        ports[0].service().unwrap();
        let mut burst = Vec::new();
        assert_eq!(ports[0].rx_burst(&mut burst, 64), 0);
        assert_eq!(quiet(&memory).worker, 3 * held.len());
        // Room for one after the other.
        for n in 0..20 {
            ports[0].recycle(&mut vec![held.pop().unwrap()]);
            let packet = receive(&mut ports[0], 1).pop().unwrap();
            assert_eq!(packet.data(), frame(n, 9000));
            held.push(packet);
        }
        ports[0].recycle(&mut held);
        let now = quiet(&memory);
        assert_eq!((now.worker, now.free + now.receiving), (0, now.total));
        assert_eq!(ports[0].statistics().unwrap().rx_dropped, 0);
    });
}

/// Sets aside so many huge pages more than now; how many there were.
fn more_huge_pages(more: u64) -> u64 {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    let now: u64 = std::fs::read_to_string(FILE)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    std::fs::write(FILE, (now + more).to_string()).unwrap();
    now
}

/// Whether this process has a mapping in huge pages.
fn maps_huge_pages() -> bool {
    let all = std::fs::read_to_string("/proc/self/maps").unwrap();
    all.lines().any(|line| line.contains("anon_hugepage"))
}

#[test]
fn frames_are_in_huge_pages_where_there_are_any() {
    in_namespace(|| {
        let before = more_huge_pages(128);
        let mut wires = jumbo_wires();
        let (mut ports, memory) = open(&mut wires, SMALL_RINGS);
        // Pages in use stay until they are given back.
        std::fs::write("/proc/sys/vm/nr_hugepages", before.to_string()).unwrap();
        assert!(memory.in_huge_pages());
        assert!(maps_huge_pages());
        // The kernel unmaps whole pages only.
        assert_eq!(memory.ledger().total * memory.frame_size() % (2 << 20), 0);
        for len in [60, 4000, 9014] {
            let sent = frame(1, len);
            wires[0].send(&sent);
            let mut burst = receive(&mut ports[0], 1);
            assert_eq!(burst[0].data(), sent);
            ports[1].tx_burst(&mut burst);
            assert!(ports[1].drain(PATIENCE));
            assert_eq!(wires[1].receive(), sent);
        }
        quiet(&memory);
    });
}
