//! Objects within a request's body. Of an array, serde would take the elements for an object's fields.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Reads an object, or null.
///
/// # Errors
/// It is something else, or an object with other fields.
pub fn optional<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)?.map(read).transpose()
}

/// Reads an array of objects.
///
/// # Errors
/// As for [`optional`].
pub fn list<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Vec::deserialize(deserializer)?.into_iter().map(read).collect()
}

fn read<T: DeserializeOwned, E: Error>(object: Object) -> Result<T, E> {
    T::deserialize(Value::Object(object)).map_err(E::custom)
}
