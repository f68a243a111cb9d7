//! `<hash>.ls`: the tree of files inside a NAR, as JSON.
//!
//! Never builds the tree: one pass checks the text, in memory bounded by its depth.
//! Format: `nix:src/libutil/nar-listing.cc`; names in Nix's order, which also makes each unique.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Largest body, in bytes.
pub const LISTING_SIZE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most folders inside one another. Each is two levels of JSON, of which the reader allows 127.
pub const LISTING_DEPTH_MAX: usize = 60;

/// Why a body is not a listing. The reader's own error is kept aside: it may repeat the body.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    #[error("listing is larger than {LISTING_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error(
        "listing is not the JSON that Nix writes, or has more than {LISTING_DEPTH_MAX} folders inside one \
         another: line {}, column {}", .0.line(), .0.column()
    )]
    Json(#[source] serde_json::Error),
}

/// A listing that was checked from end to end, byte for byte as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(Vec<u8>);

impl Listing {
    /// Checks the body of a PUT, decoded from its `Content-Encoding`.
    pub fn parse(body: Vec<u8>) -> Result<Self, ListingError> {
        if body.len() > LISTING_SIZE_BYTES_MAX {
            return Err(ListingError::TooLarge);
        }
        let mut reader = serde_json::Deserializer::from_slice(&body);
        reader.deserialize_map(Top).and_then(|()| reader.end()).map_err(ListingError::Json)?;
        Ok(Self(body))
    }

    /// The checked body.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The checked body.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// `{"version":1,"root":NODE}`, in either order.
struct Top;

impl<'de> Visitor<'de> for Top {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `version` and `root`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut root) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => once(&mut version, "version", map.next_value::<u64>()?)?,
                "root" => once(&mut root, "root", map.next_value_seed(Node { depth: 0 })?)?,
                _ => return Err(unknown_field()),
            }
        }
        match (version, root) {
            (Some(1), Some(())) => Ok(()),
            (Some(1), None) => Err(de::Error::missing_field("root")),
            _ => Err(de::Error::custom("`version` is not 1")),
        }
    }
}

/// One node, `depth` folders below the root.
#[derive(Clone, Copy)]
struct Node {
    depth: usize,
}

/// What a node may be.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Directory,
    Regular,
    Symlink,
}

impl<'de> DeserializeSeed<'de> for Node {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a directory, regular or symlink node")
    }

    // The kind may come last (Nix since 2.26 sorts the keys), so the fields are held against it at the end.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut kind, mut entries, mut target) = (None, None, None);
        let (mut size, mut nar_offset, mut executable) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" => once(&mut kind, "type", parse_kind(&map.next_value::<String>()?)?)?,
                "entries" => {
                    once(&mut entries, "entries", map.next_value_seed(Entries { depth: self.depth })?)?
                }
                "target" => once(&mut target, "target", check_target(&map.next_value::<String>()?)?)?,
                "size" => once(&mut size, "size", map.next_value::<u64>()?)?,
                "narOffset" => once(&mut nar_offset, "narOffset", map.next_value::<u64>()?)?,
                "executable" => once(&mut executable, "executable", map.next_value::<bool>()?)?,
                _ => return Err(unknown_field()),
            }
        }
        let of_regular = nar_offset.is_some() || executable.is_some();
        let expected = match (entries.is_some(), target.is_some(), size.is_some(), of_regular) {
            (true, false, false, false) => Some(Kind::Directory),
            (false, true, false, false) => Some(Kind::Symlink),
            (false, false, true, _) => Some(Kind::Regular),
            _ => None,
        };
        if kind.is_some() && kind == expected {
            Ok(())
        } else {
            Err(de::Error::custom("a node's fields are not those of its type"))
        }
    }
}

/// The entries of a folder that is `depth` folders below the root.
struct Entries {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of nodes by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth == LISTING_DEPTH_MAX {
            // Not read further: what would be skipped here may be as deep as it likes.
            return match map.next_key::<IgnoredAny>()? {
                None => Ok(()),
                Some(_) => Err(de::Error::custom(format_args!("more than {LISTING_DEPTH_MAX} folders deep"))),
            };
        }
        let mut previous: Option<String> = None;
        while let Some(name) = map.next_key::<String>()? {
            let valid = !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0']);
            if !valid || name.len() > 255 {
                return Err(de::Error::custom("an entry's name is not a file name"));
            }
            if previous.is_some_and(|previous| previous >= name) {
                return Err(de::Error::custom("entries are not sorted by name, each once"));
            }
            previous = Some(name);
            map.next_value_seed(Node { depth: self.depth + 1 })?;
        }
        Ok(())
    }
}

fn once<T, E: de::Error>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), E> {
    if slot.replace(value).is_some() { Err(E::duplicate_field(key)) } else { Ok(()) }
}

fn unknown_field<E: de::Error>() -> E {
    // The key is not repeated: it is as long as its sender likes.
    E::custom("an object has an unknown field")
}

fn parse_kind<E: de::Error>(text: &str) -> Result<Kind, E> {
    match text {
        "directory" => Ok(Kind::Directory),
        "regular" => Ok(Kind::Regular),
        "symlink" => Ok(Kind::Symlink),
        _ => Err(E::custom("a node's type is not directory, regular or symlink")),
    }
}

fn check_target<E: de::Error>(target: &str) -> Result<(), E> {
    // PATH_MAX with its NUL is 4096; NARs are held to the same.
    if target.is_empty() || target.len() > 4095 || target.contains('\0') {
        return Err(E::custom("a symlink's target is empty, has a NUL, or is longer than 4095 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AAA: &str = include_str!("../../tests/golden/nix-2.8/aaa.ls");

    fn parse(text: &str) -> Result<Listing, ListingError> {
        Listing::parse(text.as_bytes().to_vec())
    }

    fn nested(folders: usize) -> String {
        let open = r#"{"type":"directory","entries":{"#;
        let names: Vec<String> = (0..folders).map(|_| format!("{open}\"d\":")).collect();
        let leaf = r#"{"type":"symlink","target":"x"}"#;
        format!(r#"{{"version":1,"root":{}{leaf}{}}}"#, names.concat(), "}}".repeat(folders))
    }

    #[test]
    fn what_nix_wrote_is_kept_byte_for_byte() {
        for text in [
            AAA,
            include_str!("../../tests/golden/nix-2.8/text.ls"),
            include_str!("../../tests/golden/nix-2.34/aaa.ls"),
        ] {
            let listing = parse(text).unwrap();
            assert_eq!(listing.as_bytes(), text.as_bytes());
            assert_eq!(listing.into_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn other_listings_are_refused() {
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"version\":1,", ""),
            ("\"version\":1", "\"version\":1,\"version\":1"),
            ("\"version\":1", "\"version\":1,\"x\":[[]]"),
            ("\"root\"", "\"roots\""),
            ("\"type\":\"directory\",", ""),
            ("\"type\":\"symlink\"", "\"type\":\"fifo\""),
            ("\"type\":\"symlink\"", "\"type\":\"regular\""),
            ("\"type\":\"symlink\"", "\"type\":\"symlink\",\"size\":1"),
            ("\"target\":\"see\"", "\"target\":\"\""),
            ("\"target\":\"see\"", "\"target\":\"a\\u0000\""),
            ("\"size\":4", "\"size\":-4"),
            ("\"size\":4", "\"size\":4.5"),
            ("\"size\":4,", ""),
            ("\"size\":4", "\"size\":4,\"size\":4"),
            ("\"size\":4", "\"size\":[[[[4]]]]"),
            ("\"executable\":true", "\"executable\":1"),
            ("\"link\"", "\"a\""),
            ("\"link\"", "\"lib\""),
            ("\"link\"", "\"li/nk\""),
            ("\"empty\"", "\"..\""),
            ("\"empty\"", "\".\""),
            ("\"empty\"", "\"\""),
            ("\"empty\"", "\"e\\u0000\""),
            ("\"empty\"", "\"\\ud800\""),
            ("{\"version", "[{\"version"),
            ("}}}}", "}}}}}"),
            ("}}}}", "}}}"),
        ] {
            let text = AAA.replacen(from, to, 1);
            assert_ne!(text, AAA);
            assert!(parse(&text).is_err(), "{text}");
        }
        assert!(Listing::parse(AAA.replace("empty", "\u{1}").into_bytes()).is_err());
        let mut bytes = AAA.as_bytes().to_vec();
        bytes[60] = 0xff;
        assert!(Listing::parse(bytes).is_err());
    }

    #[test]
    fn a_listing_beyond_a_limit_is_refused() {
        assert!(parse(&nested(LISTING_DEPTH_MAX)).is_ok());
        let error = parse(&nested(LISTING_DEPTH_MAX + 1)).unwrap_err().to_string();
        assert!(error.contains("more than 60 folders"), "{error}");
        assert!(parse(&nested(100_000)).is_err());

        let large = vec![b' '; LISTING_SIZE_BYTES_MAX + 1];
        assert!(matches!(Listing::parse(large), Err(ListingError::TooLarge)));
    }

    #[test]
    fn a_refusal_does_not_repeat_what_was_sent() {
        let long = "x".repeat(5000);
        for from in ["\"root\"", "\"link\"", "\"regular\"", "4,", "true"] {
            let text = AAA.replacen(from, &format!("\"{long}\""), 1);
            assert!(parse(&text).unwrap_err().to_string().len() < 200, "{from}");
        }
    }

    /// JSON nodes whose names are sorted, as Nix writes them.
    fn any_node() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            (any::<u64>(), any::<bool>()).prop_map(|(size, executable)| format!(
                r#"{{"executable":{executable},"size":{size},"type":"regular","narOffset":{size}}}"#
            )),
            "[a-z/.]{1,20}".prop_map(|target| format!(r#"{{"target":"{target}","type":"symlink"}}"#)),
        ];
        leaf.prop_recursive(4, 32, 4, |node| {
            proptest::collection::btree_map("[a-zä-ü]{1,8}", node, 0..4).prop_map(|entries| {
                let entries: Vec<String> =
                    entries.iter().map(|(name, node)| format!("\"{name}\":{node}")).collect();
                format!(r#"{{"type":"directory","entries":{{{}}}}}"#, entries.join(","))
            })
        })
    }

    proptest! {
        #[test]
        fn every_tree_that_nix_can_write_is_accepted(node in any_node()) {
            let text = format!("{{\"root\":{node},\"version\":1}}");
            prop_assert!(parse(&text).is_ok(), "{}", text);
        }

        #[test]
        fn no_bytes_panic(body: Vec<u8>, cut in 0..AAA.len(), text: String) {
            let _ = Listing::parse(body);
            let mut changed = AAA.to_owned();
            changed.insert_str(cut, &text);
            let _ = parse(&changed);
        }
    }
}
