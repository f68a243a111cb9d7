//! How SQLite goes about a statement, in tests: rows that come as JSON are gone through once.
//!
//! Its planner takes a JSON parameter for long, and a table that it knows nothing of for short. A statement that it turns
//! round answers rightly, and slower with each row that the table gets.

/// Panics where a statement goes through its JSON once for each row of a table.
pub(super) fn check(connection: &rusqlite::Connection, sql: &str) {
    // The tail of several statements in one text is looked at by nobody.
    if !sql.contains("json_each") && !sql.contains("jsonb_each") {
        return;
    }
    let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    // Without values: nothing is run.
    let (mut rows, mut steps) = (explain.raw_query(), Vec::<(i64, String)>::new());
    while let Some(row) = rows.next().unwrap() {
        steps.push((row.get(1).unwrap(), row.get(3).unwrap()));
    }
    for (at, (parent, step)) in steps.iter().enumerate() {
        let is_inner = |(other, outer): &(i64, String)| {
            other == parent
                && (outer.starts_with("SEARCH") || outer.starts_with("SCAN"))
                && !outer.contains("VIRTUAL TABLE")
        };
        assert!(
            !(step.contains("VIRTUAL TABLE") && steps[..at].iter().any(is_inner)),
            "a statement goes through its JSON once for each row of a table:\n{sql}\n{steps:#?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> rusqlite::Connection {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE t (id TEXT PRIMARY KEY, cache TEXT, name TEXT, UNIQUE (cache, name)) STRICT; \
                 CREATE INDEX t_by_cache ON t (cache)",
            )
            .unwrap();
        connection
    }

    #[test]
    fn json_that_is_gone_through_once_is_well() {
        for sql in [
            "SELECT id FROM t WHERE cache = $1 AND name IN (SELECT value FROM json_each($2))",
            "UPDATE t SET name = 'x' WHERE id IN (SELECT t.id FROM jsonb_each($2) AS r CROSS JOIN t \
             WHERE t.cache = $1 AND t.name = r.value ->> 'name')",
            "INSERT INTO t (id) SELECT value FROM json_each($1)",
        ] {
            check(&connection(), sql);
        }
    }

    #[test]
    #[should_panic(expected = "once for each row of a table")]
    fn json_that_is_gone_through_for_each_row_is_found() {
        check(
            &connection(),
            "UPDATE t SET name = 'x' FROM jsonb_each($2) AS r WHERE t.cache = $1 AND t.name = r.value ->> 'name'",
        );
    }
}
