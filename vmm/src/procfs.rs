//! What /proc tells, in a root directory that may have none, as a jail's.

use std::io::{self, ErrorKind};

/// What it tells, or nothing where it is not there.
///
/// # Errors
/// Anything else goes wrong.
pub fn if_there<T>(told: io::Result<T>) -> io::Result<Option<T>> {
    match told {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        told => told.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_not_there_tells_nothing_and_what_else_goes_wrong_is_told() {
        assert_eq!(if_there(fs::read("/nonexistent")).unwrap(), None);
        assert_eq!(if_there(Ok(1)).unwrap(), Some(1));
        assert!(if_there(fs::read("/")).is_err());
    }
}
