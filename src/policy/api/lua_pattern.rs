//! Lua's own string patterns (`string.find`, `match`, `gmatch`, `gsub`; Lua 5.1 reference manual, 5.4.1), on a budget.
//!
//! LuaJIT matches a pattern inside one instruction, where no hook can interrupt it, and patterns backtrack: `^%s*(.-)%s*$` takes
//! time by the square of its subject, which a caller may choose. Here every step is paid for, so that a match ends with its
//! handler's budget.

use super::super::vm::Budget;
use super::{Api, TEXT, append, extend};
use mlua::{Function, Lua, LuaString, MultiValue, Table, Value};

/// Captures in a pattern, as in Lua.
const CAPTURES_MAX: usize = 32;
/// Nested attempts, each a frame of the stack; LuaJIT has the same bound and error.
const DEPTH_MAX: usize = 200;
/// Steps between two payments.
const STEPS: u64 = 64;

/// What a capture holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// It has begun.
    Open,
    /// A place (`()`).
    Position,
    /// So many bytes.
    Bytes(usize),
}

struct Matcher<'a> {
    subject: &'a [u8],
    pattern: &'a [u8],
    captures: Vec<(usize, Held)>,
    depth: usize,
    steps: u64,
    budget: &'a Budget,
}

type Outcome<T> = mlua::Result<T>;

fn malformed<T>(what: &str) -> Outcome<T> {
    Err(mlua::Error::runtime(what))
}

impl<'a> Matcher<'a> {
    fn new(subject: &'a [u8], pattern: &'a [u8], budget: &'a Budget) -> Matcher<'a> {
        Matcher { subject, pattern, captures: Vec::new(), depth: 0, steps: 0, budget }
    }

    fn step(&mut self) -> Outcome<()> {
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS) { self.budget.spend(STEPS) } else { Ok(()) }
    }

    /// Matches from exactly `at` on. Returns the end.
    fn at(&mut self, at: usize) -> Outcome<Option<usize>> {
        self.captures.clear();
        self.run(at, 0)
    }

    fn run(&mut self, at: usize, pattern_at: usize) -> Outcome<Option<usize>> {
        if self.depth == DEPTH_MAX {
            return malformed("pattern too complex");
        }
        self.depth += 1;
        let outcome = self.rest(at, pattern_at);
        self.depth -= 1;
        outcome
    }

    fn rest(&mut self, mut at: usize, mut p: usize) -> Outcome<Option<usize>> {
        loop {
            self.step()?;
            let Some(byte) = self.pattern.get(p) else { return Ok(Some(at)) };
            match (byte, self.pattern.get(p + 1)) {
                (b'(', Some(b')')) => return self.open(at, p + 2, Held::Position),
                (b'(', _) => return self.open(at, p + 1, Held::Open),
                (b')', _) => return self.close(at, p + 1),
                (b'$', None) => return Ok((at == self.subject.len()).then_some(at)),
                (b'%', Some(b'b')) => match self.balanced(at, p + 2)? {
                    Some(end) => (at, p) = (end, p + 4),
                    None => return Ok(None),
                },
                (b'%', Some(b'f')) => match self.frontier(at, p + 2)? {
                    Some(next) => p = next,
                    None => return Ok(None),
                },
                (b'%', Some(digit)) if digit.is_ascii_digit() => match self.again(at, *digit)? {
                    Some(end) => (at, p) = (end, p + 2),
                    None => return Ok(None),
                },
                _ => {
                    let end = self.class_end(p)?;
                    match self.pattern.get(end) {
                        Some(b'?') => {
                            if self.single(at, p, end)
                                && let Some(found) = self.run(at + 1, end + 1)?
                            {
                                return Ok(Some(found));
                            }
                            p = end + 1;
                        }
                        Some(b'*') => return self.most(at, p, end, 0),
                        Some(b'+') => return self.most(at, p, end, 1),
                        Some(b'-') => return self.least(at, p, end),
                        _ if !self.single(at, p, end) => return Ok(None),
                        _ => (at, p) = (at + 1, end),
                    }
                }
            }
        }
    }

    fn most(&mut self, at: usize, p: usize, end: usize, least: usize) -> Outcome<Option<usize>> {
        let mut count = 0;
        while self.single(at + count, p, end) {
            self.step()?;
            count += 1;
        }
        loop {
            if count < least {
                return Ok(None);
            }
            if let Some(found) = self.run(at + count, end + 1)? {
                return Ok(Some(found));
            }
            match count.checked_sub(1) {
                Some(fewer) => count = fewer,
                None => return Ok(None),
            }
        }
    }

    fn least(&mut self, mut at: usize, p: usize, end: usize) -> Outcome<Option<usize>> {
        loop {
            if let Some(found) = self.run(at, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(at, p, end) {
                return Ok(None);
            }
            at += 1;
        }
    }

    fn open(&mut self, at: usize, p: usize, held: Held) -> Outcome<Option<usize>> {
        if self.captures.len() == CAPTURES_MAX {
            return malformed("too many captures");
        }
        let level = self.captures.len();
        self.captures.push((at, held));
        let found = self.run(at, p)?;
        if found.is_none() {
            self.captures.truncate(level);
        }
        Ok(found)
    }

    fn close(&mut self, at: usize, p: usize) -> Outcome<Option<usize>> {
        let Some(level) = self.captures.iter().rposition(|(_, held)| *held == Held::Open) else {
            return malformed("invalid pattern capture");
        };
        let start = self.captures[level].0;
        self.captures[level].1 = Held::Bytes(at - start);
        let found = self.run(at, p)?;
        if found.is_none() {
            self.captures[level].1 = Held::Open;
        }
        Ok(found)
    }

    /// `%bxy`
    fn balanced(&mut self, at: usize, p: usize) -> Outcome<Option<usize>> {
        let (Some(open), Some(close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else { return malformed("unbalanced pattern") };
        if self.subject.get(at) != Some(open) {
            return Ok(None);
        }
        let mut nested = 1;
        for end in at + 1..self.subject.len() {
            self.step()?;
            let byte = &self.subject[end];
            if byte == close {
                nested -= 1;
                if nested == 0 {
                    return Ok(Some(end + 1));
                }
            } else if byte == open {
                nested += 1;
            }
        }
        Ok(None)
    }

    /// `%f[set]`
    fn frontier(&self, at: usize, p: usize) -> Outcome<Option<usize>> {
        if self.pattern.get(p) != Some(&b'[') {
            return malformed("missing '[' after '%f' in pattern");
        }
        let end = self.class_end(p)?;
        let before = at.checked_sub(1).map_or(0, |before| self.subject[before]);
        let here = self.subject.get(at).copied().unwrap_or(0);
        Ok((!self.in_set(before, p, end) && self.in_set(here, p, end)).then_some(end))
    }

    /// `%1`: what a capture holds, once more.
    fn again(&self, at: usize, digit: u8) -> Outcome<Option<usize>> {
        let level = digit.wrapping_sub(b'1') as usize;
        let (start, length) = match self.captures.get(level) {
            Some((start, Held::Bytes(length))) => (start, length),
            // A place has no bytes that could come again.
            Some((_, Held::Position)) => return Ok(None),
            _ => return malformed("invalid capture index"),
        };
        let held = &self.subject[*start..start + length];
        Ok(self.subject[at..].starts_with(held).then_some(at + length))
    }

    /// Where the class that begins at `p` ends.
    fn class_end(&self, p: usize) -> Outcome<usize> {
        match self.pattern[p] {
            b'%' if p + 1 == self.pattern.len() => malformed("malformed pattern (ends with '%')"),
            b'%' => Ok(p + 2),
            b'[' => {
                let mut end = p + 1 + usize::from(self.pattern.get(p + 1) == Some(&b'^'));
                // A first bracket is one of the set.
                let mut is_first = true;
                loop {
                    match self.pattern.get(end) {
                        None => return malformed("malformed pattern (missing ']')"),
                        Some(b']') if !is_first => return Ok(end + 1),
                        Some(b'%') => end += 2,
                        Some(_) => end += 1,
                    }
                    is_first = false;
                }
            }
            _ => Ok(p + 1),
        }
    }

    /// Whether the byte at `at` is one of the class in the pattern from `p` to `end`.
    fn single(&self, at: usize, p: usize, end: usize) -> bool {
        let Some(byte) = self.subject.get(at) else { return false };
        match self.pattern[p] {
            b'.' => true,
            b'%' => in_class(*byte, self.pattern[p + 1]),
            b'[' => self.in_set(*byte, p, end),
            other => other == *byte,
        }
    }

    /// Whether a byte is in the set from its bracket at `p` to `end`.
    fn in_set(&self, byte: u8, p: usize, end: usize) -> bool {
        let is_negated = self.pattern.get(p + 1) == Some(&b'^');
        let inside = &self.pattern[p + 1 + usize::from(is_negated)..end - 1];
        let mut at = 0;
        while at < inside.len() {
            let (is_in, next) = match (inside[at], inside.get(at + 1), inside.get(at + 2)) {
                (b'%', Some(class), _) => (in_class(byte, *class), at + 2),
                (low, Some(b'-'), Some(high)) => ((low..=*high).contains(&byte), at + 3),
                (other, ..) => (other == byte, at + 1),
            };
            if is_in {
                return !is_negated;
            }
            at = next;
        }
        is_negated
    }

    /// A capture as a value; the first stands for the whole match where there is none.
    fn capture(&self, lua: &Lua, level: usize, from: usize, to: usize) -> Outcome<Value> {
        match self.captures.get(level) {
            None if level == 0 => lua.create_string(&self.subject[from..to]).map(Value::String),
            None => malformed("invalid capture index"),
            Some((start, Held::Position)) => Ok(Value::Number((start + 1) as f64)),
            Some((start, Held::Bytes(length))) => lua.create_string(&self.subject[*start..start + length]).map(Value::String),
            Some((_, Held::Open)) => malformed("unfinished capture"),
        }
    }

    /// All captures; without any the whole match where `is_whole_wanted`.
    fn captured(&self, lua: &Lua, from: usize, to: usize, is_whole_wanted: bool, out: &mut MultiValue) -> Outcome<()> {
        let count = if self.captures.is_empty() && is_whole_wanted { 1 } else { self.captures.len() };
        for level in 0..count {
            out.push_back(self.capture(lua, level, from, to)?);
        }
        Ok(())
    }
}

/// `%a` and the like; a capital says not.
fn in_class(byte: u8, class: u8) -> bool {
    let is_in = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        // Vertical tab is a space to C.
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    is_in != class.is_ascii_uppercase()
}

/// Puts `find`, `match`, `step` (of `gmatch`) and `gsub` into a table.
pub(super) fn install(api: &Api<'_>) -> mlua::Result<Table> {
    let lua = api.lua;
    let table = lua.create_table()?;
    type Find = (LuaString, LuaString, Option<f64>, Option<Value>);
    let budget = api.budget.clone();
    table.raw_set(
        "find",
        lua.create_function(move |lua, (subject, pattern, from, plain): Find| {
            let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
            let from = begin(from, subject.len());
            if plain.is_some_and(|plain| plain.as_boolean().unwrap_or(!plain.is_nil()))
                || !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
            {
                budget.spend((subject.len() - from) as u64 / super::BYTES_PER_INSTRUCTION)?;
                let found = memchr::memmem::find(&subject[from..], &pattern).map(|at| from + at);
                return Ok(found.map_or_else(nothing, |at| span(at, at + pattern.len())));
            }
            let anchored = pattern.first() == Some(&b'^');
            let mut matcher = Matcher::new(&subject, &pattern[usize::from(anchored)..], &budget);
            let Some((from, to)) = search(&mut matcher, from, anchored)? else { return Ok(nothing()) };
            let mut out = span(from, to);
            matcher.captured(lua, from, to, false, &mut out)?;
            Ok(out)
        })?,
    )?;
    let budget = api.budget.clone();
    table.raw_set(
        "match",
        lua.create_function(move |lua, (subject, pattern, from): (LuaString, LuaString, Option<f64>)| {
            let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
            let anchored = pattern.first() == Some(&b'^');
            let mut matcher = Matcher::new(&subject, &pattern[usize::from(anchored)..], &budget);
            let Some((from, to)) = search(&mut matcher, begin(from, subject.len()), anchored)? else { return Ok(nothing()) };
            let mut out = MultiValue::new();
            matcher.captured(lua, from, to, true, &mut out)?;
            Ok(out)
        })?,
    )?;
    let budget = api.budget.clone();
    // The next match from a place (from zero): where to go on, and its captures.
    table.raw_set(
        "step",
        lua.create_function(move |lua, (subject, pattern, from): (LuaString, LuaString, f64)| {
            let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
            let from = from as usize;
            if from > subject.len() {
                return Ok(nothing());
            }
            let mut matcher = Matcher::new(&subject, &pattern, &budget);
            let Some((from, to)) = search(&mut matcher, from, false)? else { return Ok(nothing()) };
            let mut out = MultiValue::new();
            out.push_back(Value::Number((to + usize::from(to == from)) as f64));
            matcher.captured(lua, from, to, true, &mut out)?;
            Ok(out)
        })?,
    )?;
    let budget = api.budget.clone();
    type Gsub = (LuaString, LuaString, Value, Option<f64>);
    table.raw_set(
        "gsub",
        lua.create_function(move |lua, (subject, pattern, replacement, most): Gsub| {
            let replacement = Replacement::of(replacement)?;
            let (text, count) = replace(lua, &budget, &subject.as_bytes(), &pattern.as_bytes(), &replacement, most)?;
            Ok((lua.create_string(text)?, count))
        })?,
    )?;
    Ok(table)
}

fn nothing() -> MultiValue {
    MultiValue::from_iter([Value::Nil])
}

/// Places as Lua counts them.
fn span(from: usize, to: usize) -> MultiValue {
    MultiValue::from_iter([Value::Number((from + 1) as f64), Value::Number(to as f64)])
}

/// Where to begin: from one, a negative place from the end.
fn begin(from: Option<f64>, length: usize) -> usize {
    let from = from.unwrap_or(1.0);
    let from = if from < 0.0 { length as f64 + from } else { from - 1.0 };
    (from.max(0.0) as usize).min(length)
}

/// The first match from `from` on.
fn search(matcher: &mut Matcher<'_>, from: usize, anchored: bool) -> Outcome<Option<(usize, usize)>> {
    for at in from..=matcher.subject.len() {
        if let Some(end) = matcher.at(at)? {
            return Ok(Some((at, end)));
        }
        if anchored {
            break;
        }
    }
    Ok(None)
}

/// What `gsub` puts in the place of a match.
enum Replacement {
    Text(LuaString),
    Table(Table),
    Function(Function),
}

impl Replacement {
    fn of(value: Value) -> Outcome<Replacement> {
        match value {
            Value::String(text) => Ok(Replacement::Text(text)),
            Value::Table(table) => Ok(Replacement::Table(table)),
            Value::Function(function) => Ok(Replacement::Function(function)),
            other => malformed(&format!("bad argument #3 to 'gsub' (string/function/table expected, got {})", other.type_name())),
        }
    }

    /// Appends what stands for a match.
    fn put(&self, lua: &Lua, matcher: &Matcher<'_>, from: usize, to: usize, out: &mut Vec<u8>) -> Outcome<()> {
        let value = match self {
            Replacement::Text(text) => return template(lua, &text.as_bytes(), matcher, from, to, out),
            Replacement::Table(table) => table.get::<Value>(matcher.capture(lua, 0, from, to)?)?,
            Replacement::Function(function) => {
                let mut arguments = MultiValue::new();
                matcher.captured(lua, from, to, true, &mut arguments)?;
                matcher.budget.nested(|| function.call::<Value>(arguments))?
            }
        };
        match &value {
            Value::Nil | Value::Boolean(false) => extend(&matcher.subject[from..to], TEXT, out)?,
            Value::String(_) | Value::Integer(_) | Value::Number(_) => append(&value, TEXT, out)?,
            other => return malformed(&format!("invalid replacement value (a {})", other.type_name())),
        }
        Ok(())
    }
}

/// `%0` is the match, `%1` a capture, `%%` a percent sign.
fn template(lua: &Lua, text: &[u8], matcher: &Matcher<'_>, from: usize, to: usize, out: &mut Vec<u8>) -> Outcome<()> {
    let mut at = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            (b'%', Some(b'0')) => extend(&matcher.subject[from..to], TEXT, out)?,
            (b'%', Some(digit)) if digit.is_ascii_digit() => {
                append(&matcher.capture(lua, (digit - b'1') as usize, from, to)?, TEXT, out)?;
            }
            (b'%', Some(other)) => extend(&[*other], TEXT, out)?,
            (byte, _) => {
                extend(&[byte], TEXT, out)?;
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    Ok(())
}

fn replace(
    lua: &Lua,
    budget: &Budget,
    subject: &[u8],
    pattern: &[u8],
    replacement: &Replacement,
    most: Option<f64>,
) -> Outcome<(Vec<u8>, f64)> {
    let anchored = pattern.first() == Some(&b'^');
    let most = most.unwrap_or(f64::INFINITY);
    let mut matcher = Matcher::new(subject, &pattern[usize::from(anchored)..], budget);
    let (mut out, mut count, mut at) = (Vec::with_capacity(subject.len()), 0.0, 0);
    while count < most {
        let found = matcher.at(at)?;
        if let Some(end) = found {
            count += 1.0;
            replacement.put(lua, &matcher, at, end, &mut out)?;
        }
        match found {
            Some(end) if end > at => at = end,
            _ if at < subject.len() => {
                extend(&subject[at..=at], TEXT, &mut out)?;
                at += 1;
            }
            _ => break,
        }
        if anchored {
            break;
        }
    }
    extend(&subject[at..], TEXT, &mut out)?;
    Ok((out, count))
}

#[cfg(test)]
mod tests {
    use super::super::super::vm::Budget;
    use super::{Api, install};
    use mlua::{Lua, MultiValue};
    use std::rc::Rc;

    /// LuaJIT's own functions and ours, over pieces of patterns put together in every way.
    #[test]
    fn matches_are_those_of_lua_itself() {
        let lua = Lua::new();
        let budget = Rc::<Budget>::default();
        let ours = install(&Api { lua: &lua, slot: &Rc::default(), budget: &budget }).unwrap();
        let own = lua.globals().get::<mlua::Table>("string").unwrap();
        let pieces = [
            "a", "%a", "[^b]", "[a-c]", ".", "%s", "(", ")", "()", "%1", "^", "$", "*", "+", "-", "?", "%b()", "%f[%w]", "%", "]", "[",
            "%d", "%W", "[%]x-]",
        ];
        let subjects = ["", "a", "aab", "ab ab", "(a(b)c) x", "key = value", "  a1 b2  ", "a\0b]-"];
        let mut compared = 0;
        let told = |result: mlua::Result<MultiValue>| match result {
            Ok(values) => values.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(","),
            Err(_) => "error".to_string(),
        };
        let mut check = |pattern: &str| {
            budget.start();
            for subject in subjects {
                for name in ["find", "match"] {
                    let call =
                        |table: &mlua::Table| told(table.get::<mlua::Function>(name).unwrap().call::<MultiValue>((subject, pattern)));
                    assert_eq!(plain(&call(&ours)), plain(&call(&own)), "{name}({subject:?}, {pattern:?})");
                }
                let call =
                    |table: &mlua::Table| told(table.get::<mlua::Function>("gsub").unwrap().call::<MultiValue>((subject, pattern, "<%0>")));
                assert_eq!(plain(&call(&ours)), plain(&call(&own)), "gsub({subject:?}, {pattern:?})");
                compared += 1;
            }
        };
        for one in pieces {
            check(one);
            for two in pieces {
                check(&format!("{one}{two}"));
                for three in pieces {
                    check(&format!("{one}{two}{three}"));
                    if one == "(" {
                        check(&format!("{one}{two}{three})%1"));
                    }
                }
            }
        }
        assert!(compared > 100_000, "{compared}");
    }

    /// The two hold whole numbers differently.
    fn plain(told: &str) -> String {
        told.replace("Integer(", "Number(").replace(".0)", ")")
    }
}
