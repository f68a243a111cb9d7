//! The API on one page: every operation with its parameters, bodies, a command to try it, and its refusals.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Map, Value};

use super::schema::{self, Field};
use super::{STYLE, json};

/// An operation of the document.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    value: &'a Value,
}

/// The methods, in the order in which one reads them.
const METHODS: [&str; 6] = ["get", "head", "post", "put", "patch", "delete"];

/// The page for `document`.
pub(super) fn render(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let tags = document["tags"].as_array().map_or(&[][..], Vec::as_slice);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " API" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the operations" }
                header.top {
                    p.brand { (title) span { "API" } }
                    p.version { "version " (text(&document["info"]["version"])) }
                    a href="/api/v1/openapi.json" { "openapi.json" }
                }
                div.columns {
                    (index(document, tags))
                    main #main {
                        section.introduction {
                            h1 { (title) " API" }
                            (prose(text(&document["info"]["description"])))
                        }
                        @for tag in tags { (section(document, tag)) }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn index(document: &Value, tags: &[Value]) -> Markup {
    html! {
        nav aria-label="Operations" {
            @for tag in tags {
                @let name = text(&tag["name"]);
                h2 { a href={ "#" (slug(name)) } { (name) } }
                ul {
                    @for operation in operations(document, name) {
                        li {
                            a href={ "#" (operation.id()) } {
                                (badge(operation.method)) span { (operation.summary()) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn section(document: &Value, tag: &Value) -> Markup {
    let name = text(&tag["name"]);
    html! {
        section.tag id=(slug(name)) aria-labelledby={ (slug(name)) "-title" } {
            header {
                h2 id={ (slug(name)) "-title" } { (name) }
                p { (inline(text(&tag["description"]))) }
            }
            @for operation in operations(document, name) { (article(document, &operation)) }
        }
    }
}

fn article(document: &Value, operation: &Operation<'_>) -> Markup {
    let request = body(document, &operation.value["requestBody"]);
    html! {
        article id=(operation.id()) aria-labelledby={ (operation.id()) "-title" } {
            header {
                h3 id={ (operation.id()) "-title" } {
                    (operation.summary())
                    a.anchor href={ "#" (operation.id()) } aria-label="Link to this operation" { "#" }
                }
                p.address { (badge(operation.method)) code { (address(operation.path)) } (who(operation.value)) }
            }
            div.halves {
                div.words {
                    (prose(text(&operation.value["description"])))
                    (parameters(document, operation.value))
                    @if let Some((_, content)) = request { (fields("Request body", document, &content["schema"])) }
                    (answers(document, operation.value))
                    (refusals(operation.value))
                }
                div.samples { (samples(document, operation, request)) }
            }
        }
    }
}

/// Who may call it, as the document's security requirements say.
fn who(operation: &Value) -> Markup {
    let requirements = operation["security"].as_array().map_or(&[][..], Vec::as_slice);
    let is_open = requirements.iter().any(|requirement| requirement.as_object().is_some_and(Map::is_empty));
    let scope = requirements
        .iter()
        .filter_map(Value::as_object)
        .flat_map(Map::values)
        .find_map(|scopes| scopes[0].as_str());
    html! {
        @match (requirements.is_empty(), is_open, scope) {
            (true, ..) => span.who { "no token" },
            (_, true, None) => span.who { "token, or none" },
            (_, true, Some(scope)) => span.who { "none, or " code { (scope) } },
            (_, false, None) => span.who.token { "any token" },
            (_, false, Some(scope)) => span.who.token { "token with " code { (scope) } },
        }
    }
}

fn parameters(document: &Value, operation: &Value) -> Markup {
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |parameter: &Value| Field {
        path: text(&parameter["name"]).to_owned(),
        kind: format!("{}, {}", text(&parameter["in"]), schema::kind(document, &parameter["schema"])),
        words: Vec::new(),
        required: parameter["required"] == true,
        description: text(&parameter["description"]).to_owned(),
    };
    table("Parameters", &parameters.iter().map(row).collect::<Vec<_>>(), true)
}

fn fields(title: &str, document: &Value, schema: &Value) -> Markup {
    table(title, &schema::fields(document, schema), true)
}

fn table(title: &str, rows: &[Field], marks_required: bool) -> Markup {
    if rows.is_empty() {
        return html! {};
    }
    html! {
        h4 { (title) }
        div.scroll {
            table {
                thead { tr { th scope="col" { "Name" } th scope="col" { "Type" } th scope="col" { "Meaning" } } }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" {
                                code { (row.path) }
                                @if marks_required && row.required { span.required { "required" } }
                            }
                            td.kind { (row.kind) }
                            td {
                                (inline(&row.description))
                                @for (at, word) in row.words.iter().enumerate() {
                                    @if at > 0 || !row.description.is_empty() { " " }
                                    code { (word) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Successful answers: what they mean, and their fields.
fn answers(document: &Value, operation: &Value) -> Markup {
    html! {
        @for (status, response) in responses(operation).filter(|(status, _)| is_success(status)) {
            h4 { "Answer " span.status.good { (status) } }
            p { (inline(text(&response["description"]))) }
            @if let Some((_, content)) = body(document, response) {
                (table("", &schema::fields(document, &content["schema"]), false))
            }
        }
    }
}

fn refusals(operation: &Value) -> Markup {
    let refused: Vec<_> = responses(operation).filter(|(status, _)| !is_success(status)).collect();
    if refused.is_empty() {
        return html! {};
    }
    html! {
        h4 { "Refusals" }
        div.scroll {
            table.refusals {
                thead { tr { th scope="col" { "Status" } th scope="col" { "Problem" } th scope="col" { "When" } } }
                tbody {
                    @for (status, response) in refused {
                        tr {
                            th scope="row" { span.status { (status) } }
                            td { @if let Some(slug) = problem(response) { code { (slug) } } }
                            td { (inline(text(&response["description"]))) }
                        }
                    }
                }
            }
        }
    }
}

fn samples(document: &Value, operation: &Operation<'_>, request: Option<(&str, &Value)>) -> Markup {
    let success = responses(operation.value).find(|(status, _)| is_success(status));
    let answer = success.as_ref().and_then(|(_, response)| body(document, response));
    html! {
        figure {
            figcaption { "Try it" }
            pre tabindex="0" { code { (curl(operation, request)) } }
        }
        @if let (Some((status, _)), Some((_, content))) = (success, answer) {
            @if let Some(example) = content.get("example") {
                figure {
                    figcaption { "Answer " (status) }
                    pre tabindex="0" {
                        code { @if let Value::String(line) = example { (line) } @else { (json::pretty(example)) } }
                    }
                }
            }
        }
    }
}

/// A command for the shell. Secrets come from the environment, so that none gets into its history.
fn curl(operation: &Operation<'_>, request: Option<(&str, &Value)>) -> Markup {
    let requirements = operation.value["security"].as_array().map_or(&[][..], Vec::as_slice);
    let needs_token = !requirements.is_empty()
        && !requirements.iter().any(|requirement| requirement.as_object().is_some_and(Map::is_empty));
    let method = operation.method.to_uppercase();
    let is_json = request.is_some_and(|(content_type, _)| content_type == "application/json");
    // `--json` and `--data-binary` make a POST by themselves.
    let is_implied = method == "GET" || (method == "POST" && is_json);
    let path = example_path(operation.path);
    html! {
        "curl"
        @if !is_implied { " -X " (method) }
        " \"$NARVAULT_URL" span.text { (path) } "\""
        @if needs_token { " \\\n  -H " span.text { "\"Authorization: Bearer $NARVAULT_TOKEN\"" } }
        @if let Some((_, content)) = request {
            @if is_json {
                " \\\n  --json " span.text { "'" (shell_quoted(&content["example"])) "'" }
            } @else {
                " \\\n  --data-binary " span.text { "@file" }
            }
        }
    }
}

fn shell_quoted(example: &Value) -> String {
    example.to_string().replace('\'', r"'\''")
}

/// The path with its parameters filled in as on this page's other examples.
fn example_path(path: &str) -> String {
    const FILLED: [(&str, &str); 8] = [
        ("{cache}", "main"),
        ("{hash}", "b9sjp3fmd8wvq3ajsd8rwywl3sxa4pgx"),
        ("{file}", "<file hash>.nar.xz"),
        ("{name}", "alice"),
        ("{key}", "alice-1"),
        ("{derivation}", "<hash>-hello-2.12.1.drv"),
        ("{build_id}", "<build id>"),
        ("{id}", "0195f2a1-5c1e-7d43-8a51-2f0c5f6f0b7e"),
    ];
    FILLED.iter().fold(path.to_owned(), |path, (name, example)| path.replace(name, example))
}

impl<'a> Operation<'a> {
    fn id(&self) -> &'a str {
        text(&self.value["operationId"])
    }

    fn summary(&self) -> &'a str {
        text(&self.value["summary"])
    }
}

/// The operations of a tag, in the order of their addresses.
fn operations<'a>(document: &'a Value, tag: &str) -> Vec<Operation<'a>> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for method in METHODS {
            let Some(value) = item.get(method) else { continue };
            let tags = value["tags"].as_array().map_or(&[][..], Vec::as_slice);
            if tags.iter().any(|other| other == tag) {
                found.push(Operation { method, path, value });
            }
        }
    }
    // What is pulled and what is pushed stand side by side.
    found.sort_by_key(|operation| {
        let object = operation.path.strip_prefix("/push").unwrap_or(operation.path);
        (object, METHODS.iter().position(|method| *method == operation.method))
    });
    found
}

fn responses(operation: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let responses = operation["responses"].as_object().into_iter().flatten();
    responses.map(|(status, response)| (status.as_str(), response))
}

fn is_success(status: &str) -> bool {
    status.starts_with('2') || status.starts_with('3')
}

/// The one content of a request or an answer.
fn body<'a>(document: &'a Value, holder: &'a Value) -> Option<(&'a str, &'a Value)> {
    let holder = schema::resolve(document, holder);
    holder["content"].as_object()?.iter().next().map(|(kind, content)| (kind.as_str(), content))
}

/// The slug of a refusal, for programs.
fn problem(response: &Value) -> Option<&str> {
    let example = &response["content"]["application/problem+json"]["example"];
    text(&example["type"]).strip_prefix("urn:narvault:problem:")
}

fn badge(method: &str) -> Markup {
    html! { span class={ "method " (method) } { (method.to_uppercase()) } }
}

/// A path whose parameters stand out.
fn address(path: &str) -> Markup {
    html! {
        @for part in path.split_inclusive('}') {
            @match part.split_once('{') {
                Some((before, name)) => { (before) var { "{" (name) } }
                None => { (part) }
            }
        }
    }
}

/// Paragraphs, separated by empty lines.
fn prose(text: &str) -> Markup {
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.is_empty());
    html! { @for paragraph in paragraphs { p { (inline(paragraph)) } } }
}

/// The two marks of Markdown that the document uses: `code` and **strong**.
fn inline(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else {
                @for (at, part) in part.split("**").enumerate() {
                    @if at % 2 == 1 { strong { (part) } } @else { (part) }
                }
            }
        }
    }
}

fn slug(tag: &str) -> String {
    format!("tag-{}", tag.replace(' ', "-"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_of_the_document_never_becomes_markup() {
        let evil = "<script>alert(1)</script> `<b>` **<i>** \"'";
        let document = json!({
            "info": { "title": evil, "version": evil, "description": evil },
            "tags": [{ "name": "a", "description": evil }],
            "paths": { "/<x>/{<y>}": { "get": {
                "tags": ["a"], "operationId": "\"><x", "summary": evil, "description": evil,
                "parameters": [{ "name": evil, "in": evil, "description": evil }],
                "responses": { "200": { "description": evil, "content": { "text/plain": { "example": evil } } } },
            } } },
        });

        let page = render(&document);

        let body = page.split_once("</style>").unwrap().1;
        for markup in ["<script", "<b>", "<i>", "<x", "<y"] {
            assert!(!body.contains(markup), "{markup}");
        }
    }

    #[test]
    fn an_empty_document_is_an_empty_page() {
        assert!(render(&json!({})).contains("<main"));
    }

    #[test]
    fn a_command_keeps_its_body_in_one_argument() {
        let quoted = shell_quoted(&json!({ "reason": "it's leaked" }));

        assert_eq!(quoted, r#"{"reason":"it'\''s leaked"}"#);
    }
}
