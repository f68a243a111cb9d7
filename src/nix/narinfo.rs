//! narinfo: read strictly as it is pushed, printed from verified values as Nix prints it.
//!
//! Never passes on a line that it did not understand. Format: `nix:src/libstore/nar-info.cc`.
//! Stricter than Nix, which skips one unchecked character after the colon and lets fields repeat.

use std::fmt;
use std::str::FromStr;

use super::claim::{Claim, ParseReferencesError, SIZE_MAX, parse_references};
use super::compression::{Compression, CompressionError, NarFileName, ParseNarFileNameError};
use super::content_address::{ContentAddress, ParseContentAddressError};
use super::hash::{FileHash, NarHash, ParseHashError};
use super::signature::{ParseSignatureError, SIGNATURES_MAX, Signature};
use super::store_path::{ParseStorePathError, StorePath};

/// Largest accepted narinfo, in bytes: room for about 17 000 references of usual length.
pub const NARINFO_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// A field that is read. Others, such as `System`, are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    StorePath,
    Url,
    Compression,
    FileHash,
    FileSize,
    NarHash,
    NarSize,
    References,
    Deriver,
    Sig,
    Ca,
}

impl Field {
    const ALL: [Self; 11] = [
        Self::StorePath,
        Self::Url,
        Self::Compression,
        Self::FileHash,
        Self::FileSize,
        Self::NarHash,
        Self::NarSize,
        Self::References,
        Self::Deriver,
        Self::Sig,
        Self::Ca,
    ];

    /// The key, as it stands in front of the colon.
    pub const fn key(self) -> &'static str {
        match self {
            Self::StorePath => "StorePath",
            Self::Url => "URL",
            Self::Compression => "Compression",
            Self::FileHash => "FileHash",
            Self::FileSize => "FileSize",
            Self::NarHash => "NarHash",
            Self::NarSize => "NarSize",
            Self::References => "References",
            Self::Deriver => "Deriver",
            Self::Sig => "Sig",
            Self::Ca => "CA",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// Why a text is not a narinfo. Each message is complete in itself, because Nix shows it to its user as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    #[error("narinfo is larger than {NARINFO_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("narinfo is not UTF-8")]
    NotUtf8,
    #[error("narinfo's last line does not end in a line feed")]
    NoFinalLineFeed,
    #[error("narinfo line {line} ends in a carriage return; only line feeds are accepted")]
    CarriageReturn { line: usize },
    #[error("narinfo line {line} is not `Key: value` with exactly one space")]
    LineShape { line: usize },
    #[error("narinfo has `{field}` twice")]
    Repeated { field: Field },
    #[error("narinfo has no `{field}`")]
    Missing { field: Field },
    #[error("narinfo's `StorePath` is refused: {0}")]
    StorePath(ParseStorePathError),
    #[error("narinfo's `URL` does not begin with `nar/`")]
    UrlFolder,
    #[error("narinfo's `URL` is refused: {0}")]
    Url(ParseNarFileNameError),
    #[error("narinfo's `Compression` is refused: {0}")]
    Compression(CompressionError),
    #[error("narinfo's `Compression` is not that of its `URL`")]
    CompressionOfUrl,
    #[error("narinfo's `{field}` is refused: {reason}")]
    Hash { field: Field, reason: ParseHashError },
    #[error("narinfo's `FileHash` is not that of its `URL`")]
    FileHashOfUrl,
    #[error("narinfo's `{field}` is not a decimal number from 1 to {SIZE_MAX}")]
    Size { field: Field },
    #[error("narinfo's `References` are refused: {0}")]
    References(ParseReferencesError),
    #[error("narinfo's `Deriver` is refused: {0}")]
    Deriver(ParseStorePathError),
    #[error("narinfo line {line}: {reason}")]
    Sig { line: usize, reason: ParseSignatureError },
    #[error("narinfo has more than {SIGNATURES_MAX} `Sig` lines")]
    TooManySignatures,
    #[error("narinfo's `CA` is refused: {0}")]
    Ca(ParseContentAddressError),
}

/// What a pushed narinfo says: well formed, and nothing else is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    pub claim: Claim,
    /// From `URL`; where `FileHash` is given, it is the same hash.
    pub file: NarFileName,
    /// Agrees with the extension of `file`.
    pub compression: Compression,
    pub file_size: Option<u64>,
    pub deriver: Option<StorePath>,
    /// As they came, duplicates dropped. None has been verified.
    pub signatures: Vec<Signature>,
    pub ca: Option<ContentAddress>,
}

impl NarInfo {
    /// Reads the body of a PUT, decoded from its `Content-Encoding`.
    pub fn parse(body: &[u8]) -> Result<Self, NarInfoError> {
        let fields = Fields::split(body)?;

        let claim = fields.claim()?;
        let url = fields.required(Field::Url)?;
        let file = url.strip_prefix("nar/").ok_or(NarInfoError::UrlFolder)?;
        let file: NarFileName = file.parse().map_err(NarInfoError::Url)?;
        // Nix's default, older than any other compression.
        let compression = fields.optional(Field::Compression).unwrap_or("bzip2");
        let compression = Compression::from_label(compression).map_err(NarInfoError::Compression)?;
        if compression.extension() != file.extension {
            return Err(NarInfoError::CompressionOfUrl);
        }
        if let Some(text) = fields.optional(Field::FileHash)
            && parse_hash::<FileHash>(Field::FileHash, text)? != file.hash
        {
            return Err(NarInfoError::FileHashOfUrl);
        }
        let file_size =
            fields.optional(Field::FileSize).map(|text| parse_size(Field::FileSize, text)).transpose()?;
        let deriver = match fields.optional(Field::Deriver) {
            None | Some("unknown-deriver") => None,
            Some(base_name) => Some(StorePath::from_base_name(base_name).map_err(NarInfoError::Deriver)?),
        };
        let ca = fields.optional(Field::Ca).map(|text| text.parse().map_err(NarInfoError::Ca)).transpose()?;

        Ok(Self { claim, file, compression, file_size, deriver, signatures: fields.signatures()?, ca })
    }
}

/// The part of a narinfo that is signed, with its signatures: all that counts where somebody else serves the file,
/// by whatever name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedClaim {
    pub claim: Claim,
    /// As they came, duplicates dropped. None has been verified.
    pub signatures: Vec<Signature>,
}

impl SignedClaim {
    /// Reads a narinfo of another cache.
    pub fn parse(body: &[u8]) -> Result<Self, NarInfoError> {
        let fields = Fields::split(body)?;
        Ok(Self { claim: fields.claim()?, signatures: fields.signatures()? })
    }
}

/// A narinfo that Nix can read, for clients that only ask whether the path is there: its `URL` names no file.
impl fmt::Display for SignedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}", self.claim.path)?;
        writeln!(f, "URL: nar/{}.nar", self.claim.nar_hash.base32())?;
        writeln!(f, "Compression: none")?;
        writeln!(f, "NarHash: {}", self.claim.nar_hash)?;
        writeln!(f, "NarSize: {}", self.claim.nar_size)?;
        writeln!(f, "References: {}", self.claim.references_text())?;
        Signature::sorted_texts(&self.signatures).iter().try_for_each(|text| writeln!(f, "Sig: {text}"))
    }
}

/// The values by field, before any is understood.
struct Fields<'a> {
    single: [Option<&'a str>; Field::ALL.len()],
    sigs: Vec<(usize, &'a str)>,
}

impl<'a> Fields<'a> {
    fn split(body: &'a [u8]) -> Result<Self, NarInfoError> {
        if body.len() > NARINFO_SIZE_BYTES_MAX {
            return Err(NarInfoError::TooLarge);
        }
        let text = std::str::from_utf8(body).map_err(|_| NarInfoError::NotUtf8)?;
        let text = text.strip_suffix('\n').ok_or(NarInfoError::NoFinalLineFeed)?;

        let mut fields = Self { single: Default::default(), sigs: Vec::new() };
        for (index, text) in text.split('\n').enumerate() {
            fields.take_line(index + 1, text)?;
        }
        Ok(fields)
    }

    fn take_line(&mut self, line: usize, text: &'a str) -> Result<(), NarInfoError> {
        if text.ends_with('\r') {
            return Err(NarInfoError::CarriageReturn { line });
        }
        let (key, value) = text.split_once(": ").ok_or(NarInfoError::LineShape { line })?;
        let key_is_a_word =
            !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !key_is_a_word || value.starts_with(' ') {
            return Err(NarInfoError::LineShape { line });
        }
        let Some(field) = Field::ALL.into_iter().find(|field| field.key() == key) else {
            return Ok(());
        };
        if field == Field::Sig {
            if self.sigs.len() == SIGNATURES_MAX {
                return Err(NarInfoError::TooManySignatures);
            }
            self.sigs.push((line, value));
        } else if self.single[field as usize].replace(value).is_some() {
            return Err(NarInfoError::Repeated { field });
        }
        Ok(())
    }

    fn optional(&self, field: Field) -> Option<&'a str> {
        self.single[field as usize]
    }

    fn required(&self, field: Field) -> Result<&'a str, NarInfoError> {
        self.optional(field).ok_or(NarInfoError::Missing { field })
    }

    /// The tuple that is signed.
    fn claim(&self) -> Result<Claim, NarInfoError> {
        let path =
            StorePath::from_absolute(self.required(Field::StorePath)?).map_err(NarInfoError::StorePath)?;
        let nar_hash = parse_hash::<NarHash>(Field::NarHash, self.required(Field::NarHash)?)?;
        let nar_size = parse_size(Field::NarSize, self.required(Field::NarSize)?)?;
        let references = parse_references(self.optional(Field::References).unwrap_or_default())
            .map_err(NarInfoError::References)?;
        Ok(Claim { path, nar_hash, nar_size, references })
    }

    fn signatures(&self) -> Result<Vec<Signature>, NarInfoError> {
        let mut signatures = Vec::with_capacity(self.sigs.len());
        for &(line, text) in &self.sigs {
            let signature = text.parse().map_err(|reason| NarInfoError::Sig { line, reason })?;
            if !signatures.contains(&signature) {
                signatures.push(signature);
            }
        }
        Ok(signatures)
    }
}

fn parse_hash<H: FromStr<Err = ParseHashError>>(field: Field, text: &str) -> Result<H, NarInfoError> {
    text.parse().map_err(|reason| NarInfoError::Hash { field, reason })
}

/// A decimal number without sign and leading zeros: one spelling for each.
fn parse_size(field: Field, text: &str) -> Result<u64, NarInfoError> {
    let error = NarInfoError::Size { field };
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error);
    }
    text.parse().ok().filter(|&size| size <= SIZE_MAX).ok_or(error)
}

/// A narinfo to be printed, from values that were verified. `Display` is the text, in Nix's own order.
#[derive(Debug, Clone, Copy)]
pub struct NarInfoText<'a> {
    pub claim: &'a Claim,
    pub file: NarFileName,
    pub compression: Compression,
    /// Size of the file, in bytes.
    pub file_size: u64,
    pub deriver: Option<&'a StorePath>,
    /// Printed sorted, each once.
    pub signatures: &'a [Signature],
    /// Printed unless it is of a method that is not recomputed: nobody has checked those.
    pub ca: Option<&'a ContentAddress>,
}

impl fmt::Display for NarInfoText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}", self.claim.path)?;
        writeln!(f, "URL: nar/{}", self.file)?;
        writeln!(f, "Compression: {}", self.compression)?;
        writeln!(f, "FileHash: {}", self.file.hash)?;
        writeln!(f, "FileSize: {}", self.file_size)?;
        writeln!(f, "NarHash: {}", self.claim.nar_hash)?;
        writeln!(f, "NarSize: {}", self.claim.nar_size)?;
        writeln!(f, "References: {}", self.claim.references_text())?;
        if let Some(deriver) = self.deriver {
            writeln!(f, "Deriver: {}", deriver.base_name())?;
        }
        for signature in Signature::sorted_texts(self.signatures) {
            writeln!(f, "Sig: {signature}")?;
        }
        match self.ca {
            None | Some(ContentAddress::Other(_)) => Ok(()),
            Some(ca) => writeln!(f, "CA: {ca}"),
        }
    }
}

#[cfg(test)]
mod tests;
