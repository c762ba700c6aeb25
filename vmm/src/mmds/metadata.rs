//! What the host has put for a guest: one JSON document of bounded size.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use thiserror::Error;

/// Bytes that the document may have as JSON unless the user says else: as in Firecracker.
pub const DEFAULT_LIMIT: usize = 51_200;

/// The document, if there is one.
#[derive(Debug, Default)]
pub struct Metadata(Mutex<Store>);

#[derive(Clone, Debug)]
struct Store {
    document: Option<Value>,
    limit: usize,
}

/// How a value is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As JSON.
    Json,
    /// As EC2's service tells it: a text as it is, an object as a list of its names.
    Imds,
}

/// Why a document cannot be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MetadataError {
    /// It would be too large.
    #[error("The MMDS patch request doesn't fit.")]
    TooLarge,
    /// There is none that could be changed.
    #[error("The MMDS data store is not initialized.")]
    None,
}

/// Why a value is not told.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LookupError {
    /// There is none.
    #[error("there is no such value")]
    NotThere,
    /// The format has no such value.
    #[error("Cannot retrieve value. The value has an unsupported type.")]
    Unsupported,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            document: None,
            limit: DEFAULT_LIMIT,
        }
    }
}

impl Metadata {
    /// Has documents that are put from now on have at most so many bytes.
    pub fn set_limit(&self, bytes: usize) {
        self.store().limit = bytes;
    }

    /// Bytes that a document may have.
    pub fn limit(&self) -> usize {
        self.store().limit
    }

    /// Is what `other` is, which it is no more.
    pub fn succeed(&self, other: &Self) {
        let store = std::mem::take(&mut *other.store());
        *self.store() = store;
    }

    /// Puts a document in the place of the one there is.
    ///
    /// # Errors
    /// It is too large.
    pub fn put(&self, document: Value) -> Result<(), MetadataError> {
        self.store().put(document)
    }

    /// Changes the document by a merge patch (RFC 7396).
    ///
    /// # Errors
    /// There is none, or it would be too large; it stays what it is.
    pub fn patch(&self, patch: Value) -> Result<(), MetadataError> {
        let mut store = self.store();
        let mut document = store.document.clone().ok_or(MetadataError::None)?;
        merge(&mut document, patch);
        store.put(document)
    }

    /// The document.
    pub fn document(&self) -> Option<Value> {
        self.store().document.clone()
    }

    /// The value that a path leads to.
    pub fn lookup(&self, path: &str, format: Format) -> Result<String, LookupError> {
        let store = self.store();
        // RFC 6901: a slash at the end would lead to the member without a name.
        let path = path.strip_suffix('/').unwrap_or(path);
        let value = store
            .document
            .as_ref()
            .and_then(|document| document.pointer(path));
        let value = value.ok_or(LookupError::NotThere)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, Value::Object(members)) => Ok(names(members)),
            (Format::Imds, _) => Err(LookupError::Unsupported),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    fn put(&mut self, document: Value) -> Result<(), MetadataError> {
        if document.to_string().len() > self.limit {
            return Err(MetadataError::TooLarge);
        }
        self.document = Some(document);
        Ok(())
    }
}

impl Format {
    /// What HTTP calls it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Imds => "text/plain",
        }
    }
}

/// Each on a line, those of objects with a slash.
fn names(members: &Map<String, Value>) -> String {
    let names = members.iter().map(|(name, value)| match value {
        Value::Object(_) => format!("{name}/"),
        _ => name.clone(),
    });
    names.collect::<Vec<_>>().join("\n")
}

/// RFC 7396 §2. JSON that has been read is not nested deeper than the parser goes.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(members.remove(&name)),
            value => merge(members.entry(name).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_merged_as_the_rfc_says() {
        // RFC 7396, appendix A.
        for (mut target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            merge(&mut target, patch);
            assert_eq!(target, result);
        }
    }

    #[test]
    fn a_document_that_is_too_large_changes_nothing() {
        let metadata = Metadata::default();
        assert_eq!(metadata.patch(json!({})), Err(MetadataError::None));
        metadata.set_limit(9);
        metadata.put(json!({"a": "b"})).unwrap();
        assert_eq!(metadata.put(json!({"a": "bc"})), Err(MetadataError::TooLarge));
        assert_eq!(metadata.patch(json!({"c": 1})), Err(MetadataError::TooLarge));
        metadata.patch(json!({"a": 1})).unwrap();
        assert_eq!(metadata.document(), Some(json!({"a": 1})));

        let other = Metadata::default();
        other.succeed(&metadata);
        assert_eq!(other.document(), Some(json!({"a": 1})));
        assert_eq!(other.put(json!("12345678")), Err(MetadataError::TooLarge));
    }

    #[test]
    fn values_are_told_in_two_formats() {
        let metadata = Metadata::default();
        assert_eq!(metadata.lookup("/", Format::Json), Err(LookupError::NotThere));
        let document = json!({"text": "as it is", "object": {"x/y": {}, "n": 1}, "": 0});
        metadata.put(document.clone()).unwrap();
        for (path, as_json, as_imds) in [
            ("/", Ok(document.to_string()), Ok("\nobject/\ntext")),
            ("/text", Ok("\"as it is\"".to_owned()), Ok("as it is")),
            ("/text/", Ok("\"as it is\"".to_owned()), Ok("as it is")),
            ("/object", Ok(r#"{"n":1,"x/y":{}}"#.to_owned()), Ok("n\nx/y/")),
            ("/object/n", Ok("1".to_owned()), Err(LookupError::Unsupported)),
            ("/object/x~1y", Ok("{}".to_owned()), Ok("")),
            ("/nothing", Err(LookupError::NotThere), Err(LookupError::NotThere)),
            ("text", Err(LookupError::NotThere), Err(LookupError::NotThere)),
        ] {
            assert_eq!(metadata.lookup(path, Format::Json), as_json, "{path}");
            let as_imds = as_imds.map(str::to_owned);
            assert_eq!(metadata.lookup(path, Format::Imds), as_imds, "{path}");
        }
    }
}
