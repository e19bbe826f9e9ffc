//! `ngx.var`, `ngx.req`, `ngx.header`, `ngx.arg`, and how a handler answers.

use super::super::exchange::{Phase, State};
use super::super::{exchange::is_credential, names, vm::MEMORY_BYTES_MAX};
use super::{Api, Bound, append, extend, header_name, header_values, text};
use crate::telemetry::clock;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use mlua::{Either, Lua, LuaString, Table, Value, Variadic};

/// A larger body reads as `nil`, as one does in nginx that lies on disk.
const BODY_BYTES_MAX: usize = 8 << 20;
/// What a policy may answer by itself.
const ANSWER: Bound = Bound { bytes: 1 << 20, error: "the policy's answer is longer than 1 MiB" };
/// What a policy may put in the place of a part of an answer: as long as its machine could hold it.
const PART: Bound = Bound { bytes: MEMORY_BYTES_MAX, error: "a part of the answer is longer than 64 MiB" };
/// Headers and arguments that are read when the policy does not say how many, as in ngx_lua.
const ENTRIES: usize = 100;

pub(super) fn install(api: &Api<'_>, native: &Table, ngx: &Table) -> mlua::Result<()> {
    let lua = api.lua;
    let slot = api.slot.clone();
    native.raw_set("variable", lua.create_function(move |lua, name: String| slot.with(|state| variable(lua, state, &name)))?)?;
    answers(api, native, ngx)?;
    let req = lua.create_table()?;
    let slot = api.slot.clone();
    req.raw_set("get_method", lua.create_function(move |_, ()| slot.with(|state| Ok(state.head.method.clone())))?)?;
    let slot = api.slot.clone();
    req.raw_set(
        "get_headers",
        lua.create_function(move |lua, max: Option<usize>| slot.with(|state| headers(lua, &state.head.headers, max)))?,
    )?;
    let slot = api.slot.clone();
    req.raw_set(
        "set_header",
        lua.create_function(move |_, (name, value): (LuaString, Value)| {
            let (name, values) = (header_name(&name.as_bytes())?, header_values(&value)?);
            slot.with(|state| in_access(state, "ngx.req.set_header").map(|state| state.set_request(name, values)))
        })?,
    )?;
    let slot = api.slot.clone();
    req.raw_set(
        "clear_header",
        lua.create_function(move |_, name: LuaString| {
            let name = header_name(&name.as_bytes())?;
            slot.with(|state| in_access(state, "ngx.req.clear_header").map(|state| state.set_request(name, Vec::new())))
        })?,
    )?;
    let slot = api.slot.clone();
    req.raw_set(
        "get_uri_args",
        lua.create_function(move |lua, max: Option<usize>| {
            let query = slot.with(|state| Ok(query(state).to_string()))?;
            text::decode_arguments(lua, query.as_bytes(), max.unwrap_or(ENTRIES))
        })?,
    )?;
    req.raw_set("read_body", lua.create_function(|_, ()| Ok(()))?)?;
    let (slot, budget) = (api.slot.clone(), api.budget.clone());
    req.raw_set(
        "get_body_data",
        lua.create_function(move |lua, ()| {
            let body = slot.with(|state| Ok(state.new_body.as_ref().unwrap_or(&state.body).clone()))?;
            if body.is_empty() || body.len() > BODY_BYTES_MAX {
                return Ok(Value::Nil);
            }
            budget.spend(body.len() as u64 / super::BYTES_PER_INSTRUCTION)?;
            lua.create_string(&body).map(Value::String)
        })?,
    )?;
    let slot = api.slot.clone();
    req.raw_set(
        "set_body_data",
        lua.create_function(move |_, body: LuaString| {
            slot.with(|state| {
                in_access(state, "ngx.req.set_body_data").map(|state| state.new_body = Some(Bytes::copy_from_slice(&body.as_bytes())))
            })
        })?,
    )?;
    native.raw_set("req", req)
}

fn answers(api: &Api<'_>, native: &Table, ngx: &Table) -> mlua::Result<()> {
    let lua = api.lua;
    for (name, end) in [("say", &b"\n"[..]), ("print", b"")] {
        let slot = api.slot.clone();
        ngx.raw_set(
            name,
            lua.create_function(move |_, parts: Variadic<Value>| {
                slot.with(|state| {
                    let state = in_access(state, "ngx.say")?;
                    // What cannot be said whole is not said at all.
                    let said = state.said.as_ref().map_or(0, Vec::len);
                    let left = Bound { bytes: ANSWER.bytes.saturating_sub(said), ..ANSWER };
                    let mut more = Vec::new();
                    for part in parts.iter() {
                        append(part, left, &mut more)?;
                    }
                    extend(end, left, &mut more)?;
                    state.said.get_or_insert_default().append(&mut more);
                    Ok(true)
                })
            })?,
        )?;
    }
    let slot = api.slot.clone();
    ngx.raw_set(
        "exit",
        lua.create_function(move |_, status: i64| -> mlua::Result<()> {
            slot.with(|state| {
                if state.phase != Phase::Access && status != 0 {
                    return Err(mlua::Error::runtime(format!(
                        "ngx.exit({status}) is for access: in {} only ngx.OK is",
                        state.phase.name()
                    )));
                }
                state.exit = Some(status);
                Ok(())
            })?;
            // Ends the handler; the prelude's pcall does not stop it.
            Err(mlua::Error::runtime("exit"))
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set("status", lua.create_function(move |_, ()| slot.with(|state| Ok(state.status.unwrap_or(0))))?)?;
    let slot = api.slot.clone();
    native.raw_set(
        "set_status",
        lua.create_function(move |_, status: u16| {
            slot.with(|state| match state.phase {
                Phase::Access | Phase::HeaderFilter if (200..600).contains(&status) => {
                    state.status = Some(status);
                    Ok(())
                }
                Phase::Access | Phase::HeaderFilter => Err(mlua::Error::runtime("ngx.status is from 200 to 599")),
                _ => Err(mlua::Error::runtime("the answer's header is out: ngx.status cannot be set")),
            })
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set(
        "header",
        lua.create_function(move |lua, name: LuaString| {
            let name = dashed(&name.as_bytes());
            slot.with(|state| values(lua, state.response.get_all(&name).into_iter()))
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set(
        "set_header",
        lua.create_function(move |_, (name, value): (LuaString, Value)| {
            let (name, values) = (header_name(dashed(&name.as_bytes()).as_bytes())?, header_values(&value)?);
            slot.with(|state| match state.phase {
                Phase::Access | Phase::HeaderFilter => {
                    state.set_response(name, values);
                    Ok(())
                }
                _ => Err(mlua::Error::runtime("the answer's header is out: ngx.header cannot be set")),
            })
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set(
        "arg",
        lua.create_function(move |lua, index: i64| {
            slot.with(|state| match (state.phase, index) {
                (Phase::BodyFilter, 1) => lua.create_string(state.new_chunk.as_ref().unwrap_or(&state.chunk)).map(Value::String),
                (Phase::BodyFilter, 2) => Ok(Value::Boolean(state.end)),
                _ => Ok(Value::Nil),
            })
        })?,
    )?;
    let slot = api.slot.clone();
    native.raw_set(
        "set_arg",
        lua.create_function(move |_, (index, value): (i64, Value)| {
            slot.with(|state| match (state.phase, index) {
                (Phase::BodyFilter, 1) => {
                    let mut chunk = Vec::new();
                    if !value.is_nil() {
                        append(&value, PART, &mut chunk)?;
                    }
                    state.new_chunk = Some(chunk.into());
                    Ok(())
                }
                (Phase::BodyFilter, 2) => {
                    state.end |= value.as_boolean().unwrap_or(false);
                    Ok(())
                }
                _ => Err(mlua::Error::runtime("ngx.arg[1] and ngx.arg[2] are body_filter's")),
            })
        })?,
    )
}

fn in_access<'a>(state: &'a mut State, what: &str) -> mlua::Result<&'a mut State> {
    if state.phase == Phase::Access {
        Ok(state)
    } else {
        Err(mlua::Error::runtime(format!("{what} is for access, not for {}", state.phase.name())))
    }
}

/// A header's name as Lua may spell it.
fn dashed(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace('_', "-").to_ascii_lowercase()
}

fn query(state: &State) -> &str {
    state.head.target.split_once('?').map_or("", |(_, query)| query)
}

/// Nothing, a text, or a table of several.
fn values<'a>(lua: &Lua, mut values: impl Iterator<Item = &'a HeaderValue>) -> mlua::Result<Value> {
    let Some(first) = values.next() else { return Ok(Value::Nil) };
    let first = lua.create_string(first.as_bytes())?;
    let Some(second) = values.next() else { return Ok(Value::String(first)) };
    let all = lua.create_sequence_from([first, lua.create_string(second.as_bytes())?])?;
    for value in values {
        all.raw_push(lua.create_string(value.as_bytes())?)?;
    }
    Ok(Value::Table(all))
}

fn headers(lua: &Lua, headers: &HeaderMap, max: Option<usize>) -> mlua::Result<Variadic<Either<Table, &'static str>>> {
    let table = lua.create_table()?;
    let most = match max {
        None => ENTRIES,
        Some(0) => usize::MAX,
        Some(max) => max,
    };
    let names = || headers.keys().filter(|name| !is_credential(name.as_str()));
    for name in names().take(most) {
        table.raw_set(name.as_str(), values(lua, headers.get_all(name).into_iter())?)?;
    }
    Ok(text::bounded(table, names().nth(most).is_some()))
}

fn variable(lua: &Lua, state: &State, name: &str) -> mlua::Result<Value> {
    let text = |text: &str| lua.create_string(text).map(Value::String);
    let some = |value: &str| if value.is_empty() { Ok(Value::Nil) } else { text(value) };
    let header = |name: &str| match state.request_values(name).next() {
        Some(value) => lua.create_string(value.as_bytes()).map(Value::String),
        None => Ok(Value::Nil),
    };
    if let Some(name) = name.strip_prefix("http_") {
        return header(&dashed(name.as_bytes()));
    }
    if let Some(name) = name.strip_prefix("sent_http_") {
        let value = state.response.get(dashed(name.as_bytes()));
        return value.map_or(Ok(Value::Nil), |value| lua.create_string(value.as_bytes()).map(Value::String));
    }
    if let Some(wanted) = name.strip_prefix("arg_") {
        let mut pairs = query(state).split('&').filter_map(|pair| pair.split_once('='));
        return pairs.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map_or(Ok(Value::Nil), |(_, value)| text(value));
    }
    match name {
        "args" | "query_string" => some(query(state)),
        "is_args" => text(if query(state).is_empty() { "" } else { "?" }),
        "content_length" => header("content-length"),
        "content_type" => header("content-type"),
        "host" => match state.request_values("host").next().and_then(|value| value.to_str().ok()) {
            Some(host) => text(
                host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(host, _)| host),
            ),
            None => Ok(Value::Nil),
        },
        "remote_addr" => text(&state.head.remote_address),
        "request_id" => text(&state.head.request_id),
        "request_method" => text(&state.head.method),
        "request_time" => {
            let ms = clock::now_ms().saturating_sub(state.head.started_ms);
            text(&format!("{}.{:03}", ms / 1000, ms % 1000))
        }
        "request_uri" => text(&state.head.target),
        "scheme" => text(state.head.scheme),
        "server_protocol" => text(state.head.protocol),
        "status" => text(&format!("{:03}", state.status.unwrap_or(0))),
        "uri" => text(state.head.target.split('?').next().unwrap_or_default()),
        "weir_account" => some(&state.head.account),
        "weir_key_id" => some(&state.head.key_id),
        "weir_tier" => some(state.head.tier.as_deref().unwrap_or_default()),
        other => {
            debug_assert!(!names::is_variable(other));
            Err(mlua::Error::runtime(format!("ngx.var.{other} is not offered to policies")))
        }
    }
}
