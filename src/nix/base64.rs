//! Standard base64 with padding, as Nix writes keys, signatures and hashes.
//!
//! Never takes a second spelling: the decoder below takes padding in the middle too, as of texts one after the other.

use data_encoding::BASE64;

/// The bytes, if `text` is how they are written.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    (BASE64.encode(&bytes) == text).then_some(bytes)
}
