//! Where a path comes from: every leaf about it, with the names that go with its ids.
//!
//! Never shows where a call came from but to an admin, and not after it was erased.

use std::collections::HashMap;

use serde_json::Value;

use super::{Error, Result};
use crate::access::{ContributorId, ContributorName};
use crate::db::log::{self, PathLeafRow};
use crate::db::{Connection, DbError, contributors};
use crate::tlog::leaf::{Event, Leaf};

/// One act that the log has about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathAct {
    /// The leaf's place in the signature log.
    pub index: u64,
    /// Such as `sign`, `conflict` or `delete`.
    pub event: String,
    /// RFC 3339.
    pub at: String,
    /// The key that signed, where one did.
    pub key: Option<String>,
    pub contributor: Option<ContributorName>,
    pub contributor_id: Option<String>,
    pub token_id: Option<String>,
    /// Private particulars: for admins, and until they are erased.
    pub address: Option<String>,
    pub client: Option<String>,
    pub reason: Option<String>,
}

/// Every act about a path, oldest first, at most [`ACTS_MAX`]; private particulars only if `private`.
pub(super) async fn acts(connection: &mut Connection, path_id: &str, private: bool) -> Result<Vec<PathAct>> {
    let mut names: HashMap<String, Option<ContributorName>> = HashMap::new();
    let mut acts = Vec::new();
    for row in log::of_path(connection, path_id, ACTS_MAX).await? {
        let mut act = act(row, private)?;
        if let Some(id) = &act.contributor_id {
            if !names.contains_key(id) {
                let parsed = id.parse::<ContributorId>().ok();
                let row = match parsed {
                    Some(id) => contributors::by_id(connection, id).await?,
                    None => None,
                };
                names.insert(id.clone(), row.map(|row| row.name));
            }
            act.contributor = names.get(id).cloned().flatten();
        }
        acts.push(act);
    }
    Ok(acts)
}

fn act(row: PathLeafRow, private: bool) -> Result<PathAct> {
    let corrupt = || DbError::Corrupt { table: "log_leaves", column: "leaf", row: row.index.to_string() };
    let leaf = Leaf::parse(row.leaf.as_bytes()).map_err(|_| Error::from(corrupt()))?;
    let key = match &leaf.event {
        Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed) => {
            Some(signed.key.to_string())
        }
        _ => None,
    };
    let detail = row.detail.filter(|_| private);
    let detail: Value = detail.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let text = |member: &str| detail.get(member).and_then(Value::as_str).map(str::to_owned);
    Ok(PathAct {
        index: row.index.unsigned_abs(),
        event: leaf.event.name().to_owned(),
        at: leaf.time.to_string(),
        key,
        contributor: None,
        contributor_id: leaf.by.map(|by| by.to_string()),
        token_id: leaf.token.map(|token| token.to_string()),
        address: text("address"),
        client: text("client"),
        reason: text("reason"),
    })
}

/// Leaves about one path that are shown.
const ACTS_MAX: i64 = 1000;
