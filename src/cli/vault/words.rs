//! What could open the vault, and what the loss of each secret would mean, in words.
//!
//! Never says less than the worst: whoever reads it decides by it whether another secret is needed.

use super::shares::spare;
use crate::api::SlotView;

/// What opens the vault, all in all.
pub fn opens_by(slots: &[SlotView]) -> String {
    let all_kms = slots.iter().all(|slot| slot.kind == KMS);
    match slots {
        [] => "nothing that this server knows of".to_owned(),
        [only] if all_kms => format!(
            "WARNING: KMS alone opens the vault. If {} is deleted, every signing key is lost with it, here and in every \
             backup, and nobody can bring it back: add a passphrase and keep it on paper, \
             `narvault vault slot add`",
            only.kms_key.as_deref().unwrap_or("its key")
        ),
        [SlotView { shares: Some(count), .. }] => format!(
            "WARNING: shares alone open the vault, any {}; if more than {} are lost, so is every signing key: \
             add another secret with `narvault vault slot add`",
            count.threshold,
            spare(*count)
        ),
        [only] => format!(
            "WARNING: one secret opens the vault, a {}; if it is lost, so is every signing key: \
             add another with `narvault vault slot add`",
            only.kind
        ),
        slots if all_kms => format!(
            "WARNING: only KMS opens the vault, by any one of {} keys; if they are deleted, or the account is closed, \
             every signing key is lost, here and in every backup: add a passphrase and keep it on paper, \
             `narvault vault slot add`",
            slots.len()
        ),
        slots => {
            format!("any one of {} secrets opens the vault; one that is lost can be replaced", slots.len())
        }
    }
}

/// One sentence for each kind of slot that there is.
pub fn if_lost(slots: &[SlotView]) -> Vec<String> {
    let mut kinds: Vec<&str> = slots.iter().map(|slot| slot.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let or_else = if slots.len() > 1 { "another secret has to open it" } else { "nothing opens it" };
    kinds.into_iter().map(|kind| sentence(kind, or_else)).collect()
}

fn sentence(kind: &str, or_else: &str) -> String {
    match kind {
        "key-file" => format!(
            "key-file: a server that starts without the file is sealed, and {or_else}; one that runs goes on until it \
             stops. Whoever has the file and a copy of the database has every key"
        ),
        KMS => format!(
            "kms: while KMS is away, or its key is disabled, a server that starts is sealed and asks again until it \
             opens; one that runs goes on. A key that is deleted never decrypts again, and {or_else}. A server tries \
             only the key that its `vault.kms.key_id` names"
        ),
        "passphrase" => format!(
            "passphrase: forgotten, it opens nothing any more, and {or_else}. Whoever guesses it and has a copy of the \
             database has every key"
        ),
        SHAMIR => format!(
            "shamir: a server that starts is sealed until enough shares are handed in. While enough are left, nothing is \
             lost: split anew and remove the old slot. With fewer the slot opens nothing, and {or_else}. Whoever gathers \
             enough, and has a copy of the database, has every key"
        ),
        other => format!("{other}: a server that starts without it is sealed, and {or_else}"),
    }
}

const KMS: &str = "kms";
const SHAMIR: &str = "shamir";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ShareCount;

    const ARN: &str = "arn:aws:kms:us-east-1:123456789012:key/1";

    fn slots(kinds: &[&str]) -> Vec<SlotView> {
        let slot = |kind: &&str| SlotView {
            id: String::new(),
            kind: (*kind).to_owned(),
            kms_key: (*kind == KMS).then(|| ARN.to_owned()),
            created_at: String::new(),
            shares: (*kind == SHAMIR).then_some(ShareCount { threshold: 3, of: 5 }),
        };
        kinds.iter().map(slot).collect()
    }

    #[test]
    fn what_stands_alone_is_a_warning_and_kms_alone_says_what_a_deletion_means() {
        for (kinds, warns, words) in [
            (&["key-file"][..], true, "if it is lost, so is every signing key"),
            (&["passphrase"], true, "a passphrase; if it is lost"),
            (&["shamir"], true, "any 3; if more than 2 are lost"),
            (
                &["kms"],
                true,
                "If arn:aws:kms:us-east-1:123456789012:key/1 is deleted, every signing key is lost",
            ),
            (&["kms", "kms"], true, "by any one of 2 keys; if they are deleted"),
            (&["kms", "passphrase"], false, "any one of 2 secrets opens the vault"),
            (&["key-file", "key-file", "kms"], false, "any one of 3 secrets"),
        ] {
            let said = opens_by(&slots(kinds));
            assert_eq!(said.starts_with("WARNING"), warns, "{said}");
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
    }

    #[test]
    fn each_kind_has_its_sentence_once() {
        let said = if_lost(&slots(&["passphrase", "kms", "shamir", "key-file", "kms"]));

        let kinds: Vec<&str> = said.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(kinds, ["key-file", "kms", "passphrase", "shamir"]);
        assert!(said.iter().all(|line| line.contains("another secret has to open it")), "{said:?}");
        assert!(if_lost(&slots(&["kms"]))[0].contains("never decrypts again, and nothing opens it"));
        assert_eq!(if_lost(&[]), Vec::<String>::new());
    }
}
