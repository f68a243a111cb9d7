//! Lists: page after page from the server, as one table or as one JSON page per line.
//!
//! Never holds more than one page.

use serde::Serialize;

use super::args::ListArgs;
use super::failure::{Exit, Failure};
use super::output::Printer;
use super::text::Table;
use crate::api::{Page, PageQuery};
use crate::client::Error as ClientError;

/// Prints as much of a list as `args` ask for. With `--json` each page is a line of its own, as the server gave it.
pub async fn print_list<T: Serialize>(
    printer: Printer,
    args: &ListArgs,
    columns: &[&str],
    row: impl Fn(&T) -> Vec<String>,
    mut fetch: impl AsyncFnMut(PageQuery) -> Result<Page<T>, ClientError>,
) -> Result<(), Failure> {
    let mut table = Table::default();
    let mut query = args.first_page();
    let mut seen = 0_u32;
    loop {
        let page = fetch(query.clone()).await?;
        let header = (seen == 0 && !page.items.is_empty())
            .then(|| columns.iter().map(|&name| name.to_owned()).collect());
        printer.answer(&page, |page| {
            let rows: Vec<Vec<String>> = header.into_iter().chain(page.items.iter().map(&row)).collect();
            table.text(&rows)
        })?;
        seen = seen.saturating_add(u32::try_from(page.items.len()).unwrap_or(u32::MAX));

        let Some(next) = page.next else {
            if seen == 0 {
                printer.note("none");
            }
            return Ok(());
        };
        if args.page_size(seen) == 0 {
            printer.note(&format!("there are more: add `--cursor {next}` to go on, or `--all`"));
            return Ok(());
        }
        if query.cursor.as_ref() == Some(&next) {
            return Err(Failure::new(Exit::Failure, "the server's list does not go on"));
        }
        query = PageQuery { cursor: Some(next), limit: Some(args.page_size(seen)), order: query.order };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_that_does_not_go_on_ends() {
        let args = ListArgs { limit: 100, all: true, cursor: None, order: None };
        let printer = Printer { json: false, quiet: true };
        let mut asked = Vec::new();

        let result = print_list(
            printer,
            &args,
            &["X"],
            |_: &String| Vec::new(),
            async |query: PageQuery| {
                asked.push(query.cursor);
                Ok(Page { items: Vec::new(), next: Some("same".into()) })
            },
        )
        .await;

        assert!(result.unwrap_err().to_string().contains("does not go on"));
        assert_eq!(asked, [None, Some("same".to_owned())]);
    }
}
