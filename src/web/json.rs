//! JSON as people read it: indented, with its parts told apart by colour.

use maud::{Markup, html};
use serde_json::Value;

/// `value` as markup for a `pre`.
pub(super) fn pretty(value: &Value) -> Markup {
    nested(value, 0)
}

fn nested(value: &Value, depth: usize) -> Markup {
    let inside = "  ".repeat(depth + 1);
    let outside = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => html! {
            "{\n"
            @for (at, (name, member)) in members.iter().enumerate() {
                (inside) span.key { (quoted(name)) } ": " (nested(member, depth + 1))
                @if at + 1 < members.len() { "," } "\n"
            }
            (outside) "}"
        },
        Value::Array(items) if !items.is_empty() => html! {
            "[\n"
            @for (at, item) in items.iter().enumerate() {
                (inside) (nested(item, depth + 1))
                @if at + 1 < items.len() { "," } "\n"
            }
            (outside) "]"
        },
        Value::String(text) => html! { span.text { (quoted(text)) } },
        Value::Object(_) | Value::Array(_) => html! { (value.to_string()) },
        Value::Null | Value::Bool(_) | Value::Number(_) => html! { span.plain { (value.to_string()) } },
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn markup_without_its_tags_is_the_json_again() {
        let value =
            json!({ "a": [1, true, null, "<b>&\"x\"\n"], "b": {}, "c": [], "d": { "e": [{ "f": 1.5 }] } });

        let markup = pretty(&value).into_string();

        let mut text = String::new();
        let mut in_tag = false;
        for c in markup.chars() {
            match c {
                '<' => in_tag = true,
                '>' => in_tag = false,
                c if !in_tag => text.push(c),
                _ => {}
            }
        }
        let text =
            text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value, "{text}");
    }
}
