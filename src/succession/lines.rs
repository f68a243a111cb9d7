//! Strict lines: a first line that names the format, then `key value`, in one order, each ending in a line feed.
//!
//! Never takes a second spelling: whoever reads with this encodes again and compares.

use std::fmt::Display;
use std::str::FromStr;

use crate::time::Timestamp;

/// Longest text of a statement, in bytes: 15 root keys of the longest name are below 5 KiB.
pub const TEXT_SIZE_BYTES_MAX: usize = 8 * 1024;

/// Longest single word that is no key, in bytes.
const WORD_LEN_MAX: usize = 255;

/// Why a text is not a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("text is larger than {TEXT_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("text does not begin with `{expected}`")]
    Format { expected: &'static str },
    #[error("text has no line `{key} …` where one is expected")]
    Missing { key: &'static str },
    #[error("the line `{key}` has a value that is refused")]
    Value { key: &'static str },
    #[error("text goes on after its last line")]
    Trailing,
    #[error("text is not spelled as it would be written")]
    NotCanonical,
    #[error("{0}")]
    Contradiction(&'static str),
    #[error("text is not a signed note")]
    Note(#[source] crate::tlog::note::NoteError),
}

/// Writes lines.
pub(super) struct Writer(String);

impl Writer {
    pub fn new(format: &'static str) -> Self {
        Self(format!("{format}\n"))
    }

    pub fn line(&mut self, key: &str, value: impl Display) {
        self.0.push_str(&format!("{key} {value}\n"));
    }

    pub fn line_or_dash(&mut self, key: &str, value: Option<impl Display>) {
        match value {
            Some(value) => self.line(key, value),
            None => self.line(key, "-"),
        }
    }

    pub fn text(self) -> String {
        self.0
    }
}

/// Reads lines, in their order.
pub(super) struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    pub fn new(text: &'a str, format: &'static str) -> Result<Self, ReadError> {
        if text.len() > TEXT_SIZE_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        let rest = text.strip_prefix(format).and_then(|rest| rest.strip_prefix('\n'));
        rest.map(Self).ok_or(ReadError::Format { expected: format })
    }

    /// The value of the next line, which must have this key.
    pub fn value(&mut self, key: &'static str) -> Result<&'a str, ReadError> {
        self.value_if(key).ok_or(ReadError::Missing { key })
    }

    /// The same, if the next line has this key.
    pub fn value_if(&mut self, key: &'static str) -> Option<&'a str> {
        let (line, rest) = self.0.split_once('\n')?;
        let value = line.strip_prefix(key)?.strip_prefix(' ')?;
        self.0 = rest;
        Some(value)
    }

    pub fn parse<T: FromStr>(&mut self, key: &'static str) -> Result<T, ReadError> {
        self.value(key)?.parse().map_err(|_| ReadError::Value { key })
    }

    pub fn time(&mut self, key: &'static str) -> Result<Timestamp, ReadError> {
        time(key, self.value(key)?)
    }

    pub fn end(self) -> Result<(), ReadError> {
        if self.0.is_empty() { Ok(()) } else { Err(ReadError::Trailing) }
    }
}

/// A moment; its one spelling is checked by whoever encodes again.
pub(super) fn time(key: &'static str, text: &str) -> Result<Timestamp, ReadError> {
    Timestamp::parse_rfc3339(text).map_err(|_| ReadError::Value { key })
}

/// A word: printable ASCII without spaces, not empty, not `-`.
pub(super) fn word(key: &'static str, text: &str) -> Result<String, ReadError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && !text.is_empty() && text != "-" && text.len() <= WORD_LEN_MAX {
        Ok(text.to_owned())
    } else {
        Err(ReadError::Value { key })
    }
}
