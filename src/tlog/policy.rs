//! Trust policies: which logs are believed, and how many witnesses must have seen a checkpoint. The file format is
//! that of Sigsum and torchwood, with verifier keys: `log KEY`, `witness NAME KEY`, `group NAME any|all|N MEMBER…`,
//! `quorum NAME|none`; `#` begins a comment.
//!
//! Never asks how old a cosignature is: that is for whoever knows the time.

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, OpenError};
use super::cosignature;
use super::note::{Note, VerifyError};
use super::verifier_key::{Algorithm, ParseVerifierKeyError, VerifierKey};

/// Largest policy, in bytes: some thousand witnesses.
pub const POLICY_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Most witnesses of one quorum, each counted in every group that it is in: groups of groups could double with
/// each line.
pub const WITNESSES_MAX: usize = 10_000;

/// Why a text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("policy is larger than {POLICY_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error(
        "policy's line {line} is not `log KEY`, `witness NAME KEY`, `group NAME N MEMBER…` or `quorum NAME`"
    )]
    Line { line: usize },
    #[error("policy's line {line} has a bad key")]
    Key {
        line: usize,
        #[source]
        source: ParseVerifierKeyError,
    },
    #[error("policy's line {line} has a key of another kind than it needs")]
    Kind { line: usize },
    #[error("policy's line {line} names `{name}` a second time")]
    Twice { line: usize, name: String },
    #[error("policy's line {line} names `{name}`, which no line before it defines")]
    Undefined { line: usize, name: String },
    #[error("policy's line {line} wants more members than it lists, or none")]
    Threshold { line: usize },
    #[error("policy's line {line} makes a group of more than {WITNESSES_MAX} witnesses")]
    TooMany { line: usize },
    #[error("policy has no `log` line")]
    NoLog,
    #[error("policy has no `quorum` line, or more than one; `quorum none` asks for no witness")]
    Quorum,
}

/// Why a checkpoint is not believed under a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DistrustError {
    #[error("no log of the policy signed the checkpoint")]
    Log(#[from] OpenError),
    #[error("a witness's cosignature does not verify")]
    Witness(#[from] VerifyError),
    #[error("too few witnesses of the policy cosigned the checkpoint")]
    Quorum,
}

/// What must be true of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// At least one; any of them will do.
    logs: Vec<VerifierKey>,
    /// `None`: no witness is asked for.
    quorum: Option<Quorum>,
}

/// Who must have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Quorum {
    Witness(VerifierKey),
    Group { threshold: usize, members: Vec<Quorum> },
}

impl Policy {
    /// One log, no witnesses.
    pub fn of_log(log: VerifierKey) -> Self {
        Self { logs: vec![log], quorum: None }
    }

    /// Reads a policy.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > POLICY_SIZE_BYTES_MAX {
            return Err(PolicyError::TooLarge);
        }
        let mut logs = Vec::new();
        let mut named: BTreeMap<&str, Quorum> = BTreeMap::new();
        let mut quorum = None;
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split_once('#').map_or(text, |(before, _)| before);
            let words: Vec<&str> = text.split_whitespace().collect();
            let entry = match words[..] {
                [] => continue,
                ["log", key] => {
                    logs.push(parse_key(line, key, Algorithm::Ed25519)?);
                    continue;
                }
                ["witness", name, key] => {
                    (name, Quorum::Witness(parse_key(line, key, Algorithm::Cosignature)?))
                }
                ["group", name, threshold, ref members @ ..] => {
                    (name, parse_group(line, threshold, members, &named)?)
                }
                ["quorum", name] if quorum.is_none() => {
                    let found = named.get(name).cloned();
                    let undefined = || PolicyError::Undefined { line, name: name.to_owned() };
                    quorum = Some(if name == "none" { None } else { Some(found.ok_or_else(undefined)?) });
                    continue;
                }
                ["quorum", _] => return Err(PolicyError::Quorum),
                _ => return Err(PolicyError::Line { line }),
            };
            let (name, member) = entry;
            if name == "none" || named.insert(name, member).is_some() {
                return Err(PolicyError::Twice { line, name: name.to_owned() });
            }
        }
        if logs.is_empty() {
            return Err(PolicyError::NoLog);
        }
        Ok(Self { logs, quorum: quorum.ok_or(PolicyError::Quorum)? })
    }

    /// The checkpoint in `note`, if a log of this policy signed it and enough witnesses saw it.
    pub fn open(&self, note: &Note) -> Result<Checkpoint, DistrustError> {
        let opened = self.logs.iter().map(|log| Checkpoint::of(note, log));
        // The last refusal stands for all, unless one log did sign.
        let believed = opened.reduce(|before, next| if before.is_ok() { before } else { next });
        let checkpoint = believed.expect("a policy has a log")?;
        if self.quorum.as_ref().map_or(Ok(true), |quorum| quorum.is_met(note))? {
            Ok(checkpoint)
        } else {
            Err(DistrustError::Quorum)
        }
    }
}

impl Quorum {
    fn witnesses(&self) -> usize {
        match self {
            Self::Witness(_) => 1,
            Self::Group { members, .. } => members.iter().map(Self::witnesses).sum(),
        }
    }

    /// Whether enough of these cosigned. A forged cosignature of one of them is an error, not an absence.
    fn is_met(&self, note: &Note) -> Result<bool, VerifyError> {
        match self {
            Self::Witness(key) => match cosignature::verify(note, key) {
                Ok(_) => Ok(true),
                Err(VerifyError::Unsigned { .. }) => Ok(false),
                Err(error) => Err(error),
            },
            Self::Group { threshold, members } => {
                let mut met = 0;
                for member in members {
                    met += usize::from(member.is_met(note)?);
                }
                Ok(met >= *threshold)
            }
        }
    }
}

fn parse_key(line: usize, text: &str, algorithm: Algorithm) -> Result<VerifierKey, PolicyError> {
    let key: VerifierKey = text.parse().map_err(|source| PolicyError::Key { line, source })?;
    if key.algorithm() == algorithm { Ok(key) } else { Err(PolicyError::Kind { line }) }
}

fn parse_group(
    line: usize,
    threshold: &str,
    names: &[&str],
    named: &BTreeMap<&str, Quorum>,
) -> Result<Quorum, PolicyError> {
    let threshold = match threshold {
        "any" => 1,
        "all" => names.len(),
        number => number.parse().map_err(|_| PolicyError::Line { line })?,
    };
    if threshold == 0 || threshold > names.len() {
        return Err(PolicyError::Threshold { line });
    }
    let (mut members, mut witnesses) = (Vec::new(), 0);
    for (at, name) in names.iter().enumerate() {
        // Twice in one group would count twice.
        if names[..at].contains(name) {
            return Err(PolicyError::Twice { line, name: (*name).to_owned() });
        }
        let undefined = || PolicyError::Undefined { line, name: (*name).to_owned() };
        let member = named.get(name).ok_or_else(undefined)?;
        witnesses += member.witnesses();
        if witnesses > WITNESSES_MAX {
            return Err(PolicyError::TooMany { line });
        }
        members.push(member.clone());
    }
    Ok(Quorum::Group { threshold, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKPOINT: &str = include_str!("../../tests/golden/tlog-v1/checkpoint");
    const VKEYS: &str = include_str!("../../tests/golden/tlog-v1/vkeys");
    const STRANGER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    /// A policy in which L, A, B stand for the golden log and its witnesses, and X for a witness who never signed.
    fn policy(text: &str) -> Result<Policy, PolicyError> {
        let keys: Vec<&str> = VKEYS.lines().collect();
        let a: VerifierKey = keys[1].parse().unwrap();
        let log: VerifierKey = keys[0].parse().unwrap();
        let x = VerifierKey::new(a.name().clone(), Algorithm::Cosignature, log.bytes()).unwrap();
        let keys = [
            ("$L", keys[0].to_owned()),
            ("$A", keys[1].to_owned()),
            ("$B", keys[2].to_owned()),
            ("$X", x.to_string()),
            ("$S", STRANGER.to_owned()),
        ];
        let text = keys.iter().fold(text.to_owned(), |text, (name, key)| text.replace(name, key));
        Policy::parse(&text)
    }

    fn check(text: &str, expected: Result<u64, DistrustError>) {
        let note = Note::parse(CHECKPOINT.as_bytes()).unwrap();
        let opened = policy(text).unwrap().open(&note).map(|checkpoint| checkpoint.size);
        assert_eq!(opened, expected, "{text}");
    }

    #[test]
    fn a_checkpoint_is_believed_once_the_quorum_is_met() {
        check("log $L\nquorum none\n", Ok(600));
        check("# ours\n\nlog $L # the log\n  witness a $A\nquorum\ta", Ok(600));
        check("log $L\nlog $S\nquorum none", Ok(600));
        check("log $S\nlog $L\nquorum none", Ok(600));
        check("log $L\nwitness a $A\nwitness b $B\ngroup g all a b\nquorum g", Ok(600));
        check("log $L\nwitness a $A\nwitness x $X\ngroup g any a x\nquorum g", Ok(600));
        check("log $L\nwitness a $A\nwitness b $B\nwitness x $X\ngroup g 2 a b x\nquorum g", Ok(600));
        check("log $L\nwitness a $A\nwitness x $X\ngroup g any x\ngroup h any g a\nquorum h", Ok(600));
    }

    #[test]
    fn too_few_witnesses_are_not_enough() {
        check("log $L\nwitness x $X\nquorum x", Err(DistrustError::Quorum));
        check("log $L\nwitness a $A\nwitness x $X\ngroup g all a x\nquorum g", Err(DistrustError::Quorum));
        check("log $L\nwitness a $A\nwitness x $X\ngroup g 2 a x\nquorum g", Err(DistrustError::Quorum));
    }

    #[test]
    fn a_log_that_did_not_sign_is_not_believed_and_a_forged_witness_spoils_it() {
        let stranger = policy("log $S\nquorum none").unwrap();
        let note = Note::parse(CHECKPOINT.as_bytes()).unwrap();
        assert!(matches!(stranger.open(&note), Err(DistrustError::Log(OpenError::Signature(_)))));

        // Another time, so another signature.
        let forged = Note::parse(CHECKPOINT.replace(" A0cmXQAAAABrC", " A0cmXQAAAABrD").as_bytes()).unwrap();
        let either = policy("log $L\nwitness a $A\nwitness b $B\ngroup g any a b\nquorum g").unwrap();
        assert!(matches!(either.open(&forged), Err(DistrustError::Witness(_))));
    }

    #[test]
    fn what_is_not_a_policy_is_refused_with_its_line() {
        let undefined = |line, name: &str| PolicyError::Undefined { line, name: name.to_owned() };
        let twice = |line, name: &str| PolicyError::Twice { line, name: name.to_owned() };
        for (text, error) in [
            ("", PolicyError::NoLog),
            ("quorum none", PolicyError::NoLog),
            ("log $L", PolicyError::Quorum),
            ("log $L\nquorum none\nquorum none", PolicyError::Quorum),
            ("log $L\nquorum a", undefined(2, "a")),
            ("log $L\nquorum a\nwitness a $A", undefined(2, "a")),
            ("log $L $L\nquorum none", PolicyError::Line { line: 1 }),
            ("log $L\nlogs $L\nquorum none", PolicyError::Line { line: 2 }),
            ("log $A\nquorum none", PolicyError::Kind { line: 1 }),
            ("log $L\nwitness a $L\nquorum a", PolicyError::Kind { line: 2 }),
            ("log $L\nwitness a $A\nwitness a $B\nquorum a", twice(3, "a")),
            ("log $L\nwitness none $A\nquorum none", twice(2, "none")),
            ("log $L\nwitness a $A\ngroup g 2 a a\nquorum g", twice(3, "a")),
            ("log $L\nwitness a $A\ngroup g 2 a\nquorum g", PolicyError::Threshold { line: 3 }),
            ("log $L\nwitness a $A\ngroup g 0 a\nquorum g", PolicyError::Threshold { line: 3 }),
            ("log $L\ngroup g all\nquorum g", PolicyError::Threshold { line: 2 }),
            ("log $L\ngroup g any b\nquorum g", undefined(2, "b")),
            ("log $L\nwitness a $A\ngroup g some a\nquorum g", PolicyError::Line { line: 3 }),
        ] {
            assert_eq!(policy(text), Err(error), "{text}");
        }
        let doubling: String =
            (2..40).map(|at| format!("group g{at} any g{} g{}\n", at - 1, at - 2)).collect();
        let doubling = format!("log $L\nwitness g0 $A\nwitness g1 $B\n{doubling}quorum g39");
        assert!(matches!(policy(&doubling), Err(PolicyError::TooMany { .. })));
        assert!(matches!(policy("log x\nquorum none"), Err(PolicyError::Key { line: 1, .. })));
        assert_eq!(Policy::parse(&"#".repeat(POLICY_SIZE_BYTES_MAX + 1)), Err(PolicyError::TooLarge));
    }
}
