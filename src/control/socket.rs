//! The control socket: how `greyhound stats` and its like ask the running router.
//!
//! One request per line, one answer per line, both JSON: `{"verb": "stats"}` is answered by `{"ok": …}` or
//! `{"error": "…"}`. What a client can take is bounded (connections, bytes, time), and whatever it sends, it gets an
//! error at most: the router itself never notices.

use std::{
    fs,
    future::Future,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::capture::Wanted;
use futures_util::{StreamExt, stream::FuturesUnordered};
use ipnet::IpNet;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader},
    net::{UnixListener, UnixStream, unix::UCred},
    time::timeout,
};

use super::report::trace::Probe;

/// The longest request, in bytes, with its newline.
const REQUEST_LIMIT: u64 = 64 * 1024;
/// The longest answer that a client takes, in bytes: some ten thousand tunnels.
const ANSWER_LIMIT: u64 = 64 * 1024 * 1024;
/// Connections served at the same time; one more is answered with an error and closed.
const CONNECTION_LIMIT: usize = 32;
/// How long a client may take to finish a request, or to read its answer.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How long the router may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How long it may take to make a change: devices by the thousand, a fast path on others.
const CHANGE_TIME: Duration = Duration::from_secs(120);
const BACKLOG: i32 = 64;

/// What a client can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", deny_unknown_fields)]
pub enum Request {
    /// All counters, or those of one tunnel.
    #[serde(rename = "stats")]
    Stats {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// All counters at a glance.
    #[serde(rename = "top")]
    Top {},
    /// All tunnels, or one.
    #[serde(rename = "tunnel show")]
    TunnelShow {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A page of the forwarding table: routes within a prefix, behind another one.
    #[serde(rename = "route show")]
    RouteShow {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        within: Option<IpNet>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<IpNet>,
    },
    /// What would become of a packet.
    #[serde(rename = "trace")]
    Trace { probe: Probe },
    /// Who answers, and since when.
    #[serde(rename = "status")]
    Status {},
    /// Puts the configuration file as it is now in force.
    #[serde(rename = "reload")]
    Reload {},
    /// A further tunnel, in the words of `ip tunnel add`.
    #[serde(rename = "tunnel add")]
    TunnelAdd { name: String, words: Vec<String> },
    #[serde(rename = "tunnel del")]
    TunnelDel { name: String },
    /// Gives everything to the process that asks: [`takeover`](super::takeover) says how it goes on.
    #[serde(rename = "takeover")]
    Takeover {},
    /// Packets of the fast path: after the answer, the connection carries pcapng.
    #[serde(rename = "capture")]
    Capture(Wanted),
}

impl Request {
    /// Whether it asks for a change; else it only reads.
    pub fn changes(&self) -> bool {
        match self {
            Request::Stats { .. }
            | Request::Top {}
            | Request::TunnelShow { .. }
            | Request::RouteShow { .. }
            | Request::Trace { .. }
            | Request::Status {}
            | Request::Capture(_) => false,
            Request::Reload {} | Request::Takeover {} => true,
            Request::TunnelAdd { .. } | Request::TunnelDel { .. } => true,
        }
    }

    /// Whether the answer stands in the mirror of the kernel.
    pub fn asks_mirror(&self) -> bool {
        matches!(self, Request::RouteShow { .. } | Request::Trace { .. })
    }

    /// What is typed for it.
    pub fn verb(&self) -> &'static str {
        match self {
            Request::Stats { .. } => "stats",
            Request::Top {} => "top",
            Request::TunnelShow { .. } => "tunnel show",
            Request::RouteShow { .. } => "route show",
            Request::Trace { .. } => "trace",
            Request::Status {} => "status",
            Request::Reload {} => "reload",
            Request::TunnelAdd { .. } => "tunnel add",
            Request::TunnelDel { .. } => "tunnel del",
            Request::Takeover {} => "takeover",
            Request::Capture(_) => "capture",
        }
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// As text: a tree of ten thousand tunnels would be eight times as large.
    Ok(Box<RawValue>),
    Error(String),
}

impl Response {
    /// The answer that carries `value`.
    pub fn ok(value: &impl Serialize) -> Response {
        to_raw_value(value).map_or_else(|e| Response::Error(e.to_string()), Response::Ok)
    }
}

/// Why the control socket could not be made; one line.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("another greyhound answers on {0}: stop it first, or set another control path")]
    InUse(PathBuf),
    #[error("{0} exists and is no socket: remove it, or set another control path")]
    NotASocket(PathBuf),
    #[error("cannot make the control socket {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A bound control socket. Dropping it removes it from the file system, with the directory if that was made for it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    made_directory: Option<PathBuf>,
    /// Another process goes on with it.
    left: bool,
}

impl ControlSocket {
    /// Binds `path` with mode 0660 and makes its directory if need be. Replaces the socket of a process that is gone,
    /// never that of one that answers. Needs a tokio reactor.
    pub fn bind(path: &Path) -> Result<ControlSocket, SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let made_directory = make_parent(path).map_err(io)?;
        // Two routers that start at once would each find the other's socket stale: one at a time.
        let parent = fs::File::open(parent(path)).map_err(io)?;
        flock(&parent, FlockOperation::LockExclusive).map_err(|e| io(e.into()))?;
        remove_stale(path)?;
        let listener = listen(path).map_err(io)?;
        Ok(ControlSocket {
            listener: UnixListener::from_std(listener).map_err(io)?,
            path: path.to_owned(),
            made_directory,
            left: false,
        })
    }

    /// A socket that another process has bound, and handed over. It is that one's until [`own`](Self::own).
    pub fn handed(
        socket: OwnedFd,
        path: &Path,
        made_directory: Option<PathBuf>,
    ) -> io::Result<ControlSocket> {
        Ok(ControlSocket {
            listener: UnixListener::from_std(StdListener::from(socket))?,
            path: path.to_owned(),
            made_directory,
            left: true,
        })
    }

    /// From here on it goes with this process.
    pub fn own(&mut self) {
        self.left = false;
    }

    /// Leaves it to the process that has taken it over.
    pub fn leave(mut self) {
        self.left = true;
    }

    pub fn made_directory(&self) -> Option<&Path> {
        self.made_directory.as_deref()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let _ = fs::remove_file(&self.path);
        if let Some(directory) = &self.made_directory {
            // Fails, as it should, when something else has moved in.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes the directory that `path` lies in and returns it, if it was missing.
fn make_parent(path: &Path) -> io::Result<Option<PathBuf>> {
    let directory = parent(path);
    if directory.is_dir() {
        return Ok(None);
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(directory)?;
    Ok(Some(directory.to_owned()))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(e) => Err(io(e)),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

fn listen(path: &Path) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // Linux gives the file the socket's own mode less the umask: so it is at no moment open to more than these.
    fchmod(&socket, Mode::from_raw_mode(0o660))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(StdListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Answers requests until one asks for everything: the connection to whoever is to take over. `handler` is called on this
/// task; while one request waits for its answer others go on. A connection whose request for a capture it has granted goes to
/// `capture`.
pub async fn serve<F: Future<Output = Response>>(
    socket: &ControlSocket,
    handler: impl Fn(Request) -> F,
    capture: impl Fn(Wanted, StdStream),
) -> StdStream {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTION_LIMIT => {
                    connections.push(converse(stream, &handler));
                }
                Ok((stream, _)) => refuse(stream),
                Err(e) => {
                    // Out of file descriptors, most likely: give the others time to end.
                    tracing::warn!("control socket: accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.next() => match ended {
                Some(Parted::Taker(stream)) => return stream,
                Some(Parted::Capture(wanted, stream)) => capture(wanted, stream),
                None => {}
            }
        }
    }
}

/// Tells a client in a few bytes, which fit its empty buffer, that there are too many.
fn refuse(stream: UnixStream) {
    let busy = Response::Error(format!(
        "busy: {CONNECTION_LIMIT} clients are connected already"
    ));
    if let (Ok(line), Ok(mut stream)) = (to_line(&busy), stream.into_std()) {
        let _ = stream.write(&line);
    }
}

/// A connection that is no conversation any more.
enum Parted {
    Taker(StdStream),
    Capture(Wanted, StdStream),
}

async fn converse<F: Future<Output = Response>>(
    mut stream: UnixStream,
    handler: &impl Fn(Request) -> F,
) -> Option<Parted> {
    let peer = stream.peer_cred();
    let (reader, mut writer) = stream.split();
    let mut reader = AsyncBufReader::new(reader);
    loop {
        let line = within_limit(read_request(&mut reader)).await?;
        let complete = line.ends_with(b"\n") || (line.len() as u64) < REQUEST_LIMIT;
        let response = match serde_json::from_slice::<Request>(&line) {
            _ if !complete => Response::Error(format!("request longer than {REQUEST_LIMIT} bytes")),
            Ok(request) => match may_ask(&request, &peer) {
                Ok(()) => match (request.clone(), handler(request).await) {
                    (Request::Takeover {}, Response::Ok(_)) => {
                        return stream.into_std().ok().map(Parted::Taker);
                    }
                    (Request::Capture(wanted), granted @ Response::Ok(_)) => {
                        let answer = to_line(&granted).ok()?;
                        within_limit(async { writer.write_all(&answer).await.ok() }).await?;
                        let stream = stream.into_std().ok()?;
                        return Some(Parted::Capture(wanted, stream));
                    }
                    (_, response) => response,
                },
                Err(why) => Response::Error(why),
            },
            Err(e) => Response::Error(format!("not a request: {e}")),
        };
        let answer = to_line(&response).ok()?;
        let sent = within_limit(async { writer.write_all(&answer).await.ok() }).await;
        if sent.is_none() || !complete {
            return None;
        }
    }
}

/// Everybody who can open the socket may read counters. Changes, and other people's packets, are for root and for the user that the router runs as.
fn may_ask(request: &Request, peer: &io::Result<UCred>) -> Result<(), String> {
    if !request.changes() && !matches!(request, Request::Capture(_)) {
        return Ok(());
    }
    let verb = request.verb();
    match peer {
        Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => {
            let pid = peer.pid().unwrap_or_default();
            tracing::info!("{verb}: asked for by uid {}, pid {pid}", peer.uid());
            Ok(())
        }
        Ok(peer) => Err(format!(
            "{verb}: uid {} may only look: this is for root and the router's own user",
            peer.uid()
        )),
        Err(why) => Err(format!("{verb}: who asks cannot be seen: {why}")),
    }
}

async fn within_limit<T>(work: impl Future<Output = Option<T>>) -> Option<T> {
    timeout(IDLE_LIMIT, work).await.ok().flatten()
}

/// The next line, which may lack its newline at the end of the stream and at the limit; none after the end or an error.
async fn read_request(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = reader
        .take(REQUEST_LIMIT)
        .read_until(b'\n', &mut line)
        .await;
    (read.ok()? > 0).then_some(line)
}

fn to_line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Why a question got no answer; one line.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no greyhound answers on {0}: is `greyhound run` running?")]
    NotRunning(PathBuf),
    #[error("permission denied on {0}: run as root, or as a member of the socket's group")]
    PermissionDenied(PathBuf),
    #[error("the greyhound on {path} did not answer: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the greyhound on {path} sent what this version cannot read: {source}")]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// What the router itself says.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the running router.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<StdStream>,
    path: PathBuf,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = StdStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied(path.to_owned()),
            _ => ClientError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        let client = Client {
            stream: BufReader::new(stream),
            path: path.to_owned(),
        };
        let stream = client.stream.get_ref();
        stream
            .set_read_timeout(Some(ANSWER_TIME))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIME)))
            .map_err(|source| client.failed(source))?;
        Ok(client)
    }

    /// Sends `request` and waits for its answer.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        if request.changes() {
            let patience = (self.stream.get_ref()).set_read_timeout(Some(CHANGE_TIME));
            patience.map_err(|source| self.failed(source))?;
        }
        let line = self.exchange(request).map_err(|e| self.failed(e))?;
        let malformed = |source| ClientError::Malformed {
            path: self.path.clone(),
            source,
        };
        match serde_json::from_slice(&line).map_err(malformed)? {
            Response::Ok(value) => serde_json::from_str(value.get()).map_err(malformed),
            Response::Error(why) => Err(ClientError::Refused(why)),
        }
    }

    /// The connection, where the last answer said that something else follows: it has no time limit.
    pub fn into_stream(self) -> Result<BufReader<StdStream>, ClientError> {
        let set = (self.stream.get_ref()).set_read_timeout(None);
        set.map_err(|source| self.failed(source))?;
        Ok(self.stream)
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        // The router may have refused the connection and closed it: its word on that can still be read.
        let sent = self.stream.get_mut().write_all(&to_line(request)?);
        let mut line = Vec::new();
        (&mut self.stream)
            .take(ANSWER_LIMIT)
            .read_until(b'\n', &mut line)?;
        if line.ends_with(b"\n") {
            return Ok(line);
        }
        sent?;
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"))
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
            }
            _ => source,
        };
        ClientError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
