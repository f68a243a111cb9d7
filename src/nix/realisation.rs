//! Realisations: which store path an output of a content-addressed derivation turned out to be.
//!
//! Two generations: `realisations/sha256:<hex>!<output>.doi` (Nix before 2.35) and
//! `build-trace-v2/<derivation>/<output>.doi` (since). Never trusts the signatures that came along.
//! Format: `nix:src/libstore/realisation.cc`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hash::Sha256Digest;
use super::signature::{ParseSignatureError, SIGNATURES_MAX, Signature};
use super::store_path::{ParseStorePathError, StorePath};

/// Largest body, in bytes: room for some 6 000 dependent realisations of usual length.
pub const REALISATION_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Why a name is not that of a realisation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRealisationKeyError {
    #[error(
        "realisation's name is not `realisations/<id>.doi` or `build-trace-v2/<derivation>/<output>.doi`"
    )]
    Shape,
    #[error("realisation's id is not `sha256:`, 64 lower-case hex characters, `!` and an output's name")]
    Id,
    #[error("realisation's output name is empty, too long, or has a character that store paths do not have")]
    Output,
    #[error("realisation's derivation is not the base name of a `.drv` store path")]
    Derivation,
}

/// Why a body is not that of a realisation. The reader's own error is kept aside: it may repeat the body.
#[derive(Debug, thiserror::Error)]
pub enum ParseRealisationError {
    #[error("realisation is larger than {REALISATION_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("realisation is not the JSON that Nix writes")]
    Json(#[source] serde_json::Error),
    #[error("realisation's `id` is not that of its name")]
    OtherId,
    #[error("realisation's `outPath` is refused: {0}")]
    OutPath(ParseStorePathError),
    #[error("realisation's `dependentRealisations` have a bad id: {0}")]
    DependentId(ParseRealisationKeyError),
    #[error("realisation's `dependentRealisations` have a bad path: {0}")]
    DependentPath(ParseStorePathError),
    #[error("realisation's {0}")]
    Signature(ParseSignatureError),
    #[error("realisation has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
}

/// The name of a derivation's output, such as `out`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutputName(String);

impl OutputName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OutputName {
    type Err = ParseRealisationKeyError;

    /// Nix holds it to the rule of store path names, because it becomes the end of one.
    fn from_str(text: &str) -> Result<Self, ParseRealisationKeyError> {
        let as_path = format!("{}-{text}", "0".repeat(32));
        StorePath::from_base_name(&as_path).map_err(|_| ParseRealisationKeyError::Output)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `sha256:<hex>!<output>`: an output of a derivation, by the derivation's hash modulo.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DrvOutput {
    pub drv_hash: Sha256Digest,
    pub output: OutputName,
}

impl FromStr for DrvOutput {
    type Err = ParseRealisationKeyError;

    fn from_str(text: &str) -> Result<Self, ParseRealisationKeyError> {
        let rest = text.strip_prefix("sha256:").ok_or(ParseRealisationKeyError::Id)?;
        let (hex, output) = rest.split_once('!').ok_or(ParseRealisationKeyError::Id)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| ParseRealisationKeyError::Id)?;
        let bytes = bytes.try_into().map_err(|_| ParseRealisationKeyError::Id)?;
        Ok(Self { drv_hash: Sha256Digest(bytes), output: output.parse()? })
    }
}

impl fmt::Display for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}!{}", self.drv_hash.hex(), self.output)
    }
}

/// What a realisation is about, in either generation. `Display` and `FromStr` are the object's name
/// below the cache, percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RealisationKey {
    /// `realisations/sha256:<hex>!<output>.doi`
    DrvOutput(DrvOutput),
    /// `build-trace-v2/<derivation>/<output>.doi`
    BuildTrace { derivation: StorePath, output: OutputName },
}

impl RealisationKey {
    /// Reads the file name below `realisations/`.
    pub fn from_realisations_file(file: &str) -> Result<Self, ParseRealisationKeyError> {
        let id = file.strip_suffix(".doi").ok_or(ParseRealisationKeyError::Shape)?;
        id.parse().map(Self::DrvOutput)
    }

    /// Reads folder and file name below `build-trace-v2/`.
    pub fn from_build_trace_file(folder: &str, file: &str) -> Result<Self, ParseRealisationKeyError> {
        let output = file.strip_suffix(".doi").ok_or(ParseRealisationKeyError::Shape)?.parse()?;
        let derivation = StorePath::from_base_name(folder)
            .ok()
            .filter(StorePath::is_derivation)
            .ok_or(ParseRealisationKeyError::Derivation)?;
        Ok(Self::BuildTrace { derivation, output })
    }
}

impl FromStr for RealisationKey {
    type Err = ParseRealisationKeyError;

    fn from_str(text: &str) -> Result<Self, ParseRealisationKeyError> {
        if let Some(file) = text.strip_prefix("realisations/") {
            return Self::from_realisations_file(file);
        }
        let rest = text.strip_prefix("build-trace-v2/").ok_or(ParseRealisationKeyError::Shape)?;
        let (folder, file) = rest.split_once('/').ok_or(ParseRealisationKeyError::Shape)?;
        Self::from_build_trace_file(folder, file)
    }
}

impl fmt::Display for RealisationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DrvOutput(id) => write!(f, "realisations/{id}.doi"),
            Self::BuildTrace { derivation, output } => {
                write!(f, "build-trace-v2/{}/{output}.doi", derivation.base_name())
            }
        }
    }
}

/// One realisation: well formed, and nothing else is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    pub key: RealisationKey,
    pub out_path: StorePath,
    /// Empty in the newer generation, which has none.
    pub dependents: BTreeMap<DrvOutput, StorePath>,
    /// As they came, duplicates dropped. None has been verified.
    pub signatures: Vec<Signature>,
}

impl Realisation {
    /// Reads the body that was put under `key`.
    ///
    /// A signature is read in both spellings, `name:base64` and `{"keyName","sig"}`, as Nix reads it.
    pub fn parse(key: RealisationKey, body: &[u8]) -> Result<Self, ParseRealisationError> {
        if body.len() > REALISATION_SIZE_BYTES_MAX {
            return Err(ParseRealisationError::TooLarge);
        }
        let (out_path, dependents, signatures) = match &key {
            RealisationKey::DrvOutput(id) => {
                let body: OldBody = serde_json::from_slice(body).map_err(ParseRealisationError::Json)?;
                if body.id != id.to_string() {
                    return Err(ParseRealisationError::OtherId);
                }
                (body.out_path, body.dependents.0, body.signatures)
            }
            RealisationKey::BuildTrace { .. } => {
                let body: NewBody = serde_json::from_slice(body).map_err(ParseRealisationError::Json)?;
                (body.out_path, BTreeMap::new(), body.signatures)
            }
        };
        let out_path = StorePath::from_base_name(&out_path).map_err(ParseRealisationError::OutPath)?;
        let dependents = dependents.into_iter().map(parse_dependent).collect::<Result<_, _>>()?;
        Ok(Self { key, out_path, dependents, signatures: parse_signatures(signatures)? })
    }

    /// The text whose bytes are signed: compact JSON, keys sorted, without the signatures.
    pub fn fingerprint(&self) -> String {
        let out_path = self.out_path.base_name().to_owned();
        match &self.key {
            RealisationKey::DrvOutput(id) => {
                to_json(&OldFingerprint { dependents: self.dependent_texts(), id: id.to_string(), out_path })
            }
            RealisationKey::BuildTrace { derivation, output } => to_json(&NewFingerprint {
                key: NewKey { derivation: derivation.base_name(), output: output.as_str() },
                value: NewValue { out_path },
            }),
        }
    }

    /// The body with its signatures, sorted, each once: `name:base64` in the older generation, objects in
    /// the newer.
    pub fn to_json(&self) -> String {
        let signatures = Signature::sorted_texts(&self.signatures);
        let out_path = self.out_path.base_name().to_owned();
        match &self.key {
            RealisationKey::DrvOutput(id) => to_json(&OldBody {
                dependents: self.dependent_texts(),
                id: id.to_string(),
                out_path,
                signatures: signatures.into_iter().map(SignatureText::Line).collect(),
            }),
            RealisationKey::BuildTrace { .. } => {
                let object = |text: String| {
                    let (key_name, sig) = text.split_once(':').expect("printed with a colon");
                    SignatureText::Object(SignatureObject { key_name: key_name.into(), sig: sig.into() })
                };
                to_json(&NewBody { out_path, signatures: signatures.into_iter().map(object).collect() })
            }
        }
    }

    fn dependent_texts(&self) -> UniqueMap {
        let text = |(id, path): (&DrvOutput, &StorePath)| (id.to_string(), path.base_name().to_owned());
        UniqueMap(self.dependents.iter().map(text).collect())
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, and maps with string keys, are JSON")
}

fn parse_dependent((id, path): (String, String)) -> Result<(DrvOutput, StorePath), ParseRealisationError> {
    let id = id.parse().map_err(ParseRealisationError::DependentId)?;
    let path = StorePath::from_base_name(&path).map_err(ParseRealisationError::DependentPath)?;
    Ok((id, path))
}

fn parse_signatures(texts: Vec<SignatureText>) -> Result<Vec<Signature>, ParseRealisationError> {
    if texts.len() > SIGNATURES_MAX {
        return Err(ParseRealisationError::TooManySignatures);
    }
    let mut signatures = Vec::with_capacity(texts.len());
    for text in texts {
        let signature = match text {
            SignatureText::Line(line) => line.parse(),
            SignatureText::Object(SignatureObject { key_name, sig }) => key_name
                .parse()
                .map_err(ParseSignatureError::Name)
                .and_then(|name| Signature::from_parts(name, &sig)),
        };
        let signature = signature.map_err(ParseRealisationError::Signature)?;
        if !signatures.contains(&signature) {
            signatures.push(signature);
        }
    }
    Ok(signatures)
}

// The fields stand in the order of their JSON names, which is the order that is signed.

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OldBody {
    #[serde(rename = "dependentRealisations", default)]
    dependents: UniqueMap,
    id: String,
    #[serde(rename = "outPath")]
    out_path: String,
    #[serde(default)]
    signatures: Vec<SignatureText>,
}

#[derive(Serialize)]
struct OldFingerprint {
    #[serde(rename = "dependentRealisations")]
    dependents: UniqueMap,
    id: String,
    #[serde(rename = "outPath")]
    out_path: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBody {
    #[serde(rename = "outPath")]
    out_path: String,
    #[serde(default)]
    signatures: Vec<SignatureText>,
}

#[derive(Serialize)]
struct NewFingerprint<'a> {
    key: NewKey<'a>,
    value: NewValue,
}

#[derive(Serialize)]
struct NewKey<'a> {
    #[serde(rename = "drvPath")]
    derivation: &'a str,
    #[serde(rename = "outputName")]
    output: &'a str,
}

#[derive(Serialize)]
struct NewValue {
    #[serde(rename = "outPath")]
    out_path: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SignatureText {
    Line(String),
    Object(SignatureObject),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureObject {
    #[serde(rename = "keyName")]
    key_name: String,
    sig: String,
}

/// A JSON object of strings that refuses a repeated key, of which JSON readers keep different ones.
#[derive(Default)]
struct UniqueMap(BTreeMap<String, String>);

impl Serialize for UniqueMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key stands twice"));
                    }
                }
                Ok(UniqueMap(entries))
            }
        }

        deserializer.deserialize_map(Strings)
    }
}

#[cfg(test)]
mod tests;
