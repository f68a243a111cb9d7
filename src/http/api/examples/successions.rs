//! Examples of statements about keys. Their signatures are none.

use serde_json::Value;

use super::{CACHE_ID, PUBLIC_KEY, value};
use crate::api::*;

const NEXT_KEY: &str = "main-k3x7qa-2:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
const ROOT_KEY: &str = "alice:Xl0l7tQJTqm1YHpQw4a2nCj7mJ7rXzq1rDq6b6v1gRg=";
const SIGNATURE: &str =
    "AAAAAGp3cXZ6eG1hZ2ljIHdvcmRzIHRoYXQgYXJlIG5vIHNpZ25hdHVyZSBhdCBhbGwgYnV0IGxvbmcgZW5vdWdoIQ==";

/// By the names of their types.
pub(super) fn examples() -> Vec<(&'static str, Value)> {
    let set = RootSetView {
        version: 1,
        threshold: 1,
        keys: vec![ROOT_KEY.into()],
        note: format!("{}\n\u{2014} alice {SIGNATURE}\n", set_text()),
    };
    let statement = SuccessionStatementView {
        seq: 1,
        old: PUBLIC_KEY.into(),
        new: NEXT_KEY.into(),
        reason: "planned".into(),
        not_before: "2026-11-22T13:00:00.000Z".into(),
        retire_old: None,
        expires: "2028-11-21T13:00:00.000Z".into(),
        note: format!("{}\n\u{2014} main-k3x7qa-1 {SIGNATURE}\n", statement_text()),
    };
    let note = set.note.clone();
    vec![
        ("Draft", value(&Draft { draft: format!("{}\n", set_text()) })),
        ("NoteSubmit", value(&NoteSubmit { note })),
        (
            "RootKeysView",
            value(&RootKeysView { scope: format!("cache main {CACHE_ID}"), sets: vec![set.clone()] }),
        ),
        ("RootSetDraft", value(&RootSetDraft { threshold: 1, keys: vec![ROOT_KEY.into()] })),
        (
            "SuccessionDraft",
            value(&SuccessionDraft { old: Some("main-k3x7qa-1".into()), ..SuccessionDraft::default() }),
        ),
        (
            "SuccessionView",
            value(&SuccessionView {
                cache: "main".into(),
                cache_id: CACHE_ID.into(),
                root_sets: vec![set],
                statements: vec![statement],
            }),
        ),
    ]
}

fn set_text() -> String {
    format!("narvault/key-roots/v1\nfor cache main {CACHE_ID}\nversion 1\nthreshold 1\nroot {ROOT_KEY}\n")
}

fn statement_text() -> String {
    format!(
        "narvault/key-succession/v1\ncache main {CACHE_ID}\nseq 1\nold {PUBLIC_KEY}\nnew {NEXT_KEY}\n\
         reason planned\nroots -\nnot-before 2026-11-22T13:00:00.000Z\nretire-old -\n\
         expires 2028-11-21T13:00:00.000Z\nlog -\n"
    )
}
