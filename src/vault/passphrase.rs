//! A slot secret that a person remembers, stretched by Argon2id.
//!
//! Never takes cost parameters on trust: a row's are held against floor and ceiling before any work is done, so that
//! whoever writes the database can neither make guessing cheap nor exhaust the server.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::BASE64_NOPAD;
use subtle::ConstantTimeEq as _;
use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};
use super::random;

/// Fewest characters, counted after normalisation.
pub const PASSPHRASE_CHARACTERS_MIN: usize = 14;

/// Most bytes, as given: no sentence that a person types comes near, and the hash of more costs nothing extra.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

/// A passphrase, normalised, and what a slot that is made with it shall cost.
pub struct Passphrase {
    text: Zeroizing<String>,
    cost: KdfCost,
}

impl Passphrase {
    /// Takes what a person or a file gave: one LF or CRLF at the end is dropped, the rest normalised to NFC, so that
    /// the same words open the vault from every keyboard.
    pub fn parse(given: &[u8]) -> Result<Self, PassphraseError> {
        if given.len() > PASSPHRASE_BYTES_MAX {
            return Err(PassphraseError::TooLong);
        }
        let given = std::str::from_utf8(given).map_err(|_| PassphraseError::NotUtf8)?;
        let line = given.strip_suffix('\n').map_or(given, |line| line.strip_suffix('\r').unwrap_or(line));

        // NFC makes at most three bytes of one: room for all, so that growing leaves no copy behind.
        let mut text = Zeroizing::new(String::with_capacity(line.len() * 3));
        text.extend(line.nfc());
        let found = text.chars().count();
        if found < PASSPHRASE_CHARACTERS_MIN {
            return Err(PassphraseError::TooShort { found });
        }
        Ok(Self { text, cost: KdfCost::DEFAULT })
    }

    /// Reads a passphrase from a file. Who may read that file is said in the log only: containers mount secrets with
    /// modes that their users cannot change.
    pub fn read_file(path: &Path) -> Result<Self, PassphraseError> {
        let failed = |source| PassphraseError::Read { path: path.to_owned(), source };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && std::os::unix::fs::MetadataExt::mode(&metadata) & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "passphrase file is open to other users");
        }
        let mut given = Zeroizing::new([0; PASSPHRASE_BYTES_MAX + 1]);
        let mut length = 0;
        while length < given.len() {
            match file.read(&mut given[length..]).map_err(failed)? {
                0 => break,
                more => length += more,
            }
        }
        Self::parse(&given[..length])
    }

    /// The same passphrase, making slots of another cost. Opening a slot takes the cost that the slot names.
    #[must_use]
    pub fn with_cost(self, cost: KdfCost) -> Self {
        Self { cost, ..self }
    }

    /// Whether both are the same words.
    pub fn is_same(&self, other: &Self) -> bool {
        self.text.as_bytes().ct_eq(other.text.as_bytes()).into()
    }

    /// Parameters for a new slot: this passphrase's cost and a random salt.
    pub(super) fn new_params(&self) -> PassphraseParams {
        PassphraseParams { cost: self.cost, salt: random::bytes() }
    }

    /// The slot key. Takes about a second and [`KdfCost::memory_kib`] of memory, so never on an async thread; one at
    /// a time, so that many requests do not multiply the memory.
    pub(super) fn slot_key(&self, params: &PassphraseParams) -> Result<LockedBytes, DeriveError> {
        let _one_at_a_time = DERIVATION.lock().unwrap_or_else(PoisonError::into_inner);
        derive(self.text.as_bytes(), &params.salt, params.cost)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase([redacted])")
    }
}

/// Why a text is not taken as a passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    #[error("passphrase is not UTF-8")]
    NotUtf8,
    #[error("passphrase file {} could not be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes")]
    TooLong,
    #[error("passphrase has {found} characters, at least {PASSPHRASE_CHARACTERS_MIN} are needed")]
    TooShort { found: usize },
}

/// What one try of a passphrase costs. Only costs within the accepted bounds can be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfCost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl KdfCost {
    /// 256 MiB, 3 passes, 4 lanes: about a second of one core.
    pub const DEFAULT: Self = Self { memory_kib: 256 * 1024, passes: 3, lanes: 4 };

    /// 64 MiB, 3 passes, 4 lanes: RFC 9106's second choice, the least that a new slot may have.
    pub const FLOOR: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };

    /// The cost of a new slot: at least [`KdfCost::FLOOR`] in each number, and within what is accepted on read.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, KdfCostError> {
        let cost = Self::accept(memory_kib, passes, lanes)?;
        if passes < Self::FLOOR.passes || lanes < Self::FLOOR.lanes {
            return Err(KdfCostError { memory_kib, passes, lanes });
        }
        Ok(cost)
    }

    /// The memory of one derivation, in KiB.
    pub fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// The cost of a slot that stands in a row: 64 MiB to 1 GiB, 1 to 10 passes, 1 to 8 lanes.
    fn accept(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, KdfCostError> {
        let accepted = (64 * 1024..=1024 * 1024).contains(&memory_kib)
            && (1..=10).contains(&passes)
            && (1..=8).contains(&lanes);
        accepted.then_some(Self { memory_kib, passes, lanes }).ok_or(KdfCostError {
            memory_kib,
            passes,
            lanes,
        })
    }
}

/// A cost below the floor or above the ceiling.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Argon2id cost m={memory_kib} KiB t={passes} p={lanes} is outside the accepted bounds \
     (m 64 MiB to 1 GiB, t to 10, p to 8; new slots t from 3, p from 4)"
)]
pub struct KdfCostError {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// What a passphrase slot's row says: the cost and the salt. Written as a PHC string without hash,
/// `$argon2id$v=19$m=262144,t=3,p=4$<salt>`; each value has exactly one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassphraseParams {
    cost: KdfCost,
    salt: [u8; SALT_BYTES],
}

impl fmt::Display for PassphraseParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KdfCost { memory_kib, passes, lanes } = self.cost;
        let salt = BASE64_NOPAD.encode(&self.salt);
        write!(f, "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}")
    }
}

impl FromStr for PassphraseParams {
    type Err = ParseParamsError;

    fn from_str(text: &str) -> Result<Self, ParseParamsError> {
        let parsed = parse_phc(text).ok_or(ParseParamsError::Shape)?;
        let (memory_kib, passes, lanes, salt) = parsed;
        let params = Self { cost: KdfCost::accept(memory_kib, passes, lanes)?, salt };
        if params.to_string() != text {
            return Err(ParseParamsError::Shape);
        }
        Ok(params)
    }
}

fn parse_phc(text: &str) -> Option<(u32, u32, u32, [u8; SALT_BYTES])> {
    let (cost, salt) = text.strip_prefix("$argon2id$v=19$")?.split_once('$')?;
    let mut numbers = cost.splitn(3, ',');
    let mut number = |name| numbers.next()?.strip_prefix(name)?.parse::<u32>().ok();
    let (memory_kib, passes, lanes) = (number("m=")?, number("t=")?, number("p=")?);
    let salt = BASE64_NOPAD.decode(salt.as_bytes()).ok()?.try_into().ok()?;
    Some((memory_kib, passes, lanes, salt))
}

/// Why a slot's parameters are refused, before any work is done with them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseParamsError {
    #[error(transparent)]
    Cost(#[from] KdfCostError),
    #[error("parameters are not of the form `$argon2id$v=19$m=...,t=...,p=...$salt`")]
    Shape,
}

/// Why no slot key could be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    #[error("Argon2id could not be run")]
    Argon2(#[source] argon2::Error),
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("{needed_kib} KiB of memory for Argon2id are not to be had")]
    OutOfMemory { needed_kib: u32 },
}

fn derive(text: &[u8], salt: &[u8], cost: KdfCost) -> Result<LockedBytes, DeriveError> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(SECRET_BYTES))
        .map_err(DeriveError::Argon2)?;
    // Our own blocks, because the last of them give the key away and the crate leaves them in freed memory.
    let mut blocks = Zeroizing::new(Vec::new());
    blocks
        .try_reserve_exact(params.block_count())
        .map_err(|_| DeriveError::OutOfMemory { needed_kib: cost.memory_kib })?;
    blocks.resize(params.block_count(), Block::new());

    let mut key = LockedBytes::zeroed()?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(text, salt, key.expose_mut(), blocks.as_mut_slice())
        .map_err(DeriveError::Argon2)?;
    Ok(key)
}

const SALT_BYTES: usize = 16;

static DERIVATION: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Passphrase, PassphraseError> {
        Passphrase::parse(text.as_bytes())
    }

    #[test]
    fn one_line_end_is_dropped_and_no_more() {
        for (given, kept) in [
            ("correct horse battery", "correct horse battery"),
            ("correct horse battery\n", "correct horse battery"),
            ("correct horse battery\r\n", "correct horse battery"),
            ("correct horse battery\n\n", "correct horse battery\n"),
            ("correct horse battery\r", "correct horse battery\r"),
            (" correct horse battery ", " correct horse battery "),
        ] {
            assert_eq!(*parse(given).unwrap().text, kept, "{given:?}");
        }
    }

    #[test]
    fn composed_and_decomposed_spellings_are_one_passphrase() {
        let composed = parse("Zw\u{f6}lf Boxk\u{e4}mpfer").unwrap();
        let decomposed = parse("Zwo\u{308}lf Boxka\u{308}mpfer").unwrap();

        assert_eq!(composed.text, decomposed.text);
    }

    #[test]
    fn short_long_and_undecodable_passphrases_are_refused() {
        assert!(parse("fourteen chars").is_ok());
        assert!(matches!(parse("thirteen char"), Err(PassphraseError::TooShort { found: 13 })));
        assert!(matches!(parse("thirteen char\n"), Err(PassphraseError::TooShort { found: 13 })));
        assert!(matches!(parse(""), Err(PassphraseError::TooShort { found: 0 })));
        // 26 characters as typed, 13 once composed.
        assert!(matches!(parse(&"a\u{308}".repeat(13)), Err(PassphraseError::TooShort { found: 13 })));
        assert!(parse(&"x".repeat(1024)).is_ok());
        assert!(matches!(parse(&"x".repeat(1025)), Err(PassphraseError::TooLong)));
        assert!(matches!(Passphrase::parse(&[0xff; 20]), Err(PassphraseError::NotUtf8)));
    }

    #[test]
    fn a_file_gives_the_same_passphrase_as_a_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        std::fs::write(&path, "correct horse battery\n").unwrap();

        assert_eq!(*Passphrase::read_file(&path).unwrap().text, "correct horse battery");

        std::fs::write(&path, "x".repeat(2000)).unwrap();
        assert!(matches!(Passphrase::read_file(&path), Err(PassphraseError::TooLong)));
        let absent = folder.path().join("absent");
        assert!(matches!(Passphrase::read_file(&absent), Err(PassphraseError::Read { .. })));
    }

    #[test]
    fn parameters_have_one_spelling() {
        let text = "$argon2id$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw";

        let params: PassphraseParams = text.parse().unwrap();

        assert_eq!(params.cost, KdfCost::DEFAULT);
        assert_eq!(params.salt, std::array::from_fn(|i| i as u8));
        assert_eq!(params.to_string(), text);
    }

    #[test]
    fn other_spellings_of_parameters_are_refused() {
        for text in [
            "",
            "$argon2id$v=19$m=262144,t=3,p=4$",
            "$argon2id$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw$",
            "$argon2id$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw==",
            "$argon2id$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0O",
            "$argon2id$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODx",
            "$argon2id$v=19$m=+262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=0262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$t=3,m=262144,p=4$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=262144,t=3,p=4,x=1$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=16$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw",
            "$argon2i$v=19$m=262144,t=3,p=4$AAECAwQFBgcICQoLDA0ODw",
        ] {
            assert_eq!(text.parse::<PassphraseParams>(), Err(ParseParamsError::Shape), "{text:?}");
        }
    }

    #[test]
    fn cheap_and_exhausting_costs_are_refused() {
        for (memory_kib, passes, lanes) in [
            (65_535, 3, 4),
            (8, 1, 1),
            (1_048_577, 3, 4),
            (u32::MAX, 3, 4),
            (262_144, 0, 4),
            (262_144, 11, 4),
            (262_144, u32::MAX, 4),
            (262_144, 3, 0),
            (262_144, 3, 9),
        ] {
            let text = format!("$argon2id$v=19$m={memory_kib},t={passes},p={lanes}$AAECAwQFBgcICQoLDA0ODw");

            let refused = text.parse::<PassphraseParams>();

            assert!(matches!(refused, Err(ParseParamsError::Cost(_))), "{text}");
            assert!(KdfCost::new(memory_kib, passes, lanes).is_err(), "{text}");
        }
        for below_floor in [(262_144, 2, 4), (262_144, 3, 3)] {
            let (memory_kib, passes, lanes) = below_floor;
            assert!(KdfCost::accept(memory_kib, passes, lanes).is_ok());
            assert!(KdfCost::new(memory_kib, passes, lanes).is_err(), "{below_floor:?}");
        }
        assert_eq!(KdfCost::new(65_536, 3, 4), Ok(KdfCost::FLOOR));
    }

    #[test]
    fn a_passphrase_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", parse("correct horse battery").unwrap()), "Passphrase([redacted])");
    }

    /// RFC 9106, section 5.3. Its 32 KiB, secret and associated data are out of our bounds: this checks the crate.
    #[test]
    fn the_derivation_is_argon2id_of_the_rfc() {
        let params = argon2::ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data(argon2::AssociatedData::new(&[4; 12]).unwrap())
            .output_len(32)
            .build()
            .unwrap();
        let mut tag = [0; 32];
        Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params)
            .unwrap()
            .hash_password_into(&[1; 32], &[2; 16], &mut tag)
            .unwrap();

        assert_eq!(HEXLOWER.encode(&tag), "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
    }

    #[test]
    fn our_own_blocks_give_what_the_crate_gives() {
        let cost = KdfCost { memory_kib: 64, passes: 2, lanes: 2 };
        let params = Params::new(64, 2, 2, Some(32)).unwrap();
        let mut expected = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(b"passphrase", &[7; 16], &mut expected)
            .unwrap();

        assert_eq!(derive(b"passphrase", &[7; 16], cost).unwrap().expose(), &expected);
    }

    proptest! {
        #[test]
        fn parameters_read_back_as_written(
            m in 65_536_u32..=1_048_576, t in 1_u32..=10, p in 1_u32..=8, salt: [u8; 16],
        ) {
            let params = PassphraseParams { cost: KdfCost::accept(m, t, p).unwrap(), salt };

            prop_assert_eq!(params.to_string().parse(), Ok(params));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\$argon2id\\$v=19\\$.{0,60}|.{0,60}") {
            if let Ok(params) = text.parse::<PassphraseParams>() {
                prop_assert_eq!(params.to_string(), text);
            }
        }
    }
}
