//! posada's own endpoints, `/posada/v1/…`: each carries one of [`control`](crate::control)'s requests.

use hyper::Method;
use serde_json::{Map, Value};

use super::reply::Reply;
use super::streams::Stream;
use super::{Call, Instance};
use crate::control::{self, Answer, Request};
use crate::metrics::CONTENT_TYPE;

const PREFIX: &str = "/posada/v1/";
const NOT_STARTED: &str = "the guest has not been started";
/// Where its console is.
pub(crate) const CONSOLE: &str = "/posada/v1/attach";
/// Where it is told what happens to it.
pub(crate) const EVENTS: &str = "/posada/v1/events";

/// How a request is sent: method, path and body.
///
/// A request that does something is `PUT` to the path of its name, with its fields in the body.
pub(crate) fn route_of(request: &Request) -> serde_json::Result<(Method, String, String)> {
    let put = |verb: &str, body| (Method::PUT, format!("{PREFIX}{verb}"), body);
    if let Some((name, _)) = Request::QUESTIONS
        .iter()
        .find(|(_, question)| question == request)
    {
        return Ok((Method::GET, format!("{PREFIX}{name}"), String::new()));
    }
    Ok(match serde_json::to_value(request)? {
        Value::Object(fields) => match fields.into_iter().next() {
            Some((verb, body)) => put(&verb, body.to_string()),
            None => put("", String::new()),
        },
        name => put(name.as_str().unwrap_or_default(), String::new()),
    })
}

/// The request that a call carries.
fn request_of(call: &Call) -> Result<Request, Reply> {
    let unknown = || {
        let (method, path) = (&call.method, &call.path);
        Reply::fault(format!("Invalid request method and/or path: {method} {path}."))
    };
    let verb = call.path.strip_prefix(PREFIX).ok_or_else(unknown)?;
    match (&call.method, verb) {
        (&Method::GET, name) => {
            let mut questions = Request::QUESTIONS.into_iter();
            let question = questions.find(|(other, _)| *other == name);
            question.map(|(_, question)| question).ok_or_else(unknown)
        }
        (&Method::PUT, verb) if Request::VERBS.contains(&verb) => read(verb, call)
            .map_err(|error| Reply::fault(format!("the request's body is not what '{verb}' takes: {error}"))),
        _ => Err(unknown()),
    }
}

fn read(verb: &str, call: &Call) -> serde_json::Result<Request> {
    if call.body.is_empty() {
        return serde_json::from_value(verb.into());
    }
    let mut fields = Map::new();
    fields.insert(verb.to_owned(), call.parse()?);
    serde_json::from_value(fields.into())
}

/// Whether the call is for one of these endpoints.
pub(super) fn is_ours(call: &Call) -> bool {
    call.path.starts_with(PREFIX)
}

/// Whether the guest is to end, which does not wait until a snapshot is there.
pub(super) fn is_kill(call: &Call) -> bool {
    request_of(call).is_ok_and(|request| request == Request::Kill)
}

/// What is to be given as it comes, if the call is for that.
pub(super) fn stream(instance: &Instance, call: &Call) -> Option<Result<Stream, Reply>> {
    match (&call.method, call.path.as_str()) {
        (&Method::GET, CONSOLE) => Some(match instance.vm() {
            Some(vm) => Ok(Stream::Console(vm.console().watch())),
            None => Err(Reply::fault(NOT_STARTED)),
        }),
        (&Method::GET, EVENTS) => Some(Ok(Stream::Events(instance.events().listen()))),
        _ => None,
    }
}

/// Does what a call asks for.
pub(super) fn answer(instance: &Instance, call: &Call) -> Reply {
    let request = match request_of(call) {
        Ok(request) => request,
        Err(reply) => return reply,
    };
    let done = match (request, instance.vm()) {
        (request, Some(vm)) => control::perform(&vm, request),
        (Request::Inspect, None) => instance
            .info_to_be()
            .map(|info| Answer::Guest(Box::new(info)))
            .map_err(Into::into),
        (Request::Kill, None) => {
            instance.wake();
            Ok(Answer::Done)
        }
        (_, None) => return Reply::fault(NOT_STARTED),
    };
    match done {
        Ok(Answer::Done) => Reply::done(),
        Ok(Answer::Text(text)) => Reply::text(CONTENT_TYPE, text),
        Ok(answer) => Reply::json(&answer),
        Err(error) => Reply::fault(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::snapshot::SnapshotOptions;

    fn call(method: Method, path: &str, body: &str) -> Call {
        Call {
            method,
            path: path.to_owned(),
            body: body.to_owned().into(),
        }
    }

    #[test]
    fn every_request_comes_as_it_was_sent() {
        let options = SnapshotOptions {
            diff: true,
            ..SnapshotOptions::to(PathBuf::from("/s"))
        };
        let rewind = Request::Rewind {
            directory: PathBuf::from("/s"),
            disks: true,
        };
        let requests = [
            Request::Snapshot(options),
            rewind,
            Request::Inspect,
            Request::Stats,
            Request::Metrics,
            Request::Pause,
            Request::Resume,
            Request::PowerButton,
            Request::Kill,
        ];
        for request in requests {
            let (method, path, body) = route_of(&request).unwrap();
            assert_eq!(
                request_of(&call(method, &path, &body)).unwrap(),
                request,
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_request_is_a_fault() {
        for (method, path, body) in [
            (Method::GET, "/posada/v1/pause", ""),
            (Method::PUT, "/posada/v1/info", ""),
            (Method::PUT, "/posada/v1/", ""),
            (Method::PUT, "/posada/v1/fly", ""),
            (Method::PUT, "/posada/v1/pause", "{}"),
            (Method::PUT, "/posada/v1/snapshot", ""),
            (Method::PUT, "/posada/v1/snapshot", "{\"directory\": 7}"),
            (
                Method::PUT,
                "/posada/v1/rewind",
                "{\"directory\": \"/s\", \"fast\": true}",
            ),
            (Method::PUT, "/posada/v2/pause", ""),
        ] {
            assert!(request_of(&call(method, path, body)).is_err(), "{path} {body}");
        }
    }
}
