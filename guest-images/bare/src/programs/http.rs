//! `http`: values that the metadata service tells, with a token of its.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, str};
use core::net::Ipv4Addr;

use bare_guest::arguments::Arguments;
use smoltcp::socket::tcp::State;

use super::tcp::{Connection, Peer, address};
use crate::failure::{Failure, Outcome};
use crate::{println, serial};

/// Asks for each line of input, until one says `end`: for the value at a path, or if it says `token`, for a token, which it has with it from
/// then on. Prints the status and what there is to tell.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let port = arguments.number("port")?.unwrap_or(80);
    let peer = Peer {
        address: address(arguments, "host", Ipv4Addr::new(169, 254, 169, 254))?,
        port: u16::try_from(port).map_err(|_| Failure::new(format!("port={port}: give 1 to 65535")))?,
        prefix: 0,
    };
    serial::listen();
    println!("ready to ask");
    let (mut connection, mut token) = (None, String::new());
    loop {
        let line = serial::read_line();
        let (method, path, header) = match line.as_str() {
            "end" => return Ok(()),
            "token" => (
                "PUT",
                "/latest/api/token",
                "X-metadata-token-ttl-seconds: 600\r\n",
            ),
            path => ("GET", path, token.as_str()),
        };
        let connection = match &mut connection {
            None => connection.insert(Connection::open(arguments, &peer)?),
            Some(connection) => {
                connection.open_next(&peer)?;
                connection
            }
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{header}\r\n",
            peer.address
        );
        let response = ask(connection, request.as_bytes())?;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let status = head.split(' ').nth(1).unwrap_or_default();
        println!("status={status} bytes={} body={body}", body.len());
        if method == "PUT" {
            token = format!("X-metadata-token: {body}\r\n");
        }
    }
}

/// All that comes for a request until the connection ends.
fn ask(connection: &mut Connection, request: &[u8]) -> Outcome<String> {
    let mut response = Vec::new();
    while connection.poll().state() == State::SynSent {}
    if connection.poll().send_slice(request) != Ok(request.len()) {
        return Err(Failure::new("the service does not take the request"));
    }
    loop {
        let taken = connection.poll().recv(|data| {
            response.extend_from_slice(data);
            (data.len(), ())
        });
        if taken.is_err() {
            break;
        }
    }
    connection.poll().close();
    connection.poll();
    let response = str::from_utf8(&response);
    Ok(response
        .map_err(|_| Failure::new("the response is no text"))?
        .into())
}
