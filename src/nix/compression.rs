//! Compressions of NARs: their labels, file names and magic bytes.
//!
//! Never decompresses. Table: `nix:src/libstore/binary-cache-store.cc`, `nix:src/libutil/compression.cc`.

use std::fmt;
use std::str::FromStr;

use super::hash::FileHash;

/// A compression that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    None,
    Xz,
    Zstd,
    Bzip2,
    Gzip,
    Brotli,
}

/// Why a compression is refused, always naming those that are not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("compression not accepted; use xz, zstd, bzip2, gzip, br or none")]
    NotAccepted,
    #[error("file name says one compression and the bytes another; use xz, zstd, bzip2, gzip, br or none")]
    Disagree,
    #[error("file is neither a plain NAR nor gzip; use xz, zstd, bzip2, gzip, br or none")]
    Unknown,
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    Accepted(Compression),
    /// lz4, lzip, lzma or compress: Nix can write them, narvault does not read them.
    Refused,
    /// Brotli has no magic, and rubbish has none either.
    Unknown,
}

/// How many first bytes [`Compression::detect`] looks at: the longest magic, that of a plain NAR.
pub const DETECT_BYTES: usize = 24;

const NAR_MAGIC: &[u8; DETECT_BYTES] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";

impl Compression {
    /// Every accepted one, in the order in which errors name them.
    pub const ALL: [Self; 6] = [Self::Xz, Self::Zstd, Self::Bzip2, Self::Gzip, Self::Brotli, Self::None];

    /// The value of `Compression:` in a narinfo, and of `compression=` in a store URL.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
        }
    }

    /// Reads a label.
    pub fn from_label(label: &str) -> Result<Self, CompressionError> {
        Self::ALL.into_iter().find(|value| value.label() == label).ok_or(CompressionError::NotAccepted)
    }

    /// What the extension after `.nar` says; `None` where the bytes must say it (plain or gzip).
    pub fn from_file_extension(extension: Option<&str>) -> Result<Option<Self>, CompressionError> {
        let extension = match extension {
            None => NarExtension::Nar,
            Some(after) => NarExtension::ALL
                .into_iter()
                .find(|value| value.suffix() == Some(after))
                .ok_or(CompressionError::NotAccepted)?,
        };
        Ok(extension.compression())
    }

    /// What the first bytes say. Fewer than [`DETECT_BYTES`] bytes are the whole file.
    pub fn detect(first_bytes: &[u8]) -> Detected {
        const MAGICS: [(&[u8], Detected); 9] = [
            (NAR_MAGIC, Detected::Accepted(Compression::None)),
            (b"\xfd7zXZ\0", Detected::Accepted(Compression::Xz)),
            (b"\x28\xb5\x2f\xfd", Detected::Accepted(Compression::Zstd)),
            (b"BZh", Detected::Accepted(Compression::Bzip2)),
            (b"\x1f\x8b", Detected::Accepted(Compression::Gzip)),
            (b"\x04\x22\x4d\x18", Detected::Refused),
            (b"LZIP", Detected::Refused),
            (b"\x5d\0\0", Detected::Refused),
            (b"\x1f\x9d", Detected::Refused),
        ];
        MAGICS
            .into_iter()
            .find(|(magic, _)| first_bytes.starts_with(magic))
            .map_or(Detected::Unknown, |(_, detected)| detected)
    }

    /// The compression of a file with this extension that begins with these bytes.
    ///
    /// The name and the bytes must agree: clients before 2.26 go by the bytes, later ones by the label.
    pub fn of_file(extension: NarExtension, first_bytes: &[u8]) -> Result<Self, CompressionError> {
        let detected = Self::detect(first_bytes);
        match (extension.compression(), detected) {
            // Brotli may begin with anything, so nothing disagrees with it.
            (Some(Self::Brotli), _) => Ok(Self::Brotli),
            (Some(named), Detected::Accepted(found)) if named == found => Ok(named),
            (Some(_), _) => Err(CompressionError::Disagree),
            (None, Detected::Accepted(found @ (Self::None | Self::Gzip))) => Ok(found),
            (None, Detected::Accepted(_)) => Err(CompressionError::Disagree),
            (None, Detected::Refused) => Err(CompressionError::NotAccepted),
            (None, Detected::Unknown) => Err(CompressionError::Unknown),
        }
    }

    /// The extension under which Nix stores it.
    pub const fn extension(self) -> NarExtension {
        match self {
            Self::None | Self::Gzip => NarExtension::Nar,
            Self::Xz => NarExtension::Xz,
            Self::Zstd => NarExtension::Zst,
            Self::Bzip2 => NarExtension::Bz2,
            Self::Brotli => NarExtension::Br,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        Self::from_label(text)
    }
}

/// The end of a NAR file's name. `nar` alone is plain or gzip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NarExtension {
    Nar,
    Xz,
    Zst,
    Bz2,
    Br,
}

impl NarExtension {
    /// Every accepted one.
    pub const ALL: [Self; 5] = [Self::Nar, Self::Xz, Self::Zst, Self::Bz2, Self::Br];

    /// Without the dot in front: `nar`, `nar.xz` …; also how it stands in columns.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nar => "nar",
            Self::Xz => "nar.xz",
            Self::Zst => "nar.zst",
            Self::Bz2 => "nar.bz2",
            Self::Br => "nar.br",
        }
    }

    /// The part after `.nar.`, if any.
    fn suffix(self) -> Option<&'static str> {
        self.as_str().strip_prefix("nar.")
    }

    /// The compression that it stands for; `None` for `nar` (plain or gzip: the bytes say).
    pub const fn compression(self) -> Option<Compression> {
        match self {
            Self::Nar => None,
            Self::Xz => Some(Compression::Xz),
            Self::Zst => Some(Compression::Zstd),
            Self::Bz2 => Some(Compression::Bzip2),
            Self::Br => Some(Compression::Brotli),
        }
    }
}

impl fmt::Display for NarExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NarExtension {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        Self::ALL.into_iter().find(|value| value.as_str() == text).ok_or(CompressionError::NotAccepted)
    }
}

/// Why a text is not the name of a NAR file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNarFileNameError {
    #[error("NAR file's name is not 52 characters of Nix base-32, `.nar`, and an extension if compressed")]
    Shape,
    #[error(transparent)]
    Compression(CompressionError),
}

/// `<52 characters>.nar[.<ext>]`: the SHA-256 of the file and how it ends. Stands below `nar/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NarFileName {
    pub hash: FileHash,
    pub extension: NarExtension,
}

impl FromStr for NarFileName {
    type Err = ParseNarFileNameError;

    fn from_str(text: &str) -> Result<Self, ParseNarFileNameError> {
        let (hash, extension) = text.split_once('.').ok_or(ParseNarFileNameError::Shape)?;
        let hash = FileHash::from_base32(hash).map_err(|_| ParseNarFileNameError::Shape)?;
        if extension != "nar" && !extension.starts_with("nar.") {
            return Err(ParseNarFileNameError::Shape);
        }
        let extension = extension.parse().map_err(ParseNarFileNameError::Compression)?;
        Ok(Self { hash, extension })
    }
}

impl fmt::Display for NarFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.hash.base32(), self.extension)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::hash::Sha256Digest;
    use super::*;

    const HASH: &str = "13mqindg90rwkpgrs66ybvv6ppd32rdzidwnzk0zg6hxwj10dic2";

    /// Any accepted compression.
    pub fn any_compression() -> impl Strategy<Value = Compression> {
        (0..Compression::ALL.len()).prop_map(|index| Compression::ALL[index])
    }

    #[test]
    fn labels_and_names_are_those_of_nix() {
        for (compression, label, name) in [
            (Compression::None, "none", "nar"),
            (Compression::Xz, "xz", "nar.xz"),
            (Compression::Zstd, "zstd", "nar.zst"),
            (Compression::Bzip2, "bzip2", "nar.bz2"),
            (Compression::Gzip, "gzip", "nar"),
            (Compression::Brotli, "br", "nar.br"),
        ] {
            assert_eq!(compression.to_string(), label);
            assert_eq!(label.parse(), Ok(compression));
            assert_eq!(compression.extension().as_str(), name);
            let file = format!("{HASH}.{name}");
            assert_eq!(file.parse::<NarFileName>().unwrap().to_string(), file);
        }
    }

    #[test]
    fn other_labels_are_refused_naming_the_six() {
        for label in ["", "XZ", "lz4", "lzip", "lzma", "compress", "grzip", "brotli", "zst", "bz2", "xz "] {
            let error = label.parse::<Compression>().unwrap_err();
            assert!(error.to_string().ends_with("use xz, zstd, bzip2, gzip, br or none"), "{label:?}");
        }
    }

    #[test]
    fn other_file_names_are_refused() {
        for name in ["nar.lz4", "nar.lzip", "nar.gz", "nar.", "nar.xz.xz", "nar.XZ", "nar.nar", "nar.xz/"] {
            let error = format!("{HASH}.{name}").parse::<NarFileName>().unwrap_err();
            assert_eq!(error, ParseNarFileNameError::Compression(CompressionError::NotAccepted), "{name}");
        }
        for name in [
            String::new(),
            HASH.into(),
            format!("{HASH}."),
            format!("{HASH}.narx"),
            format!("{HASH}.ls"),
            format!("{}.nar", &HASH[1..]),
            format!("0{HASH}.nar"),
            format!("z{}.nar", &HASH[1..]),
            format!("{}.nar", HASH.to_uppercase()),
            format!("../{HASH}.nar"),
            format!("nar/{HASH}.nar"),
            format!(".{HASH}.nar"),
        ] {
            assert_eq!(name.parse::<NarFileName>(), Err(ParseNarFileNameError::Shape), "{name:?}");
        }
    }

    // The first bytes of files that Nix 2.8 wrote.
    #[test]
    fn the_first_bytes_tell_the_compression() {
        let accepted = |bytes: &[u8]| match Compression::detect(bytes) {
            Detected::Accepted(compression) => Some(compression),
            Detected::Refused | Detected::Unknown => None,
        };
        assert_eq!(accepted(NAR_MAGIC), Some(Compression::None));
        assert_eq!(accepted(b"\xfd\x37\x7a\x58\x5a\x00\x00\x04"), Some(Compression::Xz));
        assert_eq!(accepted(b"\x28\xb5\x2f\xfd\x00\x58\x6d\x0c"), Some(Compression::Zstd));
        assert_eq!(accepted(b"\x42\x5a\x68\x39\x31\x41\x59\x26"), Some(Compression::Bzip2));
        assert_eq!(accepted(b"\x1f\x8b\x08\x00\xcc\x6d\x04\x6b"), Some(Compression::Gzip));

        for refused in [&b"\x04\x22\x4d\x18"[..], b"LZIP\x01", b"\x5d\0\0\x80", b"\x1f\x9d\x90"] {
            assert_eq!(Compression::detect(refused), Detected::Refused, "{refused:?}");
        }
        for unknown in [&b""[..], b"\x0d", &NAR_MAGIC[..23], b"hello", b"\xfd7zX", b"BZ"] {
            assert_eq!(Compression::detect(unknown), Detected::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn a_file_whose_name_and_bytes_disagree_is_refused() {
        let xz = b"\xfd7zXZ\0";
        let gzip = b"\x1f\x8b\x08";
        assert_eq!(Compression::of_file(NarExtension::Xz, xz), Ok(Compression::Xz));
        assert_eq!(Compression::of_file(NarExtension::Nar, gzip), Ok(Compression::Gzip));
        assert_eq!(Compression::of_file(NarExtension::Nar, NAR_MAGIC), Ok(Compression::None));
        assert_eq!(Compression::of_file(NarExtension::Br, b"\x1f\x8b"), Ok(Compression::Brotli));

        assert_eq!(Compression::of_file(NarExtension::Nar, xz), Err(CompressionError::Disagree));
        assert_eq!(Compression::of_file(NarExtension::Xz, gzip), Err(CompressionError::Disagree));
        assert_eq!(Compression::of_file(NarExtension::Zst, b""), Err(CompressionError::Disagree));
        assert_eq!(Compression::of_file(NarExtension::Nar, b"\x5d\0\0"), Err(CompressionError::NotAccepted));
        assert_eq!(Compression::of_file(NarExtension::Nar, b""), Err(CompressionError::Unknown));
    }

    #[test]
    fn extensions_hint_at_the_compression() {
        assert_eq!(Compression::from_file_extension(None), Ok(None));
        assert_eq!(Compression::from_file_extension(Some("zst")), Ok(Some(Compression::Zstd)));
        for extension in ["", "nar", "lz4", "gz"] {
            let hint = Compression::from_file_extension(Some(extension));
            assert_eq!(hint, Err(CompressionError::NotAccepted), "{extension:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(digest: [u8; 32], compression in any_compression()) {
            let name = NarFileName { hash: FileHash(Sha256Digest(digest)), extension: compression.extension() };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn no_text_panics(text: String, bytes: Vec<u8>) {
            let _ = text.parse::<NarFileName>();
            let _ = Compression::detect(&bytes);
        }
    }
}
