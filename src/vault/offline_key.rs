//! Root keys: Ed25519 keys in files of their own, kept away from every server, as they are or sealed under a passphrase.
//!
//! Never signs anything but the successions after a compromise, and sets of root keys. Never overwrites a file, and never
//! reads one that others may read too.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

use super::VaultError;
use super::key_file::{KeyFileError, check_owner_and_mode};
use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};
use super::passphrase::{DeriveError, ParseParamsError, Passphrase, PassphraseParams};
use super::seal::{Binding, ParseSealedError, SealKey, Sealed};
use crate::nix::signature::{KeyName, ParsePublicKeyError, PublicKey};
use crate::succession::{Document, ReadError, Reason};

/// First line of the file.
const FORMAT: &str = "narvault/offline-key/v1";

/// Largest file that is read: the name and the key are below 700 bytes.
const FILE_SIZE_BYTES_MAX: u64 = 4096;

/// A root key whose seed lies open in locked memory; dropping it wipes the seed.
pub struct OfflineKey {
    public: PublicKey,
    seed: LockedBytes,
}

/// Why a root key is not made, read or used. Never says anything of the secret.
#[derive(Debug, thiserror::Error)]
pub enum OfflineKeyError {
    #[error("root key file {} could not be made", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("root key file {} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Access(KeyFileError),
    #[error("root key file {} is not what `narvault root keygen` writes", path.display())]
    Form { path: PathBuf },
    #[error("root key file {} has a secret that does not make its public key", path.display())]
    Halves { path: PathBuf },
    /// The everyday answer to a mistyped passphrase; also to a file that was altered.
    #[error("the passphrase does not open root key file {}", path.display())]
    OtherPassphrase { path: PathBuf },
    #[error("a root key signs only successions after a compromise, and sets of root keys")]
    NotItsWork,
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("key could not be derived from the passphrase")]
    Derive(#[source] DeriveError),
    #[error("passphrase parameters of the file are refused")]
    Params(#[source] ParseParamsError),
    #[error("sealed secret of the file is refused")]
    Sealed(#[source] ParseSealedError),
    #[error("public key of the file is refused")]
    PublicKey(#[source] ParsePublicKeyError),
    #[error("what was to be signed is refused")]
    Statement(#[source] ReadError),
}

impl OfflineKey {
    /// Makes a key, and its file with mode 0600, on disk before this returns; an existing file is refused. Under a
    /// passphrase this takes about a second and its memory: never on an async thread.
    pub fn create(
        name: KeyName,
        path: &Path,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, OfflineKeyError> {
        let seed = LockedBytes::random()?;
        let public = public_key(name, &seed).map_err(OfflineKeyError::PublicKey)?;
        let key = Self { public, seed };
        let text = key.file_text(passphrase)?;
        let failed = |source| OfflineKeyError::Create { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// Reads a key; `ask` is called for the passphrase if the file is sealed under one.
    pub fn read<E: From<OfflineKeyError>>(
        path: &Path,
        ask: impl FnOnce() -> Result<Passphrase, E>,
    ) -> Result<Self, E> {
        let text = read_file(path)?;
        let form = || OfflineKeyError::Form { path: path.to_owned() };
        let lines: Vec<&str> = text.split('\n').collect();
        let field = |line: &str, key: &str| {
            let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' '));
            value.map(str::to_owned).ok_or_else(form)
        };
        let public = |line| -> Result<PublicKey, OfflineKeyError> {
            field(line, "public")?.parse().map_err(OfflineKeyError::PublicKey)
        };
        let (public, seed) = match lines[..] {
            [FORMAT, first, second, ""] => {
                (public(first)?, decoded(second).ok_or_else(form)?.map_err(OfflineKeyError::from)?)
            }
            [FORMAT, first, second, third, ""] => {
                let public = public(first)?;
                let params = field(second, "kdf")?.parse().map_err(OfflineKeyError::Params)?;
                let sealed = BASE64.decode(field(third, "sealed")?.as_bytes()).map_err(|_| form())?;
                let sealed = Sealed::parse(&sealed).map_err(OfflineKeyError::Sealed)?;
                let seed = opened(&public, &params, &sealed, &ask()?, path)?;
                (public, seed)
            }
            _ => return Err(form().into()),
        };
        let derived = public_key(public.name().clone(), &seed).map_err(OfflineKeyError::PublicKey)?;
        if derived != public {
            return Err(OfflineKeyError::Halves { path: path.to_owned() }.into());
        }
        Ok(Self { public, seed })
    }

    /// The public half, as it stands in a set of root keys.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs the text of a succession after a compromise, or of a set of root keys. Whether this key's word counts there
    /// is for others to find: a set may be signed by keys that it no longer has.
    pub fn sign(&self, document: &Document) -> Result<[u8; 64], OfflineKeyError> {
        let text = match document {
            Document::Succession(statement) if statement.reason == Reason::Planned => {
                return Err(OfflineKeyError::NotItsWork);
            }
            Document::Succession(statement) => statement.encode(),
            Document::Roots(roots) => roots.encode(),
        };
        let text = text.map_err(OfflineKeyError::Statement)?;
        Ok(SigningKey::from_bytes(self.seed.expose()).sign(text.as_bytes()).to_bytes())
    }

    fn file_text(&self, passphrase: Option<&Passphrase>) -> Result<Zeroizing<String>, OfflineKeyError> {
        let head = format!("{FORMAT}\npublic {}\n", self.public);
        let mut text = Zeroizing::new(String::with_capacity(FILE_SIZE_BYTES_MAX as usize));
        text.push_str(&head);
        match passphrase {
            None => {
                text.push_str("secret ");
                BASE64.encode_append(self.seed.expose(), &mut text);
            }
            Some(passphrase) => {
                let params = passphrase.new_params();
                let key = passphrase.slot_key(&params).map_err(OfflineKeyError::Derive)?;
                let (name, params) = (self.public.name().as_str(), params.to_string());
                let sealed =
                    SealKey::derive(&key).seal(&self.seed, 0, &binding(name, self.public.bytes(), &params));
                text.push_str(&format!("kdf {params}\nsealed {}", BASE64.encode(sealed.as_bytes())));
            }
        }
        text.push('\n');
        Ok(text)
    }
}

impl fmt::Debug for OfflineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfflineKey").field("public", &self.public).field("seed", &self.seed).finish()
    }
}

/// The file's text, in memory that is wiped.
fn read_file(path: &Path) -> Result<Zeroizing<String>, OfflineKeyError> {
    let failed = |source| OfflineKeyError::Read { path: path.to_owned(), source };
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_SIZE_BYTES_MAX {
        return Err(OfflineKeyError::Form { path: path.to_owned() });
    }
    check_owner_and_mode(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())
        .map_err(OfflineKeyError::Access)?;
    let mut text = Zeroizing::new(String::with_capacity(FILE_SIZE_BYTES_MAX as usize));
    file.take(FILE_SIZE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The seed of a file that nothing seals; `None`: the line is none.
fn decoded(line: &str) -> Option<Result<LockedBytes, MemoryError>> {
    let base64 = line.strip_prefix("secret ")?.as_bytes();
    let mut bytes = Zeroizing::new(vec![0; BASE64.decode_len(base64.len()).ok()?]);
    let length = BASE64.decode_mut(base64, &mut bytes).ok()?;
    let seed: &[u8; SECRET_BYTES] = bytes[..length].try_into().ok()?;
    Some(LockedBytes::copy_of(seed))
}

fn opened(
    public: &PublicKey,
    params: &PassphraseParams,
    sealed: &Sealed,
    passphrase: &Passphrase,
    path: &Path,
) -> Result<LockedBytes, OfflineKeyError> {
    let key = passphrase.slot_key(params).map_err(OfflineKeyError::Derive)?;
    let (name, params) = (public.name().as_str(), params.to_string());
    SealKey::derive(&key).open(sealed, &binding(name, public.bytes(), &params)).map_err(|error| match error {
        VaultError::Memory(error) => error.into(),
        _ => OfflineKeyError::OtherPassphrase { path: path.to_owned() },
    })
}

fn binding<'a>(name: &'a str, public_key: &'a [u8; 32], params: &'a str) -> Binding<'a> {
    Binding {
        cluster_id: "",
        table: "offline_key",
        row_id: "",
        key_name: Some(name),
        version: None,
        purpose: "root",
        cache_id: None,
        public_key: Some(public_key),
        slot: Some(("passphrase", params)),
    }
}

fn public_key(name: KeyName, seed: &LockedBytes) -> Result<PublicKey, ParsePublicKeyError> {
    PublicKey::new(name, SigningKey::from_bytes(seed.expose()).verifying_key().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::passphrase::KdfCost;
    use super::*;
    use crate::nix::signature::Signature;
    use crate::succession::testing;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::parse(text.as_bytes()).unwrap().with_cost(KdfCost::FLOOR)
    }

    fn nobody_asks() -> Result<Passphrase, OfflineKeyError> {
        panic!("nobody was to be asked")
    }

    fn made(sealed: Option<&str>) -> (tempfile::TempDir, PathBuf, OfflineKey) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alice.key");
        let passphrase = sealed.map(passphrase);
        let key = OfflineKey::create("alice".parse().unwrap(), &path, passphrase.as_ref()).unwrap();
        (folder, path, key)
    }

    #[test]
    fn a_key_is_read_from_its_file_with_or_without_a_passphrase() {
        for sealed in [None, Some("correct horse battery")] {
            let (_folder, path, key) = made(sealed);

            let read: Result<_, OfflineKeyError> =
                OfflineKey::read(&path, || sealed.map_or_else(nobody_asks, |text| Ok(passphrase(text))));

            let read = read.unwrap();
            assert_eq!(read.public_key(), key.public_key());
            assert_eq!(read.seed.expose(), key.seed.expose());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_sealed_file_shows_no_secret_and_opens_with_its_passphrase_only() {
        let (_folder, path, key) = made(Some("correct horse battery"));
        let text = fs::read_to_string(&path).unwrap();

        let refused = OfflineKey::read(&path, || Ok(passphrase("another horse battery")));

        assert!(!text.contains(&BASE64.encode(key.seed.expose())), "{text}");
        assert!(matches!(refused, Err(OfflineKeyError::OtherPassphrase { .. })));
        // Another public key beside the same secret.
        let other = made(None).2;
        let changed = text.replace(&key.public.to_string(), &other.public.to_string());
        fs::write(&path, changed).unwrap();
        let refused = OfflineKey::read(&path, || Ok(passphrase("correct horse battery")));
        assert!(matches!(refused, Err(OfflineKeyError::OtherPassphrase { .. })));
    }

    #[test]
    fn a_file_is_neither_overwritten_nor_read_where_others_can() {
        let (_folder, path, _) = made(None);
        let before = fs::read(&path).unwrap();

        let again = OfflineKey::create("alice".parse().unwrap(), &path, None);
        assert!(matches!(again, Err(OfflineKeyError::Create { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);

        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(OfflineKey::read(&path, nobody_asks), Err(OfflineKeyError::Access(_))));
    }

    #[test]
    fn other_files_are_refused_without_repeating_them() {
        let (_folder, path, key) = made(None);
        let text = fs::read_to_string(&path).unwrap();
        let secret = BASE64.encode(key.seed.expose());
        let other = made(None).2;
        for changed in [
            String::new(),
            text.replace("/v1", "/v2"),
            text.replace("secret ", "sealed "),
            text.replace("public ", ""),
            text.replace('\n', "\r\n"),
            format!("{text}\n"),
            text.trim_end().to_owned(),
            text.replace(&secret, &BASE64.encode(&[7; 31])),
            text.replace(&secret, &secret[1..]),
            text.replace(&key.public.to_string(), &other.public.to_string()),
            "x".repeat(5000),
        ] {
            fs::write(&path, &changed).unwrap();

            let refused = OfflineKey::read(&path, nobody_asks).unwrap_err();

            for told in [refused.to_string(), format!("{refused:?}")] {
                assert!(!told.contains(&secret[..10]), "{told}");
            }
        }
        assert!(OfflineKey::read(&path.with_extension("absent"), nobody_asks).is_err());
        assert!(OfflineKey::read(path.parent().unwrap(), nobody_asks).is_err());
    }

    #[test]
    fn it_signs_what_root_keys_are_for() {
        let (_folder, _path, key) = made(None);
        let roots = testing::roots(1, 1, &["alice"]);
        let stolen = testing::compromise(1, "main-1", "main-2", &roots);
        let planned = testing::planned(1, "main-1", "main-2");

        for document in [Document::Roots(roots), Document::Succession(stolen)] {
            let text = crate::succession::Draft::new(document.clone()).unwrap().text().to_owned();
            let signature =
                Signature { name: key.public_key().name().clone(), bytes: key.sign(&document).unwrap() };
            assert!(key.public_key().verify(text.as_bytes(), &signature));
        }
        let refused = key.sign(&Document::Succession(planned));
        assert!(matches!(refused, Err(OfflineKeyError::NotItsWork)));
    }

    #[test]
    fn a_root_key_prints_nothing_of_its_seed() {
        let printed = format!("{:?}", made(None).2);

        assert!(printed.contains("alice:") && printed.contains("[redacted]"), "{printed}");
    }
}
