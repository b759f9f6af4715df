//! One router per device: a second one is refused, with the name of the first.
//!
//! A claim is a listening socket in the abstract namespace of unix(7), which is the network namespace's own: it goes with
//! its process however that ends, needs no file, and its owner can be asked for by whoever finds it taken.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net,
    },
};

use rustix::net::sockopt::socket_peercred;

/// Why a device cannot be had; one line.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error(
        "{device} is another greyhound's (pid {pid}) already: stop that one, or leave the device out"
    )]
    Taken { device: String, pid: i32 },
    #[error("cannot claim {device}: {source}")]
    Io { device: String, source: io::Error },
}

/// The devices that are this router's, until it is dropped.
#[derive(Debug, Default)]
pub struct Claims(Vec<(String, net::UnixListener)>);

impl Claims {
    /// Claims these devices in the calling thread's network namespace, and gives up all others; on failure nothing changes.
    pub fn set(&mut self, devices: &[&str]) -> Result<(), ClaimError> {
        let mut new = Vec::new();
        for device in devices {
            if !self.0.iter().any(|(held, _)| held == device) {
                new.push(((*device).to_owned(), claim(device)?));
            }
        }
        self.0.retain(|(held, _)| devices.contains(&held.as_str()));
        self.0.extend(new);
        Ok(())
    }
}

/// Devices with their claims: for another process to go on with, or from one.
impl Claims {
    pub fn held(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        (self.0.iter()).map(|(device, claim)| (device.as_str(), claim.as_fd()))
    }

    pub fn handed(devices: Vec<String>, claims: Vec<OwnedFd>) -> Self {
        let claims = claims.into_iter().map(net::UnixListener::from);
        Self(devices.into_iter().zip(claims).collect())
    }
}

fn claim(device: &str) -> Result<net::UnixListener, ClaimError> {
    let failed = |source| ClaimError::Io {
        device: device.to_owned(),
        source,
    };
    let address =
        net::SocketAddr::from_abstract_name(format!("greyhound/{device}")).map_err(failed)?;
    match net::UnixListener::bind_addr(&address) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            let owner = net::UnixStream::connect_addr(&address).map_err(failed)?;
            let owner = socket_peercred(&owner).map_err(|e| failed(e.into()))?;
            Err(ClaimError::Taken {
                device: device.to_owned(),
                pid: owner.pid.as_raw_nonzero().get(),
            })
        }
        other => other.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_claimed_once_and_given_up_with_its_router() {
        let name = format!("gh{}", std::process::id());
        let (one, two) = (format!("{name}a"), format!("{name}b"));
        let mut first = Claims::default();
        first.set(&[&one, &two]).unwrap();
        let mut second = Claims::default();
        let refused = second.set(&[&two]).unwrap_err().to_string();
        let pid = std::process::id();
        let expected = format!("{two} is another greyhound's (pid {pid}) already");
        assert!(refused.starts_with(&expected), "{refused}");
        first.set(&[&one]).unwrap();
        second.set(&[&two]).unwrap();
        assert!(first.set(&[&one, &two]).is_err());
        drop(second);
        first.set(&[&one, &two]).unwrap();
    }
}
