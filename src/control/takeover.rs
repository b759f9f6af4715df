//! A planned restart: a new process takes over from a running one, and no packet is lost that the slow path can carry.
//!
//! The running router first leaves everything to its slow path. It gives the new one its tunnel devices, its sockets and its
//! hold on the underlay and overlay devices (descriptors over the control socket), and goes on carrying. Once the new one has
//! said that it is ready, the old one's slow path stops and tells the numbers; what comes meanwhile waits in the devices and
//! sockets that both have. Until the new one has said that all is done, the old one can go on as if nothing had been asked.
//!
//! ```text
//!   new                                old
//!    │ {"verb": "takeover"}  ────────►  │  fast path off: the slow path carries
//!    │  ◄──────────  State, descriptors │
//!    │  (its fast path comes up)        │
//!    │ READY  ──────────────────────►   │  slow path stops
//!    │  ◄──────────────────── Numbers   │
//!    │  (its slow path carries)         │
//!    │ DONE  ───────────────────────►   │  ends, and removes nothing
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{claim::Claims, descriptors, path_mtu::Handed, socket::ControlSocket};

/// How long each side waits for the other's next word.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest message, in bytes: some ten thousand tunnels.
const MESSAGE_LIMIT: usize = 64 << 20;
/// What changes when the messages do: routers of different versions can take over from each other only if this is the same.
const PROTOCOL: u32 = 2;
const READY: u8 = b'r';
const DONE: u8 = b'd';

/// Why a takeover did not come about; one line. The running router goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("no greyhound answers on {0}: start without --takeover")]
    NotRunning(PathBuf),
    #[error("the running greyhound refuses to be taken over: {0}")]
    Refused(String),
    #[error("takeover: {what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "the running greyhound hands over by protocol {0}, this one by {PROTOCOL}: stop it and start this one"
    )]
    Protocol(u32),
}

impl TakeoverError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| TakeoverError::Io { what, source }
    }
}

/// What is handed over. The descriptors come behind it, in the order of the fields.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub protocol: u32,
    /// The control socket's directory was made for it.
    pub made_directory: Option<PathBuf>,
    /// Devices that are claimed.
    pub claims: Vec<String>,
    /// Tunnels by name, each with its device.
    pub tunnels: Vec<String>,
    /// The slow path's sockets: whether over IPv6, and the protocol.
    pub receivers: Vec<(bool, u8)>,
    /// The service device's name.
    pub service: Option<String>,
    /// Devices with the steering program: index, and whether generically.
    pub links: Vec<(u32, bool)>,
    /// Devices on which VLAN tags were told to stay in the frame, and the features to switch on again in the end.
    pub tags: Vec<(String, Vec<usize>)>,
    /// Monitoring systems are answered: the socket comes along.
    #[serde(default)]
    pub metrics: bool,
    /// Tunnels that were added by words.
    pub commanded: BTreeMap<String, Vec<String>>,
}

impl State {
    /// The control socket, then one for each claim, tunnel, receiver, service device, for metrics, and for each link.
    fn descriptors(&self) -> usize {
        let service = usize::from(self.service.is_some());
        1 + self.claims.len()
            + self.tunnels.len()
            + self.receivers.len()
            + service
            + usize::from(self.metrics)
            + self.links.len()
    }
}

/// What a tunnel has counted and learned so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// The next sequence number to send, and the next expected.
    pub sequences: (u32, u32),
    /// Received and sent, packets and bytes each, on the slow path and on the fast one.
    pub slow: [u64; 4],
    pub fast: [u64; 4],
    /// What routers said of its paths' MTU.
    #[serde(default)]
    pub paths: Vec<Handed>,
}

/// By the tunnels' names.
pub type AllNumbers = BTreeMap<String, Numbers>;

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    stream.write_all(&(bytes.len() as u32).to_be_bytes())?;
    stream.write_all(&bytes)
}

fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MESSAGE_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn patient(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// The running router's side of the conversation.
pub struct Giving(UnixStream);

impl Giving {
    /// Offers everything to whoever asked, and waits until it is ready to carry.
    pub fn offer(
        stream: UnixStream,
        mut state: State,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        patient(&stream)?;
        state.protocol = PROTOCOL;
        debug_assert_eq!(descriptors.len(), state.descriptors());
        send(&stream, &state)?;
        descriptors::send(&stream, descriptors)?;
        let giving = Self(stream);
        giving.expect(READY)?;
        Ok(giving)
    }

    /// The slow path has stopped, with these numbers: from here on the other one carries. Returns when it does.
    pub fn hand_over(self, numbers: &AllNumbers) -> io::Result<()> {
        send(&self.0, numbers)?;
        self.expect(DONE)
    }

    fn expect(&self, word: u8) -> io::Result<()> {
        let mut got = [0];
        (&self.0).read_exact(&mut got)?;
        match got[0] == word {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What a new router has been given. Dropping it without [`done`](Self::done) gives everything back.
pub struct Taken {
    stream: UnixStream,
    pub state: State,
    control: Option<OwnedFd>,
    claims: Vec<OwnedFd>,
    pub tunnels: BTreeMap<String, OwnedFd>,
    pub receivers: Vec<OwnedFd>,
    pub service: Option<OwnedFd>,
    pub metrics: Option<OwnedFd>,
    pub links: Vec<OwnedFd>,
}

impl Taken {
    /// Asks the router that answers on `control` for everything. Its slow path carries until [`begin`](Self::begin).
    pub fn ask(control: &Path) -> Result<Taken, TakeoverError> {
        let mut stream = UnixStream::connect(control).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                TakeoverError::NotRunning(control.to_owned())
            }
            _ => TakeoverError::io("cannot ask")(e),
        })?;
        let failed = TakeoverError::io("the running greyhound hands nothing over");
        patient(&stream).map_err(&failed)?;
        stream
            .write_all(b"{\"verb\": \"takeover\"}\n")
            .map_err(&failed)?;
        // A refusal is a line of JSON, a state begins with its length: less than 16 MiB, or the line's brace.
        let mut first = [0; 4];
        stream.read_exact(&mut first).map_err(&failed)?;
        if first[0] == b'{' {
            return Err(TakeoverError::Refused(refusal(&first, &stream)));
        }
        let mut bytes = vec![0; u32::from_be_bytes(first) as usize];
        stream.read_exact(&mut bytes).map_err(&failed)?;
        let state: State = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
        if state.protocol != PROTOCOL {
            return Err(TakeoverError::Protocol(state.protocol));
        }
        let all = descriptors::receive(&stream, state.descriptors()).map_err(&failed)?;
        Taken::sorted(stream, state, all).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    fn sorted(stream: UnixStream, state: State, all: Vec<OwnedFd>) -> Option<Taken> {
        let mut all = all.into_iter();
        let control = all.next()?;
        let claims = all.by_ref().take(state.claims.len()).collect();
        let tunnels = state.tunnels.iter().cloned();
        let tunnels = tunnels
            .zip(all.by_ref().take(state.tunnels.len()))
            .collect();
        let receivers = all.by_ref().take(state.receivers.len()).collect();
        let service = state.service.as_ref().and_then(|_| all.next());
        let metrics = if state.metrics { all.next() } else { None };
        Some(Taken {
            stream,
            control: Some(control),
            claims,
            tunnels,
            receivers,
            service,
            metrics,
            links: all.collect(),
            state,
        })
    }

    /// The control socket, still the other one's. To be asked for once.
    pub fn control(&mut self, path: &Path) -> Result<ControlSocket, TakeoverError> {
        let failed = TakeoverError::io("the control socket does not come along");
        let gone = || failed(io::ErrorKind::NotFound.into());
        let control = self.control.take().ok_or_else(gone)?;
        ControlSocket::handed(control, path, self.state.made_directory.clone()).map_err(&failed)
    }

    /// The claims on devices. To be asked for once.
    pub fn claims(&mut self) -> Claims {
        Claims::handed(self.state.claims.clone(), std::mem::take(&mut self.claims))
    }

    /// From here on this router's slow path carries.
    pub fn begin(&self) -> Result<AllNumbers, TakeoverError> {
        let failed = TakeoverError::io("the running greyhound does not let go");
        (&self.stream).write_all(&[READY]).map_err(&failed)?;
        receive(&self.stream).map_err(&failed)
    }

    /// All is well: the other one ends.
    pub fn done(self) -> Result<(), TakeoverError> {
        let failed = TakeoverError::io("the running greyhound is gone");
        (&self.stream).write_all(&[DONE]).map_err(failed)
    }
}

/// What a router says that does not hand over.
fn refusal(first: &[u8], mut stream: &UnixStream) -> String {
    let mut line = first.to_vec();
    let mut byte = [0];
    while !line.ends_with(b"\n")
        && line.len() < 4096
        && stream.read(&mut byte).is_ok_and(|n| n == 1)
    {
        line.push(byte[0]);
    }
    match serde_json::from_slice(&line) {
        Ok(super::socket::Response::Error(why)) => why,
        _ => "it does not know how".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd, os::unix::net::UnixListener, thread};

    fn state() -> State {
        State {
            claims: vec!["eth0".into()],
            tunnels: vec!["gre1".into(), "gre2".into()],
            receivers: vec![(false, 47)],
            links: vec![(3, true)],
            metrics: true,
            ..State::default()
        }
    }

    #[test]
    fn everything_arrives_in_its_place_and_the_giver_ends_last() {
        let path = std::env::temp_dir().join(format!("greyhound-take-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let giver = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = [0; 21];
            (&stream).read_exact(&mut line).unwrap();
            assert_eq!(&line, b"{\"verb\": \"takeover\"}\n");
            let null = File::open("/dev/null").unwrap();
            let giving = Giving::offer(stream, state(), &[null.as_fd(); 7]).unwrap();
            let numbers = Numbers {
                sequences: (7, 9),
                ..Numbers::default()
            };
            giving.hand_over(&AllNumbers::from([("gre1".to_owned(), numbers)]))
        });
        let taken = Taken::ask(&path).unwrap();
        assert_eq!(taken.tunnels.keys().collect::<Vec<_>>(), ["gre1", "gre2"]);
        assert_eq!(
            (taken.claims.len(), taken.receivers.len(), taken.links.len()),
            (1, 1, 1)
        );
        assert!(taken.service.is_none() && taken.metrics.is_some());
        assert_eq!(taken.begin().unwrap()["gre1"].sequences, (7, 9));
        assert!(!giver.is_finished());
        taken.done().unwrap();
        giver.join().unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_taker_that_goes_away_leaves_everything_with_the_giver() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        let null = File::open("/dev/null").unwrap();
        assert!(Giving::offer(far, state(), &[null.as_fd(); 7]).is_err());
    }

    #[test]
    fn a_refusal_is_passed_on() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"ror\": \"not now\"}\n").unwrap();
        assert_eq!(refusal(b"{\"er", &far), "not now");
    }
}
