//! What the router makes of the errors that the slow path heard about outer packets (mtu-3, mtu-4).

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    compile::{OuterHop, TunnelStatus},
    mirror::{Parts, State},
    path_mtu::{FirstHop, Rules, Unreachable},
    request::KernelRequest,
    router::Router,
    slowpath::{OuterError, Path},
};
use crate::{packet::icmp, tunnel::TunnelId};

/// Errors are acted upon at once, and then not again for so long: each time every table is compiled.
const REST: Duration = Duration::from_millis(100);
/// Taken at a time.
const BUNCH: usize = 256;

/// The errors that the slow path heard.
pub(super) struct Reports {
    queue: Option<mpsc::Receiver<OuterError>>,
    rested: tokio::time::Instant,
}

impl Reports {
    pub fn of(router: &mut Router) -> Self {
        Self {
            queue: router.slow.take_reports(),
            rested: tokio::time::Instant::now(),
        }
    }

    /// The next ones. Nothing is lost when it is not waited for.
    pub async fn next(&mut self) -> Vec<OuterError> {
        tokio::time::sleep_until(self.rested).await;
        let mut errors = Vec::new();
        let heard = match &mut self.queue {
            Some(queue) => queue.recv_many(&mut errors, BUNCH).await,
            None => 0,
        };
        if heard == 0 {
            // The slow path is gone.
            std::future::pending::<()>().await;
        }
        self.rested = tokio::time::Instant::now() + REST;
        errors
    }
}

impl OuterHop {
    fn first(&self) -> FirstHop {
        (self.ifindex, self.neighbour)
    }

    /// What the route carries, where it is the one that packets take.
    fn known_mtu(&self) -> Option<u16> {
        (!self.kernel_only).then_some(self.route_mtu)
    }
}

impl Router {
    /// What the slow path is told of every way of every tunnel.
    pub(super) fn paths(&self, statuses: &[TunnelStatus]) -> HashMap<(TunnelId, IpAddr), Path> {
        let mut paths = HashMap::new();
        for (entry, status) in self.tunnels.iter().zip(statuses) {
            for (remote, hop) in status.ways(entry.config.remote) {
                let route_mtu = hop.and_then(|hop| hop.known_mtu()).unwrap_or(u16::MAX);
                let learned = entry.paths.get(remote).unwrap_or(u16::MAX);
                let path = Path {
                    mtu: learned.min(route_mtu),
                    route_mtu,
                };
                paths.insert((entry.id, remote), path);
            }
        }
        paths
    }

    /// Forgets path MTUs that are too old, or that were learned of another way than there is now. Whether there was any.
    pub(super) fn forget_paths(&mut self) -> bool {
        let now = Instant::now();
        let mut forgotten = false;
        let kernels = &mut self.accelerated;
        let kernels = kernels.entries.iter_mut().zip(&kernels.statuses);
        let tunnels = self.tunnels.iter_mut().zip(&self.statuses);
        for (entry, status) in tunnels.chain(kernels) {
            let own = entry.config.remote;
            let first_hop = |remote| {
                let mut ways = status.ways(own);
                let (_, hop) = ways.find(|(other, _)| *other == remote)?;
                hop.map(|hop| hop.first())
            };
            if entry.paths.prune(now, first_hop) {
                tracing::info!("tunnel {}: a path MTU is forgotten", entry.config.name);
                forgotten = true;
            }
        }
        forgotten
    }

    /// Takes to heart what routers said about outer packets.
    pub(super) fn take_to_heart(
        &mut self,
        state: &State,
        errors: &[OuterError],
    ) -> Vec<KernelRequest> {
        let mut news = false;
        for error in errors {
            news |= self.learn(error);
        }
        if news {
            // To the compiler it is as if a device had become narrow.
            self.publish_news(state, Parts::LINKS);
        }
        Vec::new()
    }

    /// Whether packets have to be smaller now.
    fn learn(&mut self, error: &OuterError) -> bool {
        let (kernels, now) = (&mut self.accelerated, Instant::now());
        let kernels = kernels.entries.iter_mut().zip(&kernels.statuses);
        let mut all = self.tunnels.iter_mut().zip(&self.statuses).chain(kernels);
        let Some((entry, status)) = all.find(|(t, _)| t.id == error.tunnel) else {
            return false;
        };
        let remote = error.remote;
        let (name, from) = (&entry.config.name, error.from);
        match error.kind {
            icmp::Kind::TooBig(said) => {
                let mut ways = status.ways(entry.config.remote);
                let Some((_, Some(hop))) = ways.find(|(other, _)| *other == remote) else {
                    return false;
                };
                let way = (hop.known_mtu().unwrap_or(u16::MAX), hop.first());
                let news = entry.paths.learn(remote, said, way, Rules::of(remote), now);
                if let (true, Some(mtu)) = (news, entry.paths.get(remote)) {
                    tracing::info!("tunnel {name}: path MTU to {remote} is {mtu}, says {from}");
                }
                news
            }
            icmp::Kind::Unreachable(code) => {
                let received = entry.received();
                let said = Unreachable {
                    remote,
                    from,
                    code,
                    at: now,
                    received,
                };
                let before = entry.unreachable.replace(said);
                if !before.is_some_and(|before| before.holds(received, now)) {
                    let word = said.word();
                    tracing::warn!("tunnel {name}: {remote} is unreachable ({word}), says {from}");
                }
                false
            }
            icmp::Kind::TimeExceeded | icmp::Kind::ParameterProblem => false,
        }
    }
}
