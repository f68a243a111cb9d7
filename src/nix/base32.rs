//! Nix's base-32: its own alphabet (no `e o t u`), least significant bits first, last byte first.
//!
//! Never accepts spare bits that are not zero, so each digest has exactly one spelling.
//! Format: `nix:src/libutil/base-nix-32.cc`.

use std::sync::LazyLock;

use data_encoding::{BitOrder, Encoding, Specification};

/// The 32 characters, by value.
pub const ALPHABET: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// Why a text is not Nix base-32 of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    #[error("{found} characters where {expected} were expected")]
    Length { found: usize, expected: usize },
    #[error("a character outside the Nix base-32 alphabet, or spare bits that are not zero")]
    Symbol,
}

/// The number of characters that spell `bytes` bytes.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// The Nix base-32 text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = CODEC.encode(bytes).into_bytes();
    text.reverse();
    String::from_utf8(text).expect("the alphabet is ASCII")
}

/// The `N` bytes that `text` spells.
pub fn decode<const N: usize>(text: &str) -> Result<[u8; N], Base32Error> {
    let expected = encoded_len(N);
    if text.len() != expected {
        return Err(Base32Error::Length { found: text.len(), expected });
    }
    let reversed: Vec<u8> = text.bytes().rev().collect();
    let bytes = CODEC.decode(&reversed).map_err(|_| Base32Error::Symbol)?;
    bytes.try_into().map_err(|_| Base32Error::Symbol)
}

/// Whether `byte` is one of the 32 characters.
pub const fn is_symbol(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

static CODEC: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str(ALPHABET);
    spec.bit_order = BitOrder::LeastSignificantFirst;
    spec.encoding().expect("32 distinct ASCII symbols")
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digests_are_spelled_as_nix_spells_them() {
        let counting: [u8; 32] = std::array::from_fn(|index| index as u8);
        assert_eq!(encode(&counting), "07qy3lf1n6hr30bic58l2c91240g1q6hq2qa1440f1h50h1h4080");
        assert_eq!(decode::<32>("07qy3lf1n6hr30bic58l2c91240g1q6hq2qa1440f1h50h1h4080"), Ok(counting));
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "0", "e0000000000000000000000000000000", "0000000000000000000000000000000A"] {
            assert!(decode::<20>(text).is_err(), "{text:?}");
        }
        // 256 bits leave four spare bits in the first character.
        assert_eq!(decode::<32>(&"z".repeat(52)), Err(Base32Error::Symbol));
        assert!(decode::<32>(&"é".repeat(26)).is_err());
    }

    #[test]
    fn is_symbol_agrees_with_the_alphabet() {
        for byte in 0..=255u8 {
            assert_eq!(is_symbol(byte), ALPHABET.as_bytes().contains(&byte), "{byte}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(bytes: [u8; 32], short: [u8; 20]) {
            prop_assert_eq!(decode::<32>(&encode(&bytes)), Ok(bytes));
            prop_assert_eq!(decode::<20>(&encode(&short)), Ok(short));
        }
    }
}
