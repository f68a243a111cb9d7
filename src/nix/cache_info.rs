//! `nix-cache-info`: what a cache says about itself.
//!
//! Never refuses what Nix reads: unknown keys and lines without a colon are skipped.
//! Format: `nix:src/libstore/binary-cache-store.cc`, `BinaryCacheStore::init`.

use std::fmt;

use super::store_path::STORE_DIR;

/// Largest text that is read, in bytes. Real ones are below 100.
pub const CACHE_INFO_SIZE_BYTES_MAX: usize = 16 * 1024;

/// Why a text is not a `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCacheInfoError {
    #[error("nix-cache-info is larger than {CACHE_INFO_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("nix-cache-info is not UTF-8")]
    NotUtf8,
    #[error("nix-cache-info's `Priority` is not a number from 0 to 2147483647")]
    Priority,
}

/// What a cache says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// Absent is allowed and means the client's own.
    pub store_dir: Option<String>,
    pub want_mass_query: bool,
    /// Lower is asked earlier. A cache that does not say is asked first of all: 0.
    pub priority: u32,
}

impl CacheInfo {
    /// What this server's caches say.
    pub fn served(priority: u32) -> Self {
        Self { store_dir: Some(STORE_DIR.to_owned()), want_mass_query: true, priority }
    }

    /// Reads another cache's text, leniently as Nix does: the last of a repeated key counts.
    pub fn parse(body: &[u8]) -> Result<Self, ParseCacheInfoError> {
        if body.len() > CACHE_INFO_SIZE_BYTES_MAX {
            return Err(ParseCacheInfoError::TooLarge);
        }
        let text = std::str::from_utf8(body).map_err(|_| ParseCacheInfoError::NotUtf8)?;
        let mut info = Self { store_dir: None, want_mass_query: false, priority: 0 };
        for line in text.split('\n') {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "StoreDir" => info.store_dir = Some(value.to_owned()),
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => info.priority = parse_priority(value)?,
                _ => {}
            }
        }
        Ok(info)
    }
}

fn parse_priority(value: &str) -> Result<u32, ParseCacheInfoError> {
    // Nix keeps it in an int.
    let number = value.parse::<i32>().map_err(|_| ParseCacheInfoError::Priority)?;
    u32::try_from(number).map_err(|_| ParseCacheInfoError::Priority)
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(store_dir) = &self.store_dir {
            writeln!(f, "StoreDir: {store_dir}")?;
        }
        let want = u8::from(self.want_mass_query);
        write!(f, "WantMassQuery: {want}\nPriority: {}\n", self.priority)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ours_is_printed_in_the_order_of_cache_nixos_org() {
        let text = CacheInfo::served(41).to_string();
        assert_eq!(text, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 41\n");
    }

    #[test]
    fn what_a_client_pushes_is_read() {
        for body in [
            include_bytes!("../../tests/golden/nix-2.8/nix-cache-info"),
            include_bytes!("../../tests/golden/nix-2.34/nix-cache-info"),
        ] {
            let info = CacheInfo::parse(body).unwrap();
            let expected =
                CacheInfo { store_dir: Some(STORE_DIR.into()), want_mass_query: false, priority: 0 };
            assert_eq!(info, expected);
        }
    }

    #[test]
    fn what_nix_skips_is_skipped() {
        let info = CacheInfo::parse(b"\nhello\r\nA: b\nPriority:7 \r\nWantMassQuery: true\nPriority:  30");
        let expected = CacheInfo { store_dir: None, want_mass_query: false, priority: 30 };
        assert_eq!(info, Ok(expected));
    }

    #[test]
    fn other_texts_are_refused() {
        for body in
            [&b"Priority: x\n"[..], b"Priority:\n", b"Priority: -1\n", b"Priority: 2147483648\n", b"\xff"]
        {
            assert!(CacheInfo::parse(body).is_err(), "{body:?}");
        }
        let large = vec![b'\n'; CACHE_INFO_SIZE_BYTES_MAX + 1];
        assert_eq!(CacheInfo::parse(&large), Err(ParseCacheInfoError::TooLarge));
        assert!(CacheInfo::parse(&large[1..]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(priority in 0..=2_147_483_647u32, want_mass_query: bool) {
            let info = CacheInfo { want_mass_query, ..CacheInfo::served(priority) };
            prop_assert_eq!(CacheInfo::parse(info.to_string().as_bytes()), Ok(info));
        }

        #[test]
        fn no_bytes_panic(body: Vec<u8>) {
            let _ = CacheInfo::parse(&body);
        }
    }
}
