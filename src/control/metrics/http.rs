//! The HTTP side: one thread, a bounded number of connections, each for one request and a bounded time.

use std::{
    convert::Infallible,
    net::TcpListener as StdListener,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    Question,
    exposition::Format,
    families::{self, Memory},
    health::Health,
};

/// Connections at the same time; whoever comes beyond them waits at the door.
const CONNECTIONS: usize = 32;
/// How long a client may take for its request, and for all together with the answer.
const REQUEST_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(15);
/// The longest request, in bytes. The least that hyper takes.
const REQUEST_LIMIT: usize = 8192;
/// How long the router's task may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How old an answer may be: the router's task is not asked more often than this, whoever asks.
const FRESH: Duration = Duration::from_millis(500);

const INDEX: &str = "greyhound\n\n/metrics\n/healthz\n/readyz\n";

type Answer = Response<Full<Bytes>>;

/// What the thread holds.
pub(super) struct Server {
    pub questions: mpsc::Sender<Question>,
    pub health: Arc<Health>,
}

/// What was last put together, for both formats.
#[derive(Default)]
struct Last {
    memory: Memory,
    text: Vec<(Format, Instant, Bytes)>,
}

impl Server {
    pub(super) fn run(self, listener: StdListener, accepts: watch::Receiver<bool>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let served = runtime.map(|runtime| runtime.block_on(self.serve(listener, accepts)));
        if let Err(why) | Ok(Err(why)) = served {
            tracing::error!("no metrics: {why}");
        }
    }

    async fn serve(
        self,
        listener: StdListener,
        mut accepts: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let (server, last) = (Arc::new(self), Arc::<Mutex<Last>>::default());
        loop {
            // The router's end is gone with the router.
            if accepts.wait_for(|yes| *yes).await.is_err() {
                return Ok(());
            }
            let Ok(place) = places.clone().acquire_owned().await else {
                return Ok(());
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = accepts.changed() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, last) = (server.clone(), last.clone());
                    tokio::spawn(async move {
                        converse(stream, &server, &last).await;
                        drop(place);
                    });
                }
                // Out of file descriptors, most likely: give the others time to end.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, last: &Mutex<Last>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
        }
        let now = Instant::now();
        match request.uri().path() {
            "/metrics" => {
                let accept = request.headers().get(ACCEPT);
                let accept = accept.and_then(|value| value.to_str().ok());
                self.metrics(Format::accepted(accept), last).await
            }
            "/healthz" => verdict(&self.health.ills(now)),
            "/readyz" => verdict(&self.health.not_ready(now)),
            "/" => text(StatusCode::OK, INDEX),
            _ => text(StatusCode::NOT_FOUND, INDEX),
        }
    }

    async fn metrics(&self, format: Format, last: &Mutex<Last>) -> Answer {
        // One at a time: who comes meanwhile finds a fresh answer.
        let mut last = last.lock().await;
        let now = Instant::now();
        last.text.retain(|(_, at, _)| now - *at < FRESH);
        if let Some((.., bytes)) = last.text.iter().find(|(f, ..)| *f == format) {
            return exposition(format, bytes.clone());
        }
        let (reply, statistics) = oneshot::channel();
        let asked = async {
            self.questions.send(reply).await.ok()?;
            statistics.await.ok()
        };
        let Ok(Some(statistics)) = timeout(ANSWER_TIME, asked).await else {
            let why = "the router's task does not answer\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let bytes = Bytes::from(families::write(&statistics, format, &mut last.memory));
        last.text.push((format, now, bytes.clone()));
        exposition(format, bytes)
    }
}

async fn converse(stream: TcpStream, server: &Server, last: &Mutex<Last>) {
    let service =
        service_fn(async |request| Ok::<_, Infallible>(server.answer(request, last).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .keep_alive(false)
        .max_buf_size(REQUEST_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    // A client's failure is the client's.
    let _ = timeout(CONNECTION_TIME, connection).await;
}

fn verdict(why_not: &[String]) -> Answer {
    match why_not.is_empty() {
        true => text(StatusCode::OK, "ok\n"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, why_not.join("\n") + "\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

fn exposition(format: Format, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    let kind = HeaderValue::from_static(format.content_type());
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
