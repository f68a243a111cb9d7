//! Standard base64 with padding (RFC 4648, section 4), read strictly.
//!
//! Never takes a second spelling: the decoder below takes padding in the middle too, as of texts one after the other.

use data_encoding::BASE64;

/// The bytes, if `text` is how they are written.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    (BASE64.encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_is_read() {
        assert_eq!(decode(""), Some(vec![]));
        assert_eq!(decode("AA=="), Some(vec![0]));
        assert_eq!(decode("AAAA"), Some(vec![0; 3]));
        for text in
            ["AA==AA==", "AA==AAAA", "AAA=AA==", "AB==", "AA=", "AA", "AA==\n", " AA==", "A_==", "===="]
        {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }
}
