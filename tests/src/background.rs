//! Guests in the background, which no test that fails leaves behind.

use crate::guest::command;

/// A guest that is found by its name. Dropping it ends the guest, if there is one, and removes what it has left.
pub struct Background(String);

impl Background {
    /// The guest `name`, which is to be started.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Refused when the test has done so itself.
        let _ = command(&["rm", "-f", &self.0]).output();
    }
}
