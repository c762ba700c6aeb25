//! The agent's side of a stream: greets, hears what it is asked for, and does it.

mod child;
mod copy;
mod exec;

use std::fs::File;
use std::io;

use crate::archive::CopyError;
use crate::frame::{Frame, Incoming, Malformed, send_json};
use crate::request::{Failed, Request, greet};

/// What cannot be done is told with this exit status, but where shells have others.
const FAILURE: u8 = 1;

/// Serves one stream to its end.
///
/// # Errors
/// The other side is gone, or says what it should not. Nobody is left to be told.
pub fn serve(stream: &File) -> io::Result<()> {
    let mut incoming = Incoming::default();
    greet(&mut { stream })?;
    let request = match incoming.wait(&mut { stream })? {
        Some(Frame::Request(json)) => serde_json::from_slice(json),
        Some(_) => return Err(Malformed.into()),
        // Somebody only wanted to know whether there is an agent.
        None => return Ok(()),
    };
    match request {
        Ok(Request::Exec(command)) => exec::run(stream, &mut incoming, &command),
        Ok(Request::Get { path, plain }) => copied(stream, copy::get(stream, path.as_ref(), plain)),
        Ok(Request::Put { path, name, plain }) => {
            let name = name.as_ref().map(AsRef::as_ref);
            copied(
                stream,
                copy::put(stream, &mut incoming, path.as_ref(), name, plain),
            )
        }
        Err(error) => fail(
            stream,
            FAILURE,
            format!("the agent does not understand the request: {error}"),
        ),
    }
}

fn copied(stream: &File, outcome: Result<(), CopyError>) -> io::Result<()> {
    match outcome {
        Ok(()) => Frame::Exit(0).send(&mut { stream }),
        Err(CopyError::Stream(error)) => Err(error),
        Err(error) => fail(stream, FAILURE, error.to_string()),
    }
}

fn fail(mut stream: &File, status: u8, message: String) -> io::Result<()> {
    send_json(&mut stream, &Failed { status, message }, |json| {
        Frame::Failed(json)
    })
}

#[cfg(test)]
mod tests;
