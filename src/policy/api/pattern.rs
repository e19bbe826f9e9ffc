//! `ngx.re` on linear-time automata.

use super::super::vm::Budget;
use super::{Api, TEXT, append, extend};
use mlua::{Function, Lua, LuaString, Table, Value};
use regex_automata::meta::{Config, Regex};
use regex_automata::util::{captures::Captures, syntax};
use regex_automata::{Anchored, Input};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Compiled patterns a machine keeps; then it forgets them all: a policy that makes patterns from requests would fill memory.
const PATTERNS_MAX: usize = 256;
/// A pattern's automaton at most, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Bytes of a subject that cost as much as one instruction.
const BYTES_PER_INSTRUCTION: u64 = 2;

/// A pattern and what its options say.
struct Pattern {
    regex: Regex,
    anchored: Anchored,
}

type Kept = Rc<RefCell<HashMap<(Box<[u8]>, Box<[u8]>), Rc<Pattern>>>>;

/// What every function of `ngx.re` does first.
#[derive(Clone)]
struct Patterns {
    kept: Kept,
    budget: Rc<Budget>,
}

impl Patterns {
    fn of(&self, pattern: &LuaString, options: Option<&LuaString>) -> Result<Rc<Pattern>, String> {
        let key = (pattern.as_bytes().as_ref().into(), options.map(|options| options.as_bytes().as_ref().into()).unwrap_or_default());
        if let Some(found) = self.kept.borrow().get(&key) {
            return Ok(found.clone());
        }
        let compiled = Rc::new(compile(&key.0, &key.1)?);
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= PATTERNS_MAX {
            kept.clear();
        }
        kept.insert(key, compiled.clone());
        Ok(compiled)
    }

    /// Finds in `subject` from `from` on (bytes, from zero).
    fn find(&self, pattern: &Pattern, subject: &[u8], from: usize) -> mlua::Result<Option<Captures>> {
        self.budget.spend((subject.len() - from.min(subject.len())) as u64 / BYTES_PER_INSTRUCTION)?;
        let mut captures = pattern.regex.create_captures();
        if from <= subject.len() {
            pattern.regex.captures(Input::new(subject).anchored(pattern.anchored).range(from..), &mut captures);
        }
        Ok(captures.is_match().then_some(captures))
    }
}

fn compile(pattern: &[u8], options: &[u8]) -> Result<Pattern, String> {
    let pattern = std::str::from_utf8(pattern).map_err(|_| "the pattern is not UTF-8".to_string())?;
    let mut config = syntax::Config::new().utf8(false).unicode(false);
    let mut anchored = Anchored::No;
    for option in options {
        config = match option {
            b'i' => config.case_insensitive(true),
            b'm' => config.multi_line(true),
            b's' => config.dot_matches_new_line(true),
            b'x' => config.ignore_whitespace(true),
            b'u' | b'U' => config.unicode(true),
            b'a' => {
                anchored = Anchored::Yes;
                config
            }
            // Compile once, compile to code, match like a DFA: what is here is compiled once in any case.
            b'o' | b'j' | b'd' => config,
            other => return Err(format!("the option {} is not offered to policies", *other as char)),
        };
    }
    let limits = Config::new().utf8_empty(false).nfa_size_limit(Some(PATTERN_BYTES_MAX));
    let regex = Regex::builder().syntax(config).configure(limits).build(pattern).map_err(|error| {
        let why = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
        format!("the pattern cannot be used (look-around and back-references are not offered): {}", why.lines().last().unwrap_or_default())
    })?;
    Ok(Pattern { regex, anchored })
}

pub(super) fn install(api: &Api<'_>) -> mlua::Result<Table> {
    let lua = api.lua;
    let re = lua.create_table()?;
    let patterns = Patterns { kept: Kept::default(), budget: api.budget.clone() };
    let with = patterns.clone();
    type Match = (LuaString, LuaString, Option<LuaString>, Option<Table>, Option<Table>);
    re.raw_set(
        "match",
        lua.create_function(move |lua, (subject, pattern, options, ctx, result): Match| {
            let pattern = match with.of(&pattern, options.as_ref()) {
                Ok(pattern) => pattern,
                Err(what) => return Ok((Value::Nil, Some(what))),
            };
            let subject = subject.as_bytes();
            let Some(captures) = with.find(&pattern, &subject, position(ctx.as_ref())?)? else { return Ok((Value::Nil, None)) };
            advance(ctx.as_ref(), &captures)?;
            let table = result.map_or_else(|| lua.create_table(), Ok)?;
            groups(lua, &pattern, &subject, &captures, &table)?;
            Ok((Value::Table(table), None))
        })?,
    )?;
    let with = patterns.clone();
    type Find = (LuaString, LuaString, Option<LuaString>, Option<Table>, Option<usize>);
    re.raw_set(
        "find",
        lua.create_function(move |_, (subject, pattern, options, ctx, group): Find| {
            let pattern = match with.of(&pattern, options.as_ref()) {
                Ok(pattern) => pattern,
                Err(what) => return Ok((None, None, Some(what))),
            };
            let subject = subject.as_bytes();
            let Some(captures) = with.find(&pattern, &subject, position(ctx.as_ref())?)? else { return Ok((None, None, None)) };
            advance(ctx.as_ref(), &captures)?;
            let span = captures.get_group(group.unwrap_or(0));
            Ok((span.map(|span| span.start + 1), span.map(|span| span.end), None))
        })?,
    )?;
    type Gsub = (LuaString, LuaString, Value, Option<LuaString>);
    re.raw_set(
        "gsub",
        lua.create_function(move |lua, (subject, pattern, replacement, options): Gsub| match patterns.of(&pattern, options.as_ref()) {
            Ok(pattern) => {
                let (text, count) = replace(lua, &patterns, &pattern, &subject.as_bytes(), &replacement)?;
                Ok((Some(lua.create_string(text)?), Some(count), None))
            }
            Err(what) => Ok((None, None, Some(what))),
        })?,
    )?;
    Ok(re)
}

/// Where to begin: `ctx.pos` counts from one.
fn position(ctx: Option<&Table>) -> mlua::Result<usize> {
    Ok(ctx.map(|ctx| ctx.raw_get::<Option<usize>>("pos")).transpose()?.flatten().map_or(0, |position| position.saturating_sub(1)))
}

fn advance(ctx: Option<&Table>, captures: &Captures) -> mlua::Result<()> {
    match (ctx, captures.get_match()) {
        (Some(ctx), Some(found)) => ctx.raw_set("pos", found.end() + 1),
        _ => Ok(()),
    }
}

/// `[0]` is all, then the groups by number and by name; one that took no part is `false`, as in ngx_lua.
fn groups(lua: &Lua, pattern: &Pattern, subject: &[u8], captures: &Captures, table: &Table) -> mlua::Result<()> {
    let names = pattern.regex.group_info().pattern_names(regex_automata::PatternID::ZERO);
    for (index, name) in names.enumerate() {
        let value = match captures.get_group(index) {
            Some(span) => Value::String(lua.create_string(&subject[span.range()])?),
            None => Value::Boolean(false),
        };
        if let Some(name) = name {
            table.raw_set(name, value.clone())?;
        }
        table.raw_set(index, value)?;
    }
    Ok(())
}

fn replace(lua: &Lua, patterns: &Patterns, pattern: &Pattern, subject: &[u8], replacement: &Value) -> mlua::Result<(Vec<u8>, u64)> {
    let by: Option<&Function> = replacement.as_function();
    let mut template = Vec::new();
    if by.is_none() {
        append(replacement, TEXT, &mut template)?;
    }
    let (mut out, mut count, mut copied, mut at) = (Vec::with_capacity(subject.len()), 0, 0, 0);
    while at <= subject.len() {
        let Some(captures) = patterns.find(pattern, subject, at)? else { break };
        // A match was found, so there is one.
        let Some(found) = captures.get_match() else { break };
        count += 1;
        extend(&subject[copied..found.start()], TEXT, &mut out)?;
        match by {
            Some(function) => {
                let table = lua.create_table()?;
                groups(lua, pattern, subject, &captures, &table)?;
                append(&patterns.budget.nested(|| function.call::<Value>(table))?, TEXT, &mut out)?;
            }
            None => expand(&template, subject, &captures, &mut out)?,
        }
        copied = found.end();
        // An empty match moves on by a byte, or it would be found for ever.
        at = if found.is_empty() { found.end() + 1 } else { found.end() };
    }
    extend(&subject[copied..], TEXT, &mut out)?;
    Ok((out, count))
}

/// `$1`, `${1}`, `$0`, `$$`.
fn expand(template: &[u8], subject: &[u8], captures: &Captures, out: &mut Vec<u8>) -> mlua::Result<()> {
    let mut at = 0;
    while at < template.len() {
        if template[at] != b'$' {
            extend(&template[at..=at], TEXT, out)?;
            at += 1;
            continue;
        }
        if template.get(at + 1) == Some(&b'$') {
            extend(b"$", TEXT, out)?;
            at += 2;
            continue;
        }
        let braced = template.get(at + 1) == Some(&b'{');
        let begin = at + 1 + usize::from(braced);
        let digits = template[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&template[begin..begin + digits]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let end = begin + digits + usize::from(braced);
        match number {
            Some(group) if !braced || template.get(end - 1) == Some(&b'}') => {
                if let Some(span) = captures.get_group(group) {
                    extend(&subject[span.range()], TEXT, out)?;
                }
                at = end;
            }
            _ => return Err(mlua::Error::runtime("invalid capturing variable name found in the replacement; $$ is a dollar")),
        }
    }
    Ok(())
}
