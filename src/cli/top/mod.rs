//! `greyhound top`: the running router, live, in a terminal.
//!
//! [`feed`] asks the router each second, [`model`] makes rates of what it says, [`view`] is what the keys change, and
//! [`draw`] makes the picture of both. The terminal is given back as it was, also at a panic or a signal.

mod draw;
mod feed;
mod look;
mod model;
mod view;

use std::{
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::bail;
use crossbeam_channel::TryRecvError;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::control::report::TunnelReport;
use feed::{Feed, News};
use look::Look;
use model::Model;
use view::{Act, Screen, View};

/// How long a key may wait for the numbers to be looked at, and a signal for either.
const GLANCE: Duration = Duration::from_millis(100);

/// Shows the router that answers on `socket` until `q` or a signal.
pub fn run(socket: &Path) -> anyhow::Result<ExitCode> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; `greyhound stats --watch` writes to anything");
    }
    let signal = Arc::<AtomicUsize>::default();
    for number in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
    }
    let feed = Feed::start(socket)?;
    let mut top = Top {
        feed,
        signal,
        model: Model::default(),
        view: View::default(),
        opened: None,
        look: Look::of_environment(),
    };
    // With a hook that gives the terminal back when something panics.
    let mut terminal = ratatui::try_init()?;
    let ended = top.follow(&mut terminal);
    ratatui::restore();
    Ok(match ended? {
        // As a shell has it of who ends by a signal.
        Some(signal) => ExitCode::from(128 + signal as u8),
        None => ExitCode::SUCCESS,
    })
}

struct Top {
    feed: Feed,
    /// The signal that says that it is over; 0: none yet.
    signal: Arc<AtomicUsize>,
    model: Model,
    view: View,
    opened: Option<TunnelReport>,
    look: Look,
}

impl Top {
    /// Until it is over; the signal that said so.
    fn follow(&mut self, terminal: &mut DefaultTerminal) -> io::Result<Option<usize>> {
        let mut changed = true;
        loop {
            match self.signal.load(Relaxed) {
                0 => {}
                signal => return Ok(Some(signal)),
            }
            if changed {
                let shown = (&mut self.view, self.opened.as_ref());
                terminal.draw(|frame| draw::draw(frame, &self.model, shown, self.look))?;
            }
            changed = self.take_news()?;
            if !event::poll(GLANCE)? {
                continue;
            }
            changed = true;
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    match self.view.key(key, &self.model) {
                        Act::Nothing => {}
                        Act::Quit => return Ok(None),
                        Act::Suspend => suspend(terminal)?,
                        Act::Want(tunnel) => {
                            self.opened = None;
                            self.feed.want(tunnel);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether there is anything new to be seen.
    fn take_news(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            let news = match self.feed.news.try_recv() {
                Ok(news) => news,
                Err(TryRecvError::Empty) => return Ok(any),
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("nobody asks the router any more"));
                }
            };
            any = true;
            match news {
                News::Lost(why) => self.model.lose(why),
                _ if self.view.paused => {}
                News::Glance(glance, at) => self.model.take(*glance, at),
                News::Tunnel(report) if matches!(self.view.screen, Screen::Tunnel(_)) => {
                    self.opened = report.map(|report| *report);
                }
                News::Tunnel(_) => {}
            }
        }
    }
}

/// Gives the terminal to the shell until `fg`.
fn suspend(terminal: &mut DefaultTerminal) -> io::Result<()> {
    terminal.show_cursor()?;
    ratatui::restore();
    kill_process(getpid(), Signal::TSTP)?;
    *terminal = ratatui::try_init()?;
    terminal.clear()
}
