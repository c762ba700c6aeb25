//! The tokens that a guest has been given, until they expire. They are known to this process only.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Most tokens at a time. With one more, the one that would expire first does.
const MOST: usize = 1024;
/// Random bytes of a token: none is guessed.
const BYTES: usize = 32;

/// Tokens, and when they expire.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<String, Instant>);

impl Tokens {
    /// A new one, which is valid so long from `now` on.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn issue(&mut self, lifetime: Duration, now: Instant) -> Result<String, getrandom::Error> {
        let mut random = [0; BYTES];
        getrandom::fill(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.0.len() >= MOST {
            self.make_room(now);
        }
        self.0.insert(token.clone(), now + lifetime);
        Ok(token)
    }

    /// Whether it was given and has not expired. A map with a secret hash tells nobody how much of a guess was right.
    pub fn is_valid(&self, token: &str, now: Instant) -> bool {
        self.0.get(token).is_some_and(|expires| now < *expires)
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, expires| now < *expires);
        if self.0.len() >= MOST
            && let Some(first) = self.0.iter().min_by_key(|(_, expires)| **expires)
        {
            let token = first.0.clone();
            self.0.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_is_valid_until_it_expires() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(HOUR, now).unwrap();
        assert_eq!(token.len(), 2 * BYTES);
        assert!(tokens.is_valid(&token, now + HOUR - Duration::from_nanos(1)));
        assert!(!tokens.is_valid(&token, now + HOUR));
        assert!(!tokens.is_valid("", now));
        assert!(!tokens.is_valid(&token[1..], now));
        assert_ne!(tokens.issue(HOUR, now).unwrap(), token);
    }

    #[test]
    fn the_number_of_tokens_is_bounded() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let first = tokens.issue(HOUR, now).unwrap();
        let short = tokens.issue(HOUR / 2, now).unwrap();
        for _ in 2..=MOST {
            tokens.issue(2 * HOUR, now).unwrap();
        }
        assert_eq!(tokens.0.len(), MOST);
        assert!(!tokens.is_valid(&short, now));
        assert!(tokens.is_valid(&first, now));
        tokens.issue(HOUR, now + 2 * HOUR).unwrap();
        assert_eq!(tokens.0.len(), 1, "those that have expired are gone");
    }
}
