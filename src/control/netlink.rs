//! Requests that change the kernel's state: devices, addresses, routes, neighbours and device settings.
//!
//! Each is idempotent: what is already so is success. Each error is one line that names what was attempted, on which
//! device, and the kernel's reason. Reading is the mirror's job.

use std::{
    collections::HashSet,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
};

use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut};
use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        link::LinkMessage,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
        tc::{TcAttribute, TcHandle},
    },
};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::{bulk, request::KernelRequest};

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

    /// Carries out requests, many in one system call, and in their order; the outcome of each.
    pub async fn all(&self, requests: &[KernelRequest]) -> Vec<Result<(), RequestError>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for group in requests.chunk_by(|a, b| !takes_several(a) && !takes_several(b)) {
            match group {
                [KernelRequest::RemoveClsact(device)] => {
                    outcomes.push(self.remove_clsact(device).await);
                }
                group => outcomes.extend(self.together(group).await),
            }
        }
        outcomes
    }

    /// Carries out one request.
    pub async fn one(&self, request: KernelRequest) -> Result<(), RequestError> {
        let outcome = self.all(std::slice::from_ref(&request)).await;
        outcome.into_iter().collect()
    }

    async fn together(&self, requests: &[KernelRequest]) -> Vec<Result<(), RequestError>> {
        let mut outcomes = match self.messages(requests) {
            Ok(messages) => bulk::ask(&messages),
            Err(error) => Err(error),
        }
        .unwrap_or_else(|error| {
            let same = |_| Err(io::Error::new(error.kind(), error.to_string()));
            requests.iter().map(same).collect()
        });
        let taken = |outcome: &io::Result<()>| matches!(outcome, Err(error) if error.raw_os_error() == Some(libc::EEXIST));
        // The route that is there may be the one that was asked for.
        if outcomes.iter().any(taken) {
            let mut known = KnownRoutes::default();
            for (outcome, request) in outcomes.iter_mut().zip(requests) {
                if let (KernelRequest::AddRoute(device, prefix), true) = (request, taken(outcome)) {
                    if known.has(self, device, *prefix).await {
                        *outcome = Ok(());
                    }
                }
            }
        }
        let named = |(outcome, request): (io::Result<()>, &KernelRequest)| {
            outcome.or_else(|reason| refused(request, reason))
        };
        outcomes.into_iter().zip(requests).map(named).collect()
    }

    fn messages(&self, requests: &[KernelRequest]) -> io::Result<Vec<bulk::Message>> {
        let messages = requests.iter().map(KernelRequest::message);
        messages.filter_map(io::Result::transpose).collect()
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
        let outcome = match request.execute().await {
            Ok(()) => Ok(()),
            Err(rtnetlink::Error::NetlinkError(message)) => Err(message.to_io()),
            Err(other) => Err(io::Error::other(other)),
        };
        outcome.or_else(|reason| refused(&KernelRequest::RemoveClsact(device.clone()), reason))
    }

    /// Whether table main has a route of exactly this prefix out of the device.
    pub async fn has_route(&self, device: &Device, prefix: IpNet) -> bool {
        KnownRoutes::default().has(self, device, prefix).await
    }

    /// Every route of a family, in every table.
    pub(super) fn routes(&self, v6: bool) -> impl Stream<Item = RouteMessage> + use<> {
        let all = match v6 {
            false => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            true => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes = self.0.route().get(all).execute();
        routes.filter_map(|route| std::future::ready(route.ok()))
    }

    /// Every link.
    pub(super) fn links(&self) -> impl Stream<Item = LinkMessage> + use<> {
        let links = self.0.link().get().execute();
        links.filter_map(|link| std::future::ready(link.ok()))
    }
}

/// The device that a route leads out of, if there is one only.
pub(super) fn device_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The routes of table main with a device, as (device, prefix): read once, and only if somebody asks.
#[derive(Default)]
pub(super) struct KnownRoutes {
    read: [bool; 2],
    routes: HashSet<(u32, IpNet)>,
}

impl KnownRoutes {
    pub async fn has(&mut self, handle: &Handle, device: &Device, prefix: IpNet) -> bool {
        let v6 = prefix.addr().is_ipv6();
        if !std::mem::replace(&mut self.read[usize::from(v6)], true) {
            let mut routes = pin!(handle.routes(v6));
            while let Some(route) = routes.next().await {
                if route.header.table == RouteHeader::RT_TABLE_MAIN {
                    let net = prefix_of(&route, v6);
                    self.routes.extend(device_of(&route).zip(net));
                }
            }
        }
        self.routes.contains(&(device.index, prefix.trunc()))
    }
}

fn prefix_of(route: &RouteMessage, v6: bool) -> Option<IpNet> {
    let to = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    // The default route has no destination attribute.
    let to = to.unwrap_or(match v6 {
        false => Ipv4Addr::UNSPECIFIED.into(),
        true => Ipv6Addr::UNSPECIFIED.into(),
    });
    IpNet::new(to, route.header.destination_prefix_length).ok()
}

fn takes_several(request: &KernelRequest) -> bool {
    matches!(request, KernelRequest::RemoveClsact(_))
}

fn refused(request: &KernelRequest, reason: io::Error) -> Result<(), RequestError> {
    if reason
        .raw_os_error()
        .is_some_and(|errno| request.is_so_already(errno))
    {
        return Ok(());
    }
    Err(RequestError {
        attempt: request.attempt(),
        device: request.device().name.clone(),
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
