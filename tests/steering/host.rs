//! Namespaces, devices and sockets for the steering tests.

use std::{
    fs::File,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use libbpf_rs::{TC_EGRESS, TcHookBuilder, libbpf_sys as sys};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

/// A network namespace that the current thread is in until this value is dropped.
pub struct Namespace {
    name: String,
    before: File,
}

impl Namespace {
    pub fn enter(what: &str) -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gh-steer-{what}-{}-{number}", std::process::id());
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        ip(&["netns", "add", &name]);
        let namespace = Namespace { name, before };
        let inside = File::open(format!("/run/netns/{}", namespace.name)).unwrap();
        switch_to(inside.as_fd()).expect("entering a network namespace (are you root?)");
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Also on panic: nothing here may panic again.
        let _ = switch_to(self.before.as_fd());
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn switch_to(namespace: BorrowedFd) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn link_word(device: &str, after: &str) -> String {
    let text = run("ip", &["-o", "link", "show", "dev", device]);
    let mut words = text.split_whitespace().skip_while(|word| *word != after);
    words.nth(1).unwrap().to_owned()
}

pub fn ifindex(device: &str) -> u32 {
    let text = run("ip", &["-o", "link", "show", "dev", device]);
    text.split(':').next().unwrap().parse().unwrap()
}

pub fn mac(device: &str) -> [u8; 6] {
    let text = link_word(device, "link/ether");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// A raw socket that waits at most ten seconds.
pub fn raw_socket(protocol: i32) -> Socket {
    raw_socket_of(Domain::IPV4, protocol)
}

pub fn raw_socket6(protocol: i32) -> Socket {
    raw_socket_of(Domain::IPV6, protocol)
}

fn raw_socket_of(domain: Domain, protocol: i32) -> Socket {
    patient(domain, Type::RAW, Protocol::from(protocol))
}

/// A UDP socket on GRE's port, that waits as long.
pub fn udp_socket(any: IpAddr) -> Socket {
    let domain = match any {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = patient(domain, Type::DGRAM, Protocol::UDP);
    if any.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&SocketAddr::new(any, 4754).into()).unwrap();
    socket
}

/// Lets datagrams without a checksum in over IPv6.
pub fn allow_no_checksum(socket: &Socket) {
    let on = 1i32;
    // SAFETY: the option outlives the call, and its size is its own.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            libc::UDP_NO_CHECK6_RX,
            (&raw const on).cast(),
            mem::size_of_val(&on) as u32,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

fn patient(domain: Domain, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(domain, kind, Some(protocol)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket
}

/// Sends an IP packet to the address in its header.
pub fn send_raw(socket: &Socket, packet: &[u8]) {
    let to: IpAddr = match packet[0] >> 4 {
        6 => Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()).into(),
        _ => Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()).into(),
    };
    let sent = socket.send_to(packet, &SocketAddr::new(to, 0).into());
    assert_eq!(sent.unwrap(), packet.len());
}

pub fn receive(mut socket: &Socket) -> Vec<u8> {
    let mut packet = vec![0; 2048];
    let length = io::Read::read(&mut socket, &mut packet).expect("a packet within ten seconds");
    packet.truncate(length);
    packet
}

fn link_address(ifindex: u32) -> libc::sockaddr_ll {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex as i32;
    address
}

/// A packet socket on one device, for all protocols, that also tells tags.
pub fn packet_socket(ifindex: u32) -> Socket {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (address, on) = (link_address(ifindex), 1i32);
    // SAFETY: the address and the option outlive the calls, and their sizes are their own.
    let results = unsafe {
        [
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_AUXDATA,
                (&raw const on).cast(),
                mem::size_of_val(&on) as u32,
            ),
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            ),
        ]
    };
    assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
    socket
}

/// Sends a frame out of a device.
pub fn send_frame(ifindex: u32, frame: &[u8]) {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    let address = link_address(ifindex);
    // SAFETY: frame and address outlive the call, and their sizes are their own.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            mem::size_of_val(&address) as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// The next frame of a packet socket and its VLAN identifier, if it has one.
pub fn receive_tagged(socket: &Socket) -> (Option<u16>, Vec<u8>) {
    let mut frame = vec![0u8; 2048];
    let mut control = [0u64; 16];
    let mut part = libc::iovec {
        iov_base: frame.as_mut_ptr().cast(),
        iov_len: frame.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: the buffers that `message` names outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    assert!(length >= 0, "a frame: {}", io::Error::last_os_error());
    frame.truncate(length as usize);
    // SAFETY: the kernel has filled in the control buffer that `message` describes.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    assert!(!header.is_null(), "no auxiliary data");
    // SAFETY: PACKET_AUXDATA is the only kind of control message asked for; it carries this structure.
    let data: libc::tpacket_auxdata = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    let valid = data.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    (valid.then_some(data.tp_vlan_tci & 0xfff), frame)
}

fn instruction(code: u8, register: u8, immediate: i32) -> sys::bpf_insn {
    let mut instruction = sys::bpf_insn {
        code,
        imm: immediate,
        ..Default::default()
    };
    instruction.set_dst_reg(register);
    instruction
}

const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const CALL: u8 = 0x85; // BPF_JMP | BPF_CALL
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

fn load(kind: u32, name: &str, program: &[sys::bpf_insn]) -> OwnedFd {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: name, licence and instructions outlive the call; there are no options.
    let fd = unsafe {
        sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "{}", io::Error::from_raw_os_error(-fd));
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An XDP program of somebody else's on this device, until the descriptor is closed.
pub fn no_op_xdp(ifindex: u32) -> OwnedFd {
    let pass = [instruction(MOVE, 0, 2), instruction(EXIT, 0, 0)];
    let program = load(sys::BPF_PROG_TYPE_XDP, "somebody_else", &pass);
    // SAFETY: takes numbers only; there are no options.
    let link = unsafe {
        sys::bpf_link_create(
            program.as_raw_fd(),
            ifindex as i32,
            sys::BPF_XDP,
            std::ptr::null(),
        )
    };
    assert!(link >= 0, "{}", io::Error::from_raw_os_error(-link));
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(link) }
}

/// Gives every frame that leaves by this device the tag 42, beside the frame, as a VLAN device or a bridge does.
pub fn push_tag_on_egress(ifindex: u32) {
    const BPF_SKB_VLAN_PUSH: i32 = 18;
    let push = [
        instruction(MOVE, 2, 0x8100u16.to_be().into()),
        instruction(MOVE, 3, 42),
        instruction(CALL, 0, BPF_SKB_VLAN_PUSH),
        instruction(MOVE, 0, 0),
        instruction(EXIT, 0, 0),
    ];
    let program = load(sys::BPF_PROG_TYPE_SCHED_CLS, "push_tag", &push);
    let mut hook = TcHookBuilder::new(program.as_fd())
        .ifindex(ifindex as i32)
        .handle(1)
        .priority(1)
        .hook(TC_EGRESS);
    hook.create().unwrap();
    hook.attach().unwrap();
}
