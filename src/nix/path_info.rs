//! What `nix path-info --json` prints, in each of its shapes since Nix 2.8, as one kind of value.
//!
//! Never asks Nix, and never fills in what it did not say. Shapes: a list (up to 2.18), a map by store path
//! (from 2.19), `{"version", "storeDir", "info"}` with base names (`--json-format 2` and later);
//! `nix:src/nix/path-info.cc`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::claim::{Claim, SIZE_MAX};
use super::content_address::ContentAddress;
use super::signature::{SIGNATURES_MAX, Signature};
use super::store_path::{STORE_DIR, StorePath};

/// Why a text is not what Nix prints about paths.
#[derive(Debug, thiserror::Error)]
pub enum PathInfoError {
    #[error("it is not JSON: line {}, column {}", .0.line(), .0.column())]
    Json(#[source] serde_json::Error),
    #[error("it is neither a list nor a map of store paths")]
    Shape,
    #[error("it is about another store than {STORE_DIR}")]
    StoreDir,
    #[error("{path} is not valid in this store")]
    NotValid { path: String },
    #[error("`{field}` of {path} is missing or not of a form that is known")]
    Field { path: String, field: &'static str },
}

/// A valid path of a local store, as its database has it: nothing here was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    pub claim: Claim,
    pub deriver: Option<StorePath>,
    pub ca: Option<ContentAddress>,
    /// Those that can be read; none has been verified.
    pub signatures: Vec<Signature>,
}

/// Reads the whole output, in the order of its entries.
pub fn parse(json: &[u8]) -> Result<Vec<PathInfo>, PathInfoError> {
    match serde_json::from_slice(json).map_err(PathInfoError::Json)? {
        Value::Array(entries) => entries.into_iter().map(|entry| read(None, entry)).collect(),
        Value::Object(mut top) => {
            if top.get("storeDir").is_some_and(|folder| folder != STORE_DIR) {
                return Err(PathInfoError::StoreDir);
            }
            let entries = match top.remove("info") {
                Some(Value::Object(entries)) => entries,
                Some(_) => return Err(PathInfoError::Shape),
                None => {
                    top.retain(|key, _| !matches!(key.as_str(), "version" | "storeDir"));
                    top
                }
            };
            entries.into_iter().map(|(path, entry)| read(Some(path), entry)).collect()
        }
        _ => Err(PathInfoError::Shape),
    }
}

/// The fields that matter; Nix adds others from time to time.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    path: Option<String>,
    valid: Option<bool>,
    store_dir: Option<String>,
    nar_hash: Option<String>,
    nar_size: Option<u64>,
    references: Option<Vec<String>>,
    deriver: Option<String>,
    ca: Option<CaForm>,
    #[serde(default, deserialize_with = "null_is_none")]
    signatures: Vec<SignatureForm>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CaForm {
    Text(String),
    Parts { method: String, hash: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SignatureForm {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Parts {
        key_name: String,
        sig: String,
    },
}

fn null_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SignatureForm>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn read(key: Option<String>, entry: Value) -> Result<PathInfo, PathInfoError> {
    let named = key.or_else(|| Some(entry.get("path")?.as_str()?.to_owned()));
    let path_text = named.ok_or(PathInfoError::Shape)?;
    let field = |field| PathInfoError::Field { path: path_text.clone(), field };
    let path = store_path(&path_text).ok_or(PathInfoError::Shape)?;
    if entry.is_null() {
        return Err(PathInfoError::NotValid { path: path.to_string() });
    }
    let entry: Entry = serde_json::from_value(entry).map_err(|_| field("entry"))?;
    if entry.valid == Some(false) {
        return Err(PathInfoError::NotValid { path: path.to_string() });
    }
    if entry.store_dir.is_some_and(|folder| folder != STORE_DIR) {
        return Err(PathInfoError::StoreDir);
    }
    if entry.path.is_some_and(|text| store_path(&text).as_ref() != Some(&path)) {
        return Err(field("path"));
    }
    let nar_hash = entry.nar_hash.and_then(|text| text.parse().ok()).ok_or_else(|| field("narHash"))?;
    let nar_size = entry.nar_size.filter(|size| (1..=SIZE_MAX).contains(size));
    let nar_size = nar_size.ok_or_else(|| field("narSize"))?;
    let references = entry.references.ok_or_else(|| field("references"))?;
    let references: Option<BTreeSet<StorePath>> = references.iter().map(|text| store_path(text)).collect();
    let references = references.ok_or_else(|| field("references"))?;
    let deriver = match entry.deriver.as_deref() {
        None | Some("" | "unknown-deriver") => None,
        Some(text) => Some(store_path(text).ok_or_else(|| field("deriver"))?),
    };
    let ca = match entry.ca {
        None => None,
        Some(CaForm::Text(text)) if text.is_empty() => None,
        Some(form) => Some(content_address(form).ok_or_else(|| field("ca"))?),
    };
    // A signature that cannot be read convinces nobody: Nix itself skips it.
    let signatures = entry.signatures.into_iter().filter_map(|form| signature(form).parse().ok());
    let signatures = signatures.take(SIGNATURES_MAX).collect();
    Ok(PathInfo { claim: Claim { path, nar_hash, nar_size, references }, deriver, ca, signatures })
}

fn store_path(text: &str) -> Option<StorePath> {
    let parsed =
        if text.starts_with('/') { StorePath::from_absolute(text) } else { StorePath::from_base_name(text) };
    parsed.ok()
}

fn content_address(form: CaForm) -> Option<ContentAddress> {
    let text = match form {
        CaForm::Text(text) => text,
        CaForm::Parts { method, hash } => {
            let (algorithm, digest) = hash.split_once('-')?;
            match method.as_str() {
                "text" => format!("text:{algorithm}:{digest}"),
                "flat" => format!("fixed:{algorithm}:{digest}"),
                "nar" => format!("fixed:r:{algorithm}:{digest}"),
                "git" => format!("fixed:git:{algorithm}:{digest}"),
                _ => return None,
            }
        }
    };
    text.parse().ok()
}

fn signature(form: SignatureForm) -> String {
    match form {
        SignatureForm::Text(text) => text,
        SignatureForm::Parts { key_name, sig } => format!("{key_name}:{sig}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt";
    const B: &str = "998z88ijg0b0c7610qfnv8msyw9604x6-aa.txt";
    const DRV: &str = "7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0.drv";
    const HASH: &str = "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=";
    const SIG: &str = "cache.example-1:Ym3M6sOHhaUbrW0unj6JYlpecPA/7PQhABjdrWlFwZh+pOOCMwvV77X6qm8Ct5smYPO9zxPWEXAdc6EAoBrQAg==";
    const CA: &str = "fixed:r:sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h";

    fn full(base_name: &str) -> String {
        format!("/nix/store/{base_name}")
    }

    /// What each shape below says.
    fn expected() -> PathInfo {
        let path = |base| StorePath::from_base_name(base).unwrap();
        let references = [path(A), path(B)].into();
        let claim = Claim { path: path(B), nar_hash: HASH.parse().unwrap(), nar_size: 120, references };
        let (ca, signatures) = (Some(CA.parse().unwrap()), vec![SIG.parse().unwrap()]);
        PathInfo { claim, deriver: Some(path(DRV)), ca, signatures }
    }

    #[track_caller]
    fn check(json: &str, expected: &[PathInfo]) {
        assert_eq!(parse(json.as_bytes()).unwrap(), expected, "{json}");
    }

    #[test]
    fn every_shape_says_the_same() {
        let (a, b, drv) = (full(A), full(B), full(DRV));
        let common =
            format!(r#""narHash":"{HASH}","narSize":120,"registrationTime":1795743482,"ultimate":true"#);
        let texts =
            format!(r#""references":["{a}","{b}"],"deriver":"{drv}","signatures":["{SIG}"],"ca":"{CA}""#);
        let ca = format!(r#"{{"method":"nar","hash":"{HASH}"}}"#);
        let base = format!(r#""references":["{A}","{B}"],"deriver":"{DRV}","ca":{ca}"#);
        let (key, sig) = SIG.split_once(':').unwrap();
        let objects = format!(r#"[{{"keyName":"{key}","sig":"{sig}"}}]"#);

        // 2.8 to 2.18.
        check(&format!(r#"[{{"path":"{b}",{common},{texts},"closureSize":240}}]"#), &[expected()]);
        // 2.19 to 2.33.
        check(&format!(r#"{{"{b}":{{{common},{texts}}}}}"#), &[expected()]);
        // 2.34 without a format, or with format 1.
        let more = r#""version":1,"storeDir":"/nix/store""#;
        check(&format!(r#"{{"{b}":{{{common},{texts},{more}}}}}"#), &[expected()]);
        // Formats 2 and 3.
        check(
            &format!(
                r#"{{"version":2,"storeDir":"/nix/store","info":{{"{B}":{{{common},{base},"signatures":["{SIG}"]}}}}}}"#
            ),
            &[expected()],
        );
        check(
            &format!(
                r#"{{"version":3,"storeDir":"/nix/store","info":{{"{B}":{{{common},{base},"signatures":{objects}}}}}}}"#
            ),
            &[expected()],
        );
    }

    #[test]
    fn what_nix_leaves_out_or_prints_as_null_is_none() {
        let mut bare = expected();
        bare.claim.references.clear();
        (bare.deriver, bare.ca, bare.signatures) = (None, None, Vec::new());
        let b = full(B);

        check(
            &format!(r#"[{{"path":"{b}","narHash":"{HASH}","narSize":120,"references":[]}}]"#),
            &[bare.clone()],
        );
        check(
            &format!(
                r#"{{"{b}":{{"narHash":"{HASH}","narSize":120,"references":[],"deriver":null,"ca":null,"signatures":null}}}}"#
            ),
            &[bare.clone()],
        );
        let unreadable = r#""references":[],"signatures":["nonsense"],"deriver":"unknown-deriver""#;
        check(&format!(r#"[{{"path":"{b}","narHash":"{HASH}","narSize":120,{unreadable}}}]"#), &[bare]);
        check("[]", &[]);
        check("{}", &[]);
    }

    #[test]
    fn every_method_of_a_content_address_is_read() {
        let digest = HASH.strip_prefix("sha256-").unwrap();
        for (method, expected) in [
            ("text", format!("text:sha256:{digest}")),
            ("flat", format!("fixed:sha256:{digest}")),
            ("nar", format!("fixed:r:sha256:{digest}")),
            ("git", format!("fixed:git:sha256:{digest}")),
        ] {
            let form = CaForm::Parts { method: method.to_owned(), hash: HASH.to_owned() };
            assert_eq!(content_address(form), Some(expected.parse().unwrap()), "{method}");
        }
        let form = CaForm::Parts { method: "new".to_owned(), hash: HASH.to_owned() };
        assert_eq!(content_address(form), None);
    }

    #[test]
    fn a_path_that_is_not_valid_is_named() {
        for json in [
            format!(r#"[{{"path":"/nix/store/{A}","valid":false}}]"#),
            format!(r#"{{"/nix/store/{A}":null}}"#),
            format!(r#"{{"version":2,"storeDir":"/nix/store","info":{{"{A}":null}}}}"#),
        ] {
            let error = parse(json.as_bytes()).unwrap_err();

            assert!(matches!(&error, PathInfoError::NotValid { path } if *path == full(A)), "{error}");
        }
    }

    #[test]
    fn other_outputs_are_refused() {
        let b = full(B);
        let entry = |fields: &str| format!(r#"[{{"path":"{b}",{fields}}}]"#);
        for (json, expected) in [
            (String::new(), "not JSON"),
            ("{".into(), "not JSON"),
            ("3".into(), "neither"),
            (r#"{"info":[]}"#.into(), "neither"),
            (r#"{"surprise":{}}"#.into(), "neither"),
            (r#"[{"narHash":"x"}]"#.into(), "neither"),
            (r#"{"version":2,"storeDir":"/gnu/store","info":{}}"#.into(), "another store"),
            (entry(r#""narSize":1"#), "`narHash`"),
            (entry(r#""narHash":"md5:0","narSize":1"#), "`narHash`"),
            (entry(&format!(r#""narHash":"{HASH}""#)), "`narSize`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":0"#)), "`narSize`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":-1"#)), "`entry`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":1"#)), "`references`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":1,"references":["x"]"#)), "`references`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":1,"references":[],"deriver":"x""#)), "`deriver`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":1,"references":[],"ca":"x""#)), "`ca`"),
            (entry(&format!(r#""narHash":"{HASH}","narSize":1,"storeDir":"/x""#)), "another store"),
            (format!(r#"{{"{b}":{{"path":"/nix/store/{A}","narHash":"{HASH}","narSize":1}}}}"#), "`path`"),
        ] {
            let error = parse(json.as_bytes()).unwrap_err();

            assert!(error.to_string().contains(expected), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(text.as_bytes());
        }
    }
}
