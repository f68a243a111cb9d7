//! The sealed record: 32 secret bytes under XChaCha20-Poly1305, bound to the row that they belong to.
//!
//! Never decides which key opens a record. Layout and associated data are drawn in the page of [`super`].

use std::fmt;

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::VaultError;
use super::memory::{LockedBytes, SECRET_BYTES};
use super::random;

/// Length of every record of format 1: each secret of the vault is 32 bytes.
pub const SEALED_BYTES: usize = HEADER_BYTES + NONCE_BYTES + SECRET_BYTES + TAG_BYTES;

/// A sealed record as it stands in a column. It says nothing without the key above it.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed([u8; SEALED_BYTES]);

impl Sealed {
    /// Reads a column. Whether the record is genuine shows only when it is opened.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseSealedError> {
        let record: [u8; SEALED_BYTES] =
            bytes.try_into().map_err(|_| ParseSealedError::Length { found: bytes.len() })?;
        match record {
            [VERSION, ALGORITHM, ..] => Ok(Self(record)),
            [VERSION, found, ..] => Err(ParseSealedError::Algorithm { found }),
            [found, ..] => Err(ParseSealedError::Version { found }),
        }
    }

    /// What to write to the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A record in the place of this one that nothing ever opens: its header, and zeros.
    pub fn erased(&self) -> Self {
        let mut record = [0; SEALED_BYTES];
        record[..HEADER_BYTES].copy_from_slice(&self.0[..HEADER_BYTES]);
        Self(record)
    }

    /// The same, under the number of another key-encryption key: nothing opens it there either.
    pub fn erased_under(&self, kek_version: u32) -> Self {
        let mut record = self.erased();
        record.0[..HEADER_BYTES].copy_from_slice(&Self::header(kek_version));
        record
    }

    /// Whether nothing is left behind the header.
    pub fn is_erased(&self) -> bool {
        self.0[HEADER_BYTES..].iter().all(|byte| *byte == 0)
    }

    /// What every record under this key-encryption key begins with.
    pub fn header(kek_version: u32) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = kek_version.to_be_bytes();
        [VERSION, ALGORITHM, a, b, c, d]
    }

    fn parts(&self) -> ([u8; NONCE_BYTES], &[u8], [u8; TAG_BYTES]) {
        let (nonce, rest) = self.0[HEADER_BYTES..].split_at(NONCE_BYTES);
        let (ciphertext, tag) = rest.split_at(SECRET_BYTES);
        let nonce = nonce.try_into().expect("24 bytes: split above");
        (nonce, ciphertext, tag.try_into().expect("16 bytes: what is left of 78"))
    }

    /// Which key-encryption key opens this; 0 where ROOT or a KEK is wrapped.
    pub fn kek_version(&self) -> u32 {
        let [_, _, a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(kek {}, [redacted])", self.kek_version())
    }
}

/// Why bytes are not a sealed record of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSealedError {
    #[error("sealed record has algorithm {found}, this version knows {ALGORITHM}")]
    Algorithm { found: u8 },
    #[error("sealed record is {found} bytes, expected {SEALED_BYTES}")]
    Length { found: usize },
    #[error("sealed record has format {found}, this version knows {VERSION}")]
    Version { found: u8 },
}

/// Where a record belongs: what its associated data says, but for the KEK version and the algorithm.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub cluster_id: &'a str,
    pub table: &'static str,
    pub row_id: &'a str,
    pub key_name: Option<&'a str>,
    pub version: Option<u32>,
    pub purpose: &'a str,
    pub cache_id: Option<&'a str>,
    pub public_key: Option<&'a [u8; 32]>,
    /// Kind and parameters, of slot rows only.
    pub slot: Option<(&'a str, &'a str)>,
}

impl Binding<'_> {
    fn associated_data(&self, kek_version: u32) -> Vec<u8> {
        let version = self.version.map(|version| version.to_string()).unwrap_or_default();
        let mut text = b"narvault/v1\0".to_vec();
        let mut field = |bytes: &[u8]| {
            // The fields are ids, names and parameters: all far below 4 GiB.
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            text.extend_from_slice(&length.to_be_bytes());
            text.extend_from_slice(bytes);
        };
        field(self.cluster_id.as_bytes());
        field(self.table.as_bytes());
        field(self.row_id.as_bytes());
        field(self.key_name.unwrap_or_default().as_bytes());
        field(version.as_bytes());
        field(self.purpose.as_bytes());
        field(self.cache_id.unwrap_or_default().as_bytes());
        field(self.public_key.map(<[u8; 32]>::as_slice).unwrap_or_default());
        field(kek_version.to_string().as_bytes());
        field(ALGORITHM.to_string().as_bytes());
        if let Some((kind, params)) = self.slot {
            field(kind.as_bytes());
            field(params.as_bytes());
        }
        text
    }

    fn tampered(&self) -> VaultError {
        VaultError::Tampered { table: self.table, row_id: self.row_id.to_owned() }
    }
}

/// The cipher that one secret (slot key, ROOT or KEK) makes for the level below it.
pub(super) struct SealKey(XChaCha20Poly1305);

impl SealKey {
    pub fn derive(secret: &LockedBytes) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, secret.expose())
            .expand(b"narvault/v1/seal", key.as_mut_slice())
            .expect("32 bytes: HKDF-SHA256 makes up to 8160");
        Self(XChaCha20Poly1305::new((&*key).into()))
    }

    /// Seals `secret` under a new random nonce. 24 random bytes never meet again, on however many replicas.
    pub fn seal(&self, secret: &LockedBytes, kek_version: u32, binding: &Binding<'_>) -> Sealed {
        self.seal_with(&random::bytes(), secret, kek_version, binding)
    }

    /// Opens `sealed`, or says that it is not the record of this row.
    pub fn open(&self, sealed: &Sealed, binding: &Binding<'_>) -> Result<LockedBytes, VaultError> {
        let (nonce, ciphertext, tag) = sealed.parts();
        let associated_data = binding.associated_data(sealed.kek_version());
        let mut secret = LockedBytes::zeroed()?;
        let buffer = InOutBuf::new(ciphertext, secret.expose_mut()).map_err(|_| binding.tampered())?;
        self.0
            .decrypt_inout_detached(&XNonce::from(nonce), &associated_data, buffer, &Tag::from(tag))
            .map_err(|_| binding.tampered())?;
        Ok(secret)
    }

    pub(super) fn seal_with(
        &self,
        nonce: &[u8; NONCE_BYTES],
        secret: &LockedBytes,
        kek_version: u32,
        binding: &Binding<'_>,
    ) -> Sealed {
        let mut record = [0; SEALED_BYTES];
        let (header, rest) = record.split_at_mut(HEADER_BYTES);
        let (nonce_place, rest) = rest.split_at_mut(NONCE_BYTES);
        let (ciphertext, tag_place) = rest.split_at_mut(SECRET_BYTES);

        // Read from the locked page, written to the record: the clear text lies nowhere else.
        let buffer = InOutBuf::new(secret.expose(), ciphertext).expect("32 bytes each: split above");
        let tag = self
            .0
            .encrypt_inout_detached(&XNonce::from(*nonce), &binding.associated_data(kek_version), buffer)
            .expect("32 bytes and some names: the cipher takes up to 256 GiB");
        header.copy_from_slice(&Sealed::header(kek_version));
        nonce_place.copy_from_slice(nonce);
        tag_place.copy_from_slice(&tag);
        Sealed(record)
    }
}

const VERSION: u8 = 1;
/// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03).
const ALGORITHM: u8 = 1;
/// Version, algorithm, and the number of the key-encryption key.
pub const HEADER_BYTES: usize = 6;
pub(super) const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{Aead as _, Payload};
    use data_encoding::HEXLOWER_PERMISSIVE as HEX;
    use proptest::prelude::*;

    use super::*;

    const BINDING: Binding<'_> = Binding {
        cluster_id: "cluster",
        table: "signing_keys",
        row_id: "row",
        key_name: Some("main-1"),
        version: Some(1),
        purpose: "cache",
        cache_id: Some("cache-id"),
        public_key: Some(&[9; 32]),
        slot: None,
    };

    fn key(byte: u8) -> SealKey {
        SealKey::derive(&LockedBytes::copy_of(&[byte; 32]).unwrap())
    }

    fn sealed() -> Sealed {
        key(1).seal(&LockedBytes::copy_of(&[42; 32]).unwrap(), 7, &BINDING)
    }

    #[test]
    fn a_record_opens_where_it_was_sealed() {
        let sealed = sealed();

        let read = Sealed::parse(sealed.as_bytes()).unwrap();

        assert_eq!(read, sealed);
        assert_eq!(read.kek_version(), 7);
        assert_eq!(key(1).open(&read, &BINDING).unwrap().expose(), &[42; 32]);
    }

    #[test]
    fn two_seals_of_one_secret_differ() {
        assert_ne!(sealed(), sealed());
    }

    #[test]
    fn another_key_does_not_open_it() {
        assert!(matches!(key(2).open(&sealed(), &BINDING), Err(VaultError::Tampered { .. })));
    }

    #[test]
    fn each_bound_field_is_needed_to_open() {
        let sealed = sealed();

        for (field, binding) in [
            ("cluster id", Binding { cluster_id: "other", ..BINDING }),
            ("table", Binding { table: "vault_keks", ..BINDING }),
            ("row id", Binding { row_id: "other", ..BINDING }),
            ("key name", Binding { key_name: Some("main-2"), ..BINDING }),
            ("no key name", Binding { key_name: None, ..BINDING }),
            ("version", Binding { version: Some(2), ..BINDING }),
            ("no version", Binding { version: None, ..BINDING }),
            ("purpose", Binding { purpose: "token", ..BINDING }),
            ("cache id", Binding { cache_id: Some("other"), ..BINDING }),
            ("no cache id", Binding { cache_id: None, ..BINDING }),
            ("public key", Binding { public_key: Some(&[8; 32]), ..BINDING }),
            ("no public key", Binding { public_key: None, ..BINDING }),
            ("slot", Binding { slot: Some(("", "")), ..BINDING }),
            ("moved bytes", Binding { row_id: "rowm", key_name: Some("ain-1"), ..BINDING }),
        ] {
            assert!(key(1).open(&sealed, &binding).is_err(), "{field}");
        }
    }

    #[test]
    fn slot_parameters_are_bound() {
        let slot = Binding { slot: Some(("passphrase", "m=1")), ..BINDING };
        let sealed = key(1).seal(&LockedBytes::zeroed().unwrap(), 0, &slot);

        assert!(key(1).open(&sealed, &slot).is_ok());
        for other in [("passphrase", "m=2"), ("key-file", "m=1"), ("passphrasem", "=1")] {
            assert!(key(1).open(&sealed, &Binding { slot: Some(other), ..BINDING }).is_err(), "{other:?}");
        }
        assert!(key(1).open(&sealed, &BINDING).is_err());
    }

    #[test]
    fn the_associated_data_has_the_documented_bytes() {
        let binding = Binding { cache_id: None, public_key: None, slot: Some(("k", "")), ..BINDING };

        let expected: &[u8] =
            b"narvault/v1\0\0\0\0\x07cluster\0\0\0\x0csigning_keys\0\0\0\x03row\0\0\0\x06main-1\
            \0\0\0\x011\0\0\0\x05cache\0\0\0\0\0\0\0\0\0\0\0\x0212\0\0\0\x011\0\0\0\x01k\0\0\0\0";
        assert_eq!(binding.associated_data(12), expected);
    }

    #[test]
    fn an_erased_record_has_nothing_but_its_header() {
        let sealed = sealed();

        let erased = sealed.erased_under(9);

        assert!(erased.is_erased() && sealed.erased().is_erased() && !sealed.is_erased());
        assert_eq!((erased.kek_version(), sealed.erased().kek_version()), (9, 7));
        assert_eq!(&erased.as_bytes()[..HEADER_BYTES], Sealed::header(9));
        assert_eq!(Sealed::parse(erased.as_bytes()), Ok(erased.clone()));
        assert!(key(1).open(&erased, &BINDING).is_err());
    }

    #[test]
    fn other_shapes_are_refused() {
        let good = sealed();
        for length in [0, 1, 6, 77] {
            assert_eq!(
                Sealed::parse(&good.as_bytes()[..length]),
                Err(ParseSealedError::Length { found: length })
            );
        }
        assert!(Sealed::parse(&[good.as_bytes(), &[0]].concat()).is_err());

        for (place, error) in
            [(0, ParseSealedError::Version { found: 2 }), (1, ParseSealedError::Algorithm { found: 2 })]
        {
            let mut bytes = good.as_bytes().to_vec();
            bytes[place] = 2;
            assert_eq!(Sealed::parse(&bytes), Err(error));
        }
    }

    #[test]
    fn a_record_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", sealed()), "Sealed(kek 7, [redacted])");
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_noticed(bit in 0..SEALED_BYTES * 8) {
            let mut bytes = sealed().as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);

            let opened = Sealed::parse(&bytes).map(|changed| key(1).open(&changed, &BINDING).is_ok());

            prop_assert!(matches!(opened, Err(_) | Ok(false)));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            if let Ok(sealed) = Sealed::parse(&bytes) {
                prop_assert_eq!(sealed.as_bytes(), bytes.as_slice());
            }
        }
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn the_cipher_is_xchacha20_poly1305_of_the_draft() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let aad = HEX.decode(b"50515253c0c1c2c3c4c5c6c7").unwrap();
        let msg =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";

        let sealed = XChaCha20Poly1305::new(&key.into())
            .encrypt(&XNonce::from(nonce), Payload { msg, aad: &aad })
            .unwrap();

        let expected = "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
            ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
            21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49";
        assert_eq!(HEX.encode(&sealed), expected);
    }

    /// RFC 5869, test cases 1 to 3, which are those of SHA-256: as usual, with long inputs, with neither salt nor info.
    #[test]
    fn the_derivation_is_hkdf_sha256_of_the_rfc() {
        let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
        for (ikm, salt, info, okm) in [
            (
                vec![0x0b; 22],
                range(0x00, 0x0c),
                range(0xf0, 0xf9),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            ),
            (
                range(0x00, 0x4f),
                range(0x60, 0xaf),
                range(0xb0, 0xff),
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09\
                 da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
            ),
            (
                vec![0x0b; 22],
                Vec::new(),
                Vec::new(),
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            ),
        ] {
            let mut derived = vec![0; okm.len() / 2];
            Hkdf::<Sha256>::new(Some(&salt), &ikm).expand(&info, &mut derived).unwrap();

            assert_eq!(HEX.encode(&derived), okm);
        }
        // As it is used here: without a salt.
        let mut derived = [0; 42];
        Hkdf::<Sha256>::new(None, &[0x0b; 22]).expand(b"", &mut derived).unwrap();
        assert!(HEX.encode(&derived).starts_with("8da4e775a563c18f715f802a063c5a31"));
    }
}
