//! The three kinds of URL in the configuration, read into types that can only be right.
//!
//! Never shows a password, and never takes storage credentials from a URL.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

use super::source::PATH_ENCODED;

/// Why a text is no URL of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    #[error("is neither `sqlite://<path>` nor `postgres://user@host/name`")]
    Form,
    #[error("names no file: a database in memory would lose every key")]
    SqlitePath,
    #[error("has a query; the server itself sets how SQLite is opened")]
    SqliteQuery,
    #[error("has a password in its query; write it before the @, or use `database.password_file`")]
    PasswordInQuery,
    #[error("has a `#` part; write # in a password as %23")]
    Fragment,
}

/// Where the database is.
#[derive(Clone)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    /// May hold a password.
    Postgres(PostgresUrl),
}

/// A `postgres:` URL. Its password is neither shown nor printed.
#[derive(Clone)]
pub struct PostgresUrl(SecretString);

impl DatabaseUrl {
    /// The URL to connect with, a password included. It stays what it is when a URL parser reads it.
    pub fn expose(&self) -> SecretString {
        match self {
            // `sqlite://../../a` would have its first part read as a host and `..` taken out behind it.
            Self::Sqlite(path) if path.is_relative() => format!("sqlite:{}", encode_path(path)).into(),
            Self::Sqlite(_) => self.to_string().into(),
            Self::Postgres(PostgresUrl(url)) => url.clone(),
        }
    }

    /// Whether a password stands in it.
    pub fn has_password(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(url) => url.parsed().password().is_some(),
        }
    }

    /// The URL to connect with, with `password` in it; none if it is SQLite, or has no host and so no user.
    pub fn with_password(&self, password: &str) -> Option<SecretString> {
        let Self::Postgres(url) = self else {
            return None;
        };
        let mut url = url.parsed();
        url.set_password(Some(password)).ok()?;
        Some(String::from(url).into())
    }
}

impl PostgresUrl {
    fn parsed(&self) -> Url {
        Url::parse(self.0.expose_secret()).expect("only made from a parsed URL")
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, DatabaseUrlError> {
        if let Some(rest) = text.strip_prefix("sqlite:") {
            return parse_sqlite(rest);
        }
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(DatabaseUrlError::Form);
        }
        let url = Url::parse(text).map_err(|_| DatabaseUrlError::Form)?;
        if url.fragment().is_some() {
            return Err(DatabaseUrlError::Fragment);
        }
        if url.query_pairs().any(|(key, _)| key == "password") {
            return Err(DatabaseUrlError::PasswordInQuery);
        }
        Ok(Self::Postgres(PostgresUrl(String::from(url).into())))
    }
}

fn parse_sqlite(rest: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
    if rest == ":memory:" {
        return Err(DatabaseUrlError::SqlitePath);
    }
    let path = rest.strip_prefix("//").ok_or(DatabaseUrlError::Form)?;
    if path.contains('?') {
        return Err(DatabaseUrlError::SqliteQuery);
    }
    let path = decode_path(path).ok_or(DatabaseUrlError::SqlitePath)?;
    if path.ends_with('/') || path == ":memory:" {
        return Err(DatabaseUrlError::SqlitePath);
    }
    Ok(DatabaseUrl::Sqlite(path.into()))
}

impl fmt::Display for DatabaseUrl {
    /// With `[redacted]` for a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", encode_path(path)),
            Self::Postgres(url) => {
                let mut url = url.parsed();
                if url.password().is_none() {
                    return write!(f, "{url}");
                }
                // A word without characters that the URL would encode, then the one that is meant.
                let replaced = url.set_password(Some("redacted")).is_ok();
                let text = if replaced { url.as_str() } else { "" };
                f.write_str(&text.replacen(":redacted@", ":[redacted]@", 1))
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresUrl([redacted])")
    }
}

/// Why a text is no URL of a storage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageUrlError {
    #[error("is neither `file://<path>` nor `s3://bucket/prefix`")]
    Form,
    #[error(
        "does not begin with `file:///`, `file://./` or `file://../`: what follows `file://` would be a host"
    )]
    FileHost,
    #[error("names no folder")]
    FilePath,
    #[error("has a query or a `#` part; `file:` takes none")]
    FileQuery,
    #[error("holds credentials; give them by the usual AWS chain, such as AWS_ACCESS_KEY_ID or a profile")]
    Credentials,
    #[error("has a bucket name that is not 3 to 63 of a-z 0-9 . - between a letter or digit")]
    Bucket,
    #[error(
        "has a prefix that is not names of A-Z a-z 0-9 . _ - with single slashes between, at most 512 bytes"
    )]
    Prefix,
    #[error("has a `#` part")]
    Fragment,
    #[error("has an unknown option; the ones there are: endpoint, region, path_style")]
    UnknownOption,
    #[error("has the option `{0}` twice")]
    RepeatedOption(&'static str),
    #[error(
        "has an endpoint that is not `https://host` or `http://host`, with a port if need be and nothing more"
    )]
    Endpoint,
    #[error("has a region that is not 1 to 64 of a-z 0-9 -")]
    Region,
    #[error("has a `path_style` that is neither true nor false")]
    PathStyle,
}

/// Where objects are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageUrl {
    /// A folder on disk.
    Disk { path: PathBuf },
    /// A bucket.
    S3(S3Location),
}

/// A place in an S3 service. Credentials come from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    pub bucket: String,
    /// Without slashes at either end; empty: the whole bucket.
    pub prefix: String,
    /// Without a slash at its end. Absent: AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// `https://host/bucket` instead of `https://bucket.host`.
    pub path_style: bool,
}

impl FromStr for StorageUrl {
    type Err = StorageUrlError;

    fn from_str(text: &str) -> Result<Self, StorageUrlError> {
        if let Some(path) = text.strip_prefix("file://") {
            return parse_disk(path);
        }
        let rest = text.strip_prefix("s3://").ok_or(StorageUrlError::Form)?;
        parse_s3(rest).map(Self::S3)
    }
}

fn parse_disk(path: &str) -> Result<StorageUrl, StorageUrlError> {
    if path.contains(['?', '#']) {
        return Err(StorageUrlError::FileQuery);
    }
    if path.is_empty() {
        return Err(StorageUrlError::FilePath);
    }
    if !["/", "./", "../"].iter().any(|start| path.starts_with(start)) {
        return Err(StorageUrlError::FileHost);
    }
    let path = decode_path(path).ok_or(StorageUrlError::FilePath)?;
    // The root of the file system is nobody's storage.
    if path.bytes().all(|byte| byte == b'/') {
        return Err(StorageUrlError::FilePath);
    }
    Ok(StorageUrl::Disk { path: path.into() })
}

fn parse_s3(rest: &str) -> Result<S3Location, StorageUrlError> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.contains('#') {
        return Err(StorageUrlError::Fragment);
    }
    if place.contains('@') {
        return Err(StorageUrlError::Credentials);
    }
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if !is_bucket(bucket) {
        return Err(StorageUrlError::Bucket);
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !is_prefix(prefix) {
        return Err(StorageUrlError::Prefix);
    }

    let (mut endpoint, mut region, mut path_style) = (None, None, None);
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "endpoint" => set_once(&mut endpoint, "endpoint", parse_endpoint(&value)?)?,
            "region" if is_region(&value) => set_once(&mut region, "region", value.into_owned())?,
            "region" => return Err(StorageUrlError::Region),
            "path_style" => {
                let value = value.parse().map_err(|_| StorageUrlError::PathStyle)?;
                set_once(&mut path_style, "path_style", value)?;
            }
            _ => return Err(StorageUrlError::UnknownOption),
        }
    }
    Ok(S3Location {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint,
        region,
        path_style: path_style.unwrap_or(false),
    })
}

fn set_once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), StorageUrlError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(StorageUrlError::RepeatedOption(name)),
    }
}

/// The rule that all S3 services share.
fn is_bucket(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (3..=63).contains(&text.len())
        && text.bytes().all(|byte| alphanumeric(byte) || byte == b'-' || byte == b'.')
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().last().is_some_and(alphanumeric)
        && !text.contains("..")
}

fn is_prefix(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let segment = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(plain);
    text.is_empty() || (text.len() <= 512 && text.split('/').all(segment))
}

fn is_region(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

fn parse_endpoint(text: &str) -> Result<String, StorageUrlError> {
    parse_origin(text).map(|url| url.as_str().trim_end_matches('/').to_owned()).map_err(|error| match error {
        PublicUrlError::Credentials => StorageUrlError::Credentials,
        PublicUrlError::Form | PublicUrlError::More => StorageUrlError::Endpoint,
    })
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let location = match self {
            Self::Disk { path } => return write!(f, "file://{}", encode_path(path)),
            Self::S3(location) => location,
        };
        let S3Location { bucket, prefix, endpoint, region, path_style } = location;
        write!(f, "s3://{bucket}")?;
        if !prefix.is_empty() {
            write!(f, "/{prefix}")?;
        }
        let endpoint = endpoint.as_ref().map(|endpoint| format!("endpoint={endpoint}"));
        let region = region.as_ref().map(|region| format!("region={region}"));
        let path_style = path_style.then(|| "path_style=true".to_owned());
        let options: Vec<String> = [endpoint, region, path_style].into_iter().flatten().collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

/// Why a text is no URL for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicUrlError {
    #[error("is not `https://host` or `http://host`, with a port if need be")]
    Form,
    #[error("has a user name or password in it")]
    Credentials,
    #[error("has a path, a query or a `#` part; the server answers at the root of its host")]
    More,
}

/// Scheme, host and port under which clients reach the server; no slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The text that paths are appended to: `https://cache.example.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Plain http at `address`.
    pub(super) fn http(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }

    /// Whether tokens sent there can be read on the way: plain http to a host that is not surely this machine.
    pub fn is_exposed(&self) -> bool {
        let url = Url::parse(&self.0).expect("only made from a parsed URL or an address");
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
            Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
            None => false,
        };
        url.scheme() == "http" && !loopback
    }
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        let url = parse_origin(text)?;
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `http(s)://host[:port]` with at most a slash behind.
fn parse_origin(text: &str) -> Result<Url, PublicUrlError> {
    // The parser is lenient (`http:host`, `http:\\host`, spaces around); what it is given is not.
    let plain = text.starts_with("https://") || text.starts_with("http://");
    if !plain || text.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
        return Err(PublicUrlError::Form);
    }
    let url = Url::parse(text).map_err(|_| PublicUrlError::Form)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(PublicUrlError::Credentials);
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(PublicUrlError::More);
    }
    Ok(url)
}

/// The path that percent-encoded text stands for; none if it is empty, not UTF-8, or holds NUL.
fn decode_path(text: &str) -> Option<String> {
    let path = percent_decode_str(text).decode_utf8().ok()?;
    if path.is_empty() || path.contains('\0') { None } else { Some(path.into_owned()) }
}

fn encode_path(path: &std::path::Path) -> String {
    utf8_percent_encode(&path.to_string_lossy(), PATH_ENCODED).to_string()
}

#[cfg(test)]
mod tests;
