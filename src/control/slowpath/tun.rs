//! TUN and TAP devices: one per tunnel, and the service device through which packets are handed back to the kernel.
//!
//! A tunnel's device is persistent (TUNSETPERSIST): it outlives the process, without carrier, with its addresses and
//! routes, and a later start *adopts* it by attaching to the same name. Closing a [`Tun`] never removes a persistent
//! device; an orderly stop deletes it over netlink. Addresses, MTU and the up flag are netlink's business too.
//!
//! Packets are plain IP packets, in a TAP device Ethernet frames with their VLAN tags, whole and with finished checksums: no
//! packet information header, no virtio header, no offloads, so that the kernel segments and sums before it hands one over.

use std::{
    fmt, fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{io::Errno, net};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// What a device carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunKind {
    /// IP packets.
    Tun,
    /// Ethernet frames.
    Tap,
}

impl TunKind {
    fn layer(self) -> Layer {
        match self {
            TunKind::Tun => Layer::L3,
            TunKind::Tap => Layer::L2,
        }
    }

    /// That of the device of this name, where sysfs tells (IFF_TUN, IFF_TAP).
    fn of(name: &str) -> Option<TunKind> {
        let flags = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok()?;
        match i64::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()? & 0xf {
            1 => Some(TunKind::Tun),
            2 => Some(TunKind::Tap),
            _ => None,
        }
    }
}

impl fmt::Display for TunKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TunKind::Tun => "TUN",
            TunKind::Tap => "TAP",
        })
    }
}

/// Why a TUN or TAP device is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error(
        "{0}: a device of this name exists and is not a {1} device; rename one of them, or remove it: ip link del {0}"
    )]
    NotTun(Box<str>, TunKind),
    #[error(
        "{0}: a {1} device of this name exists, and the tunnel's mode needs a {2} device; remove it: ip link del {0}"
    )]
    OtherKind(Box<str>, TunKind, TunKind),
    #[error(
        "{0}: another process holds this TUN device; find it with: grep -l 'iff:.*{0}' /proc/[0-9]*/fdinfo/*"
    )]
    Held(Box<str>),
    #[error(
        "{0}: the service device's name is taken; remove that device (ip link del {0}) or choose another name"
    )]
    Taken(Box<str>),
    #[error(
        "{0}: creating a TUN device needs CAP_NET_ADMIN in this network namespace; run as root"
    )]
    Denied(Box<str>),
    #[error(
        "{0}: /dev/net/tun may not be opened by this user; mend it with: chmod 666 /dev/net/tun"
    )]
    NoAccess(Box<str>),
    #[error("{0}: /dev/net/tun is not there; load the driver with: modprobe tun")]
    NoDriver(Box<str>),
    #[error("{name}: cannot {what}: {source}")]
    Io {
        name: Box<str>,
        what: &'static str,
        source: io::Error,
    },
}

impl TunError {
    fn io(name: &str, what: &'static str, source: io::Error) -> Self {
        TunError::Io {
            name: name.into(),
            what,
            source,
        }
    }

    /// What the errno of TUNSETIFF means (drivers/net/tun.c, `tun_set_iff`).
    fn from_attach(name: &str, kind: TunKind, existed: bool, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::BUSY) => TunError::Held(name.into()),
            Some(Errno::INVAL) if existed => match TunKind::of(name) {
                Some(found) if found != kind => TunError::OtherKind(name.into(), found, kind),
                _ => TunError::NotTun(name.into(), kind),
            },
            Some(Errno::PERM) => TunError::Denied(name.into()),
            // open(2) by the file's mode; TUNSETIFF says EPERM.
            Some(Errno::ACCESS) => TunError::NoAccess(name.into()),
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => TunError::NoDriver(name.into()),
            _ => TunError::io(name, "create the TUN device", source),
        }
    }
}

/// An attached TUN or TAP device, non-blocking. While it is open the device has a carrier.
pub struct Tun {
    name: Box<str>,
    device: Device,
    adopted: bool,
}

/// How the device came to us.
enum Device {
    Attached(SyncDevice),
    /// By another process, which had attached it.
    Handed(OwnedFd),
}

impl Tun {
    /// Creates the device `name`, or adopts the one that exists. With `persist` it outlives this process; without, a
    /// new device vanishes when the [`Tun`] is dropped (an adopted one stays as it was).
    pub fn open(name: &str, kind: TunKind, persist: bool) -> Result<Self, TunError> {
        let existed = exists(name)?;
        let tun = Self::attach(name, kind, DeviceBuilder::new(), existed)?;
        if let (true, Device::Attached(device)) = (persist, &tun.device) {
            device
                .persist()
                .map_err(|e| TunError::io(name, "make the TUN device persistent", e))?;
        }
        Ok(tun)
    }

    fn attach(
        name: &str,
        kind: TunKind,
        builder: DeviceBuilder,
        existed: bool,
    ) -> Result<Self, TunError> {
        let device = builder
            .name(name)
            .layer(kind.layer())
            .inherit_enable_state()
            .packet_information(false)
            .offload(false)
            .build_sync()
            .map_err(|e| TunError::from_attach(name, kind, existed, e))?;
        device
            .set_nonblocking(true)
            .map_err(|e| TunError::io(name, "make the TUN device non-blocking", e))?;
        Ok(Self {
            name: name.into(),
            device: Device::Attached(device),
            adopted: existed,
        })
    }

    /// A device that another process has attached, and handed over.
    pub fn handed(name: &str, device: OwnedFd) -> Self {
        Self {
            name: name.into(),
            device: Device::Handed(device),
            adopted: true,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device was there before.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The interface index.
    pub fn index(&self) -> Result<u32, TunError> {
        match &self.device {
            Device::Attached(device) => device.if_index(),
            Device::Handed(_) => {
                net::socket(net::AddressFamily::INET, net::SocketType::DGRAM, None)
                    .and_then(|any| net::netdevice::name_to_index(&any, &self.name))
                    .map_err(io::Error::from)
            }
        }
        .map_err(|e| TunError::io(&self.name, "read the interface index", e))
    }

    /// Sets the device up, unless it was handed over so.
    fn set_up(&self) -> Result<(), TunError> {
        match &self.device {
            Device::Attached(device) => device
                .enabled(true)
                .map_err(|e| TunError::io(&self.name, "set the device up", e)),
            Device::Handed(_) => Ok(()),
        }
    }

    /// Reads one packet that the kernel sent out of the device. `WouldBlock` when there is none; EBADFD when the
    /// device has been deleted.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.device {
            Device::Attached(device) => device.recv(buf),
            Device::Handed(device) => Ok(rustix::io::read(device, buf)?),
        }
    }

    /// Writes one packet, which the kernel receives from the device. EIO while the device is down.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        match &self.device {
            Device::Attached(device) => device.send(packet).map(|_| ()),
            Device::Handed(device) => Ok(rustix::io::write(device, packet).map(|_| ())?),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.device {
            Device::Attached(device) => device.as_fd(),
            Device::Handed(device) => device.as_fd(),
        }
    }
}

/// Hands received packets back to the kernel, unmodified, as if they had arrived by a device of their own.
///
/// The kernel routes, answers, fragments or delivers them as those of any device, with these limits: what names the
/// real input device does not match (`iif` rules, `iifname` in nft, VRFs, sockets bound to it), link-local addresses
/// have another scope, no redirects are sent, and forwarding is on for the device whatever the real one says.
/// The device has no addresses that anybody could use, answers no router advertisements and is gone when this is dropped.
pub struct ServiceTun(Tun);

impl AsFd for ServiceTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Host scope, as everything in 127.0.0.0/8: never the source of a packet.
const UNUSED_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

impl ServiceTun {
    /// Creates the device `name`, up and ready. The name must be free: another router in the namespace has its own.
    pub fn open(name: &str) -> Result<Self, TunError> {
        if exists(name)? {
            return Err(TunError::Taken(name.into()));
        }
        // Packets come in here whose sources are reached through other devices. The higher of `all` and the device's own
        // rp_filter counts, and 2 (loose) is above 1 (strict). But any filter drops everything on a device that has no
        // address at all (net/ipv4/fib_frontend.c, `__fib_validate_source`).
        let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
        let (rp_filter, builder) = match all.trim() {
            "0" => ("0", DeviceBuilder::new()),
            _ => ("2", DeviceBuilder::new().ipv4(UNUSED_ADDRESS, 32, None)),
        };
        let tun = Tun::attach(name, TunKind::Tun, builder, false)?;
        configure(
            name,
            "ipv4",
            &[("rp_filter", rp_filter), ("forwarding", "1")],
        )?;
        if fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
            configure(name, "ipv6", IPV6_SETTINGS)?;
        }
        tun.set_up()?;
        Ok(Self(tun))
    }

    /// One that another process has made, and handed over.
    pub fn handed(name: &str, device: OwnedFd) -> Self {
        Self(Tun::handed(name, device))
    }

    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Hands one IP packet to the kernel.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet)
    }
}

/// No link-local address (1 is "none"), no solicitations, no autoconfiguration.
const IPV6_SETTINGS: &[(&str, &str)] = &[
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("router_solicitations", "0"),
    ("disable_ipv6", "0"),
    ("forwarding", "1"),
];

fn configure(name: &str, family: &str, settings: &[(&str, &str)]) -> Result<(), TunError> {
    for (key, value) in settings {
        fs::write(format!("/proc/sys/net/{family}/conf/{name}/{key}"), value)
            .map_err(|e| TunError::io(name, "set the service device's sysctls", e))?;
    }
    Ok(())
}

fn exists(name: &str) -> Result<bool, TunError> {
    let io = |e: Errno| TunError::io(name, "look the device up", e.into());
    let any = net::socket(net::AddressFamily::INET, net::SocketType::DGRAM, None).map_err(io)?;
    match net::netdevice::name_to_index(&any, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(e) => Err(io(e)),
    }
}
