//! The side that asks: the posada command.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request as HttpRequest, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::{Answer, Request};
use crate::api::route_of;
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
    let path = runtime::socket_of(name)?;
    let silent = |source| ControlError::Silent {
        name: name.to_owned(),
        source,
    };
    let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => RuntimeError::Unknown(name.to_owned()).into(),
        _ => silent(error),
    })?;
    let exchanged = Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(exchange_in_time(stream, request)));
    let (status, is_text, body) = exchanged.map_err(silent)?;
    if is_text {
        return Ok(Answer::Text(String::from_utf8_lossy(&body).into_owned()));
    }
    read(status, &body)
        .map_err(|error| silent(error.into()))?
        .map_err(|Fault { fault_message }| ControlError::Failed {
            name: name.to_owned(),
            why: fault_message,
        })
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
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let is_text = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/"));
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok((status, is_text, body.to_bytes()))
}

fn read(status: StatusCode, body: &[u8]) -> serde_json::Result<Result<Answer, Fault>> {
    match status {
        StatusCode::NO_CONTENT => Ok(Ok(Answer::Done)),
        StatusCode::OK => serde_json::from_slice(body).map(Ok),
        _ => serde_json::from_slice(body).map(Err),
    }
}
