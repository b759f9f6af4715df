//! The router's part in a [`takeover`](super::takeover): what it gives, what it goes on with when that fails, and what it
//! begins with.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    time::Instant,
};

use super::{
    config::XdpMode,
    fastpath::Released,
    mirror::State as Mirror,
    path_mtu::PathMtus,
    router::Router,
    run::RunError,
    slowpath::ServiceTun,
    socket::ControlSocket,
    takeover::{AllNumbers, Giving, Numbers, State, Taken},
    tunnels::TunnelEntry,
};
use crate::xdp::{Steer, TagsInFrame};

/// A router that carries by its slow path alone while another process takes over.
pub(super) struct Parted {
    released: Option<Released>,
}

impl Router {
    /// Gives everything to the process at the other end of `stream`. On success that one carries, and this one has nothing
    /// left to do; on failure [`go_on`](Self::go_on).
    pub(super) fn give(
        &mut self,
        (socket, metrics): (&ControlSocket, Option<BorrowedFd<'_>>),
        stream: UnixStream,
        (parted, mirror): (&mut Option<Parted>, &Mirror),
    ) -> io::Result<()> {
        let fast = self.fast.take();
        if let (Some(fast), Some(steer)) = (&fast, &mut self.steer) {
            fast.let_go(steer);
            // Numbers are one thread's: the worker takes its last ones before the slow path takes the next.
            self.slow.pause()?;
            fast.become_quiet();
        }
        self.publish(mirror);
        self.slow.resume();
        let released = fast.map(|fast| fast.release(&self.slow));
        let parted = parted.insert(Parted { released });
        let shown = self.slow.show()?;
        let names = |id| {
            self.tunnels
                .iter()
                .find(|t| t.id == id)
                .map(|t| t.config.name.clone())
        };
        let released = parted.released.as_ref();
        let generic = |ifindex| released.is_some_and(|r| r.generic.get(&ifindex) == Some(&true));
        let holds: Vec<_> = self.steer.iter().flat_map(Steer::holds).collect();
        let tunnels: Vec<_> = (shown.tuns.iter())
            .filter_map(|(id, tun)| Some((names(*id)?, tun.as_fd())))
            .collect();
        let state = State {
            made_directory: socket.made_directory().map(Into::into),
            claims: self
                .claims
                .held()
                .map(|(device, _)| device.to_owned())
                .collect(),
            tunnels: tunnels.iter().map(|(name, _)| name.clone()).collect(),
            receivers: shown.receivers.iter().map(|(hears, _)| *hears).collect(),
            service: shown.service.as_ref().map(|(name, _)| name.to_string()),
            links: holds
                .iter()
                .map(|(ifindex, _)| (*ifindex, generic(*ifindex)))
                .collect(),
            tags: released.map_or(Vec::new(), |r| {
                r.tags.iter().map(TagsInFrame::to_parts).collect()
            }),
            metrics: metrics.is_some(),
            commanded: self.commanded.clone(),
            ..State::default()
        };
        let mut descriptors = vec![socket.as_fd()];
        descriptors.extend(self.claims.held().map(|(_, claim)| claim));
        descriptors.extend(tunnels.iter().map(|(_, tun)| *tun));
        descriptors.extend(shown.receivers.iter().map(|(_, socket)| socket.as_fd()));
        descriptors.extend(shown.service.iter().map(|(_, tun)| tun.as_fd()));
        descriptors.extend(metrics);
        descriptors.extend(holds.iter().map(|(_, link)| *link));
        let giving = Giving::offer(stream, state, &descriptors)?;
        self.slow.pause()?;
        let kernels = &self.accelerated.entries;
        let numbers =
            (self.tunnels.iter().chain(kernels)).map(|t| (t.config.name.clone(), numbers(t)));
        giving.hand_over(&numbers.collect())
    }

    /// Nobody has taken over: everything as before.
    pub(super) fn go_on(&mut self, parted: Option<Parted>, state: &Mirror) {
        self.slow.resume();
        if let Some(steer) = &mut self.steer {
            // Whoever failed may have put a program of its own there.
            for device in &self.devices {
                steer.detach(device.ifindex);
            }
        }
        if let Some(released) = parted.and_then(|parted| parted.released) {
            self.books.close(released.ended);
        }
        if self.config.router.xdp != XdpMode::Off {
            self.restart_fast_path();
        }
        self.publish(state);
    }

    /// Another process has taken over: this one lets go of everything and removes nothing.
    pub(super) fn leave(self, parted: Option<Parted>) {
        if let Some(released) = parted.and_then(|parted| parted.released) {
            released.tags.into_iter().for_each(TagsInFrame::leave);
        }
        if let Some(steer) = self.steer {
            steer.leave();
        }
    }

    /// The sockets that the slow path goes on with. They keep the other router's filters; the answer is other descriptors of
    /// theirs, to filter them by when our tables are filled.
    pub(super) fn take_receivers(&mut self, taken: &mut Taken) -> Result<Vec<OwnedFd>, RunError> {
        let receivers = std::mem::take(&mut taken.receivers);
        let again: io::Result<_> = receivers.iter().map(OwnedFd::try_clone).collect();
        let receivers = taken.state.receivers.iter().copied().zip(receivers);
        self.slow.take_receivers(receivers);
        again.map_err(RunError::io("take over the slow path's sockets"))
    }

    /// What of the taken is the fast path's, before it starts.
    pub(super) fn take_links(&mut self, taken: &mut Taken) {
        let Some(steer) = &mut self.steer else { return };
        let links = std::mem::take(&mut taken.links);
        for ((ifindex, generic), link) in taken.state.links.iter().zip(links) {
            steer.hand(*ifindex, link, *generic);
        }
    }

    /// From here on this router's slow path carries.
    pub(super) fn take_numbers(&mut self, numbers: &AllNumbers) {
        let kernels = &mut self.accelerated.entries;
        for entry in self.tunnels.iter_mut().chain(kernels) {
            if let Some(numbers) = numbers.get(&entry.config.name) {
                entry.sequences.resume(numbers.sequences);
                add(entry, 0, self.threads, numbers.slow);
                add(entry, 1, self.threads, numbers.fast);
                entry.paths = PathMtus::handed(&numbers.paths, Instant::now());
            }
        }
    }
}

/// The service device that was handed over, if there was one.
pub(super) fn service(taken: Option<&mut Taken>) -> Option<ServiceTun> {
    let taken = taken?;
    let device = taken.service.take()?;
    Some(ServiceTun::handed(taken.state.service.as_deref()?, device))
}

fn numbers(entry: &TunnelEntry) -> Numbers {
    let mut numbers = Numbers {
        sequences: entry.sequences.now(),
        paths: entry.paths.hand(Instant::now()),
        ..Numbers::default()
    };
    for (thread, record) in entry.records().iter().enumerate() {
        let c = &record.state.counters;
        let into = if thread == 0 {
            &mut numbers.slow
        } else {
            &mut numbers.fast
        };
        for (sum, counter) in
            into.iter_mut()
                .zip([&c.rx_packets, &c.rx_bytes, &c.tx_packets, &c.tx_bytes])
        {
            *sum += counter.get();
        }
    }
    numbers
}

/// Before the thread whose record it is writes there.
fn add(entry: &TunnelEntry, thread: u32, threads: u32, numbers: [u64; 4]) {
    let record = entry.record(thread, threads);
    let c = &record.state.counters;
    for (counter, n) in [&c.rx_packets, &c.rx_bytes, &c.tx_packets, &c.tx_bytes]
        .into_iter()
        .zip(numbers)
    {
        counter.add(n);
    }
}
