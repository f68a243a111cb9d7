//! Pages of lists: opaque cursors, limits, order.
//!
//! A cursor is the id of the last item, so that a page never skips or repeats what others add meanwhile.

use data_encoding::BASE64URL_NOPAD;

use crate::api::{Order, Page, PageQuery};
use crate::service::{PageBounds, Rejection};

/// Items of a page unless told.
const LIMIT_DEFAULT: u32 = 100;

/// Most items of a page.
const LIMIT_MAX: u32 = 200;

/// Longest cursor, in bytes: ids are 36 characters.
const CURSOR_LENGTH_MAX: usize = 128;

/// One asked page.
pub(super) struct Paging {
    limit: usize,
    /// What to ask of the rows: one more than the page holds, to know whether another one follows.
    pub bounds: PageBounds,
}

impl Paging {
    /// Checks what a query says.
    pub fn new(query: PageQuery) -> Result<Self, Rejection> {
        let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Rejection::value("limit", format!("has to be between 1 and {LIMIT_MAX}")));
        }
        let after = query.cursor.as_deref().map(read_cursor).transpose()?;
        let descending = query.order == Some(Order::Desc);
        let bounds = PageBounds { after, limit: i64::from(limit) + 1, descending };
        Ok(Self { limit: limit as usize, bounds })
    }

    /// The asked part of a whole list, oldest first, for lists too short to be paged by the rows.
    pub fn cut<R>(&self, mut rows: Vec<R>, id: impl Fn(&R) -> &str) -> Vec<R> {
        if self.bounds.descending {
            rows.reverse();
        }
        if let Some(after) = &self.bounds.after {
            rows.retain(|row| {
                if self.bounds.descending { id(row) < after.as_str() } else { id(row) > after.as_str() }
            });
        }
        rows.truncate(self.limit + 1);
        rows
    }

    /// The page of `rows`, which were asked for with [`Paging::bounds`].
    pub fn page<R, V>(
        self,
        mut rows: Vec<R>,
        id: impl FnOnce(&R) -> String,
        view: impl FnMut(R) -> V,
    ) -> Page<V> {
        let more = rows.len() > self.limit;
        rows.truncate(self.limit);
        let next = if more { rows.last().map(|row| write_cursor(&id(row))) } else { None };
        Page { items: rows.into_iter().map(view).collect(), next }
    }
}

fn write_cursor(id: &str) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

fn read_cursor(text: &str) -> Result<String, Rejection> {
    let refused = || Rejection::value("cursor", "is not one that this server gave; begin again without it");
    if text.len() > CURSOR_LENGTH_MAX {
        return Err(refused());
    }
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| refused())?;
    let is_id = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if bytes.is_empty() || !bytes.iter().all(is_id) {
        return Err(refused());
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(cursor: Option<&str>, limit: Option<u32>, order: Option<Order>) -> PageQuery {
        PageQuery { cursor: cursor.map(str::to_owned), limit, order }
    }

    #[test]
    fn a_page_is_the_oldest_hundred_unless_told() {
        let paging = Paging::new(PageQuery::default()).unwrap();

        assert_eq!(paging.bounds.limit, 101);
        assert_eq!(paging.bounds.after, None);
        assert!(!paging.bounds.descending);
    }

    #[test]
    fn limits_outside_one_to_two_hundred_are_refused() {
        for limit in [0, 201, u32::MAX] {
            assert!(Paging::new(query(None, Some(limit), None)).is_err(), "{limit}");
        }
        for limit in [1, 200] {
            assert!(Paging::new(query(None, Some(limit), Some(Order::Desc))).is_ok(), "{limit}");
        }
    }

    #[test]
    fn foreign_cursors_are_refused() {
        let long = "a".repeat(CURSOR_LENGTH_MAX + 1);
        let quote = write_cursor("a'b");
        let nul = write_cursor("a\0");
        for cursor in ["", "=", "?", "a", "0195 ", long.as_str(), quote.as_str(), nul.as_str(), "_-_-"] {
            assert!(Paging::new(query(Some(cursor), None, None)).is_err(), "{cursor:?}");
        }
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_repetition() {
        let all: Vec<u32> = (10..27).collect();
        let mut seen = Vec::new();
        let mut cursor = None;

        loop {
            let paging = Paging::new(query(cursor.as_deref(), Some(5), None)).unwrap();
            let after = paging.bounds.after.as_ref().map_or(0, |id| id.parse().unwrap());
            let limit = usize::try_from(paging.bounds.limit).unwrap();
            let rows = all.iter().copied().filter(|id| *id > after).take(limit).collect();
            let page = paging.page(rows, u32::to_string, |row| row);
            seen.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }

        assert_eq!(seen, all);
    }

    #[test]
    fn a_full_last_page_has_no_next() {
        let paging = Paging::new(query(None, Some(3), None)).unwrap();

        let page = paging.page(vec![1, 2, 3], i32::to_string, |row| row);

        assert_eq!(page.next, None);
        assert_eq!(page.items, [1, 2, 3]);
    }

    #[test]
    fn a_short_list_is_cut_as_rows_would_be() {
        let all = || vec!["a", "b", "c", "d"];
        let cut = |cursor: Option<&str>, order| {
            let cursor = cursor.map(write_cursor);
            let paging = Paging::new(query(cursor.as_deref(), Some(2), Some(order))).unwrap();
            let rows = paging.cut(all(), |row| *row);
            let page = paging.page(rows, |row| row.to_string(), |row| row);
            (page.items, page.next.is_some())
        };

        assert_eq!(cut(None, Order::Asc), (vec!["a", "b"], true));
        assert_eq!(cut(Some("b"), Order::Asc), (vec!["c", "d"], false));
        assert_eq!(cut(None, Order::Desc), (vec!["d", "c"], true));
        assert_eq!(cut(Some("c"), Order::Desc), (vec!["b", "a"], false));
        assert_eq!(cut(Some("d"), Order::Asc), (vec![], false));
    }

    proptest! {
        #[test]
        fn cursors_read_back(id in "[0-9a-z-]{1,64}") {
            prop_assert_eq!(read_cursor(&write_cursor(&id)).unwrap(), id);
        }

        #[test]
        fn no_cursor_panics(text: String) {
            let _ = read_cursor(&text);
        }
    }
}
