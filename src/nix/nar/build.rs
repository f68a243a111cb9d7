//! Makes NARs from trees held in memory: for demonstrations and tests.
//!
//! Never checks a name, a target or a depth: [`super::Checker`] judges. Recursive, so not for trees of others' making.

use std::collections::BTreeMap;

use super::encode;

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
        encode::begin(&mut nar);
        self.write(&mut nar);
        nar
    }

    fn write(&self, nar: &mut Vec<u8>) {
        match self {
            Self::File { executable, contents } => {
                encode::regular(nar, *executable, contents.len() as u64);
                nar.extend_from_slice(contents);
                encode::end_regular(nar, contents.len() as u64);
            }
            Self::Symlink { target } => encode::symlink(nar, target),
            Self::Directory { entries } => {
                encode::directory(nar);
                for (name, node) in entries {
                    encode::entry(nar, name);
                    node.write(nar);
                    encode::end_entry(nar);
                }
                encode::end_directory(nar);
            }
        }
    }
}
