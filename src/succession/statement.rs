//! One key comes after another: the text that both sign, or that root keys sign where the old one may be in other hands.
//!
//! Never says who signed it: that is [`super::signed`]'s.

use std::fmt;

use super::lines::{ReadError, Reader, Writer, time, word};
use super::roots::RootsRef;
use crate::nix::signature::PublicKey;
use crate::time::Timestamp;
use crate::tlog::hash::NodeHash;

/// First line of the text.
pub const FORMAT: &str = "narvault/key-succession/v1";

/// Why a key goes. It decides who has to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Others may hold the old key, whose word counts no more: root keys sign, and the new key.
    Compromise,
    /// The old key signs, and the new one.
    Planned,
}

impl Reason {
    /// The word on the line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compromise => "compromise",
            Self::Planned => "planned",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cache by its name, for people, and by its id, which no other cache of any server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRef {
    pub name: String,
    pub id: String,
}

impl CacheRef {
    pub(super) fn parse(key: &'static str, text: &str) -> Result<Self, ReadError> {
        let (name, id) = text.split_once(' ').ok_or(ReadError::Value { key })?;
        Ok(Self { name: word(key, name)?, id: word(key, id)? })
    }
}

impl fmt::Display for CacheRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.id)
    }
}

/// How far the signature log was when the statement was made: who keeps the log finds what happened before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    pub origin: String,
    /// Leaves.
    pub size: u64,
    pub root: NodeHash,
}

impl LogHead {
    fn parse(text: &str) -> Result<Option<Self>, ReadError> {
        if text == "-" {
            return Ok(None);
        }
        let refused = || ReadError::Value { key: "log" };
        let mut words = text.split(' ');
        let (Some(origin), Some(size), Some(root), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(refused());
        };
        Ok(Some(Self {
            origin: word("log", origin)?,
            size: size.parse().map_err(|_| refused())?,
            root: root.parse().map_err(|_| refused())?,
        }))
    }
}

impl fmt::Display for LogHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.origin, self.size, self.root)
    }
}

/// `new` comes after `old`. Only [`Statement::check`]ed ones are encoded or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub cache: CacheRef,
    /// 1 for the first of a cache; each further one is one more.
    pub seq: u64,
    pub old: PublicKey,
    pub new: PublicKey,
    pub reason: Reason,
    /// The root keys in force when this was made.
    pub roots: Option<RootsRef>,
    /// It says nothing before.
    pub not_before: Timestamp,
    /// From when on the old key is not to be trusted any more. `None`: that is not known yet, a later statement says it.
    pub retire_old: Option<Timestamp>,
    /// The last statement of a chain is not followed from then on.
    pub expires: Timestamp,
    pub log: Option<LogHead>,
}

impl Statement {
    /// The text that is signed.
    pub fn encode(&self) -> Result<String, ReadError> {
        self.check()?;
        Ok(self.text())
    }

    /// Reads a text; only the exact bytes that [`Statement::encode`] writes.
    pub fn parse(text: &str) -> Result<Self, ReadError> {
        let mut lines = Reader::new(text, FORMAT)?;
        let statement = Self {
            cache: CacheRef::parse("cache", lines.value("cache")?)?,
            seq: lines.parse("seq")?,
            old: lines.parse("old")?,
            new: lines.parse("new")?,
            reason: match lines.value("reason")? {
                "compromise" => Reason::Compromise,
                "planned" => Reason::Planned,
                _ => return Err(ReadError::Value { key: "reason" }),
            },
            roots: RootsRef::parse("roots", lines.value("roots")?)?,
            not_before: lines.time("not-before")?,
            retire_old: match lines.value("retire-old")? {
                "-" => None,
                text => Some(time("retire-old", text)?),
            },
            expires: lines.time("expires")?,
            log: LogHead::parse(lines.value("log")?)?,
        };
        lines.end()?;
        if statement.encode()? == text { Ok(statement) } else { Err(ReadError::NotCanonical) }
    }

    /// Whether `key` is one whose word this statement needs, apart from root keys: a key that may be in other hands does
    /// not vouch for its successor.
    pub fn needs(&self, key: &PublicKey) -> bool {
        *key == self.new || (self.reason == Reason::Planned && *key == self.old)
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), ReadError> {
        let contradiction = |what| Err(ReadError::Contradiction(what));
        if self.seq == 0 {
            return contradiction("the first statement of a cache has the number 1");
        }
        if self.old.name() == self.new.name() || self.old.bytes() == self.new.bytes() {
            return contradiction("a key cannot come after itself, nor under the same name");
        }
        if self.expires <= self.not_before {
            return contradiction("the statement ends before it begins");
        }
        if self.retire_old.is_some_and(|at| at < self.not_before) {
            return contradiction("the old key would be retired before the statement begins");
        }
        if self.reason == Reason::Compromise && (self.roots.is_none() || self.retire_old.is_none()) {
            return contradiction("a compromise needs root keys, and the end of the old key");
        }
        word("cache", &self.cache.name)?;
        word("cache", &self.cache.id)?;
        if let Some(log) = &self.log {
            word("log", &log.origin)?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut lines = Writer::new(FORMAT);
        lines.line("cache", &self.cache);
        lines.line("seq", self.seq);
        lines.line("old", &self.old);
        lines.line("new", &self.new);
        lines.line("reason", self.reason);
        lines.line_or_dash("roots", self.roots.as_ref());
        lines.line("not-before", self.not_before);
        lines.line_or_dash("retire-old", self.retire_old);
        lines.line("expires", self.expires);
        lines.line_or_dash("log", self.log.as_ref());
        lines.text()
    }
}

#[cfg(test)]
mod tests;
