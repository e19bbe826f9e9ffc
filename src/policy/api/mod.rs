//! What a policy may call. The functions are Rust's; `prelude.lua` arranges them under the names that ngx_lua has.

mod json;
mod lua_pattern;
mod pattern;
mod request;
mod text;

use super::names;
use super::shared::{SHARED, Stored};
use super::vm::{Budget, MEMORY_BYTES_MAX, Slot};
use crate::engine::refusal::scrub;
use crate::telemetry::clock;
use crate::telemetry::log_lines::{self, Severity};
use http::header::{HeaderName, HeaderValue};
use mlua::{Function, Lua, LuaString, Table, Value, Variadic};
use std::rc::Rc;

/// One line of a policy in the log: what is longer is cut there, as nginx does.
const LINE: Bound = Bound { bytes: 2048, error: "the line is longer than 2 KiB" };
/// A header's values together; far more than clients and servers take (nginx: 8 KiB).
const HEADER: Bound = Bound { bytes: 64 << 10, error: "a header is longer than 64 KiB" };
/// What each value of a header takes besides its text, as HTTP/2 counts it (RFC 9113, 6.5.2).
const HEADER_VALUE_BYTES: usize = 32;
/// A text that a policy gets or that is passed on: as long as its machine could hold it.
const TEXT: Bound = Bound { bytes: MEMORY_BYTES_MAX, error: "not enough memory" };
/// Bytes that cost as much as one instruction, in functions whose work grows with their argument.
const BYTES_PER_INSTRUCTION: u64 = 4;
/// nginx's log levels by their numbers.
const LEVELS: [&str; 9] = ["STDERR", "EMERG", "ALERT", "CRIT", "ERR", "WARN", "NOTICE", "INFO", "DEBUG"];
/// Return codes (ngx_lua's documentation, "Core constants").
const CODES: [(&str, i64); 5] = [("OK", 0), ("ERROR", -1), ("AGAIN", -2), ("DONE", -4), ("DECLINED", -5)];

/// Puts everything into a fresh machine. Returns the function that takes a handler's `ngx.ctx` from it.
pub(super) fn install(lua: &Lua, slot: &Rc<Slot>, budget: &Rc<Budget>) -> mlua::Result<Function> {
    let api = Api { lua, slot, budget };
    let native = lua.create_table()?;
    let ngx = lua.create_table()?;
    for (level, name) in LEVELS.iter().enumerate() {
        ngx.raw_set(*name, level)?;
    }
    for (name, code) in CODES {
        ngx.raw_set(name, code)?;
    }
    for (name, status) in names::HTTP {
        ngx.raw_set(*name, *status)?;
    }
    general(&api, &native, &ngx)?;
    request::install(&api, &native, &ngx)?;
    text::install(&api, &ngx)?;
    json::install(&api, &native)?;
    native.raw_set("re", pattern::install(&api)?)?;
    dictionaries(&api, &native)?;
    native.raw_set("ngx", ngx)?;
    native.raw_set("patterns", lua_pattern::install(&api)?)?;
    lua.load(include_str!("prelude.lua")).set_name("=weir").call((native, Value::NULL))
}

/// How long a text may get that is put together outside of the machine, whose limit of memory does not see it.
#[derive(Clone, Copy)]
struct Bound {
    bytes: usize,
    /// What the policy is told about one that would be longer.
    error: &'static str,
}

/// What the parts of the interface are made with.
struct Api<'a> {
    lua: &'a Lua,
    slot: &'a Rc<Slot>,
    budget: &'a Rc<Budget>,
}

fn general(api: &Api<'_>, native: &Table, ngx: &Table) -> mlua::Result<()> {
    let lua = api.lua;
    ngx.raw_set("now", lua.create_function(|_, ()| Ok(clock::now_ms() as f64 / 1000.0))?)?;
    ngx.raw_set("time", lua.create_function(|_, ()| Ok(clock::now_ms() / 1000))?)?;
    ngx.raw_set("update_time", lua.create_function(|_, ()| Ok(()))?)?;
    let slot = api.slot.clone();
    ngx.raw_set("get_phase", lua.create_function(move |_, ()| Ok(slot.with(|state| Ok(state.phase.name())).unwrap_or("init")))?)?;
    let slot = api.slot.clone();
    ngx.raw_set(
        "log",
        lua.create_function(move |_, (level, parts): (i64, Variadic<Value>)| {
            let severity = match level {
                ..=4 => Severity::Error,
                5 => Severity::Warn,
                6 | 7 => Severity::Info,
                _ => return Ok(()),
            };
            let mut line = Vec::new();
            for part in parts.iter() {
                match append(part, LINE, &mut line) {
                    Err(_) if line.len() == LINE.bytes => break,
                    appended => appended?,
                }
            }
            // A line is the policy's own affair; what looks like a key is not.
            let line = scrub(&String::from_utf8_lossy(&line));
            let request_id = slot.with(|state| Ok(state.head.request_id.clone())).unwrap_or_default();
            log_lines::policy(severity, "policy", &request_id, &line);
            Ok(())
        })?,
    )?;
    let (slot, budget) = (api.slot.clone(), api.budget.clone());
    native.raw_set(
        "rethrow",
        lua.create_function(move |_, ()| {
            budget.check()?;
            // Outside of a request nobody can have left.
            if slot.with(|state| Ok(state.exit.is_some())).unwrap_or(false) { Err(mlua::Error::runtime("exit")) } else { Ok(()) }
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set(
        "ctx",
        lua.create_function(move |lua, ()| {
            let ctx = slot.with(|state| Ok(state.ctx.clone()))?;
            ctx.map_or_else(|| lua.create_table().map(Value::Table), |ctx| ctx.give(lua))
        })?,
    )
}

fn dictionaries(api: &Api<'_>, native: &Table) -> mlua::Result<()> {
    let lua = api.lua;
    native.raw_set(
        "shared_get",
        lua.create_function(|lua, (name, key): (String, LuaString)| {
            let stored = SHARED.get(&name, &key.as_bytes(), clock::now_ms()).map_err(mlua::Error::runtime)?;
            Ok(match stored {
                None => Value::Nil,
                Some(Stored::Boolean(value)) => Value::Boolean(value),
                Some(Stored::Number(value)) => Value::Number(value),
                Some(Stored::Text(text)) => Value::String(lua.create_string(text)?),
            })
        })?,
    )?;
    native.raw_set(
        "shared_set",
        lua.create_function(|_, (name, key, value, lifetime): (String, LuaString, Value, Option<f64>)| {
            let stored = match value {
                Value::Nil => None,
                Value::Boolean(value) => Some(Stored::Boolean(value)),
                Value::Integer(value) => Some(Stored::Number(value as f64)),
                Value::Number(value) => Some(Stored::Number(value)),
                Value::String(text) => Some(Stored::Text(text.as_bytes().as_ref().into())),
                _ => return Ok((None, Some("bad value type"))),
            };
            Ok(match SHARED.set(&name, &key.as_bytes(), stored, lifetime_ms(lifetime), clock::now_ms()) {
                Ok(()) => (Some(true), None),
                Err(what) => (Some(false), Some(what)),
            })
        })?,
    )?;
    type Incr = (String, LuaString, f64, Option<f64>, Option<f64>);
    native.raw_set(
        "shared_incr",
        lua.create_function(|_, (name, key, by, from, lifetime): Incr| {
            Ok(match SHARED.incr(&name, &key.as_bytes(), by, from, lifetime_ms(lifetime), clock::now_ms()) {
                Ok(sum) => (Some(sum), None),
                Err(what) => (None, Some(what)),
            })
        })?,
    )
}

fn lifetime_ms(seconds: Option<f64>) -> u64 {
    seconds.map_or(0, |seconds| (seconds.max(0.0) * 1000.0).ceil() as u64)
}

/// Appends bytes up to the bound; an error when there are more, before `out` takes room for them.
fn extend(bytes: &[u8], bound: Bound, out: &mut Vec<u8>) -> mlua::Result<()> {
    let room = bound.bytes.saturating_sub(out.len());
    out.extend_from_slice(&bytes[..bytes.len().min(room)]);
    if bytes.len() > room { Err(mlua::Error::runtime(bound.error)) } else { Ok(()) }
}

/// Appends a value as `ngx.say` and `ngx.log` write it, as [`extend`] does.
fn append(value: &Value, bound: Bound, out: &mut Vec<u8>) -> mlua::Result<()> {
    match value {
        Value::Nil => extend(b"nil", bound, out),
        Value::Boolean(value) => extend(if *value { b"true" } else { b"false" }, bound, out),
        Value::String(text) => extend(&text.as_bytes(), bound, out),
        value if *value == Value::NULL => extend(b"null", bound, out),
        Value::Table(parts) => {
            for part in parts.sequence_values::<Value>() {
                // A table in itself would go on for ever, so one level is enough for what policies say.
                let part = part?;
                if matches!(part, Value::Table(_)) {
                    return Err(mlua::Error::runtime("a table in a table cannot be written"));
                }
                append(&part, bound, out)?;
            }
            Ok(())
        }
        Value::Integer(_) | Value::Number(_) => extend(value.to_string()?.as_bytes(), bound, out),
        other => Err(mlua::Error::runtime(format!("a {} cannot be written", other.type_name()))),
    }
}

/// A header's name as a policy spells it.
fn header_name(name: &[u8]) -> mlua::Result<HeaderName> {
    HeaderName::from_bytes(name).map_err(|_| mlua::Error::runtime("this is no header name"))
}

/// A header's values: nothing, one, or a table of them.
fn header_values(value: &Value) -> mlua::Result<Vec<HeaderValue>> {
    let mut left = HEADER;
    let mut one = |value: &Value| {
        let mut text = Vec::new();
        append(value, left, &mut text)?;
        left.bytes = left.bytes.checked_sub(text.len() + HEADER_VALUE_BYTES).ok_or_else(|| mlua::Error::runtime(HEADER.error))?;
        HeaderValue::from_bytes(&text).map_err(|_| mlua::Error::runtime("this cannot be sent in a header"))
    };
    match value {
        Value::Nil => Ok(Vec::new()),
        Value::Table(values) => values.sequence_values::<Value>().map(|value| one(&value?)).collect(),
        value => Ok(vec![one(value)?]),
    }
}
