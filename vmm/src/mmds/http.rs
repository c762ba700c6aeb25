//! HTTP as a guest speaks it to the metadata service: one request, one response, and the connection ends.

use std::borrow::Cow;
use std::str;

use devices::virtio::net::MAX_REQUEST;
use httparse::{EMPTY_HEADER, Header, Status};
use hyper::StatusCode;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// What a guest asks for.
pub struct Request<'a> {
    /// How.
    pub method: &'a str,
    target: &'a str,
    headers: &'a [Header<'a>],
}

/// What it is answered.
pub struct Response {
    status: StatusCode,
    content_type: &'static str,
    header: Option<(&'static str, Cow<'static, str>)>,
    body: String,
}

/// The response to a request, of which so much has come; `None` if that is not all.
pub fn respond(bytes: &[u8], answer: impl FnOnce(&Request) -> Response) -> Option<Vec<u8>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let malformed = |why| Some(Response::text(StatusCode::BAD_REQUEST, why).bytes(1));
    let head = match parsed.parse(bytes) {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) if bytes.len() < MAX_REQUEST => return None,
        Ok(Status::Partial) => return malformed("The request is too long.".to_owned()),
        Err(error) => return malformed(format!("The request is malformed: {error}.")),
    };
    let request = Request {
        method: parsed.method.unwrap_or_default(),
        target: parsed.path.unwrap_or_default(),
        headers: parsed.headers,
    };
    if request.header(&["Transfer-Encoding"]).is_some() {
        let why = "Transfer codings are not supported.";
        return Some(Response::text(StatusCode::NOT_IMPLEMENTED, why).bytes(1));
    }
    let body = match request.header(&["Content-Length"]) {
        None => 0,
        Some((_, length)) => match length.parse() {
            Ok(length) => length,
            Err(_) => return malformed("The content length is no number.".to_owned()),
        },
    };
    // A body means nothing; but a connection that ends with a part of it unread takes the response with it.
    match MAX_REQUEST.checked_sub(head).is_some_and(|room| body <= room) {
        true if bytes.len() - head < body => None,
        true => Some(answer(&request).bytes(parsed.version.unwrap_or(1))),
        false => malformed("The request is too long.".to_owned()),
    }
}

impl Request<'_> {
    /// The first header with one of these names, and which of them.
    pub fn header<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &str)> {
        self.headers.iter().find_map(|header| {
            let name = names.iter().find(|name| header.name.eq_ignore_ascii_case(name))?;
            Some((*name, str::from_utf8(header.value).ok()?.trim()))
        })
    }

    /// Where what is asked for is, without slashes that follow others; `None` if nothing is asked for.
    pub fn path(&self) -> Option<String> {
        // RFC 9112 §3.2.2: the target may have scheme and host.
        let path = match self.target.strip_prefix("http://") {
            Some(rest) => &rest[rest.find('/')?..],
            None => self.target,
        };
        let mut plain = String::with_capacity(path.len());
        for letter in path.chars() {
            if letter != '/' || !plain.ends_with('/') {
                plain.push(letter);
            }
        }
        (!plain.is_empty()).then_some(plain)
    }
}

impl Response {
    pub fn new(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self {
            status,
            content_type,
            header: None,
            body,
        }
    }

    /// One that is plain text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(status, "text/plain", text.into())
    }

    /// The same with a header.
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    /// As it is sent, in version 1 of HTTP with this minor number.
    fn bytes(&self, minor: u8) -> Vec<u8> {
        let Self {
            status,
            content_type,
            header,
            body,
        } = self;
        let header = header.as_ref();
        let header = header.map_or(String::new(), |(name, value)| format!("{name}: {value}\r\n"));
        let len = body.len();
        let head = format!(
            "HTTP/1.{minor} {status}\r\nServer: posada\r\nConnection: close\r\n{header}Content-Type: {content_type}\r\nContent-Length: {len}\r\n\r\n"
        );
        [head.as_bytes(), body.as_bytes()].concat()
    }
}
