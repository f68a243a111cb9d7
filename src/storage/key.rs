//! How objects are called: the only place that spells the path of anything in a bucket or folder.
//!
//! Never builds a path from an unchecked text: each part is a parsed type, so no key holds `..`, an
//! empty component, a control character, a component over 255 bytes, or more than 1024 bytes in all.
//! The layout is that of a Nix binary cache (`nix:src/libstore/binary-cache-store.cc`).

use std::fmt;
use std::str::FromStr;

use crate::nix::compression::NarFileName;
use crate::nix::debuginfo::DebugInfoKey;
use crate::nix::hash::Sha256Digest;
use crate::nix::realisation::RealisationKey;
use crate::nix::store_path::{StorePath, StorePathHash};

/// Longest prefix of a cache, and longest prefix of a bucket, in bytes. Both together with the longest
/// object (`build-trace-v2/`, 244 bytes of derivation, 216 of output) stay well under S3's 1024.
pub const PREFIX_LEN_MAX: usize = 200;

/// Longest path below `_log/`, in bytes. A tile of 2^63 entries needs 50.
pub const LOG_NAME_LEN_MAX: usize = 200;

/// Longest part between slashes, in bytes: what file systems take.
pub const COMPONENT_LEN_MAX: usize = 255;

/// Why a text names no object of a binary cache or of this server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    #[error("text is not the path of an object of a binary cache")]
    Object,
    #[error(
        "prefix is not up to {PREFIX_LEN_MAX} characters `A-Z a-z 0-9 . _ -` in components that begin with a letter or digit"
    )]
    Prefix,
    #[error(
        "path in the log is not up to {LOG_NAME_LEN_MAX} characters `a-z 0-9 . _ -` in components that begin with a letter or digit"
    )]
    LogName,
}

/// Where the objects of one cache lie: `""` (the only cache), `main`, `team/main`. Never ends in `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix of the only cache, or of a bucket that narvault has for itself.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The text, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of the two lies within the other, so that two caches would share objects.
    ///
    /// Letter case is ignored, since some file systems ignore it.
    pub fn overlaps(&self, other: &Self) -> bool {
        let within = |inner: &str, outer: &str| {
            outer.is_empty()
                || inner.get(..outer.len()).is_some_and(|start| start.eq_ignore_ascii_case(outer))
                    && matches!(inner.as_bytes().get(outer.len()), None | Some(b'/'))
        };
        within(&self.0, &other.0) || within(&other.0, &self.0)
    }

    /// `rest` below this prefix.
    pub(super) fn join(&self, rest: &str) -> String {
        if self.0.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.0) }
    }
}

impl FromStr for Prefix {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || is_plain_path(text, PREFIX_LEN_MAX, allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseKeyError::Prefix)
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path below `_log/`, such as `checkpoint` or `tile/0/x001/067.p/8`; what they mean is `tlog`'s.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogName(String);

impl FromStr for LogName {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if is_plain_path(text, LOG_NAME_LEN_MAX, allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseKeyError::LogName)
        }
    }
}

/// Whether `text` is one or more components of `allowed` bytes, each beginning with a letter or digit.
fn is_plain_path(text: &str, len_max: usize, allowed: impl Fn(u8) -> bool) -> bool {
    text.len() <= len_max
        && text.split('/').all(|component| {
            component.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
                && component.bytes().all(&allowed)
        })
}

/// An object of a cache, named as it is below the cache's URL. `Display` and `FromStr` are that path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CacheObject {
    /// `nix-cache-info`
    Info,
    /// `<hash>.narinfo`
    Narinfo(StorePathHash),
    /// `nar/<filehash>.nar[.<extension>]`
    Nar(NarFileName),
    /// `<hash>.ls`: which files the NAR holds.
    Listing(StorePathHash),
    /// `log/<base name of the derivation>`
    BuildLog(StorePath),
    /// `realisations/sha256:<64 hex>!<output>.doi`: Nix up to 2.34;
    /// `build-trace-v2/<base name of the derivation>/<output>.doi`: Nix from 2.35 on.
    Realisation(RealisationKey),
    /// `debuginfo/<40 hex>.debug`
    DebugInfo(DebugInfoKey),
    /// `key-succession`: which key comes after which, for clients that follow. Nix never asks for it.
    KeySuccession,
}

impl CacheObject {
    /// What Nix gives this kind of object when it writes a bucket itself.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Info => "text/x-nix-cache-info",
            Self::Narinfo(_) => "text/x-nix-narinfo",
            Self::Nar(_) => "application/x-nix-nar",
            Self::BuildLog(_) | Self::KeySuccession => "text/plain; charset=utf-8",
            Self::Listing(_) | Self::Realisation(_) | Self::DebugInfo(_) => "application/json",
        }
    }
}

impl fmt::Display for CacheObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info => f.write_str("nix-cache-info"),
            Self::Narinfo(hash) => write!(f, "{hash}.narinfo"),
            Self::Nar(file) => write!(f, "nar/{file}"),
            Self::Listing(hash) => write!(f, "{hash}.ls"),
            Self::BuildLog(derivation) => write!(f, "log/{}", derivation.base_name()),
            Self::Realisation(key) => write!(f, "{key}"),
            Self::DebugInfo(key) => write!(f, "debuginfo/{key}"),
            Self::KeySuccession => f.write_str(KEY_SUCCESSION),
        }
    }
}

impl FromStr for CacheObject {
    type Err = ParseKeyError;

    /// Reads the path below a cache's URL, percent-decoded, without a slash in front.
    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        parse_object(text).ok_or(ParseKeyError::Object)
    }
}

fn parse_object(text: &str) -> Option<CacheObject> {
    let Some((folder, rest)) = text.split_once('/') else {
        return if text == "nix-cache-info" {
            Some(CacheObject::Info)
        } else if text == KEY_SUCCESSION {
            Some(CacheObject::KeySuccession)
        } else if let Some(hash) = text.strip_suffix(".narinfo") {
            Some(CacheObject::Narinfo(hash.parse().ok()?))
        } else {
            Some(CacheObject::Listing(text.strip_suffix(".ls")?.parse().ok()?))
        };
    };
    match folder {
        "nar" => Some(CacheObject::Nar(rest.parse().ok()?)),
        "log" => {
            let derivation = StorePath::from_base_name(rest).ok()?;
            derivation.is_derivation().then_some(CacheObject::BuildLog(derivation))
        }
        // The only objects whose parts, each allowed by Nix, can make a name that no file system takes.
        "realisations" | "build-trace-v2" if text.split('/').all(|name| name.len() <= COMPONENT_LEN_MAX) => {
            Some(CacheObject::Realisation(text.parse().ok()?))
        }
        "debuginfo" => Some(CacheObject::DebugInfo(rest.parse().ok()?)),
        _ => None,
    }
}

/// The name of any object that this server writes. `Display` is its stable text, as the outbox holds it;
/// `FromStr` reads that text back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// An object of the cache that lies at this prefix.
    Cache(Prefix, CacheObject),
    /// `_narvault/cluster`: whose bucket this is.
    Owner,
    /// `_narvault/probe/<id>`: written, read and removed by [`super::Storage::check`].
    Probe(uuid::Uuid),
    /// `_narvault/uploads/<id>`: an upload in parts that is being verified.
    Staged(uuid::Uuid),
    /// `_narvault/uploads/<id>.<number>.<SHA-256 in hex>`: a part of such an upload.
    StagedPart(uuid::Uuid, u32, Sha256Digest),
    /// `_narvault/backups/<id>`: a sealed backup of the database.
    Backup(uuid::Uuid),
    /// `_log/…`: the server's signature log.
    Log(LogName),
}

impl ObjectKey {
    /// What the object is stored as.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Cache(_, object) => object.content_type(),
            Self::Owner | Self::Probe(_) => "text/plain; charset=utf-8",
            Self::Staged(_) | Self::StagedPart(..) | Self::Backup(_) => "application/octet-stream",
            Self::Log(LogName(name)) if name == "checkpoint" => "text/plain; charset=utf-8",
            Self::Log(_) => "application/octet-stream",
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(Prefix(prefix), object) if prefix.is_empty() => write!(f, "{object}"),
            Self::Cache(Prefix(prefix), object) => write!(f, "{prefix}/{object}"),
            Self::Owner => write!(f, "{OWN_FOLDER}/cluster"),
            Self::Probe(id) => write!(f, "{OWN_FOLDER}/probe/{}", id.simple()),
            Self::Staged(id) => write!(f, "{OWN_FOLDER}/{UPLOADS}{}", id.simple()),
            Self::StagedPart(id, number, sha256) => {
                write!(f, "{OWN_FOLDER}/{UPLOADS}{}.{number}.{}", id.simple(), sha256.hex())
            }
            Self::Backup(id) => write!(f, "{OWN_FOLDER}/{BACKUPS}{}", id.simple()),
            Self::Log(LogName(name)) => write!(f, "{LOG_FOLDER}/{name}"),
        }
    }
}

impl FromStr for ObjectKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        if let Some((LOG_FOLDER, name)) = text.split_once('/') {
            return Ok(Self::Log(name.parse()?));
        }
        if let Some((OWN_FOLDER, name)) = text.split_once('/') {
            return parse_own(name).ok_or(ParseKeyError::Object);
        }
        if let Ok(object) = text.parse() {
            return Ok(Self::Cache(Prefix::empty(), object));
        }
        // An object has one to three components, and no text is an object by two of these counts.
        text.rmatch_indices('/')
            .take(3)
            .find_map(|(slash, _)| {
                let object = text[slash + 1..].parse().ok()?;
                let prefix: Prefix = text[..slash].parse().ok()?;
                (!prefix.0.is_empty()).then_some(Self::Cache(prefix, object))
            })
            .ok_or(ParseKeyError::Object)
    }
}

fn parse_own(name: &str) -> Option<ObjectKey> {
    if name == "cluster" {
        return Some(ObjectKey::Owner);
    }
    let key = match (name.strip_prefix(UPLOADS), name.strip_prefix(BACKUPS)) {
        (Some(staged), _) => parse_staged(staged)?,
        (None, Some(backup)) => ObjectKey::Backup(uuid::Uuid::try_parse(backup).ok()?),
        (None, None) => ObjectKey::Probe(uuid::Uuid::try_parse(name.strip_prefix("probe/")?).ok()?),
    };
    // UUIDs and numbers have several spellings, keys have one.
    (key.to_string().strip_prefix(OWN_FOLDER)?.strip_prefix('/')? == name).then_some(key)
}

fn parse_staged(name: &str) -> Option<ObjectKey> {
    let mut words = name.split('.');
    let id = uuid::Uuid::try_parse(words.next()?).ok()?;
    let Some(number) = words.next() else { return Some(ObjectKey::Staged(id)) };
    let sha256 = Sha256Digest::from_hex(words.next()?).ok()?;
    words.next().is_none().then_some(ObjectKey::StagedPart(id, number.parse().ok()?, sha256))
}

/// What a listing covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Everything of one cache. With the empty prefix, everything but the server's own.
    Cache(Prefix),
    /// `nar/` of one cache.
    Nars(Prefix),
    /// `_narvault/uploads/`
    Uploads,
    /// `_narvault/backups/`
    Backups,
    /// `_log/`
    Log,
    /// A folder below `_log/`, such as `tile/0/000.p`.
    LogPart(LogName),
}

impl Folder {
    /// The path that all of it begins with: empty, or ending in `/`.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Cache(prefix) => prefix.join(""),
            Self::Nars(prefix) => prefix.join("nar/"),
            Self::Uploads => format!("{OWN_FOLDER}/{UPLOADS}"),
            Self::Backups => format!("{OWN_FOLDER}/{BACKUPS}"),
            Self::Log => format!("{LOG_FOLDER}/"),
            Self::LogPart(LogName(name)) => format!("{LOG_FOLDER}/{name}/"),
        }
    }

    /// Whether an object that begins with [`Folder::path`] belongs to it.
    pub(super) fn covers(&self, name: &str) -> bool {
        let own = name.split_once('/').is_some_and(|(first, _)| first == OWN_FOLDER || first == LOG_FOLDER);
        !own || matches!(self, Self::Log | Self::LogPart(_) | Self::Uploads | Self::Backups)
    }
}

/// The server's own folder. No prefix begins with `_`, so no cache lies here.
pub(super) const OWN_FOLDER: &str = "_narvault";

/// The statements about a cache's keys, below its URL.
const KEY_SUCCESSION: &str = "key-succession";

/// Where uploads in parts lie within it.
const UPLOADS: &str = "uploads/";

/// Where backups of the database lie within it.
const BACKUPS: &str = "backups/";

const LOG_FOLDER: &str = "_log";

/// Where the signature log lies in a folder that is a server's disk storage.
pub fn log_folder(storage: &std::path::Path) -> std::path::PathBuf {
    storage.join(LOG_FOLDER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nix::compression::NarExtension;
    use crate::nix::hash::FileHash;

    const HASH: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";
    const FILE: &str = "073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7";
    const HEX: &str = "47c240929210269cc8d528b6df9327447d56c4cb063f86c79977e0a310d3701c";

    /// Every kind of object, as stock Nix spells it.
    fn spellings() -> Vec<(String, &'static str)> {
        vec![
            ("nix-cache-info".into(), "text/x-nix-cache-info"),
            (format!("{HASH}.narinfo"), "text/x-nix-narinfo"),
            (format!("{HASH}.ls"), "application/json"),
            (format!("nar/{FILE}.nar"), "application/x-nix-nar"),
            (format!("nar/{FILE}.nar.xz"), "application/x-nix-nar"),
            (format!("nar/{FILE}.nar.zst"), "application/x-nix-nar"),
            (format!("log/{HASH}-c++?x=1.drv"), "text/plain; charset=utf-8"),
            (format!("realisations/sha256:{HEX}!out.doi"), "application/json"),
            (format!("build-trace-v2/{HASH}-a.drv/dev.doi"), "application/json"),
            (format!("debuginfo/{}.debug", &HEX[..40]), "application/json"),
            ("key-succession".into(), "text/plain; charset=utf-8"),
        ]
    }

    #[test]
    fn objects_are_spelled_as_nix_spells_them() {
        for (text, content_type) in spellings() {
            let object: CacheObject = text.parse().unwrap_or_else(|_| panic!("{text}"));

            assert_eq!(object.to_string(), text);
            assert_eq!(object.content_type(), content_type, "{text}");
        }
    }

    #[test]
    fn other_paths_name_no_object() {
        for text in [
            "",
            "/",
            ".",
            "..",
            "nix-cache-info/",
            "/nix-cache-info",
            "Nix-cache-info",
            "index.html",
            ".narinfo",
            &format!("{HASH}.narinfo "),
            &format!("{HASH}.narinfo\0"),
            &format!("{HASH}.NARINFO"),
            &format!("e{}.narinfo", &HASH[1..]),
            &format!("{HASH}0.ls"),
            "nar/",
            "nar/../nix-cache-info",
            &format!("nar/{FILE}"),
            &format!("nar/{FILE}.nar."),
            &format!("nar/{FILE}.nar.XZ"),
            &format!("nar/{FILE}.nar.xz.gz"),
            &format!("nar/{FILE}.nar./x"),
            &format!("nar/{FILE}.narx"),
            &format!("nar//{FILE}.nar"),
            &format!("nar/z{}.nar", &FILE[1..]),
            &format!("nar/{FILE}.nar.lz4"),
            &format!("log/{HASH}-a"),
            &format!("log/{HASH}-a.drv/b.drv"),
            "log/..",
            &format!("realisations/{HEX}!out.doi"),
            &format!("realisations/sha256:{HEX}!.doi"),
            &format!("realisations/sha256:{HEX}!..doi"),
            &format!("realisations/sha256:{HEX}!a/b.doi"),
            &format!("realisations/sha256:{}!out.doi", HEX.to_uppercase()),
            &format!("realisations/sha256:{HEX}!{}.doi", "o".repeat(180)),
            &format!("build-trace-v2/{HASH}-a/out.doi"),
            &format!("build-trace-v2/{HASH}-a.drv/out"),
            &format!("build-trace-v2/{HASH}-a.drv/x/out.doi"),
            &format!("debuginfo/{}.debug", &HEX[..38]),
            &format!("debuginfo/{}.debug", HEX[..40].to_uppercase()),
            &format!("debuginfo/{}", &HEX[..40]),
            "é",
        ] {
            assert_eq!(text.parse::<CacheObject>(), Err(ParseKeyError::Object), "{text:?}");
        }
    }

    #[test]
    fn every_key_is_read_back_from_its_text() {
        // Prefixes named like the folders of a cache are the ones that could be mistaken.
        for prefix in ["", "main", "team/main", "nar", "log", "a/nar", "build-trace-v2", "nix-cache-info"] {
            for (text, _) in spellings() {
                let key = ObjectKey::Cache(prefix.parse().unwrap(), text.parse().unwrap());

                assert_eq!(key.to_string().parse(), Ok(key.clone()), "{key}");
            }
        }
        for text in
            ["_narvault/cluster", "_log/checkpoint", "_log/tile/0/x001/067.p/8", "_log/tile/entries/000"]
        {
            assert_eq!(text.parse::<ObjectKey>().unwrap().to_string(), text);
        }
        let id = uuid::Uuid::from_u128(7);
        let part = ObjectKey::StagedPart(id, 12, Sha256Digest::of(b"part"));
        for key in [ObjectKey::Probe(id), ObjectKey::Staged(id), ObjectKey::Backup(id), part] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        let narinfo = format!("{HASH}.narinfo");
        for text in [
            "".to_owned(),
            format!("/{narinfo}"),
            format!("../{narinfo}"),
            format!("main/../{narinfo}"),
            format!("main//{narinfo}"),
            format!("_narvault/{narinfo}"),
            format!("_log/../{narinfo}"),
            format!(".hidden/{narinfo}"),
            format!("a b/{narinfo}"),
            format!("{}/{narinfo}", "x".repeat(PREFIX_LEN_MAX + 1)),
            "_narvault/tmp/1".to_owned(),
            "_narvault/probe/0".to_owned(),
            "_narvault/probe/00000000-0000-0000-0000-000000000007".to_owned(),
            "_narvault/uploads/".to_owned(),
            "_narvault/uploads/00000000-0000-0000-0000-000000000007".to_owned(),
            format!("_narvault/uploads/{}.1", "0".repeat(32)),
            format!("_narvault/uploads/{}.01.{HEX}", "0".repeat(32)),
            format!("_narvault/uploads/{}.1.{}", "0".repeat(32), HEX.to_uppercase()),
            format!("_narvault/uploads/{}.1.{HEX}.x", "0".repeat(32)),
            "_narvault".to_owned(),
            "_log".to_owned(),
            "_log/".to_owned(),
            "_log/Checkpoint".to_owned(),
        ] {
            assert!(text.parse::<ObjectKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn prefixes_outside_the_rules_are_refused() {
        for text in [
            "/", "main/", "/main", "a//b", ".", "..", "a/..", ".a", "_a", "-a", "a b", "a\n", "ä", "a\\b",
            "a%2f",
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(ParseKeyError::Prefix), "{text:?}");
        }
        assert!("x".repeat(PREFIX_LEN_MAX).parse::<Prefix>().is_ok());
    }

    #[test]
    fn prefixes_that_contain_one_another_overlap() {
        let overlap = |one: &str, other: &str| {
            let (one, other): (Prefix, Prefix) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };

        for (one, other) in
            [("", ""), ("", "a"), ("a", "a"), ("a", "a/b"), ("a", "A"), ("A/b", "a"), ("a/b", "a/b/c")]
        {
            assert!(overlap(one, other), "{one:?} {other:?}");
        }
        for (one, other) in [("a", "b"), ("a", "ab"), ("a/b", "a/c"), ("a-b", "a"), ("ab/c", "a")] {
            assert!(!overlap(one, other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn the_longest_key_fits_s3_and_file_systems() {
        let name = "x".repeat(207) + ".drv";
        let output = "o".repeat(211);
        let object: CacheObject = format!("build-trace-v2/{HASH}-{name}/{output}.doi").parse().unwrap();
        let prefix: Prefix = "p".repeat(PREFIX_LEN_MAX).parse().unwrap();

        let path = prefix.join(&ObjectKey::Cache(prefix.clone(), object).to_string());

        assert!(path.len() <= 1024, "{}", path.len());
        assert!(path.split('/').all(|component| component.len() <= 255));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_the_same(text in "[a-z0-9_.!:/-]{0,90}|\\PC*") {
            if let Ok(key) = text.parse::<ObjectKey>() {
                prop_assert_eq!(key.to_string(), text.clone());
            }
            if let Ok(object) = text.parse::<CacheObject>() {
                prop_assert_eq!(object.to_string(), text);
            }
        }

        #[test]
        fn nars_of_any_prefix_are_read_back(
            prefix in "([a-z0-9][a-z0-9._-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20}){0,3})?",
            digest: [u8; 32],
            extension in 0..NarExtension::ALL.len(),
        ) {
            let hash = FileHash(Sha256Digest(digest));
            let object = CacheObject::Nar(NarFileName { hash, extension: NarExtension::ALL[extension] });
            let key = ObjectKey::Cache(prefix.parse().unwrap(), object);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
}
