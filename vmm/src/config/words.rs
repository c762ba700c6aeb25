//! Values of flags that describe a device: `FIRST,key=value,flag`. A comma in a value is written twice.

use std::fmt::Display;
use std::str::FromStr;

use thiserror::Error;

/// What is wrong with such a value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WordError {
    /// Nothing before the first comma.
    #[error("it begins with {0}, and there is none")]
    NoFirst(&'static str),
    /// A word that there is not.
    #[error("there is no '{key}': the words are {known}")]
    Unknown {
        /// What was written.
        key: String,
        /// What can be.
        known: &'static str,
    },
    /// The same word a second time.
    #[error("'{0}' is there twice")]
    Twice(String),
    /// A word that needs a value.
    #[error("'{0}' needs a value: write {0}=...")]
    NoValue(String),
    /// A word that has no value.
    #[error("'{0}' takes no value: leave out what follows it")]
    NotAFlag(String),
    /// A value that is none.
    #[error("{key}: {why}")]
    Value {
        /// The word.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
}

/// Has serde take and give a type as the text that its `FromStr` reads and its `Display` writes.
macro_rules! is_text {
    ($type:ty, $error:ty) => {
        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use is_text;

/// What stands behind the first comma, one after another.
pub struct Word {
    key: String,
    value: Option<String>,
}

/// Splits a value; returns what stands before the first comma, which `what` names for the user, and the words behind it.
pub fn split(text: &str, what: &'static str) -> Result<(String, Vec<Word>), WordError> {
    split_repeating(text, what, "")
}

/// Splits a value in which the word `repeats` may be there several times.
pub fn split_repeating(
    text: &str,
    what: &'static str,
    repeats: &str,
) -> Result<(String, Vec<Word>), WordError> {
    let mut parts = at_single_commas(text).into_iter();
    let first = parts.next().filter(|first| !first.is_empty());
    let first = first.ok_or(WordError::NoFirst(what))?;
    Ok((first, read(parts, repeats)?))
}

/// The words of a value that is nothing but words, at least one.
pub fn list(text: &str) -> Result<Vec<Word>, WordError> {
    list_repeating(text, "")
}

/// The same, in which the word `repeats` may be there several times.
pub fn list_repeating(text: &str, repeats: &str) -> Result<Vec<Word>, WordError> {
    read(at_single_commas(text).into_iter(), repeats)
}

fn read(parts: impl Iterator<Item = String>, repeats: &str) -> Result<Vec<Word>, WordError> {
    let mut words: Vec<Word> = Vec::new();
    for part in parts {
        let word = match part.split_once('=') {
            Some((key, value)) => Word {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            },
            None => Word {
                key: part,
                value: None,
            },
        };
        if word.key != repeats && words.iter().any(|other| other.key == word.key) {
            return Err(WordError::Twice(word.key));
        }
        words.push(word);
    }
    Ok(words)
}

fn at_single_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

impl Word {
    /// Which word it is.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its value.
    ///
    /// # Errors
    /// There is none, or it is none of its kind.
    pub fn value<T: FromStr<Err: Display>>(&self) -> Result<T, WordError> {
        let Some(value) = &self.value else {
            return Err(WordError::NoValue(self.key.clone()));
        };
        value.parse().map_err(|error: T::Err| WordError::Value {
            key: self.key.clone(),
            why: error.to_string(),
        })
    }

    /// That it is there, for a word without a value.
    ///
    /// # Errors
    /// It has one.
    pub fn flag(&self) -> Result<bool, WordError> {
        match &self.value {
            None => Ok(true),
            Some(_) => Err(WordError::NotAFlag(self.key.clone())),
        }
    }

    /// A word that there is not; `known` lists those that there are.
    pub fn unknown(&self, known: &'static str) -> WordError {
        WordError::Unknown {
            key: self.key.clone(),
            known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> (String, Vec<(String, Option<String>)>) {
        let (first, words) = split(text, "a path").unwrap();
        let words = words.into_iter().map(|word| (word.key, word.value));
        (first, words.collect())
    }

    #[test]
    fn words_are_split_at_commas_and_values_at_the_first_equals_sign() {
        let (first, words) = words("a/b=c,readonly,id=x=y,empty=");
        assert_eq!(first, "a/b=c");
        let expected = [("readonly", None), ("id", Some("x=y")), ("empty", Some(""))];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(words, expected);
    }

    #[test]
    fn a_comma_in_a_value_is_written_twice() {
        let (first, words) = words("a,,b,id=c,,");
        assert_eq!(first, "a,b");
        assert_eq!(words, [("id".to_owned(), Some("c,".to_owned()))]);
    }

    #[test]
    fn what_is_missing_or_there_twice_is_named() {
        assert_eq!(split("", "a path").err(), Some(WordError::NoFirst("a path")));
        assert_eq!(split(",id=x", "a path").err(), Some(WordError::NoFirst("a path")));
        assert_eq!(
            split("p,id=a,id=b", "a path").err(),
            Some(WordError::Twice("id".into()))
        );
    }

    #[test]
    fn one_word_may_be_there_several_times() {
        let (_, words) = split_repeating("user,port=1,port=2", "a kind", "port").unwrap();
        let ports: Vec<u16> = words.iter().map(|word| word.value().unwrap()).collect();
        assert_eq!(ports, [1, 2]);
        let twice = split_repeating("user,id=1,id=2", "a kind", "port").err();
        assert_eq!(twice, Some(WordError::Twice("id".into())));
    }

    #[test]
    fn values_and_flags_are_told_apart() {
        let (_, words) = split("p,n=5,f,m=x,g=1", "a path").unwrap();
        assert_eq!(words[0].value(), Ok(5));
        assert_eq!(words[1].flag(), Ok(true));
        assert_eq!(words[1].value::<u32>(), Err(WordError::NoValue("f".into())));
        assert!(matches!(words[2].value::<u32>(), Err(WordError::Value { .. })));
        assert_eq!(words[3].flag(), Err(WordError::NotAFlag("g".into())));
    }
}
