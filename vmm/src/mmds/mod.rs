//! The metadata service, as Firecracker has it: what the host puts for a guest, the guest fetches by HTTP from an address on one of its
//! networks.
//!
//! ```text
//!   API, --metadata ─▶ Metadata ◀─ MetadataService ◀─ Request ◀── the guest's stream   (http)
//!                                        └ Tokens
//! ```

mod http;
mod metadata;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::virtio::net::Responder;
use hyper::{Method, StatusCode};

use crate::config::{MmdsConfig, MmdsVersion};
use http::{Request, Response};
use metadata::{Format, LookupError};
use tokens::Tokens;

pub use metadata::{DEFAULT_LIMIT, Metadata, MetadataError};

/// The TCP port of HTTP (RFC 9110 §4.2.1).
pub const PORT: u16 = 80;
/// What Firecracker's guests, and EC2's, ask with.
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
const TOKEN_TTL: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
/// Who passes on requests of others says so by it, and is given no token.
const FORWARDED: &str = "X-Forwarded-For";
/// Seconds that a token may live: six hours, as EC2's.
const MAX_TTL: u32 = 21_600;

/// What answers a guest.
pub struct MetadataService {
    config: MmdsConfig,
    metadata: Arc<Metadata>,
    tokens: Mutex<Tokens>,
}

impl MetadataService {
    /// A service that tells what is in `metadata`.
    pub fn new(config: MmdsConfig, metadata: Arc<Metadata>) -> Self {
        Self {
            config,
            metadata,
            tokens: Mutex::default(),
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let Some(path) = request.path() else {
            return Response::text(StatusCode::BAD_REQUEST, "Invalid URI.");
        };
        match request.method {
            method if method == Method::GET => match self.refuses(request) {
                Some(why) => Response::text(StatusCode::UNAUTHORIZED, why),
                None => self.get(request, &path),
            },
            method if method == Method::PUT => self.put(request, &path),
            _ => Response::text(StatusCode::METHOD_NOT_ALLOWED, "Not allowed HTTP method.")
                .with("Allow", "GET, PUT"),
        }
    }

    /// Why the data is not for who asks.
    fn refuses(&self, request: &Request) -> Option<&'static str> {
        if self.config.version() == MmdsVersion::V1 {
            return None;
        }
        let Some((_, token)) = request.header(&TOKEN) else {
            return Some(
                "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.",
            );
        };
        let is_valid = self.tokens().is_valid(token, Instant::now());
        (!is_valid).then_some("MMDS token not valid.")
    }

    fn get(&self, request: &Request, path: &str) -> Response {
        let format = match request.header(&["Accept"]) {
            Some((_, accept)) if !self.config.imds_compat && accepts_json(accept) => Format::Json,
            _ => Format::Imds,
        };
        match self.metadata.lookup(path, format) {
            Ok(value) => Response::new(StatusCode::OK, format.content_type(), value),
            Err(LookupError::NotThere) => not_found(path),
            Err(error @ LookupError::Unsupported) => {
                Response::text(StatusCode::NOT_IMPLEMENTED, error.to_string())
            }
        }
    }

    /// Gives a token, which is all that a guest can ask for by `PUT`.
    fn put(&self, request: &Request, path: &str) -> Response {
        let refused = |why: String| Response::text(StatusCode::BAD_REQUEST, why);
        if request.header(&[FORWARDED]).is_some() {
            return refused(format!(
                "A request for a token cannot have the header {FORWARDED}."
            ));
        }
        if path != TOKEN_PATH {
            return not_found(path);
        }
        let Some((name, ttl)) = request.header(&TOKEN_TTL) else {
            return refused(
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.".to_owned(),
            );
        };
        let Some(ttl) = ttl.parse().ok().filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return refused(format!(
                "Invalid time to live value provided for token: {ttl}. Please provide a value between 1 and {MAX_TTL}."
            ));
        };
        let lifetime = Duration::from_secs(ttl.into());
        match self.tokens().issue(lifetime, Instant::now()) {
            Ok(token) => Response::text(StatusCode::OK, token).with(name, ttl.to_string()),
            Err(error) => Response::text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("The host has no random numbers: {error}."),
            ),
        }
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Responder for MetadataService {
    fn respond(&self, request: &[u8]) -> Option<Vec<u8>> {
        http::respond(request, |request| self.answer(request))
    }
}

fn not_found(path: &str) -> Response {
    Response::text(StatusCode::NOT_FOUND, format!("Resource not found: {path}."))
}

/// Whether JSON is among the media types of an `Accept` header (RFC 9110 §12.5.1).
fn accepts_json(accept: &str) -> bool {
    let mut kinds = accept
        .split(',')
        .map(|kind| kind.split(';').next().unwrap_or_default());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}
