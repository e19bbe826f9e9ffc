//! Taking keys over from files: `.env` style lines and JSON objects. Whose key it is comes from the entry's name
//! (`OPENAI_API_KEY`, `"openai"`) or, when that says nothing, from the key's own shape.

use crate::engine::provider::{Kind, SPECS, Shape, key_shape};
use crate::store::secret::Secret;
use serde_json::Value;

/// Largest file that is read: a file of keys is small, anything else was named by mistake.
pub const FILE_MAX: u64 = 1 << 20;

/// One entry of a file.
#[derive(Debug)]
pub enum Entry {
    /// A provider's key.
    Key {
        /// The entry's name.
        name: String,
        /// Whose it is.
        kind: Kind,
        /// The key.
        key: Secret,
    },
    /// Something else, left alone.
    Skipped {
        /// The entry's name.
        name: String,
        /// Why.
        why: &'static str,
    },
}

/// Reads a file's text: JSON when it begins with a brace, else lines of `NAME=value`.
///
/// Errors: JSON that does not parse (the position only; the text is secret).
pub fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let text = text.trim_start_matches('\u{feff}');
    if !text.trim_start().starts_with('{') {
        return Ok(lines(text));
    }
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("not JSON at line {} column {}", error.line(), error.column()))?;
    let mut entries = Vec::new();
    members(&value, "", &mut entries);
    Ok(entries)
}

fn lines(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            entries.push(entry(name.trim(), unquoted(value.trim())));
        }
    }
    entries
}

/// The value without its quotes, or without the comment behind an unquoted one.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split(quote).next().unwrap_or(rest);
        }
    }
    value.split(" #").next().unwrap_or(value).trim_end()
}

/// Every string in nested objects; a member called `key` or `api_key` takes the name of the object it is in.
fn members(value: &Value, above: &str, entries: &mut Vec<Entry>) {
    let Value::Object(object) = value else { return };
    for (name, value) in object {
        let generic = ["key", "api_key", "apiKey", "token"].contains(&name.as_str());
        let name = if generic && !above.is_empty() { above } else { name };
        match value {
            Value::String(text) => entries.push(entry(name, text.trim())),
            nested => members(nested, name, entries),
        }
    }
}

fn entry(name: &str, value: &str) -> Entry {
    let skipped = |why| Entry::Skipped { name: name.to_owned(), why };
    if value.is_empty() {
        return skipped("empty");
    }
    if value.contains("${") || value.starts_with('$') {
        return skipped("refers to something else");
    }
    match (key_shape(value), named(name)) {
        (Shape::Weir, _) => skipped("a key of weir's callers"),
        (Shape::Other(_), _) => skipped("a key of something weir has no provider for"),
        (Shape::Of(kind), None) => Entry::Key { name: name.to_owned(), kind, key: Secret::copied(value) },
        // The name wins: whether the shape fits is looked at when it is stored, and refused there with both named.
        (_, Some(kind)) => Entry::Key { name: name.to_owned(), kind, key: Secret::copied(value) },
        (Shape::Unclear, None) => skipped("neither the name nor the value says whose key it is"),
    }
}

/// The kind an entry's name speaks of: `openai`, `OPENAI_API_KEY`, `MY_OPENAI_KEY`.
fn named(name: &str) -> Option<Kind> {
    let lower = name.to_ascii_lowercase();
    if let Some(kind) = Kind::of_name(&lower) {
        return Some(kind);
    }
    // Only what is called a key: OPENAI_BASE_URL is none.
    let words: Vec<&str> = lower.split(['_', '-', '.']).collect();
    if !words.iter().any(|word| ["key", "token", "apikey"].contains(word)) {
        return None;
    }
    // Gemini's own name for its variable is Google's.
    if words.contains(&"google") {
        return Some(Kind::Gemini);
    }
    // The longest name first: azure_openai is Azure's.
    let azure = words.contains(&"azure").then_some(Kind::Azure);
    azure.or_else(|| SPECS.iter().find(|spec| words.contains(&spec.name)).map(|spec| spec.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, Option<(Kind, &str)>)]) {
        let entries = parse(text).unwrap();
        let found: Vec<_> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Key { name, kind, key } => (name.as_str(), Some((*kind, key.expose()))),
                Entry::Skipped { name, .. } => (name.as_str(), None),
            })
            .collect();
        assert_eq!(found, expected);
        assert!(!format!("{entries:?}").contains("sk-proj-0123456789"));
    }

    #[test]
    fn env_files() {
        let text = "# keys\nexport OPENAI_API_KEY=\"sk-proj-0123456789\" # mine\nMISTRAL_API_KEY='abc def'\n\nAZURE_OPENAI_API_KEY=x1 # note\n\
                    OPENAI_BASE_URL=https://x\nSOMETHING=sk-ant-api03-abc\nGROQ_API_KEY=\nDB=$OTHER\nnot a line\r\nGOOGLE_API_KEY=AIzaX\r\n";
        check(
            text,
            &[
                ("OPENAI_API_KEY", Some((Kind::OpenAi, "sk-proj-0123456789"))),
                ("MISTRAL_API_KEY", Some((Kind::Mistral, "abc def"))),
                ("AZURE_OPENAI_API_KEY", Some((Kind::Azure, "x1"))),
                ("OPENAI_BASE_URL", None),
                ("SOMETHING", Some((Kind::Anthropic, "sk-ant-api03-abc"))),
                ("GROQ_API_KEY", None),
                ("DB", None),
                ("GOOGLE_API_KEY", Some((Kind::Gemini, "AIzaX"))),
            ],
        );
    }

    #[test]
    fn json_files() {
        check(
            r#"{"openai": "sk-proj-0123456789", "providers": {"groq": {"api_key": "gsk_1", "n": 1}}, "x": "y", "weir": "wk_1"}"#,
            &[("openai", Some((Kind::OpenAi, "sk-proj-0123456789"))), ("groq", Some((Kind::Groq, "gsk_1"))), ("x", None), ("weir", None)],
        );
        let why = parse("{\"openai\": sk-proj-0123456789").unwrap_err();
        assert!(why.contains("line 1") && !why.contains("sk-proj"), "{why}");
    }
}
