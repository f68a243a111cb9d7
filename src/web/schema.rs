//! A schema of an OpenAPI document as the rows of a table, nested types followed.

use serde_json::Value;

/// A field, and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Such as `upstreams[].url`.
    pub path: String,
    /// Such as `string`, or `list of string`.
    pub kind: String,
    /// The words that it may be, if there are few.
    pub words: Vec<String>,
    pub required: bool,
    pub description: String,
}

/// How deep nested types are followed: none of ours is deeper, and a circle ends here.
const DEPTH_MAX: usize = 4;

/// What `schema` refers to, or itself.
pub(super) fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(schema)
}

/// The fields of an object, those of its nested objects too.
pub(super) fn fields(document: &Value, schema: &Value) -> Vec<Field> {
    let mut found = Vec::new();
    collect(document, schema, "", 0, &mut found);
    found
}

fn collect(document: &Value, schema: &Value, prefix: &str, depth: usize, found: &mut Vec<Field>) {
    let schema = resolve(document, schema);
    if depth >= DEPTH_MAX {
        return;
    }
    if let Some(items) = schema.get("items") {
        return collect(document, items, prefix, depth + 1, found);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required = |name: &str| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|other| other == name))
    };
    for (name, property) in properties {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let inner = not_null(resolve(document, not_null(property)));
        let own = property.get("description").or_else(|| inner.get("description"));
        let description = own.and_then(Value::as_str).unwrap_or_default().to_owned();
        found.push(Field {
            path: path.clone(),
            kind: kind(document, property),
            words: words(inner),
            required: required(name),
            description,
        });
        let inside = if inner.get("items").is_some() { format!("{path}[]") } else { path };
        collect(document, inner, &inside, depth + 1, found);
    }
}

/// The other half of "this, or null".
fn not_null(schema: &Value) -> &Value {
    let choices = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array);
    let is_null = |choice: &&Value| choice.get("type").is_some_and(|kind| kind == "null");
    choices.and_then(|choices| choices.iter().find(|choice| !is_null(choice))).unwrap_or(schema)
}

fn words(schema: &Value) -> Vec<String> {
    let words = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    words.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The type in words.
pub(super) fn kind(document: &Value, schema: &Value) -> String {
    let schema = resolve(document, not_null(schema));
    let name = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("value")
        }
        _ if schema.get("properties").is_some() => "object",
        _ => "value",
    };
    match (name, schema.get("items")) {
        ("array", Some(items)) => format!("list of {}", kind(document, items)),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_fields_are_rows_with_their_way_there() {
        let document = json!({ "components": { "schemas": {
            "Outer": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string", "description": "its name" },
                    "size": { "type": ["integer", "null"] },
                    "mode": { "oneOf": [{ "type": "null" }, { "$ref": "#/components/schemas/Mode" }] },
                    "inner": { "type": "array", "items": { "$ref": "#/components/schemas/Inner" } },
                },
            },
            "Mode": { "type": "string", "enum": ["on", "off"], "description": "how" },
            "Inner": { "type": "object", "properties": { "urls": { "type": "array", "items": { "type": "string" } } } },
        } } });

        let rows = fields(&document, &json!({ "$ref": "#/components/schemas/Outer" }));

        let row = |path: &str| rows.iter().find(|row| row.path == path).unwrap();
        assert_eq!(rows.len(), 5);
        assert!(row("name").required && !row("size").required);
        assert_eq!(row("size").kind, "integer");
        assert_eq!((row("mode").kind.as_str(), row("mode").words.len()), ("string", 2));
        assert_eq!(row("mode").description, "how");
        assert_eq!(row("inner").kind, "list of object");
        assert_eq!(row("inner[].urls").kind, "list of string");
    }

    #[test]
    fn a_type_that_holds_itself_ends() {
        let document = json!({ "components": { "schemas": {
            "Node": { "type": "object", "properties": { "next": { "$ref": "#/components/schemas/Node" } } },
        } } });

        assert_eq!(fields(&document, &json!({ "$ref": "#/components/schemas/Node" })).len(), DEPTH_MAX);
    }
}
