//! The only place that asks the operating system for random bytes.
//!
//! Never buffers and never stretches: each call is a `getrandom`, so a fork or a snapshot repeats nothing.

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use rand::{CryptoRng, TryRng as _};

use crate::nix::base32;

/// Fills `buffer` with random bytes.
///
/// # Panics
/// If the system has no random generator at all (a kernel before Linux 3.17, or a sandbox that forbids the call).
/// There is nothing safe to do then; [`check`], called at start, tells it as an error first.
pub fn fill(buffer: &mut [u8]) {
    SysRng.try_fill_bytes(buffer).expect("the system's random generator answered at start");
}

/// `N` random bytes: a nonce, a salt, the random part of an id.
///
/// # Panics
/// As [`fill`].
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// `N` random bytes spelled in Nix base-32: ids and one-time secrets that people copy.
///
/// # Panics
/// As [`fill`].
pub fn text<const N: usize>() -> String {
    base32::encode(&bytes::<N>())
}

/// The system's generator, for what draws numbers by itself.
///
/// # Panics
/// Where it is drawn from, as [`fill`].
pub(super) fn generator() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// Whether the system hands out random bytes; to be asked once at start.
pub fn check() -> Result<(), NoRandomness> {
    SysRng.try_fill_bytes(&mut [0; 1]).map_err(NoRandomness)
}

/// The system refused random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system's random generator does not answer")]
pub struct NoRandomness(#[source] rand::rngs::SysError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_equal() {
        check().unwrap();

        assert_ne!(bytes::<32>(), bytes::<32>());
        assert_ne!(text::<16>(), text::<16>());
    }

    #[test]
    fn texts_are_nix_base32_of_the_asked_length() {
        let text = text::<16>();

        assert_eq!(text.len(), 26);
        assert!(base32::decode::<16>(&text).is_ok());
    }
}
