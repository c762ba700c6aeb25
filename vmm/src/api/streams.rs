//! What goes on for as long as a guest: its console, by an upgraded connection, and its events, a line of JSON each.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{self, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tracing::debug;

use super::reply::Reply;
use crate::console::{Keyboard, Seen, Watcher};
use crate::events::Listener;

/// What a connection becomes that carries a console.
pub const PROTOCOL: &str = "posada-console";
/// Streams at a time, of the connections that there can be: the others are for who asks something.
pub const MAX_STREAMS: usize = 64;
/// How long a console that has been shown something rests: what is printed letter by letter comes in pieces.
const REST: Duration = Duration::from_millis(5);

/// What a client is given as it comes.
pub enum Stream {
    /// What the guest prints; what the client sends is typed.
    Console(Watcher),
    /// What happens to the guest.
    Events(Listener),
}

/// The body of an answer.
pub enum Answer {
    /// What there is to tell.
    Whole(Full<Bytes>),
    /// One line after another.
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Lines(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Lines(_) => SizeHint::default(),
        }
    }
}

/// A client's place among those that are served, and its socket, by which it is seen to go.
#[derive(Clone)]
pub struct Client {
    socket: Arc<StdStream>,
    _place: Arc<OwnedSemaphorePermit>,
    /// Among those who stay.
    _stay: Option<Arc<OwnedSemaphorePermit>>,
}

impl Client {
    /// The one at the other end of `stream`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(stream: &UnixStream, place: OwnedSemaphorePermit) -> io::Result<Self> {
        Ok(Self {
            socket: Arc::new(stream.as_fd().try_clone_to_owned()?.into()),
            _place: place.into(),
            _stay: None,
        })
    }

    /// The same, who stays for as long as the guest.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn stay(self, places: &Arc<Semaphore>) -> Result<Self, Reply> {
        match places.clone().try_acquire_owned() {
            Ok(place) => Ok(Self {
                _stay: Some(place.into()),
                ..self
            }),
            Err(_) => Err(Reply::fault(format!(
                "the guest has {MAX_STREAMS} who watch its console or its events, which is all that it can have: end one of them first"
            ))
            .with_status(StatusCode::SERVICE_UNAVAILABLE)),
        }
    }

    /// Until the client has closed its socket. That it sends no more does not mean so.
    async fn leaves(&self) {
        // Of its own: readiness that is used up here is nobody else's.
        let Ok(socket) = self.socket.try_clone().and_then(UnixStream::from_std) else {
            return;
        };
        while let Ok(ready) = socket.ready(Interest::WRITABLE).await
            && !ready.is_write_closed()
        {
            let used_up = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = socket.try_io(Interest::WRITABLE, used_up);
        }
    }
}

/// Begins what goes on for as long as the guest.
///
/// # Errors
/// The connection is not what the stream needs.
pub fn begin(stream: Stream, upgrade: Option<OnUpgrade>, client: Client) -> Result<Response<Answer>, Reply> {
    let json_lines = HeaderValue::from_static("application/jsonl");
    match stream {
        Stream::Events(listener) => {
            let mut response = Response::new(lines(listener, client));
            response.headers_mut().insert(CONTENT_TYPE, json_lines);
            Ok(response)
        }
        Stream::Console(watcher) => {
            let upgrade = upgrade.ok_or_else(|| {
                Reply::fault(format!(
                    "a console is a stream both ways: ask with 'Connection: upgrade' and 'Upgrade: {PROTOCOL}'"
                ))
            })?;
            connect(upgrade, watcher, client);
            let mut response = Response::new(Answer::Whole(Full::default()));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
            Ok(response)
        }
    }
}

/// Sends events, until there are no more or the client has gone.
fn lines(mut listener: Listener, client: Client) -> Answer {
    let (sender, lines) = mpsc::channel(1);
    tokio::spawn(async move {
        let telling = async {
            while let Some(event) = listener.next().await {
                let Ok(mut line) = serde_json::to_vec(&event) else {
                    return;
                };
                line.push(b'\n');
                if sender.send(line.into()).await.is_err() {
                    return;
                }
            }
        };
        first_of(telling, client.leaves()).await;
    });
    Answer::Lines(lines)
}

/// Connects a client with a console, once its connection is one for that, until the guest has ended or the client has gone.
fn connect(upgrade: OnUpgrade, mut watcher: Watcher, client: Client) {
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return debug!("a console's connection: {error}"),
        };
        let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<UnixStream>>() else {
            return;
        };
        let (from, to) = io.into_inner().into_split();
        let keyboard = watcher.keyboard();
        let typing = async {
            type_in(&keyboard, &read_buf, from).await;
            // Who types no more goes on watching.
            pending().await
        };
        // The guest may take nothing for ever: who leaves is not waited for there.
        let attending = first_of(show(&mut watcher, to), typing);
        first_of(attending, client.leaves()).await;
    });
}

/// Types what the client sends, until it sends no more.
async fn type_in(keyboard: &Keyboard, first: &[u8], from: OwnedReadHalf) {
    keyboard.enter(first).await;
    let mut typed = [0; 4096];
    while from.readable().await.is_ok() {
        match from.try_read(&mut typed) {
            Ok(0) => return,
            Ok(length) => keyboard.enter(&typed[..length]).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Sends the client what it is to see, the first at once, until the guest has ended.
async fn show(watcher: &mut Watcher, to: OwnedWriteHalf) {
    while let Some(seen) = watcher.next().await {
        let bytes = match seen {
            Seen::Output(bytes) => bytes,
            Seen::Lost(count) => {
                format!("\r\n[posada: this console is shown too slowly: {count} bytes are left out]\r\n")
                    .into()
            }
        };
        if send(&to, &bytes).await.is_err() {
            return;
        }
        sleep(REST).await;
    }
}

async fn send(to: &OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Until one of the two is done.
async fn first_of(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(context),
    })
    .await
}
