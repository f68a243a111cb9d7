//! A leaf with what it leaves out: the lines behind its commitment and the references behind their digest. Together
//! they are the claim that Nix signs; as extra data of a proof file, they make it enough by itself.
//!
//! Never believes what comes beside the leaf: it has to be what the leaf's hashes stand for.

use data_encoding::BASE64;

use super::leaf::{ClaimLines, Covered as _, Disclosed, Event, Leaf, LeafError, References, Salt, Signed};

/// Before the list of references that the leaf has only the digest of.
const REFERENCES: &str = "references ";

/// Before the salt of the commitment; the lines behind it follow.
const SALT: &str = "salt ";

/// Last line of every leaf.
const LAST_LINE: &str = "\ndetail ";

/// Why a text does not show a leaf, or shows another one than it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShownLeafError {
    #[error("text is not a leaf of narvault's log with what it leaves out")]
    Shape,
    #[error("leaf is malformed")]
    Leaf(#[from] LeafError),
    #[error("leaf is not about a signature over a store path")]
    NotSigned,
    #[error("what the leaf hides is not shown with it")]
    Hidden,
    #[error("what is shown is not what the leaf commits to")]
    Opening,
}

/// A leaf's text and its openings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLeaf {
    /// The text that is hashed.
    pub leaf: String,
    /// The list whose digest stands in the leaf, or in its private lines: base names, one space in between.
    pub references: Option<String>,
    /// Salt and lines of the commitment of a private cache's leaf.
    pub private: Option<(Salt, String)>,
}

impl ShownLeaf {
    /// The text: the leaf, then what it leaves out.
    pub fn encode(&self) -> String {
        let mut text = self.leaf.clone();
        if let Some(references) = &self.references {
            text += &format!("{REFERENCES}{references}\n");
        }
        if let Some((salt, lines)) = &self.private {
            text += &format!("{SALT}{}\n{lines}", BASE64.encode(salt));
        }
        text
    }

    /// Reads what [`ShownLeaf::encode`] wrote.
    pub fn parse(bytes: &[u8]) -> Result<Self, ShownLeafError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ShownLeafError::Shape)?;
        let last = text.find(LAST_LINE).ok_or(ShownLeafError::Shape)? + 1;
        let end = text[last..].find('\n').ok_or(ShownLeafError::Shape)? + last + 1;
        let (leaf, mut rest) = text.split_at(end);
        let mut references = None;
        if let Some(after) = rest.strip_prefix(REFERENCES) {
            let (list, after) = after.split_once('\n').ok_or(ShownLeafError::Shape)?;
            (references, rest) = (Some(list.to_owned()), after);
        }
        let private = match rest.strip_prefix(SALT) {
            Some(after) => {
                let (salt, lines) = after.split_once('\n').ok_or(ShownLeafError::Shape)?;
                let salt = super::base64::decode(salt).ok_or(ShownLeafError::Shape)?;
                Some((salt.try_into().map_err(|_| ShownLeafError::Shape)?, lines.to_owned()))
            }
            None if rest.is_empty() => None,
            None => return Err(ShownLeafError::Shape),
        };
        Ok(Self { leaf: leaf.to_owned(), references, private })
    }

    /// The signature that the leaf is about, and its claim whole: opened, and with the list of references.
    pub fn signed(&self) -> Result<(Signed, ClaimLines), ShownLeafError> {
        let signed = match Leaf::parse(self.leaf.as_bytes())?.event {
            Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed) => signed,
            _ => return Err(ShownLeafError::NotSigned),
        };
        let mut claim = match (&signed.claim, &self.private) {
            (Disclosed::Open(claim), None) => claim.clone(),
            (Disclosed::Open(_), Some(_)) => return Err(ShownLeafError::Opening),
            (Disclosed::Private(_), None) => return Err(ShownLeafError::Hidden),
            (Disclosed::Private(commitment), Some((salt, lines))) => {
                if !commitment.opens(salt, lines.as_bytes()) {
                    return Err(ShownLeafError::Opening);
                }
                ClaimLines::parse(lines)?
            }
        };
        match (&claim.references, &self.references) {
            (References::List(_), None) => {}
            (References::List(_), Some(_)) => return Err(ShownLeafError::Opening),
            (References::Digest(_), None) => return Err(ShownLeafError::Hidden),
            (References::Digest(_), Some(list)) => {
                claim.references = claim.references.resolved(list).ok_or(ShownLeafError::Opening)?;
            }
        }
        Ok((signed, claim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: &str = "cache main
path /nix/store/7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0
nar-hash sha256:13mqindg90rwkpgrs66ybvv6ppd32rdzidwnzk0zg6hxwj10dic2
nar-size 2080
";
    const REFS: &str = "4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt 7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0";
    const SALT_BYTES: Salt = [7; 16];

    fn leaf(claim: &str) -> String {
        format!(
            "narvault/log/v1\nevent sign\ntime 2026-11-22T13:10:00.123Z\n{claim}key cache.example-1\n\
             sig L1my2At/ytj/ZyKn1Sq3DsL/eHav0KW7URkN7hAwWWylEmm7cIZKDgaaB9qWy9EoSvMMRb6P7HDk7nhHS8orAA==\n\
             by 01997c5c-0000-7000-8000-000000000001\ntoken -\npolicy direct\nreplaces -\ndetail -\n"
        )
    }

    fn open_claim() -> String {
        format!("{CLAIM}references {REFS}\n")
    }

    fn private(lines: &str) -> ShownLeaf {
        let commitment = super::super::leaf::Commitment::of(&SALT_BYTES, lines.as_bytes());
        let private = Some((SALT_BYTES, lines.to_owned()));
        ShownLeaf { leaf: leaf(&format!("private {commitment}\n")), references: None, private }
    }

    fn digested() -> (String, String) {
        let (digest, list) = References::list(REFS).unwrap().shortened().unwrap();
        let References::Digest(digest) = digest else { unreachable!("shortened") };
        (format!("{CLAIM}references-sha256 {}\n", data_encoding::HEXLOWER.encode(&digest)), list)
    }

    fn check(shown: &ShownLeaf) {
        assert_eq!(ShownLeaf::parse(shown.encode().as_bytes()).as_ref(), Ok(shown));

        let (signed, claim) = shown.signed().unwrap();

        assert_eq!(signed.key.as_str(), "cache.example-1");
        assert_eq!(claim.nar_size, Some(2080));
        assert_eq!(claim.references, References::list(REFS).unwrap());
    }

    #[test]
    fn the_whole_claim_comes_out_of_each_kind_of_leaf() {
        check(&ShownLeaf { leaf: leaf(&open_claim()), references: None, private: None });
        check(&private(&open_claim()));
        let (claim, list) = digested();
        check(&ShownLeaf { leaf: leaf(&claim), references: Some(list.clone()), private: None });
        check(&ShownLeaf { references: Some(list), ..private(&claim) });
    }

    #[test]
    fn what_the_leaf_does_not_commit_to_is_refused() {
        let open = ShownLeaf { leaf: leaf(&open_claim()), references: None, private: None };
        let hidden = private(&open_claim());
        let (claim, list) = digested();
        let short = ShownLeaf { leaf: leaf(&claim), references: Some(list), private: None };
        let larger = hidden.private.clone().map(|(salt, lines)| (salt, lines.replace("2080", "2081")));
        let other_salt = hidden.private.clone().map(|(_, lines)| ([8; 16], lines));

        for (shown, error) in [
            (ShownLeaf { private: hidden.private.clone(), ..open.clone() }, ShownLeafError::Opening),
            (ShownLeaf { references: Some(REFS.to_owned()), ..open.clone() }, ShownLeafError::Opening),
            (ShownLeaf { private: None, ..hidden.clone() }, ShownLeafError::Hidden),
            (ShownLeaf { private: larger, ..hidden.clone() }, ShownLeafError::Opening),
            (ShownLeaf { private: other_salt, ..hidden }, ShownLeafError::Opening),
            (ShownLeaf { references: None, ..short.clone() }, ShownLeafError::Hidden),
            (ShownLeaf { references: Some(REFS[..39].to_owned()), ..short }, ShownLeafError::Opening),
        ] {
            assert_eq!(shown.signed(), Err(error), "{shown:?}");
        }
        let other = open.leaf.replace("event sign", "event vault-slot");
        assert!(ShownLeaf { leaf: other, ..open }.signed().is_err());
    }

    #[test]
    fn other_texts_show_no_leaf() {
        let open = leaf(&open_claim());
        for text in [
            "",
            "narvault/log/v1\n",
            open.trim_end(),
            &format!("{open}more"),
            &format!("{open}references a"),
            &format!("{open}salt AAAA\n"),
            &format!("{open}salt BwcHBwcHBwcHBwcHBwcHBw"),
            &format!("{open}references a\nreferences b\n"),
        ] {
            assert_eq!(ShownLeaf::parse(text.as_bytes()), Err(ShownLeafError::Shape), "{text:?}");
        }
        assert_eq!(ShownLeaf::parse(b"\xff"), Err(ShownLeafError::Shape));
    }
}
