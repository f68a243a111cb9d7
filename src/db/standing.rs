//! What every transaction of a push reads first, in one statement: who may still act, and what may have changed.
//!
//! A statement costs a turn of the database's thread or of the network, and a push of a closure has thousands of
//! these transactions.

use std::collections::HashMap;

use super::dialect::{Dialect, json_list};
use super::tokens::{LiveRow, LiveToken};
use super::{Connection, Result, cluster, corrupt};
use crate::access::TokenId;
use crate::time::Timestamp;
use crate::vault::VaultVersions;

/// What stands at this moment, and behind the gate until the commit.
#[derive(Debug)]
pub struct Standing {
    /// Those of the asked tokens whose rows are live.
    pub live: HashMap<TokenId, LiveToken>,
    /// `None` before the first start.
    pub seal_epoch: Option<i64>,
    /// Which ROOT and key-encryption key are used; `None` before the first start.
    pub versions: Option<VaultVersions>,
    /// The change epoch: caches and their keys are as they were when they were read under the same one.
    pub change_epoch: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    epoch: i64,
    seal_epoch: Option<i64>,
    root_version: Option<i64>,
    kek_version: Option<i64>,
    token: Option<String>,
    contributor_id: Option<String>,
    contributor_name: Option<String>,
    scopes: Option<String>,
    expires_at: Option<i64>,
    key_id: Option<String>,
}

/// Reads it for these tokens.
pub async fn read(
    connection: &mut Connection,
    tokens: impl IntoIterator<Item = TokenId>,
    now: Timestamp,
) -> Result<Standing> {
    macro_rules! select {
        ($list:literal) => {
            concat!(
                "SELECT e.epoch, s.seal_epoch, s.root_version, s.kek_version, l.token, l.contributor_id, \
                 l.contributor_name, l.scopes, l.expires_at, l.key_id FROM change_epoch e LEFT JOIN cluster s ON s.id = 1 LEFT JOIN (SELECT t.id AS token, \
                 t.contributor_id, c.name AS contributor_name, t.scopes, t.expires_at, t.key_id \
                 FROM tokens t JOIN contributors c ON c.id = t.contributor_id \
                 JOIN signing_keys k ON k.id = t.key_id WHERE t.id IN (",
                $list,
                ") AND t.revoked_at IS NULL AND t.expires_at > $2 AND c.suspended_at IS NULL \
                 AND k.state NOT IN ('compromised', 'destroyed')) l ON TRUE WHERE e.id = 1"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        select!("SELECT json_array_elements_text($1::json)"),
        select!("SELECT value FROM json_each($1)"),
    );
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(json_list(tokens.into_iter().map(|token| token.to_string())))
        .bind(now.0)
        .fetch_all(connection)
        .await?;
    let first = rows.first().ok_or_else(|| corrupt("change_epoch", "id", "1"))?;
    let versions = first.root_version.zip(first.kek_version);
    let mut standing = Standing {
        live: HashMap::new(),
        seal_epoch: first.seal_epoch,
        versions: versions.map(|(root, kek)| cluster::versions(root, kek)).transpose()?,
        change_epoch: first.epoch,
    };
    for row in rows {
        let columns =
            (row.token, row.contributor_id, row.contributor_name, row.scopes, row.expires_at, row.key_id);
        let (
            Some(token),
            Some(contributor_id),
            Some(contributor_name),
            Some(scopes),
            Some(expires_at),
            Some(key_id),
        ) = columns
        else {
            continue;
        };
        let id: TokenId = token.parse().map_err(|_| corrupt("tokens", "id", &token))?;
        let row = LiveRow { contributor_id, contributor_name, scopes, expires_at, key_id };
        standing.live.insert(id, row.read(id)?);
    }
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::super::signing_keys::KeyState;
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::{Gate, cluster, epoch, tokens};
    use super::*;
    use crate::vault::Purpose;

    on_each_database! {
        async fn a_live_token_is_told_and_a_revoked_one_is_not(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let key = testing::key(&mut tx, Purpose::Token, None, "token-1", KeyState::Active).await;
            let anna = testing::contributor(&mut tx, "anna").await.id;
            let live = testing::token(&mut tx, anna, &key, None).await;
            let dead = testing::token(&mut tx, anna, &key, None).await;
            tokens::revoke(&mut tx, dead, "left", NOON).await.unwrap();

            let found = read(&mut tx, [live, dead], NOON).await.unwrap();

            assert_eq!(found.live.keys().collect::<Vec<_>>(), [&live]);
            assert_eq!(found.live.get(&live), tokens::live(&mut tx, live, NOON).await.unwrap().as_ref());
            let late = read(&mut tx, [live], NOON.plus_seconds(3600)).await.unwrap();
            assert!(late.live.is_empty(), "an expired token is live");
        }

        async fn the_epochs_are_told_without_any_token(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let before = read(&mut tx, [], NOON).await.unwrap();
            assert_eq!(before.seal_epoch, None);
            cluster::create(&mut tx, "c", NOON).await.unwrap();
            epoch::advance(&mut tx).await.unwrap();
            let sealed = cluster::seal(&mut tx, NOON).await.unwrap();

            let after = read(&mut tx, [], NOON).await.unwrap();

            assert_eq!((after.seal_epoch, after.change_epoch), (Some(sealed), before.change_epoch + 1));
            assert_eq!(before.versions, None);
            assert_eq!(after.versions, Some(VaultVersions { root: 1, kek: 1 }));
        }
    }
}
