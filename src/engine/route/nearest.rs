//! Names that a caller may have meant.

use super::Caller;
use crate::engine::catalog::Catalog;
use crate::engine::policy;

/// Names offered at most.
const OFFERED: usize = 3;

/// Edits a name may be away. Further is another name.
const EDITS_MAX: usize = 6;

/// Longest name that is compared or shown, bytes: the asked name is the caller's to size, and comparing is quadratic.
const NAME_MAX: usize = 128;

/// The nearest models that this caller may use; a name that is closed to the caller is not told.
pub(super) fn models(catalog: &Catalog, caller: &Caller<'_>, asked: &str) -> Vec<Box<str>> {
    nearest(asked, policy::open_models(catalog, caller.tier, caller.scopes).map(|model| &*model.name))
}

/// The nearest levels that this caller may use; all of them when none is near, for levels are few.
pub(super) fn levels(catalog: &Catalog, caller: &Caller<'_>, asked: &str) -> Vec<Box<str>> {
    let open = || catalog.levels.values().filter(|level| policy::may_use_level(caller.tier, caller.scopes, level).is_ok());
    let near = nearest(asked, open().map(|level| &*level.name));
    if !near.is_empty() {
        return near;
    }
    let mut all: Vec<Box<str>> = open().map(|level| Box::from(&*level.name)).collect();
    all.sort();
    all.truncate(OFFERED);
    all
}

/// A caller's name for an error text: bounded.
pub(super) fn shown(asked: &str) -> Box<str> {
    let mut end = asked.len().min(NAME_MAX);
    while !asked.is_char_boundary(end) {
        end -= 1;
    }
    asked[..end].into()
}

fn nearest<'a>(asked: &str, names: impl Iterator<Item = &'a str>) -> Vec<Box<str>> {
    if asked.len() > NAME_MAX {
        return Vec::new();
    }
    let wanted = asked.to_ascii_lowercase();
    // A third of a name may be wrong.
    let most = (wanted.len() / 3).clamp(1, EDITS_MAX);
    let letters = letters(wanted.as_bytes());
    let mut found: Vec<(usize, &str)> = Vec::new();
    for name in names.filter(|name| name.len() <= NAME_MAX) {
        let last = last_part(name);
        // One edit changes the length by one and the set of letters by two at most. The part behind a vendor counts as well:
        // `gpt-4o` is meant by `openai/gpt-4o` and the other way round.
        let near = |name: &str| {
            let distance = name.len().abs_diff(wanted.len());
            (distance <= most && (self::letters(name.as_bytes()) ^ letters).count_ones() as usize <= 2 * most)
                .then(|| edits(wanted.as_bytes(), name.as_bytes(), most))
                .flatten()
        };
        let best = [near(name), (last.len() != name.len()).then(|| near(last)).flatten(), same_last_part(&wanted, last)];
        if let Some(distance) = best.into_iter().flatten().min() {
            found.push((distance, name));
        }
    }
    found.sort_unstable();
    found.truncate(OFFERED);
    found.into_iter().map(|(_, name)| name.into()).collect()
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

fn same_last_part(wanted: &str, last: &str) -> Option<usize> {
    let (_, wanted) = wanted.rsplit_once('/')?;
    wanted.eq_ignore_ascii_case(last).then_some(1)
}

/// Which letters and digits occur, as bits.
fn letters(name: &[u8]) -> u64 {
    name.iter().fold(0, |set, byte| set | 1 << (byte.to_ascii_lowercase() & 63))
}

/// Insertions, deletions and replacements from `a` to `b`, case aside. `None`: more than `most`.
fn edits(a: &[u8], b: &[u8], most: usize) -> Option<usize> {
    let mut row = [0usize; NAME_MAX + 1];
    for (at, cell) in row.iter_mut().enumerate() {
        *cell = at;
    }
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        let mut least = row[0];
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(!left.eq_ignore_ascii_case(right));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
            least = least.min(row[j + 1]);
        }
        if least > most {
            return None;
        }
    }
    (row[b.len()] <= most).then_some(row[b.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &str, expected: &[&str]) {
        let names =
            ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4", "llama-3.1-8b", "llama-3.1-70b", "openai/gpt-4.1", "a", &"x".repeat(NAME_MAX + 1)];
        let found = nearest(asked, names.into_iter());
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{asked}");
    }

    #[test]
    fn nearest_names() {
        check("gpt4o", &["gpt-4o"]);
        check("GPT-4o-Mini", &["gpt-4o-mini"]);
        check("gpt-4o-mino", &["gpt-4o-mini"]);
        check("llama-3.1-9b", &["llama-3.1-8b", "llama-3.1-70b"]);
        check("openai/gpt-4o", &["gpt-4o", "openai/gpt-4.1"]);
        check("gpt-4.1", &["openai/gpt-4.1", "gpt-4o"]);
        check("claude-sonnet4", &["claude-sonnet-4"]);
        check("entirely-else", &[]);
        check("", &["a"]);
        check(&"x".repeat(NAME_MAX + 1), &[]);
    }

    #[test]
    fn a_shown_name_is_bounded_at_a_character() {
        assert_eq!(shown("short").as_ref(), "short");
        assert_eq!(shown(&"é".repeat(100)).len(), 128);
        assert_eq!(shown(&format!("x{}", "é".repeat(100))).len(), 127);
    }
}
