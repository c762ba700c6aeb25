//! What can be wrong with a request, in Firecracker's words.

use std::fmt::Display;

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::reply::Reply;
use crate::api::{Call, Instance};

pub const BEFORE_START: &str = "The requested operation is not supported before starting the microVM.";
pub const NO_ID: &str = "The ID cannot be empty.";

/// The body, which is an object.
pub fn parse<T: DeserializeOwned>(call: &Call) -> Result<T, Reply> {
    call.parse().map_err(malformed)
}

/// The body, which may be any JSON.
pub fn value(call: &Call) -> Result<Value, Reply> {
    serde_json::from_slice(&call.body).map_err(malformed)
}

/// A body is not what it should be.
pub fn malformed(why: impl Display) -> Reply {
    Reply::fault(format!(
        "An error occurred when deserializing the json body of a request: {why}."
    ))
}

/// What Firecracker could not do to a guest that has been started.
pub fn internal(why: impl Display) -> Reply {
    Reply::fault(format!("Internal VMM error: {why}"))
}

/// Checks that a part's name is a plain one.
pub fn check_id(id: &str) -> Result<(), Reply> {
    let is_plain = |letter: char| letter == '_' || letter.is_alphanumeric();
    if id.is_empty() {
        Err(Reply::fault(NO_ID))
    } else if !id.chars().all(is_plain) {
        Err(Reply::fault(
            "API Resource IDs can only contain alphanumeric characters and underscores.",
        ))
    } else {
        Ok(())
    }
}

/// Checks that a drive has one name.
pub fn check_drive_id(in_path: &str, in_body: &str) -> Result<(), Reply> {
    match in_path == in_body {
        true => Ok(()),
        false => Err(Reply::fault(
            "The id from the path does not match the id from the body!",
        )),
    }
}

/// Checks that an interface has one name.
pub fn check_interface_id(in_path: &str, in_body: &str) -> Result<(), Reply> {
    match in_path == in_body {
        true => Ok(()),
        false => Err(Reply::fault(format!(
            "The id from the path [{in_path}] does not match the id from the body [{in_body}]!"
        ))),
    }
}

/// posada lacks something, whatever the guest's state is: the rest of a sentence that begins with its name.
pub fn not_here(lack: &str) -> Reply {
    Reply::fault(format!(
        "The requested operation is not supported: posada {lack}."
    ))
}

/// The same of what Firecracker does to a guest that has been started.
pub fn when_running(instance: &Instance, lack: &str) -> Reply {
    match instance.vm() {
        Some(_) => not_here(lack),
        None => Reply::fault(BEFORE_START),
    }
}

/// Hinting, of which posada has none, in one of these ways.
pub fn hinting(instance: &Instance, call: &Call, path: &[&str], ways: &[&str]) -> Reply {
    match path.first() {
        Some(way) if ways.contains(way) => when_running(instance, "has no free page hinting"),
        way => unrecognized(call, &format!("/hinting/{}", way.unwrap_or(&""))),
    }
}

/// There is nothing at this path, whose first part is told.
pub fn unknown(call: &Call) -> Reply {
    let path = call.path.trim_start_matches('/');
    not_a_path(&call.method, path.split('/').next().unwrap_or_default())
}

/// There is nothing at this path.
pub fn not_a_path(method: &Method, path: &str) -> Reply {
    Reply::fault(format!("Invalid request method and/or path: {method} {path}."))
}

/// There is something at this path, but not that much.
pub fn unrecognized(call: &Call, path: &str) -> Reply {
    Reply::fault(format!("Unrecognized {} request path `{path}`.", call.method))
}
