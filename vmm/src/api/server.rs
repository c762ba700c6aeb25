//! HTTP on Unix sockets: each request is read to its end, within its limits, and given to who answers it.
//!
//! All connections share one thread, which waits for none of them: neither for a client that is slow, nor for what a request
//! has done. That is done by a second thread, one request after another, and what only asks is answered meanwhile.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper::upgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::reply::Reply;
use super::streams::{self, Answer, Client, MAX_STREAMS, PROTOCOL, Stream};

/// Connections at a time. Those beyond wait until another has ended.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may be without a whole request, and then how long that one's body may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long clients have to take the answers that are on their way when the guest has ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// Until a connection is taken again after one could not be, for lack of file descriptors.
const RETRY: Duration = Duration::from_millis(100);
/// Bytes of a connection's buffer: more than all headers together have.
const BUFFER: usize = 16 << 10;

/// What the server says it is: by this, clients know that they speak with one of Firecracker's kind.
const NAME: &str = "Firecracker API";

/// A request that has come as a whole.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is to be done.
    pub method: Method,
    /// With what.
    pub path: String,
    /// How: JSON, or nothing.
    pub body: Bytes,
}

impl Call {
    /// What its body says, which is an object.
    ///
    /// # Errors
    /// It is no JSON, or not of this kind.
    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        // Of an array, serde would take its elements for an object's fields.
        match self.body.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => Err(serde::de::Error::custom(
                "an object is wanted, and it is an array",
            )),
            _ => serde_json::from_slice(&self.body),
        }
    }
}

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Whether this is answered without waiting for anything.
    fn is_immediate(&self, call: &Call) -> bool;

    /// Does what is asked for.
    fn answer(&self, call: &Call) -> Reply;

    /// What is to be given as it comes, if the call is for that, or why not.
    fn stream(&self, call: &Call) -> Option<Result<Stream, Reply>>;

    /// How often it does something unasked, if it does: known when the server starts, or after a request.
    fn period(&self) -> Option<Duration>;

    /// Does that.
    fn tick(&self);
}

/// A server, until its process ends.
pub struct Server {
    thread: JoinHandle<()>,
    /// Its other end becomes readable when this one is closed.
    leash: StdStream,
}

impl Server {
    /// Serves requests that come to these sockets, with bodies of at most so many bytes.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(
        listeners: Vec<StdListener>,
        service: Arc<dyn Service>,
        max_body: usize,
    ) -> io::Result<Self> {
        let (leash, collar) = StdStream::pair()?;
        let thread = thread::Builder::new().name("api".to_owned()).spawn(move || {
            if let Err(error) = run(listeners, &service, max_body, collar) {
                warn!("the API is lost: {error}");
            }
        })?;
        Ok(Self { thread, leash })
    }

    /// Takes no request any more, and returns when the answers that are on their way have been taken, or could have been.
    pub fn finish(self) {
        drop(self.leash);
        if self.thread.join().is_err() {
            debug!("the API's thread had panicked");
        }
    }
}

/// Until the other end of `collar` is closed. A guest that nobody asks for anything pays for no more than a thread.
fn run(
    listeners: Vec<StdListener>,
    service: &Arc<dyn Service>,
    max_body: usize,
    collar: StdStream,
) -> io::Result<()> {
    if service.period().is_none() {
        wait_for_the_first(&listeners, &collar)?;
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_name("api-worker")
        .build()?;
    let result = runtime.block_on(serve(listeners, service, max_body, collar));
    // What is still being done has nobody any more whom it could be told.
    runtime.shutdown_background();
    result
}

fn wait_for_the_first(listeners: &[StdListener], collar: &StdStream) -> io::Result<()> {
    let descriptors = listeners.iter().map(AsFd::as_fd).chain([collar.as_fd()]);
    let mut events: Vec<_> = descriptors
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
        .collect();
    loop {
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

async fn serve(
    listeners: Vec<StdListener>,
    service: &Arc<dyn Service>,
    max_body: usize,
    collar: StdStream,
) -> io::Result<()> {
    let register = |listener: StdListener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    let listeners = listeners
        .into_iter()
        .map(register)
        .collect::<Result<Vec<_>, _>>()?;
    collar.set_nonblocking(true)?;
    let collar = UnixStream::from_std(collar)?;
    let asked = Arc::new(Notify::new());
    tokio::spawn(tick(service.clone(), asked.clone()));
    let handler = Handler {
        service: service.clone(),
        max_body,
        asked,
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
    };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (open, closing) = watch::channel(());
    accept_until(
        collar.readable(),
        accept_all(&listeners, &handler, &slots, &closing),
    )
    .await?;
    drop(open);
    // All are free when nothing is told any more.
    if timeout(FAREWELL, slots.acquire_many(MAX_CONNECTIONS as u32))
        .await
        .is_err()
    {
        debug!("a client has not taken its answer");
    }
    Ok(())
}

/// Has the service do what it does unasked. Whether it does can change with what it is asked for.
async fn tick(service: Arc<dyn Service>, asked: Arc<Notify>) {
    loop {
        match service.period() {
            Some(period) => {
                sleep(period).await;
                let service = service.clone();
                // It writes to a file, which may take long.
                if spawn_blocking(move || service.tick()).await.is_err() {
                    debug!("what is done unasked was given up");
                }
            }
            None => asked.notified().await,
        }
    }
}

/// Takes connections until `ended`.
async fn accept_until<T>(ended: impl Future<Output = T>, accepting: impl Future<Output = Infallible>) -> T {
    let (mut ended, mut accepting) = (pin!(ended), pin!(accepting));
    poll_fn(|context| match ended.as_mut().poll(context) {
        Poll::Ready(end) => Poll::Ready(end),
        Poll::Pending => accepting.as_mut().poll(context).map(|never| match never {}),
    })
    .await
}

async fn accept_all(
    listeners: &[UnixListener],
    handler: &Handler,
    slots: &Arc<Semaphore>,
    closing: &watch::Receiver<()>,
) -> Infallible {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(BUFFER)
        .half_close(true);
    loop {
        // Fails only when they are closed, which nobody does.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            continue;
        };
        let accepted = poll_fn(|context| accept(listeners, context)).await;
        let client = accepted.and_then(|stream| Ok((Client::new(&stream, slot)?, stream)));
        let (client, stream) = match client {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("a connection to the API: {error}");
                sleep(RETRY).await;
                continue;
            }
        };
        let handler = handler.clone();
        let handle = service_fn(move |request| handle(request, handler.clone(), client.clone()));
        let connection = http.serve_connection(TokioIo::new(stream), handle);
        tokio::spawn(attend(connection.with_upgrades(), closing.clone()));
    }
}

/// Sees a connection through. When all are to be closed, it ends with the answer that is on its way.
async fn attend<S>(
    connection: http1::UpgradeableConnection<TokioIo<UnixStream>, S>,
    mut closing: watch::Receiver<()>,
) where
    S: HttpService<Incoming, ResBody = Answer>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = pin!(connection);
    let mut is_closing = false;
    let ended = {
        let mut closing = pin!(closing.changed());
        poll_fn(|context| {
            if !is_closing && closing.as_mut().poll(context).is_ready() {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await
    };
    if let Err(error) = ended {
        debug!("a connection to the API: {error}");
    }
}

fn accept(listeners: &[UnixListener], context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
    for listener in listeners {
        if let Poll::Ready(accepted) = listener.poll_accept(context) {
            return Poll::Ready(accepted.map(|(stream, _)| stream));
        }
    }
    Poll::Pending
}

/// What requests are handled with.
#[derive(Clone)]
struct Handler {
    service: Arc<dyn Service>,
    max_body: usize,
    /// Something has been asked for.
    asked: Arc<Notify>,
    /// Places of those who stay.
    streams: Arc<Semaphore>,
}

async fn handle(
    mut request: Request<Incoming>,
    handler: Handler,
    client: Client,
) -> Result<Response<Answer>, Infallible> {
    let is_upgrade = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|name| name == PROTOCOL);
    let upgrade = is_upgrade.then(|| upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = match read(body, handler.max_body).await {
        Ok(body) => body,
        Err(reply) => return Ok(respond(reply)),
    };
    let call = Call {
        method: head.method,
        path: head.uri.path().to_owned(),
        body,
    };
    let asked = format!("{} {}", call.method, call.path);
    let response = match handler.service.stream(&call) {
        Some(stream) => stream
            .and_then(|stream| streams::begin(stream, upgrade, client.stay(&handler.streams)?))
            .unwrap_or_else(respond),
        None => respond(answer(handler.service, call).await),
    };
    handler.asked.notify_one();
    debug!("{asked}: {}", response.status());
    Ok(response)
}

async fn read(body: Incoming, max: usize) -> Result<Bytes, Reply> {
    let too_long = || {
        Reply::fault(format!(
            "the request's body is longer than {max} bytes, which is all that it may have"
        ))
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_long());
    }
    match timeout(PATIENCE, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => Err(Reply::fault(format!("the request's body does not come: {error}"))),
        Err(_) => {
            Err(Reply::fault("the request's body does not come in time")
                .with_status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

async fn answer(service: Arc<dyn Service>, call: Call) -> Reply {
    if service.is_immediate(&call) {
        return service.answer(&call);
    }
    let done = spawn_blocking(move || service.answer(&call)).await;
    done.unwrap_or_else(|error| Reply::fault(format!("the request was given up: {error}")))
}

fn respond(reply: Reply) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Full::new(reply.body)));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(NAME));
    if reply.status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    }
    if reply.deprecated {
        headers.insert("deprecation", HeaderValue::from_static("true"));
    }
    response
}
