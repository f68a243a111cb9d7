//! Names that people choose (caches, contributors, groups) and ids that the server makes (UUIDv7 text).
//!
//! Never accepts two spellings of one thing: lower case only, nothing trimmed, nothing folded.

use std::fmt;
use std::str::FromStr;

use uuid::{Uuid, Variant};

use crate::time::Timestamp;

/// The longest name of a cache, contributor or group, in characters: a DNS label, because caches become path segments
/// and object prefixes.
pub const NAME_LENGTH_MAX: usize = 63;

/// Names that no cache may have: each is, or may become, the first segment of one of the server's own URLs.
pub const CACHE_NAMES_RESERVED: [&str; 10] =
    ["api", "push", "login", "logout", "livez", "readyz", "metrics", "docs", "assets", "static"];

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name is {found} bytes, at most {NAME_LENGTH_MAX} are allowed")]
    TooLong { found: usize },
    #[error("name does not begin with one of a-z 0-9")]
    FirstCharacter,
    #[error("name holds a character other than a-z 0-9 {allowed}")]
    Character { allowed: &'static str },
    #[error("name is reserved for the server's own pages")]
    Reserved,
}

/// Checks `[a-z0-9][a-z0-9<others>]{0,62}`.
fn check_name(text: &str, others: &'static str) -> Result<(), NameError> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = *text.as_bytes().first().ok_or(NameError::Empty)?;
    if text.len() > NAME_LENGTH_MAX {
        return Err(NameError::TooLong { found: text.len() });
    }
    if !alphanumeric(first) {
        return Err(NameError::FirstCharacter);
    }
    if !text.bytes().all(|byte| alphanumeric(byte) || others.as_bytes().contains(&byte)) {
        return Err(NameError::Character { allowed: others });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $others:literal, reserved: $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as it stands in URLs, columns and messages.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name(text, $others)?;
                let reserved: &[&str] = &$reserved;
                if reserved.contains(&text) {
                    return Err(NameError::Reserved);
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a cache: `[a-z0-9][a-z0-9-]{0,62}` and none of [`CACHE_NAMES_RESERVED`].
    CacheName, "-", reserved: CACHE_NAMES_RESERVED
}
name! {
    /// The name of a contributor: `[a-z0-9][a-z0-9._@-]{0,62}`, so that a mail address fits.
    ContributorName, "._@-", reserved: []
}
name! {
    /// The name of a group of contributors: `[a-z0-9][a-z0-9._-]{0,62}`.
    GroupName, "._-", reserved: []
}

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("id is not a UUIDv7 in lower case with hyphens")]
pub struct ParseIdError;

/// Reads the one spelling that `Display` prints: 36 characters, lower case, version 7, RFC 9562 variant.
fn parse_uuid_v7(text: &str) -> Result<Uuid, ParseIdError> {
    let uuid = Uuid::try_parse(text).map_err(|_| ParseIdError)?;
    let canonical = uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text;
    let version_7 = uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122;
    if canonical && version_7 { Ok(uuid) } else { Err(ParseIdError) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: ordered by `now`, made unique by `random`.
            pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
                // Moments before 1970 do not occur; they would only sort together.
                let millis = u64::try_from(now.0).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_uuid_v7(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id! {
    /// A token's id: its `jti`.
    TokenId
}
id! {
    /// A contributor's id: the `sub` of their tokens.
    ContributorId
}
id! {
    /// A cache's id, for ever its own even when its name is retired.
    CacheId
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_taken_as_they_are() {
        for text in ["a", "0", "main", "main-2", "a--", &"a".repeat(63), "apis", "push-1"] {
            assert_eq!(text.parse::<CacheName>().unwrap().as_str(), text);
        }
        for text in ["alice", "alice@example.org", "ci.main_x-1"] {
            assert_eq!(text.parse::<ContributorName>().unwrap().to_string(), text);
        }
        assert_eq!(format!("{:?}", "team.a_b".parse::<GroupName>().unwrap()), "team.a_b");
    }

    #[test]
    fn cache_names_that_are_no_plain_path_segment_are_refused() {
        let table = [
            ("", NameError::Empty),
            (&"a".repeat(64), NameError::TooLong { found: 64 }),
            ("-a", NameError::FirstCharacter),
            ("Main", NameError::FirstCharacter),
            (".", NameError::FirstCharacter),
            ("..", NameError::FirstCharacter),
            ("_log", NameError::FirstCharacter),
            ("_narvault", NameError::FirstCharacter),
            ("é", NameError::FirstCharacter),
            ("mAin", NameError::Character { allowed: "-" }),
            ("a/b", NameError::Character { allowed: "-" }),
            ("a.b", NameError::Character { allowed: "-" }),
            ("a_b", NameError::Character { allowed: "-" }),
            ("a b", NameError::Character { allowed: "-" }),
            ("a%2f", NameError::Character { allowed: "-" }),
            ("a*", NameError::Character { allowed: "-" }),
            ("a\n", NameError::Character { allowed: "-" }),
            ("a\0", NameError::Character { allowed: "-" }),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<CacheName>(), Err(expected), "{text:?}");
        }
        for text in CACHE_NAMES_RESERVED {
            assert_eq!(text.parse::<CacheName>(), Err(NameError::Reserved), "{text:?}");
        }
    }

    #[test]
    fn contributor_and_group_names_have_their_own_alphabets() {
        for text in ["", "@a", ".a", "a b", "A", "a/b", "a:b", "a\u{202e}b"] {
            assert!(text.parse::<ContributorName>().is_err(), "{text:?}");
            assert!(text.parse::<GroupName>().is_err(), "{text:?}");
        }
        assert!("a@b".parse::<GroupName>().is_err());
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = TokenId::new(Timestamp(1_795_353_000_123), [0xff; 10]);

        let text = id.to_string();

        assert_eq!(text, "01a20360-b8bb-7fff-bfff-ffffffffffff");
        assert_eq!(text.parse(), Ok(id));
        for other in [
            String::new(),
            text.to_uppercase(),
            text.replace('-', ""),
            format!("{{{text}}}"),
            format!("urn:uuid:{text}"),
            format!("{text} "),
            text.replace("-7", "-4"),
            text.replace("-b", "-c"),
            "00000000-0000-0000-0000-000000000000".to_owned(),
        ] {
            assert_eq!(other.parse::<TokenId>(), Err(ParseIdError), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_are_ordered_by_time_and_parse_back(earlier in 0i64..1 << 47, random: [u8; 10], other: [u8; 10]) {
            let first = ContributorId::new(Timestamp(earlier), random);
            let second = ContributorId::new(Timestamp(earlier + 1), other);

            prop_assert!(first < second && first.to_string() < second.to_string());
            prop_assert_eq!(first.to_string().parse(), Ok(first));
        }

        #[test]
        fn what_parses_prints_the_same(text in "[a-z0-9A-Z._@-]{0,70}") {
            if let Ok(name) = text.parse::<CacheName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(text.parse::<ContributorName>().is_ok() && text.parse::<GroupName>().is_ok());
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (text.parse::<CacheName>(), text.parse::<ContributorName>(), text.parse::<CacheId>());
        }
    }
}
