//! Our part of a nix.conf: which caches are used, with which keys, and which netrc file.
//!
//! Always written as a whole, at the end of its file, so that no later line of that file takes away what it adds.

use crate::client::marked::{MarkError, Marked, Position};

use super::syntax::Line;

/// A cache that is used: its pull URL, and the keys to trust for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    pub url: String,
    pub public_keys: Vec<String>,
}

/// What our part says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    pub caches: Vec<Used>,
    pub netrc_file: Option<String>,
}

/// How a list is added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spelling {
    /// `extra-substituters`, `extra-trusted-public-keys`: since Nix 2.4.
    Extra,
    /// Before that, the whole lists: these values, which hold without us, and ours behind them.
    Whole { substituters: Vec<String>, public_keys: Vec<String> },
}

impl Part {
    /// What our part of a file's text says; nothing if there is none.
    pub fn of(text: Option<&str>) -> Result<Self, MarkError> {
        Ok(Self::parse(&Marked::parse(text)?).0)
    }

    /// As [`Part::of`], and the lines between the marks that are not ours.
    fn parse(marked: &Marked) -> (Self, Vec<String>) {
        let mut part = Self::default();
        let mut foreign = Vec::new();
        for line in marked.inside().unwrap_or_default() {
            if !part.take(line) {
                foreign.push(line.clone());
            }
        }
        (part, foreign)
    }

    /// Takes a line in, if it is one that [`Part::lines`] writes.
    fn take(&mut self, line: &str) -> bool {
        if line == ABOUT {
            return true;
        }
        if let Some(cache) = line.strip_prefix(CACHE) {
            let mut words = cache.split(' ').filter(|word| !word.is_empty());
            let Some(url) = words.next() else { return false };
            self.caches.push(Used { url: url.into(), public_keys: words.map(str::to_owned).collect() });
            return true;
        }
        match Line::parse(line) {
            Line::Setting { name: "extra-substituters", values } if values.len() == 1 => {
                self.caches.push(Used { url: values[0].into(), public_keys: Vec::new() });
                true
            }
            Line::Setting { name: "extra-trusted-public-keys", values } => match self.caches.last_mut() {
                Some(cache) if cache.public_keys.is_empty() => {
                    cache.public_keys = values.into_iter().map(str::to_owned).collect();
                    true
                }
                _ => false,
            },
            Line::Setting { name: "netrc-file", values } if values.len() == 1 => {
                self.netrc_file = Some(values[0].into());
                true
            }
            // Made anew from the comments beside them.
            Line::Setting { name: "substituters" | "trusted-public-keys", .. } => true,
            _ => false,
        }
    }

    /// Puts a cache in, or in the place of what was known of it.
    pub fn put(&mut self, used: Used) {
        match self.caches.iter_mut().find(|cache| cache.url == used.url) {
            Some(cache) => *cache = used,
            None => self.caches.push(used),
        }
    }

    /// The text of a file with this part in it, or without any if no cache is used.
    pub fn write(&self, text: Option<&str>, spelling: &Spelling) -> Result<Option<String>, MarkError> {
        let marked = Marked::parse(text)?;
        let (_, foreign) = Self::parse(&marked);
        if self.caches.is_empty() {
            return Ok(marked.rest(&foreign));
        }
        Ok(Some(marked.with(Position::Bottom, &self.lines(spelling), &foreign)))
    }

    fn lines(&self, spelling: &Spelling) -> Vec<String> {
        let mut lines = vec![ABOUT.to_owned()];
        match spelling {
            Spelling::Extra => {
                for cache in &self.caches {
                    lines.push(format!("extra-substituters = {}", cache.url));
                    lines.push(format!("extra-trusted-public-keys = {}", cache.public_keys.join(" ")));
                }
            }
            Spelling::Whole { substituters, public_keys } => {
                let urls = self.caches.iter().map(|cache| &cache.url);
                let keys = self.caches.iter().flat_map(|cache| &cache.public_keys);
                lines.push(format!("substituters = {}", joined(substituters.iter().chain(urls))));
                lines.push(format!("trusted-public-keys = {}", joined(public_keys.iter().chain(keys))));
                lines.extend(
                    self.caches
                        .iter()
                        .map(|cache| format!("{CACHE}{} {}", cache.url, cache.public_keys.join(" "))),
                );
            }
        }
        lines.extend(self.netrc_file.iter().map(|path| format!("netrc-file = {path}")));
        lines
    }
}

/// Each value once, with blanks between.
fn joined<'a>(values: impl Iterator<Item = &'a String>) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for value in values {
        if !seen.contains(&value.as_str()) {
            seen.push(value);
        }
    }
    seen.join(" ")
}

const ABOUT: &str = "# Written by `narvault use` as a whole; `narvault unuse` takes it out.";
const CACHE: &str = "# cache: ";
