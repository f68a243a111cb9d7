//! The kinds of values that a key takes: how each is spelled, read and shown.
//!
//! Never trims, never guesses a unit, and never repeats a value in an error: it may be a secret in the wrong place.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::urls::{DatabaseUrl, DatabaseUrlError, PublicUrl, PublicUrlError, StorageUrl, StorageUrlError};
use crate::kms::{KmsKeyId, KmsRegion, ParseKmsError};
use crate::witness::{ParseWitnessError, Witness};

/// Why a value does not fit its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("is empty; leave it out instead")]
    Empty,
    #[error("is not written as {expected}")]
    Type { expected: &'static str },
    #[error("is not an IP address and port, such as 127.0.0.1:8750 or [::]:8750")]
    Address,
    #[error("is neither true nor false")]
    Boolean,
    #[error("is not a whole number")]
    Number,
    #[error("is not a size: whole bytes, or a whole number and KiB, MiB, GiB or TiB")]
    Size,
    #[error("is not one of: {allowed}")]
    Choice { allowed: &'static str },
    #[error("holds an entry that is neither a network such as 10.0.0.0/8 nor an address")]
    Network,
    #[error("holds a NUL character")]
    Path,
    #[error("holds an entry that is no witness")]
    Witness(#[from] ParseWitnessError),
    #[error(transparent)]
    Kms(#[from] ParseKmsError),
    #[error(transparent)]
    Database(#[from] DatabaseUrlError),
    #[error(transparent)]
    Storage(#[from] StorageUrlError),
    #[error(transparent)]
    PublicUrl(#[from] PublicUrlError),
}

/// How a value stands in a TOML file. Flags and the environment have text only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Integer,
    Boolean,
    /// Of texts; joined by commas, as in the environment.
    List,
}

/// A type that a key can have.
pub(super) trait Setting: Sized {
    /// In words, for the documentation and for errors.
    const KIND: &'static str;
    /// How it may stand in a file.
    const SHAPES: &'static [Shape] = &[Shape::Text];
    /// Whether the empty text is a value that someone may give.
    const MAY_BE_EMPTY: bool = false;

    /// Reads a value.
    fn parse(text: &str) -> Result<Self, ValueError>;

    /// The value for `narvault check`: without secrets, and readable again if it has none.
    fn show(&self) -> String;
}

impl Setting for SocketAddr {
    const KIND: &'static str = "address";

    fn parse(text: &str) -> Result<Self, ValueError> {
        text.parse().map_err(|_| ValueError::Address)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    const KIND: &'static str = "true or false";
    const SHAPES: &'static [Shape] = &[Shape::Boolean];

    fn parse(text: &str) -> Result<Self, ValueError> {
        text.parse().map_err(|_| ValueError::Boolean)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for u64 {
    const KIND: &'static str = "number";
    const SHAPES: &'static [Shape] = &[Shape::Integer];

    fn parse(text: &str) -> Result<Self, ValueError> {
        parse_digits(text).ok_or(ValueError::Number)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for PathBuf {
    const KIND: &'static str = "path";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.contains('\0') { Err(ValueError::Path) } else { Ok(text.into()) }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// Nothing is the empty text, which only a default can be.
impl<T: Setting> Setting for Option<T> {
    const KIND: &'static str = T::KIND;
    const SHAPES: &'static [Shape] = T::SHAPES;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }
}

impl Setting for Vec<IpNet> {
    const KIND: &'static str = "list of networks";
    const SHAPES: &'static [Shape] = &[Shape::List];
    const MAY_BE_EMPTY: bool = true;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(Self::new());
        }
        let network = |entry: &str| {
            // A proxy is often one machine, named by its address alone.
            let entry = entry.trim();
            entry
                .parse()
                .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| ValueError::Network)
        };
        text.split(',').map(network).collect()
    }

    fn show(&self) -> String {
        let networks: Vec<String> = self.iter().map(IpNet::to_string).collect();
        networks.join(",")
    }
}

impl Setting for Vec<Witness> {
    const KIND: &'static str = "list of witnesses";
    const SHAPES: &'static [Shape] = &[Shape::List];
    const MAY_BE_EMPTY: bool = true;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(Self::new());
        }
        Ok(text.split(',').map(str::parse).collect::<Result<_, _>>()?)
    }

    fn show(&self) -> String {
        let witnesses: Vec<String> = self.iter().map(Witness::to_string).collect();
        witnesses.join(",")
    }
}

/// A number of bytes, written as such or with a binary unit: `67108864` or `64 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl Setting for ByteSize {
    const KIND: &'static str = "size";
    const SHAPES: &'static [Shape] = &[Shape::Integer, Shape::Text];

    fn parse(text: &str) -> Result<Self, ValueError> {
        for (unit, shift) in UNITS {
            if let Some(number) = text.strip_suffix(unit) {
                let number = parse_digits(number.strip_suffix(' ').unwrap_or(number));
                let bytes = number.and_then(|number| number.checked_mul(1 << shift));
                return bytes.map(Self).ok_or(ValueError::Size);
            }
        }
        parse_digits(text).map(Self).ok_or(ValueError::Size)
    }

    fn show(&self) -> String {
        for (unit, shift) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return format!("{} {unit}", self.0 >> shift);
            }
        }
        self.0.to_string()
    }
}

/// Digits only: no sign, no spaces, no underscores.
fn parse_digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $allowed:literal, $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl Setting for $name {
            const KIND: &'static str = $allowed;

            fn parse(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(ValueError::Choice { allowed: $allowed }),
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $text.to_owned(),)+
                }
            }
        }
    };
}

choice! {
    /// How NARs reach clients.
    Deliver, "`proxy` or `redirect`",
    /// Through this server.
    Proxy = "proxy",
    /// From the storage, by URLs that expire.
    Redirect = "redirect",
}

choice! {
    /// How log lines look.
    LogFormat, "`text` or `json`",
    /// For people.
    Text = "text",
    /// One object per line.
    Json = "json",
}

macro_rules! text_setting {
    ($name:ident, $kind:literal) => {
        impl Setting for $name {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, ValueError> {
                Ok(text.parse::<Self>()?)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}

text_setting!(DatabaseUrl, "URL");
text_setting!(StorageUrl, "URL");
text_setting!(PublicUrl, "URL");
text_setting!(KmsKeyId, "KMS key");
text_setting!(KmsRegion, "region");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused<T: Setting + std::fmt::Debug>(expected: &ValueError, texts: &[&str]) {
        for text in texts {
            match T::parse(text) {
                Err(found) => assert_eq!(&found, expected, "{text:?}"),
                Ok(value) => panic!("{text:?} was taken as {value:?}"),
            }
        }
    }

    #[test]
    fn values_that_are_almost_right_are_refused() {
        refused::<SocketAddr>(
            &ValueError::Address,
            &["", "8750", ":8750", "localhost:8750", "127.0.0.1", "::1:x"],
        );
        refused::<bool>(&ValueError::Boolean, &["", "1", "yes", "True", "on", " true"]);
        refused::<u64>(
            &ValueError::Number,
            &["", "-1", "+1", "1.0", "1_000", " 1", "0x10", "18446744073709551616"],
        );
        refused::<ByteSize>(
            &ValueError::Size,
            &[
                "",
                "GiB",
                "1 GB",
                "1GB",
                "1.5 GiB",
                "1  GiB",
                "1 gib",
                "-1",
                "1 G",
                "GiB 1",
                "99999999999 TiB",
            ],
        );
        refused::<Vec<IpNet>>(
            &ValueError::Network,
            &["10.0.0.0/33", "proxy", "10.0.0.1,", ",", "10.0.0/8", "::1/129"],
        );
        refused::<KmsKeyId>(
            &ValueError::Kms(ParseKmsError::Key),
            &["", "alias/", "key/1", "a b", "arn:aws:kms"],
        );
        refused::<KmsRegion>(&ValueError::Kms(ParseKmsError::Region), &["", "EU", "eu central"]);
        refused::<PathBuf>(&ValueError::Path, &["a\0b"]);
        refused::<Deliver>(&ValueError::Choice { allowed: "`proxy` or `redirect`" }, &["", "Proxy", "302"]);
        refused::<LogFormat>(&ValueError::Choice { allowed: "`text` or `json`" }, &["", "JSON", "pretty"]);
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        for (text, bytes) in [("0", 0), ("1", 1), ("1 KiB", 1024), ("64GiB", 64 << 30), ("16 TiB", 16 << 40)]
        {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_network_may_be_one_address() {
        let networks = Vec::<IpNet>::parse("10.0.0.0/8, ::1").unwrap();

        assert_eq!(networks.show(), "10.0.0.0/8,::1/128");
        assert_eq!(Vec::<IpNet>::parse(""), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(bytes: u64, shift in 0u32..60, address: SocketAddr) {
            for size in [ByteSize(bytes), ByteSize(bytes >> shift << shift)] {
                prop_assert_eq!(ByteSize::parse(&size.show()), Ok(size));
            }
            prop_assert_eq!(u64::parse(&bytes.show()), Ok(bytes));
            prop_assert_eq!(SocketAddr::parse(&address.show()).map(|read| read.port()), Ok(address.port()));
        }

        #[test]
        fn no_text_panics(text: String, near in "[0-9. ]{0,20}(TiB|KiB|/|,|:)?") {
            for text in [text, near] {
                let _ = (ByteSize::parse(&text), Vec::<IpNet>::parse(&text), SocketAddr::parse(&text));
            }
        }
    }
}
