//! Witnesses: others who watch that the signature log only ever grows, and sign each checkpoint that does
//! (c2sp.org/tlog-witness, the client's side of `add-checkpoint`).
//!
//! Never believes an answer: a cosignature counts once it verifies under the key that was configured. Never follows a
//! redirect, and never waits long: a witness that does not answer is asked with the next checkpoint.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use crate::tlog::cosignature;
use crate::tlog::hash::NodeHash;
use crate::tlog::note::{NOTE_SIZE_BYTES_MAX, Note, NoteError, NoteSignature, VerifyError};
use crate::tlog::verifier_key::{Algorithm, VerifierKey};

/// Why a text does not name a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseWitnessError {
    #[error("witness is not `URL KEY`, with the key as `name+hash+base64`")]
    Shape,
    #[error("witness's URL is not https or http, or has a query, a `#` or a password")]
    Url,
    #[error("witness's key is not one that cosigns with Ed25519")]
    Key,
}

/// A witness: where it is asked, and the key that its cosignatures verify under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Without a slash at its end.
    url: String,
    key: VerifierKey,
}

impl Witness {
    /// The key of its cosignatures.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }
}

impl FromStr for Witness {
    type Err = ParseWitnessError;

    fn from_str(text: &str) -> Result<Self, ParseWitnessError> {
        let (url, key) = text.trim().split_once(' ').ok_or(ParseWitnessError::Shape)?;
        let parsed = Url::parse(url).map_err(|_| ParseWitnessError::Url)?;
        let is_plain = matches!(parsed.scheme(), "https" | "http")
            && parsed.host_str().is_some()
            && parsed.username().is_empty()
            && parsed.password().is_none()
            && parsed.query().is_none()
            && parsed.fragment().is_none();
        if !is_plain {
            return Err(ParseWitnessError::Url);
        }
        let key: VerifierKey = key.trim().parse().map_err(|_| ParseWitnessError::Key)?;
        if key.algorithm() != Algorithm::Cosignature {
            return Err(ParseWitnessError::Key);
        }
        Ok(Self { url: parsed.as_str().trim_end_matches('/').to_owned(), key })
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.url, self.key)
    }
}

/// What a witness says to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It saw no other tree.
    Cosigned(NoteSignature),
    /// It has seen this log at another size, from which the proof has to go on.
    At { size: u64 },
}

/// Why a witness did not cosign.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error("witness cannot be asked")]
    Transport(#[from] reqwest::Error),
    #[error("witness answers with status {status}: {what}")]
    Refused { status: u16, what: String },
    #[error("witness's answer is larger than {NOTE_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("witness's answer is not the size of a log")]
    Size,
    #[error("witness's answer has no cosignatures")]
    Cosignatures(#[from] NoteError),
    #[error("witness's cosignature is not its own")]
    Forged(#[from] VerifyError),
}

/// Asks witnesses.
#[derive(Clone)]
pub struct Witnesses {
    http: reqwest::Client,
}

impl Witnesses {
    /// Opens no connection yet.
    pub fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("narvault/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()?;
        Ok(Self { http })
    }

    /// Shows `witness` a checkpoint, and the proof that it goes on from the tree of `old` leaves.
    pub async fn add_checkpoint(
        &self,
        witness: &Witness,
        old: u64,
        proof: &[NodeHash],
        checkpoint: &Note,
    ) -> Result<Answer, WitnessError> {
        let url = format!("{}/add-checkpoint", witness.url);
        let sent =
            self.http.post(url).header("content-type", "text/plain").body(request(old, proof, checkpoint));
        let mut response = sent.send().await?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await? {
            if body.len() + bytes.len() > NOTE_SIZE_BYTES_MAX {
                return Err(WitnessError::TooLarge);
            }
            body.extend_from_slice(&bytes);
        }
        let body = String::from_utf8_lossy(&body);
        match status {
            200 => cosigned(witness, checkpoint, &body).map(Answer::Cosigned),
            409 => parse_size(&body).map(|size| Answer::At { size }).ok_or(WitnessError::Size),
            _ => {
                let what: String = body.chars().filter(|char| !char.is_control()).take(200).collect();
                Err(WitnessError::Refused { status, what })
            }
        }
    }
}

/// The body: the older size, the proof, an empty line, the checkpoint.
fn request(old: u64, proof: &[NodeHash], checkpoint: &Note) -> String {
    let proof: String = proof.iter().map(|hash| format!("{hash}\n")).collect();
    format!("old {old}\n{proof}\n{}", checkpoint.encode())
}

/// The witness's own signature among the lines that it answered with.
fn cosigned(witness: &Witness, checkpoint: &Note, lines: &str) -> Result<NoteSignature, WitnessError> {
    let note = Note::parse(format!("{}\n{lines}", checkpoint.text()).as_bytes())?;
    cosignature::verify(&note, &witness.key)?;
    let (name, id) = (witness.key.name(), witness.key.id());
    let own = note.signatures().iter().find(|signature| signature.name == *name && signature.id == id);
    own.cloned().ok_or_else(|| VerifyError::Unsigned { name: name.clone(), id }.into())
}

/// A decimal without sign and leading zeros, and a line feed.
fn parse_size(body: &str) -> Option<u64> {
    let text = body.strip_suffix('\n').unwrap_or(body);
    let size = text.parse::<u64>().ok()?;
    (size.to_string() == text).then_some(size)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A witness writes to a disk before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKPOINT: &str = include_str!("../tests/golden/tlog-v1/checkpoint");
    const VKEYS: &str = include_str!("../tests/golden/tlog-v1/vkeys");

    fn key(line: usize) -> &'static str {
        VKEYS.lines().nth(line).unwrap()
    }

    fn witness() -> Witness {
        format!("https://w.example/ {}", key(1)).parse().unwrap()
    }

    /// The golden checkpoint as its log signed it, and each line of its witnesses.
    fn golden() -> (Note, Vec<String>) {
        let note = Note::parse(CHECKPOINT.as_bytes()).unwrap();
        let mut lines = note.signatures().iter().map(|signature| format!("{signature}\n"));
        let own = lines.next().unwrap();
        (Note::parse(format!("{}\n{own}", note.text()).as_bytes()).unwrap(), lines.collect())
    }

    #[test]
    fn a_witness_is_a_url_and_a_key_that_cosigns() {
        let text = format!("https://w.example/a {}", key(1));
        assert_eq!(text.parse::<Witness>().unwrap().to_string(), text);
        assert_eq!(
            format!(" {} ", text.replace("/a ", "/a/  ")).parse::<Witness>().unwrap().to_string(),
            text
        );
        for (text, error) in [
            (String::new(), ParseWitnessError::Shape),
            ("https://w.example".into(), ParseWitnessError::Shape),
            (format!("w.example {}", key(1)), ParseWitnessError::Url),
            (format!("ftp://w.example {}", key(1)), ParseWitnessError::Url),
            (format!("https://me:x@w.example {}", key(1)), ParseWitnessError::Url),
            (format!("https://w.example?a {}", key(1)), ParseWitnessError::Url),
            (format!("https://w.example {}", key(0)), ParseWitnessError::Key),
            ("https://w.example x".into(), ParseWitnessError::Key),
        ] {
            assert_eq!(text.parse::<Witness>(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_question_is_spelled_as_the_protocol_says() {
        let (note, _) = golden();
        let hash = NodeHash::leaf(b"x");

        assert_eq!(request(0, &[], &note), format!("old 0\n\n{}", note.encode()));
        assert_eq!(request(7, &[hash, hash], &note), format!("old 7\n{hash}\n{hash}\n\n{}", note.encode()));
    }

    #[test]
    fn only_the_witnesss_own_cosignature_is_taken() {
        let (note, lines) = golden();
        let both = lines.concat();

        let signature = cosigned(&witness(), &note, &both).unwrap();

        assert_eq!(format!("{signature}\n"), lines[0]);
        let stranger = cosigned(&witness(), &note, &lines[1]);
        assert!(matches!(stranger, Err(WitnessError::Forged(VerifyError::Unsigned { .. }))), "{stranger:?}");
        let forged = cosigned(&witness(), &note, &lines[0].replace("A0cmXQAAAABrC", "A0cmXQAAAABrD"));
        assert!(matches!(forged, Err(WitnessError::Forged(_))), "{forged:?}");
        for body in ["", "hello", lines[0].trim_end(), "\n\n"] {
            assert!(cosigned(&witness(), &note, body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_size_has_one_spelling() {
        for (body, size) in [("0\n", Some(0)), ("17\n", Some(17)), ("17", Some(17))] {
            assert_eq!(parse_size(body), size, "{body:?}");
        }
        for body in ["", "\n", "017\n", "+1\n", "-1\n", "1\n\n", "18446744073709551616\n", "x"] {
            assert_eq!(parse_size(body), None, "{body:?}");
        }
    }
}
