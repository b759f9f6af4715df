//! Requests that change the kernel's state: devices, addresses, routes, neighbours and device settings.
//!
//! Each is idempotent: what is already so is success. Each error is one line that names what was attempted, on which
//! device, and the kernel's reason. Reading is the mirror's job.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{TryStreamExt, pin_mut};
use ipnet::IpNet;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::LinkAttribute,
        neighbour::{NeighbourFlags, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
        tc::{TcAttribute, TcHandle},
    },
};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// A device to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    /// For messages; requests go by the index.
    pub name: Box<str>,
}

/// A change that the kernel refused, or could not be asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} on device {device}: {reason}{}", hint(reason))]
pub struct RequestError {
    attempt: String,
    device: Box<str>,
    reason: io::Error,
}

impl RequestError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        self.reason.raw_os_error()
    }
}

fn hint(reason: &io::Error) -> &'static str {
    match reason.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; CAP_NET_ADMIN is needed",
        Some(libc::ENETDOWN) => "; set the device up first",
        Some(libc::EEXIST) => "; another route of that prefix is there, see `ip route`",
        _ => "",
    }
}

/// The way to the kernel. Clones share one socket.
#[derive(Debug, Clone)]
pub struct Handle(rtnetlink::Handle);

impl Handle {
    /// Opens a socket in the calling thread's network namespace; must be called within a tokio runtime, which serves it.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The device of that name, if there is one.
    pub fn device(&self, name: &str) -> Result<Option<Device>, RequestError> {
        let index = socket(AddressFamily::INET, SocketType::DGRAM, None)
            .and_then(|any| netdevice::name_to_index(&any, name));
        match index {
            Ok(index) => Ok(Some(Device {
                index,
                name: name.into(),
            })),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(errno) => Err(RequestError {
                attempt: "look for the index".into(),
                device: name.into(),
                reason: errno.into(),
            }),
        }
    }

    /// Sets the device up or down.
    pub async fn set_up(&self, device: &Device, up: bool) -> Result<(), RequestError> {
        let link = LinkUnspec::new_with_index(device.index);
        let (link, word) = if up {
            (link.up(), "up")
        } else {
            (link.down(), "down")
        };
        let attempt = || format!("set the link {word}");
        self.change(device, link, attempt).await
    }

    /// Sets the MTU, in bytes.
    pub async fn set_mtu(&self, device: &Device, mtu: u32) -> Result<(), RequestError> {
        let link = LinkUnspec::new_with_index(device.index).mtu(mtu);
        self.change(device, link, || format!("set the MTU {mtu}"))
            .await
    }

    /// Gives the device its carrier, or takes it away (`ip link set DEVICE carrier on`); a TUN device has that
    /// (drivers/net/tun.c, `tun_net_change_carrier`).
    pub async fn set_carrier(&self, device: &Device, on: bool) -> Result<(), RequestError> {
        let attribute = LinkAttribute::Carrier(on.into());
        let link = LinkUnspec::new_with_index(device.index).append_extra_attribute(attribute);
        let word = if on { "on" } else { "off" };
        self.change(device, link, || format!("set the carrier {word}"))
            .await
    }

    async fn change(
        &self,
        device: &Device,
        link: LinkMessageBuilder<LinkUnspec>,
        attempt: impl FnOnce() -> String,
    ) -> Result<(), RequestError> {
        let outcome = self.0.link().change(link.build()).execute().await;
        check(outcome, device, attempt)
    }

    /// Removes the device, and with it its addresses and routes. One that is not there any more is success.
    pub async fn delete_link(&self, device: &Device) -> Result<(), RequestError> {
        let outcome = self.0.link().del(device.index).execute().await;
        let result = check(outcome, device, || "delete the link".into());
        result.or_else(|error| match error.errno() {
            Some(libc::ENODEV) => Ok(()),
            _ => Err(error),
        })
    }

    /// Removes the device's clsact qdisc unless there are filters in it. One that is not there any more is success.
    pub async fn remove_clsact(&self, device: &Device) -> Result<(), RequestError> {
        let index = device.index as i32;
        let get = || self.0.traffic_filter(index).get();
        for filters in [get().ingress(), get().egress()] {
            let filters = filters.execute();
            pin_mut!(filters);
            if let Ok(Some(_)) = filters.try_next().await {
                return Ok(());
            }
        }
        let mut request = self.0.qdisc().del(index);
        let message = request.message_mut();
        message.header.parent = TcHandle::CLSACT;
        // So that a qdisc of another kind in its place is not meant.
        message.attributes.push(TcAttribute::Kind("clsact".into()));
        let outcome = request.execute().await;
        let result = check(outcome, device, || "remove the qdisc clsact".into());
        result.or_else(|error| match error.errno() {
            Some(libc::ENODEV | libc::ENOENT | libc::EINVAL) => Ok(()),
            _ => Err(error),
        })
    }

    /// Puts an address on the device.
    pub async fn add_address(&self, device: &Device, address: IpNet) -> Result<(), RequestError> {
        let add = (self.0.address()).add(device.index, address.addr(), address.prefix_len());
        let outcome = add.replace().execute().await;
        check(outcome, device, || format!("add the address {address}"))
    }

    /// Takes an address off the device. One that is not there any more, or whose device is not, is success.
    pub async fn delete_address(
        &self,
        device: &Device,
        address: IpNet,
    ) -> Result<(), RequestError> {
        let mut message = AddressMessage::default();
        message.header.index = device.index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = match address {
            IpNet::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpNet::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        for attribute in [AddressAttribute::Local, AddressAttribute::Address] {
            message.attributes.push(attribute(address.addr()));
        }
        let outcome = self.0.address().del(message).execute().await;
        let result = check(outcome, device, || format!("delete the address {address}"));
        gone_is_fine(result)
    }

    /// Installs a route out of the device in table main, protocol static, default metric. Somebody else's route of the same
    /// prefix and metric stays, and is an error: it may be the way to the tunnel's far end. The device must be up.
    pub async fn add_route(&self, device: &Device, prefix: IpNet) -> Result<(), RequestError> {
        let attempt = || format!("add the route {prefix}");
        let route = static_route(device, prefix).map_err(|e| refused(attempt, device, e))?;
        let outcome = self.0.route().add(route).execute().await;
        match check(outcome, device, attempt) {
            Err(e) if e.errno() == Some(libc::EEXIST) && self.has_route(device, prefix).await => {
                Ok(())
            }
            other => other,
        }
    }

    /// As [`add_route`](Self::add_route), in the place of a route of that prefix and metric out of another device: at no
    /// moment is there none.
    pub async fn replace_route(&self, device: &Device, prefix: IpNet) -> Result<(), RequestError> {
        let attempt = || format!("replace the route {prefix}");
        let route = static_route(device, prefix).map_err(|e| refused(attempt, device, e))?;
        let outcome = self.0.route().add(route).replace().execute().await;
        check(outcome, device, attempt)
    }

    /// Removes a route that [`add_route`](Self::add_route) installed. One that is not there any more is success.
    pub async fn delete_route(&self, device: &Device, prefix: IpNet) -> Result<(), RequestError> {
        let attempt = || format!("delete the route {prefix}");
        let route = static_route(device, prefix).map_err(|e| refused(attempt, device, e))?;
        let outcome = self.0.route().del(route).execute().await;
        gone_is_fine(check(outcome, device, attempt))
    }

    /// Whether table main has a route of exactly this prefix out of the device.
    pub async fn has_route(&self, device: &Device, prefix: IpNet) -> bool {
        let all = match prefix {
            IpNet::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpNet::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes = self.0.route().get(all).execute();
        while let Ok(Some(route)) = routes.try_next().await {
            let out =
                |a: &RouteAttribute| matches!(a, RouteAttribute::Oif(i) if *i == device.index);
            let to = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
            // The default route has no destination attribute.
            let same = to.map_or(prefix.prefix_len() == 0, |ip| ip == prefix.addr());
            let len = route.header.destination_prefix_length;
            if same && len == prefix.prefix_len() && route.attributes.iter().any(out) {
                return true;
            }
        }
        false
    }

    /// Tells the kernel that a neighbour is in use (NTF_USE), so that it resolves the address, or probes it when stale,
    /// as if it sent a packet there. Not for permanent entries (`Nud::is_static`): they would lose that.
    pub async fn use_neighbour(&self, device: &Device, ip: IpAddr) -> Result<(), RequestError> {
        let add = self.0.neighbours().add(device.index, ip);
        let add = add.state(NeighbourState::None).flags(NeighbourFlags::Use);
        // With NLM_F_EXCL an entry that exists would be an error.
        let outcome = add.replace().execute().await;
        check(outcome, device, || format!("resolve the neighbour {ip}"))
    }
}

/// A route of table main, protocol static, default metric.
fn static_route(device: &Device, prefix: IpNet) -> io::Result<RouteMessage> {
    let prefix = prefix.trunc();
    Ok(RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error.to_string()))?
        .output_interface(device.index)
        // As iproute2: without a gateway the destinations are on the link. IPv6 knows no scopes.
        .scope(match prefix {
            IpNet::V4(_) => RouteScope::Link,
            IpNet::V6(_) => RouteScope::Universe,
        })
        .build())
}

fn refused(attempt: impl FnOnce() -> String, device: &Device, reason: io::Error) -> RequestError {
    RequestError {
        attempt: attempt(),
        device: device.name.clone(),
        reason,
    }
}

/// What was to be removed and is not there is removed; with its device everything on it goes.
fn gone_is_fine(result: Result<(), RequestError>) -> Result<(), RequestError> {
    result.or_else(|error| match error.errno() {
        Some(libc::EADDRNOTAVAIL | libc::ESRCH | libc::ENODEV) => Ok(()),
        _ => Err(error),
    })
}

fn check(
    outcome: Result<(), rtnetlink::Error>,
    device: &Device,
    attempt: impl FnOnce() -> String,
) -> Result<(), RequestError> {
    let reason = match outcome {
        Ok(()) => return Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) => message.to_io(),
        Err(other) => io::Error::other(other),
    };
    Err(RequestError {
        attempt: attempt(),
        device: device.name.clone(),
        reason,
    })
}

/// The family of a device's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A device setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {reason}")]
pub struct SettingError {
    verb: String,
    path: String,
    reason: io::Error,
}

impl SettingError {
    pub fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }
}

/// Where a setting of a device (or of "all") lies, for instance `forwarding` or `rp_filter`.
fn setting_path(family: Family, device: &str, key: &str) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("/proc/sys/net/{family}/conf/{device}/{key}")
}

/// A setting of a device in the calling thread's network namespace (net.ipv4.conf.DEVICE.KEY), without the line's end.
pub fn read_setting(family: Family, device: &str, key: &str) -> Result<String, SettingError> {
    let path = setting_path(family, device, key);
    match plain(device).and_then(|()| fs::read_to_string(&path)) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(reason) => Err(SettingError {
            verb: "read".into(),
            path,
            reason,
        }),
    }
}

/// Writes a setting of a device; see [`read_setting`].
pub fn write_setting(
    family: Family,
    device: &str,
    key: &str,
    value: &str,
) -> Result<(), SettingError> {
    let path = setting_path(family, device, key);
    plain(device)
        .and_then(|()| fs::write(&path, value))
        .map_err(|reason| SettingError {
            verb: format!("write {value} to"),
            path,
            reason,
        })
}

/// A device's name is one component of a path.
fn plain(device: &str) -> io::Result<()> {
    if device.is_empty() || device.contains('/') || device == "." || device == ".." {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "not a device's name",
        ));
    }
    Ok(())
}
