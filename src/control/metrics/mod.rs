//! What a monitoring system asks by HTTP: `/metrics` (Prometheus), `/healthz` and `/readyz`.
//!
//! A thread of its own talks to clients ([`http`]), so that slow or hostile ones cost the router nothing. The router's task
//! answers it with [`Statistics`], at most twice a second, and says each second how it is ([`Health`]); if it no longer
//! does, `/healthz` says so. Counters are read where they are: the packet path does not notice.

pub mod exposition;
pub mod families;
mod health;
mod http;

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{report::Statistics, router::Router};
use health::Health;

/// How often the router's task says that it turns.
const BEAT: Duration = Duration::from_secs(1);

/// Why nobody can be answered; one line.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("router.metrics: cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("router.metrics: cannot start a thread: {0}")]
    Thread(io::Error),
}

/// The place where clients are listened to.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Takes the address. Before privileges are given up: ports below 1024 need one.
    pub fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        TcpListener::bind(address)
            .map(Self)
            .map_err(|source| MetricsError::Listen { address, source })
    }

    /// The one that another process has bound to this address, and handed over; where it is another address's, as
    /// [`bind`](Self::bind).
    pub fn handed(address: SocketAddr, socket: OwnedFd) -> Result<Self, MetricsError> {
        let listener = TcpListener::from(socket);
        match listener.local_addr() {
            Ok(theirs) if theirs == address => Ok(Self(listener)),
            _ => Self::bind(address),
        }
    }

    /// Begins to answer; [`Endpoint::attend`] has to run for more than `/healthz`.
    pub fn open(self) -> Result<Endpoint, MetricsError> {
        let (questions, asked) = mpsc::channel(1);
        let (accepts, may_accept) = watch::channel(true);
        let health = Arc::<Health>::default();
        let listener = self.0.try_clone().map_err(MetricsError::Thread)?;
        let server = http::Server {
            questions,
            health: health.clone(),
        };
        thread::Builder::new()
            .name("greyhound-http".to_owned())
            .spawn(move || server.run(listener, may_accept))
            .map_err(MetricsError::Thread)?;
        Ok(Endpoint {
            listener: self.0,
            asked,
            health,
            accepts,
        })
    }
}

/// A question for the router's task, and where the answer goes.
type Question = oneshot::Sender<Statistics>;

/// The router's end. The thread ends with the process.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    asked: mpsc::Receiver<Question>,
    health: Arc<Health>,
    accepts: watch::Sender<bool>,
}

impl Endpoint {
    /// Answers for the router, for ever.
    pub(super) async fn attend(&mut self, router: &RefCell<Router>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => self.health.say(router.borrow().problems()),
                Some(question) = self.asked.recv() => {
                    let statistics = router.borrow().statistics();
                    // Whoever asked may have gone.
                    let _ = question.send(statistics);
                }
            }
        }
    }

    /// Whether clients are let in, or wait at the door for the process that takes over.
    pub fn accept(&self, yes: bool) {
        self.accepts.send_replace(yes);
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
