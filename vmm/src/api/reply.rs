//! What a request is answered.

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// An answer: a status, and JSON unless that says it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub status: StatusCode,
    /// What there is to tell.
    pub body: Bytes,
    /// What HTTP calls the body's form.
    pub content_type: &'static str,
    /// Who asks does so in a way that will go.
    pub deprecated: bool,
}

impl Reply {
    /// It is so.
    pub fn done() -> Self {
        Self::new(StatusCode::NO_CONTENT, Bytes::new())
    }

    /// This is what was asked for.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new(StatusCode::OK, body.into()),
            Err(error) => Self::fault(error.to_string()).with_status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// This text was asked for.
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self {
            content_type,
            ..Self::new(StatusCode::OK, text.into())
        }
    }

    /// It cannot be: a sentence, in the form that Firecracker's clients look for.
    pub fn fault(message: impl Into<String>) -> Self {
        let body = json!({ "fault_message": message.into() }).to_string();
        Self::new(StatusCode::BAD_REQUEST, body.into())
    }

    /// The same with another status.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same for who asks in a way that will go, if that is so.
    pub fn deprecated_if(mut self, is_deprecated: bool) -> Self {
        self.deprecated = is_deprecated;
        self
    }

    /// Why it cannot be.
    pub fn message(&self) -> String {
        let fault: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        fault["fault_message"].as_str().unwrap_or_default().to_owned()
    }

    fn new(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            body,
            content_type: "application/json",
            deprecated: false,
        }
    }
}
