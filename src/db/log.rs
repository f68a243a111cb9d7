//! The leaves of the signature log: a gapless index, appended in the business transaction.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::dialect::Dialect;
use super::paths::{MadeSignature, put_signatures_sql};
use super::{Connection, Result, corrupt, one_row};
use crate::access::{ContributorId, ContributorName};
use crate::nix::hash::Sha256Digest;
use crate::time::Timestamp;

/// A leaf to append.
#[derive(Debug, Clone)]
pub struct LeafRow {
    /// Its event's name, such as `sign`.
    pub event: String,
    /// The whole text.
    pub leaf: String,
    /// The path that it is about.
    pub path_id: Option<String>,
    /// What its salted hashes stand for: (`detail` or `private`, salt, text).
    pub openings: Vec<(&'static str, [u8; 16], String)>,
    /// The references that did not fit into the leaf, which has their digest: kept for ever by the digest.
    pub long_references: Option<String>,
}

/// The log's one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// How many leaves there are; the index that the next one gets.
    pub size: i64,
    /// The right edge of the tree of the first `frontier_size` leaves.
    pub frontier: Vec<u8>,
    /// Below `size` where somebody appended who does not know the frontier.
    pub frontier_size: i64,
    /// Set while storage has a checkpoint of so many leaves that are not all here: nothing is appended then.
    pub published_beyond: Option<i64>,
    /// Set while the log contradicts what was published of it, in words: nothing is signed then.
    pub forked: Option<String>,
}

/// The newest checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRow {
    pub size: i64,
    /// The signed note.
    pub note: String,
    pub signed_at: Timestamp,
}

/// Locks the log and gives its row. The last lock of any transaction: a serial column would leave gaps when a
/// transaction is rolled back.
pub async fn lock(connection: &mut Connection) -> Result<LogState> {
    let statement = Dialect::of(connection).pick(
        "SELECT size, frontier, frontier_size, published_beyond, forked_what FROM log_state WHERE id = 1 FOR UPDATE",
        "SELECT size, frontier, frontier_size, published_beyond, forked_what FROM log_state WHERE id = 1",
    );
    Ok(state(sqlx::query_as(statement).fetch_one(connection).await?))
}

/// The log's row as it is now.
pub async fn read(connection: &mut Connection) -> Result<LogState> {
    let row = sqlx::query_as(
        "SELECT size, frontier, frontier_size, published_beyond, forked_what FROM log_state WHERE id = 1",
    )
    .fetch_one(connection)
    .await?;
    Ok(state(row))
}

fn state((size, frontier, frontier_size, published_beyond, forked): StateColumns) -> LogState {
    LogState { size, frontier: frontier.unwrap_or_default(), frontier_size, published_beyond, forked }
}

type StateColumns = (i64, Option<Vec<u8>>, i64, Option<i64>, Option<String>);

/// Notes in what the log contradicts what was published of it. What was noted first stands.
pub async fn raise_alarm(connection: &mut Connection, what: &str, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE log_state SET forked_what = $1, forked_at = $2 WHERE id = 1 AND forked_what IS NULL")
        .bind(what)
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that an operator has seen to the contradiction.
pub async fn clear_alarm(connection: &mut Connection) -> Result<()> {
    let cleared = sqlx::query("UPDATE log_state SET forked_what = NULL, forked_at = NULL WHERE id = 1");
    one_row("log_state", cleared.execute(connection).await?.rows_affected())
}

/// Notes that storage has a checkpoint of `published` leaves, which are not all here. What was noted first stands.
pub async fn note_rollback(connection: &mut Connection, published: i64) -> Result<()> {
    sqlx::query(
        "UPDATE log_state SET published_beyond = $1, rolled_back_to = size \
         WHERE id = 1 AND published_beyond IS NULL",
    )
    .bind(published)
    .execute(connection)
    .await?;
    Ok(())
}

/// The log's size when that was noted; `None`: it was not.
pub async fn rolled_back_to(connection: &mut Connection) -> Result<Option<i64>> {
    let (size,) =
        sqlx::query_as("SELECT rolled_back_to FROM log_state WHERE id = 1").fetch_one(connection).await?;
    Ok(size)
}

/// Notes that all leaves are back.
pub async fn end_rollback(connection: &mut Connection) -> Result<()> {
    let result =
        sqlx::query("UPDATE log_state SET published_beyond = NULL, rolled_back_to = NULL WHERE id = 1")
            .execute(connection)
            .await?;
    one_row("log_state", result.rows_affected())
}

/// Says which path leaves are about, where that was not known when they were written down.
pub async fn name_path(connection: &mut Connection, index: i64, path_id: &str) -> Result<()> {
    sqlx::query("UPDATE log_leaves SET path_id = $2 WHERE idx = $1")
        .bind(index)
        .bind(path_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Inserts leaves from `index` on, the size that [`lock`] gave, puts the signatures that they account for in the places
/// of earlier ones by the same keys, and writes down the log's new size and frontier. In one turn: all other publishers
/// wait for the log meanwhile.
pub async fn append(
    connection: &mut Connection,
    index: i64,
    rows: &[LeafRow],
    signatures: &[MadeSignature],
    state: &LogState,
) -> Result<()> {
    let numbered = || (index..).zip(rows);
    let leaves = numbered().map(
        |(index, row)| json!({ "idx": index, "event": row.event, "leaf": row.leaf, "path_id": row.path_id }),
    );
    let openings = numbered().flat_map(|(index, row)| {
        row.openings.iter().map(move |(part, salt, text)| {
            json!({ "idx": index, "part": part, "salt": HEXLOWER.encode(salt), "text": text })
        })
    });
    let references = rows.iter().filter_map(|row| row.long_references.as_ref());
    let references: BTreeMap<_, _> =
        references.map(|refs| (Sha256Digest::of(refs.as_bytes()).hex(), refs)).collect();
    let references = references.into_iter().map(|(digest, refs)| json!({ "digest": digest, "refs": refs }));
    macro_rules! insert {
        ($into:literal, $columns:literal, $rows:literal) => {
            concat!("INSERT INTO ", $into, " SELECT ", $columns, " FROM ", $rows, " AS r")
        };
    }
    macro_rules! leaves {
        ($rows:literal) => {
            insert!(
                "log_leaves (idx, event, leaf, path_id)",
                "CAST(r.value ->> 'idx' AS BIGINT), r.value ->> 'event', r.value ->> 'leaf', r.value ->> 'path_id'",
                $rows
            )
        };
    }
    macro_rules! references {
        ($rows:literal, $value:literal) => {
            concat!(
                insert!("log_references (digest, refs)", "r.value ->> 'digest', r.value ->> 'refs'", $rows),
                $value,
                " WHERE TRUE ON CONFLICT (digest) DO NOTHING"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        concat!(
            "WITH leaves AS (",
            leaves!("json_array_elements($1::json)"),
            " (value)), openings AS (",
            insert!(
                "log_openings (idx, part, salt, text)",
                "CAST(r.value ->> 'idx' AS BIGINT), r.value ->> 'part', decode(r.value ->> 'salt', 'hex'), \
                 r.value ->> 'text'",
                "json_array_elements($2::json)"
            ),
            " (value)), refs AS (",
            references!("json_array_elements($3::json)", " (value)"),
            "), signed AS (",
            put_signatures_sql!(postgres "$4"),
            ") UPDATE log_state SET size = $5, frontier = $6, frontier_size = $7 WHERE id = 1"
        ),
        concat!(
            leaves!("jsonb_each($1)"),
            "; ",
            insert!(
                "log_openings (idx, part, salt, text)",
                "CAST(r.value ->> 'idx' AS BIGINT), r.value ->> 'part', unhex(r.value ->> 'salt'), \
                 r.value ->> 'text'",
                "jsonb_each($2)"
            ),
            "; ",
            references!("jsonb_each($3)", ""),
            "; ",
            put_signatures_sql!(sqlite "$4"),
            "; UPDATE log_state SET size = $5, frontier = $6, frontier_size = $7 WHERE id = 1"
        ),
    );
    let list = |rows: Vec<Value>| Value::from(rows).to_string();
    sqlx::query(statement)
        .bind(list(leaves.collect()))
        .bind(list(openings.collect()))
        .bind(list(references.collect()))
        .bind(list(signatures.iter().map(MadeSignature::row).collect()))
        .bind(state.size)
        .bind(&state.frontier)
        .bind(state.frontier_size)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down the log's new size and frontier.
pub async fn advance(connection: &mut Connection, state: &LogState) -> Result<()> {
    let result =
        sqlx::query("UPDATE log_state SET size = $1, frontier = $2, frontier_size = $3 WHERE id = 1")
            .bind(state.size)
            .bind(&state.frontier)
            .bind(state.frontier_size)
            .execute(connection)
            .await?;
    one_row("log_state", result.rows_affected())
}

/// The newest checkpoint; `None` before the first.
pub async fn checkpoint(connection: &mut Connection) -> Result<Option<CheckpointRow>> {
    let row: Option<(i64, String, i64)> =
        sqlx::query_as("SELECT size, note, signed_at FROM log_checkpoint WHERE id = 1")
            .fetch_optional(connection)
            .await?;
    Ok(row.map(|(size, note, signed_at)| CheckpointRow { size, note, signed_at: Timestamp(signed_at) }))
}

/// Puts a checkpoint in place of the one of `old_size`, 0 for none. False: another stands there by now. Lists of
/// references that were all published up to the old one are so up to the new one.
pub async fn replace_checkpoint(
    connection: &mut Connection,
    old_size: i64,
    new: &CheckpointRow,
) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO log_checkpoint (id, size, note, signed_at, references_to) VALUES (1, $1, $2, $3, $1) \
         ON CONFLICT (id) DO UPDATE SET size = $1, note = $2, signed_at = $3, \
         references_to = CASE WHEN log_checkpoint.references_to = $4 THEN $1 ELSE log_checkpoint.references_to END \
         WHERE log_checkpoint.size = $4",
    )
    .bind(new.size)
    .bind(&new.note)
    .bind(new.signed_at.0)
    .bind(old_size)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The index of the last leaf that put a signature on this path.
pub async fn last_signature(connection: &mut Connection, path_id: &str) -> Result<Option<i64>> {
    let (index,): (Option<i64>,) =
        sqlx::query_as("SELECT MAX(idx) FROM log_leaves WHERE path_id = $1 AND event IN ('sign', 'resign')")
            .bind(path_id)
            .fetch_one(connection)
            .await?;
    Ok(index)
}

/// The leaves from `first` on, at most `limit`, in order.
pub async fn leaves(connection: &mut Connection, first: i64, limit: i64) -> Result<Vec<(i64, String)>> {
    let rows = sqlx::query_as("SELECT idx, leaf FROM log_leaves WHERE idx >= $1 ORDER BY idx ASC LIMIT $2")
        .bind(first)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// Salt and text of what a salted hash of a leaf stands for (`detail` or `private`); `None` where there is none or
/// it was erased.
pub async fn opening(
    connection: &mut Connection,
    index: i64,
    part: &str,
) -> Result<Option<([u8; 16], String)>> {
    let row: Option<(Vec<u8>, String)> =
        sqlx::query_as("SELECT salt, text FROM log_openings WHERE idx = $1 AND part = $2")
            .bind(index)
            .bind(part)
            .fetch_optional(connection)
            .await?;
    let Some((salt, text)) = row else { return Ok(None) };
    let salt = salt.try_into().map_err(|_| corrupt("log_openings", "salt", &index.to_string()))?;
    Ok(Some((salt, text)))
}

/// Index, salt and text of every opening of `part` among the `count` leaves from `first` on, in order.
pub async fn openings(
    connection: &mut Connection,
    part: &str,
    first: i64,
    count: i64,
) -> Result<Vec<(i64, [u8; 16], String)>> {
    let rows: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
        "SELECT idx, salt, text FROM log_openings WHERE idx >= $1 AND idx < $2 AND part = $3 ORDER BY idx ASC",
    )
    .bind(first)
    .bind(first.saturating_add(count))
    .bind(part)
    .fetch_all(connection)
    .await?;
    let read = |(index, salt, text): (i64, Vec<u8>, String)| {
        let salt = salt.try_into().map_err(|_| corrupt("log_openings", "salt", &index.to_string()))?;
        Ok((index, salt, text))
    };
    rows.into_iter().map(read).collect()
}

/// A leaf about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathLeafRow {
    pub index: i64,
    pub leaf: String,
    /// The opening of its `detail`; `None` once it was erased.
    pub detail: Option<String>,
}

/// The leaves about a path, at most `limit`, in order.
pub async fn of_path(connection: &mut Connection, path_id: &str, limit: i64) -> Result<Vec<PathLeafRow>> {
    let rows: Vec<(i64, String, Option<String>)> = sqlx::query_as(
        "SELECT l.idx, l.leaf, o.text FROM log_leaves l \
         LEFT JOIN log_openings o ON o.idx = l.idx AND o.part = 'detail' \
         WHERE l.path_id = $1 ORDER BY l.idx ASC LIMIT $2",
    )
    .bind(path_id)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(index, leaf, detail)| PathLeafRow { index, leaf, detail }).collect())
}

/// Erases the openings of `detail`, among the `count` leaves from `first` on, that say something of a contributor: of
/// what they did or asked for, of what was done to them and to their tokens, of quarantines of either, and those that have
/// their name. How many.
pub async fn erase_details(
    connection: &mut Connection,
    contributor: ContributorId,
    name: &ContributorName,
    first: i64,
    count: i64,
) -> Result<u64> {
    let result = sqlx::query(
        "DELETE FROM log_openings WHERE idx >= $1 AND idx < $2 AND part = 'detail' \
         AND (text LIKE $3 ESCAPE '!' OR text LIKE $6 ESCAPE '!' \
         OR EXISTS (SELECT 1 FROM quarantines q WHERE (q.subject_id = $7 OR q.contributor_id = $7 \
         OR q.restorer_contributor_id = $7 OR q.subject_id IN (SELECT id FROM tokens WHERE contributor_id = $7)) \
         AND text LIKE '%\"' || q.id || '\"%') \
         OR EXISTS (SELECT 1 FROM log_leaves l WHERE l.idx = log_openings.idx \
         AND (l.leaf LIKE $4 OR l.leaf LIKE $5 OR l.event LIKE 'token-%' AND EXISTS (SELECT 1 FROM tokens t \
         WHERE t.contributor_id = $7 AND l.leaf LIKE $8 || t.id || $9))))",
    )
    .bind(first)
    .bind(first.saturating_add(count))
    .bind(super::audit::containing_string(name.as_str()))
    .bind(format!("%\nby {contributor}\n%"))
    .bind(format!("%\nsubject {contributor}\n%"))
    .bind(super::audit::containing_string(&contributor.to_string()))
    .bind(contributor.to_string())
    .bind("%\nsubject ")
    .bind("\n%")
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// The list of references that a leaf has the digest of.
pub async fn references(connection: &mut Connection, digest: &[u8; 32]) -> Result<Option<String>> {
    let digest = Sha256Digest(*digest).hex();
    let row: Option<(String,)> = sqlx::query_as("SELECT refs FROM log_references WHERE digest = $1")
        .bind(digest)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|(refs,)| refs))
}

/// Below which leaf all lists of references are published, and the size of the newest checkpoint; `None` before the
/// first.
pub async fn references_to(connection: &mut Connection) -> Result<Option<(i64, i64)>> {
    let row = sqlx::query_as("SELECT references_to, size FROM log_checkpoint WHERE id = 1");
    Ok(row.fetch_optional(connection).await?)
}

/// Writes down that all lists below `to` are published. Nothing where somebody got on from `from` meanwhile.
pub async fn references_published(connection: &mut Connection, from: i64, to: i64) -> Result<()> {
    sqlx::query("UPDATE log_checkpoint SET references_to = $2 WHERE id = 1 AND references_to = $1")
        .bind(from)
        .bind(to)
        .execute(connection)
        .await?;
    Ok(())
}

/// Those of the leaves from `first` on, below `end`, that may have the digest of a list in its place.
pub async fn shortened(connection: &mut Connection, first: i64, end: i64) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT leaf FROM log_leaves WHERE idx >= $1 AND idx < $2 AND leaf LIKE '%references-sha256 %' \
         ORDER BY idx ASC",
    )
    .bind(first)
    .bind(end)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(leaf,)| leaf).collect())
}

/// What a server leaves behind that knew nothing of [`references_to`].
#[cfg(test)]
pub(crate) async fn forget_references(connection: &mut Connection) -> Result<()> {
    let result = sqlx::query("UPDATE log_checkpoint SET references_to = 0").execute(connection).await?;
    one_row("log_checkpoint", result.rows_affected())
}

/// What somebody with access to the database could do.
#[cfg(test)]
pub(crate) async fn alter_leaf(connection: &mut Connection, index: i64, leaf: &str) -> Result<()> {
    let altered = sqlx::query("UPDATE log_leaves SET leaf = $2 WHERE idx = $1");
    let result = altered.bind(index).bind(leaf).execute(connection).await?;
    one_row("log_leaves", result.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::Gate;
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::*;

    fn leaf(text: &str) -> LeafRow {
        LeafRow {
            event: "sign".to_owned(),
            leaf: text.to_owned(),
            path_id: None,
            openings: Vec::new(),
            long_references: None,
        }
    }

    fn state(size: i64) -> LogState {
        LogState { size, frontier: vec![7; 32], frontier_size: size, published_beyond: None, forked: None }
    }

    on_each_database! {
        async fn a_list_of_references_that_is_there_is_not_written_twice(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let long = |text: &str| LeafRow { long_references: Some("a b c".to_owned()), ..leaf(text) };

            append(&mut tx, 0, &[long("one\n"), long("two\n")], &[], &state(2)).await.unwrap();
            append(&mut tx, 2, &[long("three\n")], &[], &state(3)).await.unwrap();

            let digest = Sha256Digest::of(b"a b c").hex();
            let rows: Vec<(String, String)> =
                sqlx::query_as("SELECT digest, refs FROM log_references").fetch_all(&mut *tx).await.unwrap();
            assert_eq!(rows, [(digest, "a b c".to_owned())]);
        }

        async fn openings_are_found_by_their_leaves(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let opening = |part, number: u8| (part, [number; 16], format!("{part} {number}"));
            let of = |openings| LeafRow { openings, ..leaf("x\n") };
            let rows = [
                of(vec![opening("detail", 0), opening("private", 0)]),
                of(vec![opening("detail", 1)]),
                of(vec![opening("private", 2)]),
            ];
            append(&mut tx, 0, &rows, &[], &state(3)).await.unwrap();

            for (first, count, expected) in [(0, 9, vec![0, 2]), (0, 2, vec![0]), (1, 9, vec![2]), (3, 9, vec![])] {
                let found = openings(&mut tx, "private", first, count).await.unwrap();
                let indices: Vec<_> = found.iter().map(|(index, ..)| *index).collect();
                assert_eq!(indices, expected, "{first} {count}");
            }
            let (_, salt, text) = openings(&mut tx, "private", 2, 1).await.unwrap().remove(0);
            assert_eq!((salt, text.as_str()), ([2; 16], "private 2"));
        }

        async fn a_new_log_is_empty_and_goes_on_where_it_was_left(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            assert_eq!(lock(&mut tx).await.unwrap(), LogState { size: 0, frontier: vec![], frontier_size: 0, published_beyond: None, forked: None });

            let state = state(2);
            append(&mut tx, 0, &[leaf("one\n"), leaf("two\n")], &[], &state).await.unwrap();
            tx.commit().await.unwrap();

            let mut connection = test.db.read().await.unwrap();
            assert_eq!(read(&mut connection).await.unwrap(), state);
            let both = vec![(0, "one\n".to_owned()), (1, "two\n".to_owned())];
            assert_eq!(leaves(&mut connection, 0, 10).await.unwrap(), both);
        }

        async fn a_checkpoint_is_replaced_only_by_who_knows_it(test: &TestDb) {
            let of = |size: i64| CheckpointRow { size, note: format!("{size}"), signed_at: NOON };
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert_eq!(checkpoint(&mut tx).await.unwrap(), None);

            assert!(replace_checkpoint(&mut tx, 0, &of(3)).await.unwrap());
            assert!(!replace_checkpoint(&mut tx, 0, &of(4)).await.unwrap());
            assert!(!replace_checkpoint(&mut tx, 2, &of(4)).await.unwrap());
            assert_eq!(checkpoint(&mut tx).await.unwrap(), Some(of(3)));

            assert!(replace_checkpoint(&mut tx, 3, &of(5)).await.unwrap());
            assert_eq!(checkpoint(&mut tx).await.unwrap(), Some(of(5)));
        }

        async fn lists_of_references_are_known_to_be_published_up_to_where_none_is_missing(test: &TestDb) {
            let of = |size: i64| CheckpointRow { size, note: format!("{size}"), signed_at: NOON };
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert_eq!(references_to(&mut tx).await.unwrap(), None);

            replace_checkpoint(&mut tx, 0, &of(3)).await.unwrap();
            replace_checkpoint(&mut tx, 3, &of(5)).await.unwrap();
            assert_eq!(references_to(&mut tx).await.unwrap(), Some((5, 5)));

            forget_references(&mut tx).await.unwrap();
            replace_checkpoint(&mut tx, 5, &of(9)).await.unwrap();
            assert_eq!(references_to(&mut tx).await.unwrap(), Some((0, 9)));
            references_published(&mut tx, 0, 4).await.unwrap();
            references_published(&mut tx, 0, 2).await.unwrap();
            assert_eq!(references_to(&mut tx).await.unwrap(), Some((4, 9)));
            references_published(&mut tx, 4, 9).await.unwrap();
            replace_checkpoint(&mut tx, 9, &of(10)).await.unwrap();
            assert_eq!(references_to(&mut tx).await.unwrap(), Some((10, 10)));
        }

        async fn only_leaves_that_may_have_a_digest_are_looked_at_for_lists(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let texts = ["references -\n", "x\nreferences-sha256 00\n", "x\n", "y\nreferences-sha256 11\n"];
            append(&mut tx, 0, &texts.map(leaf), &[], &state(4)).await.unwrap();

            for (first, end, expected) in [(0, 4, vec![1, 3]), (2, 4, vec![3]), (0, 3, vec![1]), (4, 9, vec![])] {
                let expected: Vec<_> = expected.into_iter().map(|at: usize| texts[at]).collect();
                assert_eq!(shortened(&mut tx, first, end).await.unwrap(), expected, "{first} {end}");
            }
        }
    }
}
