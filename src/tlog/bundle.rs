//! Entry bundles: the texts of up to 256 leaves, each after its length in two bytes (c2sp.org/tlog-tiles).
//!
//! Never reads the texts: they are leaves of narvault, or of whoever uses the same format.

/// Largest entry, in bytes: what its two bytes of length can say. Larger than any leaf of narvault.
pub const ENTRY_SIZE_BYTES_MAX: usize = u16::MAX as usize;

/// Why entries cannot be a bundle, or bytes are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("entry is {found} bytes, at most {ENTRY_SIZE_BYTES_MAX} fit into a bundle")]
    EntryTooLarge { found: usize },
    #[error("bundle ends inside its entry {entry}")]
    Cut { entry: u16 },
    #[error("bundle has {extra} bytes after its last entry")]
    Trailing { extra: usize },
}

/// The bytes that are published for `entries`, in order.
pub fn encode<T: AsRef<[u8]>>(entries: impl IntoIterator<Item = T>) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    for entry in entries {
        let entry = entry.as_ref();
        let too_large = BundleError::EntryTooLarge { found: entry.len() };
        let length = u16::try_from(entry.len()).map_err(|_| too_large)?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry);
    }
    Ok(bytes)
}

/// The `width` entries of a bundle, no more and no fewer. Entries are counted from 0.
pub fn decode(mut bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::new();
    for entry in 0..width {
        let cut = BundleError::Cut { entry };
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return Err(cut) };
        let Some((text, rest)) = rest.split_at_checked(u16::from_be_bytes(*length).into()) else {
            return Err(cut);
        };
        entries.push(text);
        bytes = rest;
    }
    if bytes.is_empty() { Ok(entries) } else { Err(BundleError::Trailing { extra: bytes.len() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tlog::leaf::LEAF_SIZE_BYTES_MAX;

    #[test]
    fn the_largest_leaf_fits_and_what_has_no_length_in_two_bytes_does_not() {
        assert!(encode([vec![b'x'; LEAF_SIZE_BYTES_MAX]]).is_ok());
        assert!(encode([vec![b'x'; 65_535]]).is_ok());
        assert_eq!(encode([vec![b'x'; 65_536]]), Err(BundleError::EntryTooLarge { found: 65_536 }));
    }

    #[test]
    fn bytes_that_are_not_so_many_entries_are_refused() {
        let bytes = encode(["ab", ""]).unwrap();
        assert_eq!(bytes, b"\0\x02ab\0\0");

        assert_eq!(decode(&bytes, 2), Ok(vec![&b"ab"[..], &b""[..]]));
        assert_eq!(decode(&bytes, 1), Err(BundleError::Trailing { extra: 2 }));
        assert_eq!(decode(&bytes, 3), Err(BundleError::Cut { entry: 2 }));
        assert_eq!(decode(&bytes[..5], 2), Err(BundleError::Cut { entry: 1 }));
        assert_eq!(decode(&bytes[..3], 1), Err(BundleError::Cut { entry: 0 }));
        assert_eq!(decode(&[], 0), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn what_is_bundled_comes_out_again(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
        ) {
            let bytes = encode(&entries).unwrap();

            prop_assert_eq!(decode(&bytes, entries.len() as u16).unwrap(), entries);
        }

        #[test]
        fn what_is_read_is_spelled_in_one_way(
            bytes in proptest::collection::vec(0u8..3, 0..12), width in 0u16..6,
        ) {
            if let Ok(entries) = decode(&bytes, width) {
                prop_assert_eq!(encode(entries).unwrap(), bytes);
            }
        }
    }
}
