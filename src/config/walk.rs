//! Reads spanned TOML tables field by field, collecting every problem with its line and dotted key.
//!
//! serde would stop at the first problem. Here a reader hands out each field as the type it should have; what is wrong is noted
//! and reading goes on, so that one load reports everything. [`Table::finish`] reports the keys nobody asked for.
//!
//! ```ignore
//! let file = File::new("routing.toml", text);
//! let Some(document) = file.parse() else { return Err(file.into_problems()) };
//! let mut root = file.root(&document);
//! for (name, mut provider) in root.tables("provider") {
//!     let priority = provider.integer("priority").unwrap_or(100);
//!     provider.finish();
//! }
//! root.finish();
//! let problems = file.into_problems();
//! ```
//!
//! A value is never quoted in a problem where it could be a secret.

use super::pace;
use super::problem::Problem;
use crate::engine::catalog::SecretRef;
use crate::engine::money::{BadAmount, Credits, Factor, Usd};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One file being read, and its problems so far.
#[derive(Debug)]
pub struct File<'t> {
    name: &'t str,
    text: &'t str,
    line_ends: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

/// A reader over one table. Every method that takes a key marks it as known.
#[derive(Debug)]
#[must_use = "finish() reports unknown keys"]
pub struct Table<'a> {
    file: &'a File<'a>,
    path: String,
    at: usize,
    entries: &'a DeTable<'a>,
    known: Vec<&'a str>,
}

impl<'t> File<'t> {
    /// A file by the name an operator knows it by.
    pub fn new(name: &'t str, text: &'t str) -> File<'t> {
        File { name, text, line_ends: memchr::memchr_iter(b'\n', text.as_bytes()).collect(), problems: RefCell::default() }
    }

    /// The document, or `None` after noting every syntax error.
    pub fn parse(&self) -> Option<Spanned<DeTable<'t>>> {
        let (document, errors) = pace::unbroken(|| DeTable::parse_recoverable(self.text));
        for error in &errors {
            let what = format!("not TOML: {}", error.message());
            self.problem_at(error.span().map_or(0, |span| span.start), String::new(), what);
        }
        if errors.is_empty() {
            return Some(document);
        }
        Self::close(document);
        None
    }

    /// A reader over the whole document.
    pub fn root<'a>(&'a self, document: &'a Spanned<DeTable<'t>>) -> Table<'a> {
        Table { file: self, path: String::new(), at: 0, entries: document.get_ref(), known: Vec::new() }
    }

    /// Frees a document that has been read.
    pub fn close(document: Spanned<DeTable<'t>>) {
        for (_, table) in document.into_inner() {
            match table.into_inner() {
                DeValue::Table(entries) => pace::free(entries),
                other => drop(other),
            }
        }
    }

    /// Notes a problem with the file as a whole.
    pub fn problem(&self, what: impl Into<String>) {
        self.problem_at(0, String::new(), what.into());
    }

    /// Every problem, in the order of the file's lines.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    fn problem_at(&self, offset: usize, key: String, what: String) {
        let line = self.line_ends.partition_point(|end| *end < offset) + 1;
        self.problems.borrow_mut().push(Problem { file: self.name.to_owned(), line, key, what });
    }
}

impl<'a> Table<'a> {
    /// The dotted key of this table.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Every key in it, in alphabetical order (for tables whose keys an operator chooses).
    pub fn names(&self) -> Vec<&'a str> {
        self.entries.keys().map(|name| name.get_ref().as_ref()).collect()
    }

    /// Whether the key is there, whatever its type. Marks it as known.
    pub fn has(&mut self, key: &'a str) -> bool {
        self.known.push(key);
        self.entries.contains_key(key)
    }

    /// Whether the value is a string, an integer, … as TOML calls it; `None`: not there.
    pub fn type_of(&self, key: &str) -> Option<&'static str> {
        self.entries.get(key).map(|value| value.get_ref().type_str())
    }

    /// Notes that a key is missing, unless it is there. `example` shows what to write.
    pub fn require(&mut self, key: &'a str, example: &str) {
        if !self.has(key) {
            self.problem(key, format!("missing; write {key} = {example}"));
        }
    }

    /// The line of the key (or of the table when the key is not there), from 1.
    pub fn line_of(&self, key: &str) -> usize {
        let offset = self.offset_of(key);
        self.file.line_ends.partition_point(|end| *end < offset) + 1
    }

    /// The dotted key of `key` in this table.
    pub fn dotted(&self, key: &str) -> String {
        dotted(&self.path, key)
    }

    /// Notes a problem with a key; with an empty key, with the table itself.
    pub fn problem(&self, key: &str, what: impl Into<String>) {
        let dotted = if key.is_empty() { self.path.clone() } else { self.dotted(key) };
        self.file.problem_at(self.offset_of(key), dotted, what.into());
    }

    /// A string.
    pub fn string(&mut self, key: &'a str) -> Option<&'a str> {
        match self.value(key)? {
            DeValue::String(text) => Some(text.as_ref()),
            other => self.wrong(key, other, "a string in quotes"),
        }
    }

    /// An array of strings.
    pub fn strings(&mut self, key: &'a str) -> Option<Vec<&'a str>> {
        let array = match self.value(key)? {
            DeValue::Array(array) => array,
            other => return self.wrong(key, other, "an array of strings"),
        };
        let strings: Vec<&str> = array.iter().filter_map(|item| item.get_ref().as_str()).collect();
        if strings.len() == array.len() {
            return Some(strings);
        }
        self.problem(key, "must be an array of strings; something else is in it");
        None
    }

    /// Whether it is set.
    pub fn flag(&mut self, key: &'a str) -> Option<bool> {
        match self.value(key)? {
            DeValue::Boolean(flag) => Some(*flag),
            other => self.wrong(key, other, "true or false, without quotes"),
        }
    }

    /// A whole number, not negative.
    pub fn integer(&mut self, key: &'a str) -> Option<u64> {
        self.integer_in(key, 0..=u64::MAX)
    }

    /// A whole number inside bounds.
    pub fn integer_in(&mut self, key: &'a str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.value(key)? {
            DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            other => return self.wrong(key, other, "a whole number without quotes"),
        };
        let inside = number.filter(|number| bounds.contains(number));
        if inside.is_none() {
            let what = match (*bounds.start(), *bounds.end()) {
                (0, u64::MAX) => "must be a whole number, not negative".to_owned(),
                (least, u64::MAX) => format!("must be at least {least}"),
                (least, most) => format!("must be between {least} and {most}"),
            };
            self.problem(key, what);
        }
        inside
    }

    /// A length of time with its unit: `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"90d"`, or several, `"1m30s"`.
    pub fn duration(&mut self, key: &'a str) -> Option<Duration> {
        const EXPECTED: &str = "a time with its unit, such as \"30s\" (ms, s, m, h or d)";
        self.text_as(key, EXPECTED, duration)
    }

    /// A size in bytes with its unit: `"64MiB"`, `"1GiB"`, `"512KiB"`, `"10MB"`, `"100B"`.
    pub fn size(&mut self, key: &'a str) -> Option<u64> {
        const EXPECTED: &str = "a size with its unit, such as \"64MiB\" (B, KiB, MiB, GiB, KB, MB or GB)";
        self.text_as(key, EXPECTED, size)
    }

    /// Dollars, not negative, as a decimal string.
    pub fn usd(&mut self, key: &'a str) -> Option<Usd> {
        self.amount(key, Usd::parse, |amount| amount.0 < 0)
    }

    /// Credits, not negative, as a decimal string.
    pub fn credits(&mut self, key: &'a str) -> Option<Credits> {
        self.amount(key, Credits::parse, |amount| amount.0 < 0)
    }

    /// A factor, not negative, as a decimal string.
    pub fn factor(&mut self, key: &'a str) -> Option<Factor> {
        self.amount(key, Factor::parse, |factor| factor.digits < 0)
    }

    /// A reference to a secret. A literal is refused and never quoted.
    pub fn secret(&mut self, key: &'a str) -> Option<SecretRef> {
        let text = self.string(key)?;
        let reference = secret(text);
        if reference.is_none() {
            self.problem(key, "a secret is never written here: refer to it as \"env:NAME\", \"file:PATH\" or \"vault:NAME\"");
        }
        reference
    }

    /// One of several words, each with what it stands for.
    pub fn choice<T: Copy>(&mut self, key: &'a str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let hint = nearest(text, words.iter().copied()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            self.problem(key, format!("{text:?} is not one of {}{hint}", words.join(", ")));
        }
        chosen
    }

    /// A table (`[key]` or `key = { … }`).
    pub fn table(&mut self, key: &'a str) -> Option<Table<'a>> {
        match self.value(key)? {
            DeValue::Table(entries) => Some(self.below(self.offset_of(key), self.dotted(key), entries)),
            other => self.wrong(key, other, "a table"),
        }
    }

    /// A table of tables with names an operator chooses (`[key.name]`), by name in alphabetical order. Empty when not there.
    pub fn tables(&mut self, key: &'a str) -> Vec<(&'a str, Table<'a>)> {
        let Some(mut outer) = self.table(key) else { return Vec::new() };
        let names = outer.names();
        let inner = |name| {
            pace::rest();
            outer.table(name).map(|inner| (name, inner))
        };
        names.into_iter().filter_map(inner).collect()
    }

    /// An array of tables (`key = [ { … }, … ]` or `[[key]]`).
    pub fn array(&mut self, key: &'a str) -> Option<Vec<Table<'a>>> {
        let array = match self.value(key)? {
            DeValue::Array(array) => array,
            other => return self.wrong(key, other, "an array of tables, such as [ { … } ]"),
        };
        let mut tables = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", self.dotted(key));
            match item.get_ref() {
                DeValue::Table(entries) => tables.push(self.below(item.span().start, path, entries)),
                other => {
                    self.file.problem_at(item.span().start, path, format!("must be a table {{ … }}, not {}", a(other.type_str())));
                }
            }
        }
        Some(tables)
    }

    /// Reports every key nobody asked for, with the nearest known name.
    pub fn finish(self) {
        for name in self.entries.keys() {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let hint = match nearest(key, self.known.iter().copied()) {
                Some(near) => format!("; did you mean {near}?"),
                None if self.known.is_empty() => String::new(),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("; known here: {}", known.join(", "))
                }
            };
            self.problem(key, format!("unknown key{hint}"));
        }
    }

    fn value(&mut self, key: &'a str) -> Option<&'a DeValue<'a>> {
        self.known.push(key);
        self.entries.get(key).map(|value| value.get_ref())
    }

    fn below(&self, at: usize, path: String, entries: &'a DeTable<'a>) -> Table<'a> {
        Table { file: self.file, path, at, entries, known: Vec::new() }
    }

    fn offset_of(&self, key: &str) -> usize {
        self.entries.get_key_value(key).map_or(self.at, |(name, _)| name.span().start)
    }

    fn wrong<T>(&self, key: &str, found: &DeValue<'_>, expected: &str) -> Option<T> {
        self.problem(key, format!("must be {expected}, not {}", a(found.type_str())));
        None
    }

    fn text_as<T>(&mut self, key: &'a str, expected: &str, read: fn(&str) -> Option<T>) -> Option<T> {
        let read = match self.value(key)? {
            DeValue::String(text) => read(text),
            other => return self.wrong(key, other, expected),
        };
        if read.is_none() {
            self.problem(key, format!("must be {expected}"));
        }
        read
    }

    fn amount<T: Copy>(&mut self, key: &'a str, parse: fn(&str) -> Result<T, BadAmount>, negative: fn(T) -> bool) -> Option<T> {
        let parsed = match self.value(key)? {
            DeValue::String(text) => parse(text),
            DeValue::Integer(_) | DeValue::Float(_) => {
                self.problem(
                    key,
                    "an amount is a decimal string in quotes, such as \"0.15\": a bare number may be read as a float, which is not exact",
                );
                return None;
            }
            other => return self.wrong(key, other, "an amount as a decimal string, such as \"0.15\""),
        };
        match parsed {
            Ok(amount) if negative(amount) => self.problem(key, "must not be negative"),
            Ok(amount) => return Some(amount),
            Err(reason) => self.problem(key, reason.to_string()),
        }
        None
    }
}

/// The line of a key, given with the tables above it from the root, and the key as problems name it: for what shows only after the
/// file was read. A key that is not there has the line of the nearest table that is.
pub fn place(text: &str, keys: &[&str]) -> (usize, String) {
    let (document, _) = DeTable::parse_recoverable(text);
    let (mut entries, mut at) = (Some(document.get_ref()), 0);
    for key in keys {
        let Some((name, value)) = entries.and_then(|entries| entries.get_key_value(*key)) else { break };
        at = name.span().start;
        entries = value.get_ref().as_table();
    }
    let line = 1 + memchr::memchr_iter(b'\n', &text.as_bytes()[..at]).count();
    (line, keys.iter().fold(String::new(), |path, key| dotted(&path, key)))
}

/// The nearest of `names` to what was written, if it is near enough to be a slip of the hand.
pub fn nearest<'n>(written: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    /// Longer words are no slips, and the distance is quadratic.
    const MAX_CHARS: usize = 100;
    let written_chars: Vec<char> = written.chars().take(MAX_CHARS + 1).collect();
    if written_chars.len() > MAX_CHARS {
        return None;
    }
    let allowed = 1 + written_chars.len() / 4;
    names
        .filter(|name| name.len() <= 4 * MAX_CHARS)
        .map(|name| (distance(&written_chars, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// A reference to a secret: `env:NAME`, `file:PATH` or `vault:NAME`.
pub fn secret(text: &str) -> Option<SecretRef> {
    let (scheme, name) = text.split_once(':')?;
    if name.is_empty() || name.trim() != name {
        return None;
    }
    match scheme {
        "env" if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => Some(SecretRef::Env(name.into())),
        "file" => Some(SecretRef::File(name.into())),
        "vault" => Some(SecretRef::Vault(name.into())),
        _ => None,
    }
}

/// A length of time with its units, `"1m30s"`. `None`: no unit, an unknown one, or too long for milliseconds in 64 bits.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total_ms = 0u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|char: char| char.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let unit_length = after.find(|char: char| char.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total_ms = total_ms.checked_add(number.parse::<u64>().ok()?.checked_mul(unit_ms)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total_ms))
}

/// A size with its unit, `"64MiB"`. `None`: no unit, an unknown one, or too large for 64 bits.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|char: char| char.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// `path.key`, the key quoted when TOML would ask for quotes.
fn dotted(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    match (path.is_empty(), bare) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{key:?}"),
        (false, true) => format!("{path}.{key}"),
        (false, false) => format!("{path}.{key:?}"),
    }
}

/// The word with its article.
fn a(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {type_name}")
}

/// Insertions, deletions, replacements and swaps of neighbours between the two.
fn distance(written: &[char], name: &str) -> usize {
    let name: Vec<char> = name.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=name.len()).collect();
    for (row, char) in written.iter().enumerate() {
        let mut current = Vec::with_capacity(last.len());
        current.push(row + 1);
        for (column, other) in name.iter().enumerate() {
            let replaced = last[column] + usize::from(char != other);
            let mut least = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *char == name[column - 1] && written[row - 1] == *other {
                least = least.min(before_last[column - 1] + 1);
            }
            current.push(least);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl FnOnce(&mut Table<'_>)) -> Vec<String> {
        let file = File::new("f.toml", text);
        if let Some(document) = file.parse() {
            let mut root = file.root(&document);
            read(&mut root);
            root.finish();
        }
        file.into_problems().iter().map(Problem::to_string).collect()
    }

    #[test]
    fn every_problem_has_its_line_and_key() {
        let text =
            "a = 1\n[provider.\"x/y\"]\nkind = \"opnai\"\nprioritty = 3\nkey = \"sk-literal\"\n\n[[list]]\nn = -1\n[[list]]\nn = 'x'\n";
        let found = problems(text, |root| {
            assert_eq!(root.integer("a"), Some(1));
            for (name, mut provider) in root.tables("provider") {
                assert_eq!(name, "x/y");
                assert_eq!(provider.choice("kind", &[("openai", 1), ("ollama", 2)]), None);
                assert_eq!(provider.integer("priority"), None);
                assert_eq!(provider.secret("key"), None);
                provider.require("base_url", "\"http://…\"");
                provider.finish();
            }
            for mut item in root.array("list").unwrap() {
                assert_eq!(item.integer("n"), None);
                item.finish();
            }
        });
        assert_eq!(
            found,
            [
                "f.toml:2: provider.\"x/y\".base_url: missing; write base_url = \"http://…\"",
                "f.toml:3: provider.\"x/y\".kind: \"opnai\" is not one of openai, ollama; did you mean \"openai\"?",
                "f.toml:4: provider.\"x/y\".prioritty: unknown key; did you mean priority?",
                "f.toml:5: provider.\"x/y\".key: a secret is never written here: refer to it as \"env:NAME\", \"file:PATH\" or \"vault:NAME\"",
                "f.toml:8: list[0].n: must be a whole number, not negative",
                "f.toml:10: list[1].n: must be a whole number without quotes, not a string",
            ]
        );
    }

    #[test]
    fn a_key_is_found_again() {
        let text = "[listen.tls]\ncert = 'c'\n\n[provider.\"x/y\"]\nkind = 'openai'\nca = 'a'\n";
        let check = |keys: &[&str], line: usize, key: &str| assert_eq!(place(text, keys), (line, key.to_owned()), "{keys:?}");
        check(&["listen", "tls"], 1, "listen.tls");
        check(&["listen", "tls", "cert"], 2, "listen.tls.cert");
        check(&["listen", "tls", "key"], 1, "listen.tls.key");
        check(&["provider", "x/y", "ca"], 6, "provider.\"x/y\".ca");
        check(&["provider", "x/y", "kind", "deeper"], 5, "provider.\"x/y\".kind.deeper");
        check(&["nothing"], 1, "nothing");
        assert_eq!(place("", &["a"]), (1, "a".to_owned()));
    }

    #[test]
    fn every_syntax_error_is_reported_without_quoting_the_line() {
        let found = problems("a = \nkey = \"sk-secret\nb = 1\n", |_| ());
        assert!(found.len() >= 2 && found[0].starts_with("f.toml:1: not TOML: "), "{found:?}");
        assert!(!found.concat().contains("sk-secret"), "{found:?}");
    }

    #[test]
    fn amounts_must_be_quoted() {
        let found = problems("a = 0.15\nb = 1\nc = \"1e-6\"\nd = \"-1\"\ne = \"0.15\"\nf = []\n", |root| {
            for key in ["a", "b", "c", "d", "f"] {
                assert_eq!(root.usd(key), None);
            }
            assert_eq!(root.usd("e"), Some(Usd(150_000_000_000)));
        });
        assert_eq!(found.len(), 5);
        assert!(found[0].contains("decimal string in quotes") && found[2].contains("without an exponent"), "{found:?}");
    }

    #[test]
    fn values_of_each_type() {
        let text = "s = 'x'\nl = ['a', 'b']\nf = true\nd = '1m30s'\nz = '64MiB'\nc = '1.5'\nm = '0.6'\nk = 'env:KEY'\nt = { q = 1 }\n";
        let found = problems(text, |root| {
            assert_eq!(root.string("s"), Some("x"));
            assert_eq!(root.strings("l"), Some(vec!["a", "b"]));
            assert_eq!(root.flag("f"), Some(true));
            assert_eq!(root.duration("d"), Some(Duration::from_secs(90)));
            assert_eq!(root.size("z"), Some(64 << 20));
            assert_eq!(root.credits("c"), Some(Credits(1_500_000_000)));
            assert_eq!(root.factor("m"), Some(Factor { digits: 6, scale: 1 }));
            assert_eq!(root.secret("k"), Some(SecretRef::Env("KEY".into())));
            let mut table = root.table("t").unwrap();
            assert_eq!(table.integer_in("q", 1..=9), Some(1));
            assert_eq!((table.path(), table.line_of("q")), ("t", 9));
            table.finish();
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn units_are_asked_for() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(duration(text).map(|time| time.as_millis() as u64), expected, "{text}");
        check("250ms", Some(250));
        check("30s", Some(30_000));
        check("90d", Some(7_776_000_000));
        check("2h5m", Some(7_500_000));
        check("0s", Some(0));
        check("30", None);
        check("", None);
        check("s", None);
        check("1.5s", None);
        check("-1s", None);
        check("99999999999999999999s", None);
        check("18446744073709551615d", None);
        let check = |text: &str, expected: Option<u64>| assert_eq!(size(text), expected, "{text}");
        check("1GiB", Some(1 << 30));
        check("10MB", Some(10_000_000));
        check("100B", Some(100));
        check("100", None);
        check("MiB", None);
        check("18446744073709551615GiB", None);
    }

    #[test]
    fn only_a_slip_of_the_hand_is_corrected() {
        let names = ["input", "output", "cached_input", "per_second"];
        let check = |written: &str, expected: Option<&str>| assert_eq!(nearest(written, names.into_iter()), expected, "{written}");
        check("inptu", Some("input"));
        check("ouput", Some("output"));
        check("cache_input", Some("cached_input"));
        check("banana", None);
        check("", None);
        check(&"x".repeat(10_000), None);
    }

    #[test]
    fn references_to_secrets() {
        let check = |text: &str, known: bool| assert_eq!(secret(text).is_some(), known, "{text}");
        check("env:OPENAI_API_KEY", true);
        check("file:/run/secrets/key", true);
        check("vault:openai", true);
        check("env:", false);
        check("env:A B", false);
        check("sk-abc", false);
        check("https://x", false);
    }
}
