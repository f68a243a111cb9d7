//! Makes NARs from trees held in memory: for demonstrations and tests.
//!
//! Never checks a name, a target or a depth: [`super::Checker`] judges. Recursive, so not for trees of others' making.

use std::collections::BTreeMap;

use super::MAGIC;

/// A file system object. Directories sort their entries as Nix does, by bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    File { executable: bool, contents: Vec<u8> },
    Symlink { target: Vec<u8> },
    Directory { entries: BTreeMap<Vec<u8>, Node> },
}

impl Node {
    /// A regular file that is not executable.
    pub fn file(contents: impl Into<Vec<u8>>) -> Self {
        Self::File { executable: false, contents: contents.into() }
    }

    /// An executable regular file.
    pub fn executable(contents: impl Into<Vec<u8>>) -> Self {
        Self::File { executable: true, contents: contents.into() }
    }

    /// A symbolic link.
    pub fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self::Symlink { target: target.into() }
    }

    /// A directory; of entries with the same name the last stays.
    pub fn directory<N: Into<Vec<u8>>>(entries: impl IntoIterator<Item = (N, Node)>) -> Self {
        Self::Directory { entries: entries.into_iter().map(|(name, node)| (name.into(), node)).collect() }
    }

    /// The NAR of this tree.
    pub fn to_nar(&self) -> Vec<u8> {
        let mut nar = Vec::new();
        write_token(&mut nar, MAGIC);
        self.write(&mut nar);
        nar
    }

    fn write(&self, nar: &mut Vec<u8>) {
        write_tokens(nar, &[b"(", b"type"]);
        match self {
            Self::File { executable, contents } => {
                write_token(nar, b"regular");
                if *executable {
                    write_tokens(nar, &[b"executable", b""]);
                }
                write_tokens(nar, &[b"contents", contents]);
            }
            Self::Symlink { target } => write_tokens(nar, &[b"symlink", b"target", target]),
            Self::Directory { entries } => {
                write_token(nar, b"directory");
                for (name, node) in entries {
                    write_tokens(nar, &[b"entry", b"(", b"name", name, b"node"]);
                    node.write(nar);
                    write_token(nar, b")");
                }
            }
        }
        write_token(nar, b")");
    }
}

/// Appends one token: its length, its bytes, zeros up to a multiple of eight.
pub fn write_token(nar: &mut Vec<u8>, token: &[u8]) {
    nar.extend_from_slice(&(token.len() as u64).to_le_bytes());
    nar.extend_from_slice(token);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn write_tokens(nar: &mut Vec<u8>, tokens: &[&[u8]]) {
    for token in tokens {
        write_token(nar, token);
    }
}
