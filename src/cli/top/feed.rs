//! The conversation with the router, on a thread of its own: a router that hangs must not freeze the keys.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::control::{
    report::{TunnelReport, glance::Glance},
    socket::{Client, ClientError, Request},
};

/// How often the router is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the router said.
#[derive(Debug)]
pub enum News {
    /// Its counters, as of this moment.
    Glance(Box<Glance>, Instant),
    /// The tunnel that was asked for; none where it is gone.
    Tunnel(Option<Box<TunnelReport>>),
    /// Nothing: why.
    Lost(String),
}

/// The view's end.
pub struct Feed {
    pub news: Receiver<News>,
    wanted: Sender<Option<String>>,
}

impl Feed {
    pub fn start(socket: &Path) -> std::io::Result<Self> {
        // The view takes everything at once; a view that stands still is not written to for ever.
        let (news_tx, news) = bounded(4);
        let (wanted, wanted_rx) = unbounded();
        let asker = Asker {
            socket: socket.to_owned(),
            news: news_tx,
            wanted: wanted_rx,
            tunnel: None,
        };
        thread::Builder::new()
            .name("top-feed".to_owned())
            .spawn(move || asker.run())?;
        Ok(Self { news, wanted })
    }

    /// Asks for one tunnel in full from now on, or no longer.
    pub fn want(&self, tunnel: Option<String>) {
        // The thread lives as long as the view listens.
        let _ = self.wanted.send(tunnel);
    }
}

struct Asker {
    socket: PathBuf,
    news: Sender<News>,
    wanted: Receiver<Option<String>>,
    tunnel: Option<String>,
}

impl Asker {
    /// Until nobody listens any more.
    fn run(mut self) {
        let mut client = None;
        loop {
            let next = Instant::now() + INTERVAL;
            if let Err(why) = self.ask(&mut client) {
                client = None;
                if self.news.send(News::Lost(why.to_string())).is_err() {
                    return;
                }
            }
            match self.wanted.recv_deadline(next) {
                Ok(tunnel) => self.tunnel = tunnel,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn ask(&self, client: &mut Option<Client>) -> Result<(), ClientError> {
        let client = match client {
            Some(client) => client,
            None => client.insert(Client::connect(&self.socket)?),
        };
        let glance: Glance = client.ask(&Request::Top {})?;
        let _ = (self.news).send(News::Glance(Box::new(glance), Instant::now()));
        if let Some(name) = &self.tunnel {
            let request = Request::TunnelShow {
                name: Some(name.clone()),
            };
            let found = match client.ask::<Vec<TunnelReport>>(&request) {
                Ok(tunnels) => tunnels.into_iter().next().map(Box::new),
                Err(ClientError::Refused(_)) => None,
                Err(why) => return Err(why),
            };
            let _ = self.news.send(News::Tunnel(found));
        }
        Ok(())
    }
}
