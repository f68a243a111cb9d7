//! `key value` lines, one after the other in a fixed order: writing and reading them.

use std::fmt::{Display, Write as _};
use std::str::FromStr;

use super::LeafError;

/// Appends lines to a text.
#[derive(Default)]
pub(super) struct Writer {
    pub text: String,
}

impl Writer {
    /// One line.
    pub fn line(&mut self, key: &str, value: impl Display) {
        writeln!(self.text, "{key} {value}").expect("writing to a String cannot fail");
    }

    /// One line, `-` for nothing known.
    pub fn line_or_dash(&mut self, key: &str, value: Option<&impl Display>) {
        match value {
            Some(value) => self.line(key, value),
            None => self.line(key, "-"),
        }
    }
}

/// Takes lines from a text. Line numbers count from 1.
pub(super) struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// Reads `text`, whose first line is number `line`.
    pub fn new(text: &'a str, line: usize) -> Self {
        Self { rest: text, line }
    }

    /// The key of the next line, if there is one.
    pub fn peek_key(&self) -> Option<&'a str> {
        self.rest.split_once('\n')?.0.split_once(' ').map(|(key, _)| key)
    }

    /// The value of the next line, whose key must be `key`.
    pub fn value(&mut self, key: &'static str) -> Result<&'a str, LeafError> {
        if self.peek_key() != Some(key) {
            return Err(LeafError::Expected { line: self.line, key });
        }
        self.any().map(|(_, value)| value)
    }

    /// The next line, whatever its key.
    pub fn any(&mut self) -> Result<(&'a str, &'a str), LeafError> {
        let shape = LeafError::LineShape { line: self.line };
        let Some((line, rest)) = self.rest.split_once('\n') else { return Err(shape) };
        let Some((key, value)) = line.split_once(' ') else { return Err(shape) };
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if key.is_empty() || !key.bytes().all(word) || value.is_empty() || value.contains(char::is_control) {
            return Err(shape);
        }
        (self.rest, self.line) = (rest, self.line + 1);
        Ok((key, value))
    }

    /// The next line's value, of a type of its own.
    pub fn parse<T: FromStr<Err = super::ValueError>>(&mut self, key: &'static str) -> Result<T, LeafError> {
        self.parse_with(key, str::parse)
    }

    /// The same; `None` for `-`.
    pub fn parse_or_dash<T: FromStr<Err = super::ValueError>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, LeafError> {
        self.parse_with(key, |text| if text == "-" { Ok(None) } else { text.parse().map(Some) })
    }

    /// The next line's value, read by `parse`.
    pub fn parse_with<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&'a str) -> Result<T, super::ValueError>,
    ) -> Result<T, LeafError> {
        let line = self.line;
        parse(self.value(key)?).map_err(|source| LeafError::Value { line, key, source })
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), LeafError> {
        if self.rest.is_empty() { Ok(()) } else { Err(LeafError::Trailing { line: self.line }) }
    }
}
