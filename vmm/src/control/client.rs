//! The side that asks: the posada command.

use std::error::Error;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::http::request;
use hyper::upgrade::{self, Parts};
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::net::UnixStream as AsyncStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{Answer, Request};
use crate::api::{CONSOLE, EVENTS, PROTOCOL, route_of};
use crate::events::Event;
use crate::runtime::{self, RuntimeError};

/// An answer has some thousand bytes; what is longer comes from something else.
const MAX_ANSWER: usize = 1 << 20;
/// How long a guest may take to tell something, on a machine that has far too much to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a guest did not do what it was asked for.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It is not there.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It does not answer.
    #[error("the guest '{name}' does not answer: {source}")]
    Silent {
        /// Its name.
        name: String,
        /// What came instead.
        source: io::Error,
    },
    /// It said why not.
    #[error("{name}: {why}")]
    Failed {
        /// Its name.
        name: String,
        /// Its sentence.
        why: String,
    },
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// Asks the running guest `name`, and waits until it has done it.
///
/// # Errors
/// It is not there, or cannot.
pub fn ask(name: &str, request: &Request) -> Result<Answer, ControlError> {
    let stream = connect(name)?;
    let exchanged = runtime().and_then(|runtime| runtime.block_on(exchange_in_time(stream, request)));
    let (status, is_text, body) = exchanged.map_err(|error| silent(name, error))?;
    if is_text {
        return Ok(Answer::Text(String::from_utf8_lossy(&body).into_owned()));
    }
    read(status, &body)
        .map_err(|error| silent(name, error.into()))?
        .map_err(|fault| fault.of(name))
}

/// What only asks is answered at once, or by a process that does not run.
async fn exchange_in_time(stream: UnixStream, request: &Request) -> io::Result<(StatusCode, bool, Bytes)> {
    if !request.is_question() {
        return exchange(stream, request).await;
    }
    timeout(PATIENCE, exchange(stream, request))
        .await
        .unwrap_or_else(|_| {
            let why = format!(
                "nothing has come in {} s; its process may be stopped",
                PATIENCE.as_secs()
            );
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
}

async fn exchange(stream: UnixStream, request: &Request) -> io::Result<(StatusCode, bool, Bytes)> {
    let (method, path, body) = route_of(request)?;
    let request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, "application/json");
    let response = send(stream, request, body).await?;
    let kind = response.headers().get(CONTENT_TYPE);
    let is_text = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/"));
    Ok((response.status(), is_text, whole(response).await?))
}

/// Asks for the console of the running guest `name`: a stream both ways, and what has come of it.
///
/// # Errors
/// It is not there, or has none.
pub fn attach(name: &str) -> Result<(UnixStream, Vec<u8>), ControlError> {
    let stream = connect(name)?;
    let request = HttpRequest::get(CONSOLE)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL);
    let exchange = async {
        let response = send(stream, request, String::new()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Err(serde_json::from_slice::<Fault>(&whole(response).await?)?));
        }
        let upgraded = upgrade::on(response).await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<AsyncStream>>();
        let Parts { io, read_buf, .. } =
            parts.map_err(|_| io::Error::other("the connection is not what it was"))?;
        Ok(Ok((io.into_inner().into_std()?, read_buf.into())))
    };
    let exchanged = runtime().and_then(|runtime| runtime.block_on(exchange));
    exchanged
        .map_err(|error| silent(name, error))?
        .map_err(|fault| fault.of(name))
}

/// What happens to a guest, as it comes.
pub struct EventStream {
    runtime: Runtime,
    body: Incoming,
    unread: Vec<u8>,
}

impl EventStream {
    /// Listens to the running guest `name`.
    ///
    /// # Errors
    /// It is not there, or does not tell.
    pub fn open(name: &str) -> Result<Self, ControlError> {
        let stream = connect(name)?;
        let open = || {
            let runtime = runtime()?;
            let response = runtime.block_on(send(stream, HttpRequest::get(EVENTS), String::new()))?;
            if response.status() != StatusCode::OK {
                let body = runtime.block_on(whole(response))?;
                return Ok(Err(serde_json::from_slice::<Fault>(&body)?));
            }
            Ok(Ok(Self {
                runtime,
                body: response.into_body(),
                unread: Vec::new(),
            }))
        };
        open()
            .map_err(|error| silent(name, error))?
            .map_err(|fault| fault.of(name))
    }

    /// Waits for the next event, or `None` when there are no more.
    ///
    /// # Errors
    /// What comes is no event ([`InvalidData`](io::ErrorKind::InvalidData)), which does not keep the next one from coming; or the connection
    /// is lost, as when the guest's process is killed.
    pub fn wait(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(no_event);
            }
            match self.runtime.block_on(self.body.frame()) {
                None => return Ok(None),
                Some(frame) => {
                    let data = frame.map_err(io::Error::other)?.into_data();
                    self.unread.extend(data.unwrap_or_default());
                }
            }
            if self.unread.len() > MAX_ANSWER {
                self.unread.clear();
                return Err(no_event("a line without end"));
            }
        }
    }
}

fn no_event(why: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn connect(name: &str) -> Result<UnixStream, ControlError> {
    let path = runtime::socket_of(name)?;
    UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => RuntimeError::Unknown(name.to_owned()).into(),
        _ => silent(name, error),
    })
}

fn silent(name: &str, source: io::Error) -> ControlError {
    ControlError::Silent {
        name: name.to_owned(),
        source,
    }
}

impl Fault {
    fn of(self, name: &str) -> ControlError {
        ControlError::Failed {
            name: name.to_owned(),
            why: self.fault_message,
        }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Sends a request, and returns what is answered, whose body may be still to come.
async fn send(stream: UnixStream, request: request::Builder, body: String) -> io::Result<Response<Incoming>> {
    stream.set_nonblocking(true)?;
    let stream = AsyncStream::from_std(stream)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let request = request.header(HOST, "localhost").body(Full::<Bytes>::from(body));
    let request = request.map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(io::Error::other)
}

async fn whole(response: Response<Incoming>) -> io::Result<Bytes> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(body.to_bytes())
}

fn read(status: StatusCode, body: &[u8]) -> serde_json::Result<Result<Answer, Fault>> {
    match status {
        StatusCode::NO_CONTENT => Ok(Ok(Answer::Done)),
        StatusCode::OK => serde_json::from_slice(body).map(Ok),
        _ => serde_json::from_slice(body).map(Err),
    }
}
