//! NARs: the strict, canonical check of Nix's archive format, fed in pieces of any size.
//!
//! Never does I/O, never recurses, never allocates by a length that the archive states: whatever the
//! archive, a [`Checker`] holds one token and one name per open directory, below 24 KiB in all.
//! Format: `nix:src/libutil/archive.cc`; accepted is what the strictest Nix accepts, and nothing after it.

pub mod build;
pub mod encode;

#[cfg(test)]
mod tests;

use std::mem;

use sha2::Digest as _;

use super::hash::Sha256Digest;

/// The first token of every NAR.
pub const MAGIC: &[u8] = b"nix-archive-1";

/// Longest name of a directory entry, in bytes: what Linux file systems and Nix take.
pub const NAME_LEN_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes: PATH_MAX without its NUL.
pub const TARGET_LEN_MAX: usize = 4095;

/// What a NAR may cost. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// Largest archive. The server's `limits` decide; the default is 64 GiB.
    pub nar_size_bytes_max: u64,
    /// Most files, symbolic links and directories, the root included. Nothing is kept per entry: the limit
    /// protects those who unpack. The default of ten million is some tens of times the largest package seen.
    pub entries_max: u64,
    /// Deepest nesting, the root counting as 1. Nix takes 64.
    pub depth_max: usize,
}

impl Default for NarLimits {
    fn default() -> Self {
        Self { nar_size_bytes_max: 64 << 30, entries_max: 10_000_000, depth_max: 64 }
    }
}

/// What is wrong with a NAR, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a canonical NAR: {fault}, at byte {offset}")]
pub struct NarError {
    /// Where the faulty token (its length field), padding or excess begins.
    pub offset: u64,
    /// What is wrong.
    pub fault: NarFault,
}

/// What can be wrong with a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NarFault {
    #[error("it does not begin with `nix-archive-1`")]
    Magic,
    #[error("{expected} is missing")]
    Token { expected: &'static str },
    #[error("the type is none of `regular`, `symlink` and `directory`")]
    Type,
    #[error("the value of `executable` is not empty")]
    Executable,
    #[error("a name is empty or longer than {NAME_LEN_MAX} bytes")]
    NameLength,
    #[error("a name is `.` or `..`")]
    NameDots,
    #[error("a name contains `/` or NUL")]
    NameByte,
    #[error("a name occurs twice in its directory")]
    NameTwice,
    #[error("the names of a directory are not sorted")]
    NameOrder,
    #[error("the target of a symbolic link is empty or longer than {TARGET_LEN_MAX} bytes")]
    TargetLength,
    #[error("the target of a symbolic link contains NUL")]
    TargetByte,
    #[error("padding is not zero")]
    Padding,
    #[error("directories are nested deeper than {max}")]
    Depth { max: usize },
    #[error("it has more than {max} files, links and directories")]
    Entries { max: u64 },
    #[error("it is larger than {max} bytes")]
    Size { max: u64 },
    #[error("data follows after its end")]
    Trailing,
    #[error("it ends too early")]
    Truncated,
}

/// What was learned from a whole, canonical NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarSummary {
    /// Bytes of the archive: Nix's `NarSize`.
    pub size: u64,
    /// Files, symbolic links and directories, the root included.
    pub entries: u64,
    /// Set where the whole archive is one regular file.
    pub single_file: Option<SingleFile>,
}

/// A NAR that is one regular file: what `text` and flat content addresses are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SingleFile {
    pub executable: bool,
    /// Bytes of the contents.
    pub size: u64,
    /// Digest of the contents, not of the archive.
    pub sha256: Sha256Digest,
}

/// Checks one NAR as it passes by. The verdict does not depend on how it is cut into pieces.
#[derive(Debug)]
pub struct Checker {
    limits: NarLimits,
    /// Bytes taken so far, those in `held` included.
    received: u64,
    step: Step,
    expect: Expect,
    /// Where the current token's length field, or padding, begins.
    token_at: u64,
    /// The beginning of a token part that is not whole yet: at most [`TARGET_LEN_MAX`] and padding.
    held: Vec<u8>,
    /// The last name of each open directory, empty before the first: at most `depth_max` of them.
    open: Vec<Vec<u8>>,
    entries: u64,
    /// Only while, and after, the root is a regular file.
    root_file: Option<RootFile>,
}

#[derive(Debug)]
struct RootFile {
    executable: bool,
    size: u64,
    hash: sha2::Sha256,
}

/// Which part of a token comes next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Length,
    /// A token of so many bytes, without its padding.
    Word(usize),
    /// Contents of a regular file, with so many bytes left and so much padding after them.
    Contents {
        left: u64,
        padding: usize,
    },
    Padding(usize),
}

/// Which token comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    Open,
    TypeTag,
    Type,
    ExecutableOrContents,
    Executable,
    ContentsTag,
    Contents,
    TargetTag,
    Target,
    /// The `)` of a file or link.
    Close,
    EntryOrClose,
    EntryOpen,
    NameTag,
    Name,
    NodeTag,
    /// The `)` of a directory entry.
    EntryClose,
    End,
}

impl Checker {
    /// A checker at byte 0.
    pub fn new(limits: NarLimits) -> Self {
        Self {
            limits,
            received: 0,
            step: Step::Length,
            expect: Expect::Magic,
            token_at: 0,
            held: Vec::new(),
            open: Vec::new(),
            entries: 0,
            root_file: None,
        }
    }

    /// Whether the archive has had its last byte: anything more is refused.
    pub fn is_complete(&self) -> bool {
        self.expect == Expect::End
    }

    /// Checks the next piece. After an error the checker is spent.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        let room = self.limits.nar_size_bytes_max - self.received;
        if bytes.len() as u64 <= room {
            return self.take(bytes);
        }
        // What fits is judged first, so that the verdict is the same however the archive is cut.
        self.take(&bytes[..room as usize])?;
        if self.is_complete() {
            return Err(NarError { offset: self.received, fault: NarFault::Trailing });
        }
        Err(NarError { offset: self.received, fault: NarFault::Size { max: self.limits.nar_size_bytes_max } })
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<NarSummary, NarError> {
        if !self.is_complete() {
            return Err(NarError { offset: self.received, fault: NarFault::Truncated });
        }
        let single_file = self.root_file.map(|file| SingleFile {
            executable: file.executable,
            size: file.size,
            sha256: Sha256Digest(file.hash.finalize().into()),
        });
        Ok(NarSummary { size: self.received, entries: self.entries, single_file })
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            match self.step {
                Step::Length if self.is_complete() => {
                    return Err(NarError { offset: self.received, fault: NarFault::Trailing });
                }
                Step::Length => {
                    if self.held.is_empty() {
                        self.token_at = self.received;
                    }
                    self.whole(&mut bytes, 8, |checker, field| {
                        let length = u64::from_le_bytes(field.try_into().expect("8 bytes: asked for above"));
                        checker.length(length)
                    })?;
                }
                Step::Word(length) => {
                    self.whole(&mut bytes, length + padding_of(length as u64), |checker, padded| {
                        let (word, padding) = padded.split_at(length);
                        if padding.iter().any(|&byte| byte != 0) {
                            return Err(NarFault::Padding);
                        }
                        checker.step = Step::Length;
                        checker.word(word)
                    })?;
                }
                Step::Contents { left, padding } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    if let Some(file) = &mut self.root_file {
                        file.hash.update(&bytes[..here]);
                    }
                    bytes = &bytes[here..];
                    self.received += here as u64;
                    self.step = match left - here as u64 {
                        0 => self.after_contents(padding),
                        left => Step::Contents { left, padding },
                    };
                }
                Step::Padding(length) => {
                    self.whole(&mut bytes, length, |checker, padding| {
                        checker.step = Step::Length;
                        if padding.iter().any(|&byte| byte != 0) { Err(NarFault::Padding) } else { Ok(()) }
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Hands `act` the next `length` bytes once all of them are there; until then they are held.
    fn whole(
        &mut self,
        bytes: &mut &[u8],
        length: usize,
        act: impl FnOnce(&mut Self, &[u8]) -> Result<(), NarFault>,
    ) -> Result<(), NarError> {
        let missing = length - self.held.len();
        let (here, rest) = bytes.split_at(missing.min(bytes.len()));
        *bytes = rest;
        self.received += here.len() as u64;
        let judged = if here.len() < missing {
            self.held.extend_from_slice(here);
            Ok(())
        } else if self.held.is_empty() {
            act(self, here)
        } else {
            let mut held = mem::take(&mut self.held);
            held.extend_from_slice(here);
            let judged = act(self, &held);
            held.clear();
            self.held = held;
            judged
        };
        judged.map_err(|fault| NarError { offset: self.token_at, fault })
    }

    /// A token's length field: what cannot fit what is expected is refused before any of it is read.
    fn length(&mut self, length: u64) -> Result<(), NarFault> {
        if self.expect == Expect::Contents {
            let room = self.limits.nar_size_bytes_max - self.received;
            if length > room {
                return Err(NarFault::Size { max: self.limits.nar_size_bytes_max });
            }
            if let Some(file) = &mut self.root_file {
                file.size = length;
            }
            self.expect = Expect::Close;
            let padding = padding_of(length);
            self.step = match length {
                0 => Step::Length,
                left => Step::Contents { left, padding },
            };
            return Ok(());
        }
        let (min, max) = match self.expect {
            Expect::Name => (1, NAME_LEN_MAX),
            Expect::Target => (1, TARGET_LEN_MAX),
            Expect::Executable => (0, 0),
            _ => (1, LONGEST_TAG),
        };
        match usize::try_from(length) {
            Ok(0) if min == 0 => self.word(&[]),
            Ok(length) if length >= min && length <= max => {
                self.step = Step::Word(length);
                Ok(())
            }
            _ => Err(self.unexpected()),
        }
    }

    fn after_contents(&mut self, padding: usize) -> Step {
        self.token_at = self.received;
        if padding == 0 { Step::Length } else { Step::Padding(padding) }
    }

    /// A whole token, its padding already checked.
    fn word(&mut self, word: &[u8]) -> Result<(), NarFault> {
        self.expect = match (self.expect, word) {
            (Expect::Magic, MAGIC) => Expect::Open,
            (Expect::Open, b"(") => {
                self.enter()?;
                Expect::TypeTag
            }
            (Expect::TypeTag, b"type") => Expect::Type,
            (Expect::Type, b"regular") => {
                if self.open.is_empty() {
                    let hash = sha2::Sha256::new();
                    self.root_file = Some(RootFile { executable: false, size: 0, hash });
                }
                Expect::ExecutableOrContents
            }
            (Expect::Type, b"symlink") => Expect::TargetTag,
            (Expect::Type, b"directory") => {
                self.open.push(Vec::new());
                Expect::EntryOrClose
            }
            (Expect::ExecutableOrContents, b"executable") => {
                if let Some(file) = &mut self.root_file {
                    file.executable = true;
                }
                Expect::Executable
            }
            (Expect::Executable, b"") => Expect::ContentsTag,
            (Expect::ExecutableOrContents | Expect::ContentsTag, b"contents") => Expect::Contents,
            (Expect::TargetTag, b"target") => Expect::Target,
            (Expect::Target, target) => {
                if target.contains(&0) {
                    return Err(NarFault::TargetByte);
                }
                Expect::Close
            }
            (Expect::Close, b")") => self.after_node(),
            (Expect::EntryOrClose, b")") => {
                self.open.pop();
                self.after_node()
            }
            (Expect::EntryOrClose, b"entry") => Expect::EntryOpen,
            (Expect::EntryOpen, b"(") => Expect::NameTag,
            (Expect::NameTag, b"name") => Expect::Name,
            (Expect::Name, name) => {
                self.name(name)?;
                Expect::NodeTag
            }
            (Expect::NodeTag, b"node") => Expect::Open,
            (Expect::EntryClose, b")") => Expect::EntryOrClose,
            _ => return Err(self.unexpected()),
        };
        Ok(())
    }

    fn enter(&mut self) -> Result<(), NarFault> {
        if self.open.len() >= self.limits.depth_max {
            return Err(NarFault::Depth { max: self.limits.depth_max });
        }
        if self.entries >= self.limits.entries_max {
            return Err(NarFault::Entries { max: self.limits.entries_max });
        }
        self.entries += 1;
        Ok(())
    }

    fn after_node(&self) -> Expect {
        if self.open.is_empty() { Expect::End } else { Expect::EntryClose }
    }

    fn name(&mut self, name: &[u8]) -> Result<(), NarFault> {
        if name == b"." || name == b".." {
            return Err(NarFault::NameDots);
        }
        if name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(NarFault::NameByte);
        }
        let Some(last) = self.open.last_mut() else {
            return Err(NarFault::Token { expected: "`(`" });
        };
        if name == last.as_slice() {
            return Err(NarFault::NameTwice);
        }
        if name < last.as_slice() {
            return Err(NarFault::NameOrder);
        }
        last.clear();
        last.extend_from_slice(name);
        Ok(())
    }

    /// The fault of a token that is not the expected one.
    fn unexpected(&self) -> NarFault {
        let expected = match self.expect {
            Expect::Magic => return NarFault::Magic,
            Expect::Type => return NarFault::Type,
            Expect::Executable => return NarFault::Executable,
            Expect::Name => return NarFault::NameLength,
            Expect::Target => return NarFault::TargetLength,
            Expect::End => return NarFault::Trailing,
            Expect::Open | Expect::EntryOpen => "`(`",
            Expect::TypeTag => "`type`",
            Expect::ExecutableOrContents => "`executable` or `contents`",
            Expect::ContentsTag | Expect::Contents => "`contents`",
            Expect::TargetTag => "`target`",
            Expect::Close | Expect::EntryClose => "`)`",
            Expect::EntryOrClose => "`entry` or `)`",
            Expect::NameTag => "`name`",
            Expect::NodeTag => "`node`",
        };
        NarFault::Token { expected }
    }
}

/// No tag, type or magic is longer than the magic.
const LONGEST_TAG: usize = MAGIC.len();

/// Zero bytes after a token of `length` bytes.
fn padding_of(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}
