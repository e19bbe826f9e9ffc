//! How an engine is opened: a JSON object, so that a newer library can take more.

use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use weir::config::load::Files;
use weir::engine::money::Usd;

/// How long a caller the node admitted is remembered for the times when the node is away, unless the settings say otherwise.
const REMEMBER_DEFAULT: Duration = Duration::from_secs(3600);
/// What a credit is worth unless the settings say otherwise: a tenth of a cent, as in `weir.toml`.
const CREDIT_DEFAULT: &str = "0.001";

/// An engine's settings.
#[derive(Debug)]
pub struct Settings {
    /// The two hot files.
    pub files: Files,
    /// What a credit is worth.
    pub credit: Usd,
    /// A node admits and settles.
    pub node: Option<Away>,
}

/// What happens while the node is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// Requests are refused.
    Refuse,
    /// The files decide, for callers the node admitted within this time; rows wait in a journal.
    ConfigOnly(Duration),
}

impl Settings {
    /// Reads `{"routing","prices","credit"?,"node"?,"when_node_is_away"?,"remember_s"?}`. Errors are for people.
    pub fn parse(text: &[u8]) -> Result<Settings, String> {
        let Ok(Value::Object(map)) = serde_json::from_slice(text) else { return Err("the settings must be a JSON object".into()) };
        const KNOWN: [&str; 6] = ["routing", "prices", "credit", "node", "when_node_is_away", "remember_s"];
        if let Some(unknown) = map.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(format!("unknown setting {unknown:?}; there are {}", KNOWN.join(", ")));
        }
        let path = |key: &str| match map.get(key) {
            Some(Value::String(path)) if !path.is_empty() => Ok(PathBuf::from(path)),
            _ => Err(format!("{key:?} must be the path of {key}.toml")),
        };
        let credit = match map.get("credit") {
            None => CREDIT_DEFAULT,
            Some(Value::String(text)) => text,
            Some(_) => return Err("\"credit\" must be dollars as a string, such as \"0.001\"".into()),
        };
        let credit = Usd::parse(credit)
            .ok()
            .filter(|credit| credit.0 > 0)
            .ok_or_else(|| format!("credit: {credit:?} is not an amount of dollars above 0"))?;
        let remember = map
            .get("remember_s")
            .map_or(Some(REMEMBER_DEFAULT), |value| value.as_u64().map(Duration::from_secs))
            .ok_or("\"remember_s\" must be seconds")?;
        let away = match map.get("when_node_is_away").map(|value| value.as_str().unwrap_or("")) {
            None | Some("refuse") => Away::Refuse,
            Some("config_only") => Away::ConfigOnly(remember),
            Some(_) => return Err("\"when_node_is_away\" must be \"refuse\" or \"config_only\"".into()),
        };
        let node = match map.get("node") {
            None | Some(Value::Bool(false) | Value::Null) => None,
            Some(Value::Bool(true)) => Some(away),
            Some(_) => return Err("\"node\" must be true or false".into()),
        };
        Ok(Settings { files: Files::new(path("routing")?, path("prices")?), credit, node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_or_explained() {
        let check = |text: &str, expected: Result<Option<Away>, &str>| match (Settings::parse(text.as_bytes()), expected) {
            (Ok(settings), Ok(node)) => assert_eq!(settings.node, node, "{text}"),
            (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
            (got, _) => panic!("{text}: {got:?}"),
        };
        check(r#"{"routing":"r","prices":"p"}"#, Ok(None));
        check(r#"{"routing":"r","prices":"p","node":true}"#, Ok(Some(Away::Refuse)));
        check(
            r#"{"routing":"r","prices":"p","node":true,"when_node_is_away":"config_only","remember_s":5}"#,
            Ok(Some(Away::ConfigOnly(Duration::from_secs(5)))),
        );
        check(r#"{"routing":"r","prices":"p","when_node_is_away":"open"}"#, Err("config_only"));
        check(r#"{"routing":"r"}"#, Err("prices"));
        check(r#"{"routing":"r","prices":"p","credit":"0"}"#, Err("above 0"));
        check(r#"{"routing":"r","prices":"p","x":1}"#, Err("unknown setting"));
        check("[]", Err("object"));
    }
}
