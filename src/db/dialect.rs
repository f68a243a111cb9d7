//! The places where SQLite and Postgres need different texts: row locks, and lists of hashes or of whole rows as
//! one parameter. (The gate is another, in `gate.rs`.)

use super::Connection;

/// Which database a connection speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    /// The dialect of `connection`.
    pub fn of(connection: &Connection) -> Self {
        if connection.backend_name() == "PostgreSQL" { Self::Postgres } else { Self::Sqlite }
    }

    /// Picks the text of a statement that locks the rows it reads. SQLite's write transaction holds
    /// the whole database, so it needs (and knows) no row locks.
    pub fn pick(self, postgres: &'static str, sqlite: &'static str) -> &'static str {
        match self {
            Self::Postgres => postgres,
            Self::Sqlite => sqlite,
        }
    }
}

/// `values` as the one JSON parameter that a list is bound as.
pub fn json_list<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.as_ref().to_owned()).collect();
    serde_json::Value::from(values).to_string()
}

/// A statement over many rows that come as one JSON parameter, an array of objects: the member `x` of one is
/// `r.value ->> 'x'`, and numbers are to be cast. Each statement costs a turn of the network, or a parsed text,
/// so a thousand rows in one are what makes a large push fast. (`json_each` would write each row out as text, to be
/// parsed again for each member.)
macro_rules! with_json_rows {
    ($connection:expr, $before:literal, $parameter:literal, $after:literal) => {
        $crate::db::dialect::Dialect::of($connection).pick(
            concat!($before, " FROM json_array_elements(", $parameter, "::json) AS r (value) ", $after),
            concat!($before, " FROM jsonb_each(", $parameter, ") AS r ", $after),
        )
    };
}
pub(super) use with_json_rows;

/// The same as an UPDATE of those rows of `$table` that are `$which`: conditions on the table and on `r.value`. `$set` is
/// the same for all of them.
///
/// SQLite would go through the JSON once for each row of the table; a cross join keeps its order.
macro_rules! update_by_json_rows {
    ($connection:expr, $table:literal, $set:literal, $parameter:literal, $which:literal, $after:literal) => {
        $crate::db::dialect::Dialect::of($connection).pick(
            concat!(
                "UPDATE ",
                $table,
                " SET ",
                $set,
                " FROM json_array_elements(",
                $parameter,
                "::json) AS r (value) WHERE ",
                $which,
                " ",
                $after
            ),
            concat!(
                "UPDATE ",
                $table,
                " SET ",
                $set,
                " WHERE id IN (SELECT ",
                $table,
                ".id FROM jsonb_each(",
                $parameter,
                ") AS r CROSS JOIN ",
                $table,
                " WHERE ",
                $which,
                ") ",
                $after
            ),
        )
    };
}
pub(super) use update_by_json_rows;
