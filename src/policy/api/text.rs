//! Base64, hashes and the escaping of URIs.

use super::{Api, BYTES_PER_INSTRUCTION, Bound, append, extend};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, Mac};
use md5::Md5;
use mlua::{Either, Lua, LuaString, Table, Value, Variadic};
use sha1::{Digest, Sha1};
use std::fmt::Write;

/// Arguments that are decoded when the policy does not say how many, as in ngx_lua.
const ARGUMENTS: usize = 100;
/// Arguments that are encoded; far more than servers take in a URI (nginx: 8 KiB).
const ENCODED: Bound = Bound { bytes: 1 << 20, error: "the arguments are longer than 1 MiB" };

pub(super) fn install(api: &Api<'_>, ngx: &Table) -> mlua::Result<()> {
    let lua = api.lua;
    // Every one takes a text and gives a text; its work is paid by length.
    let add = |name: &str, act: fn(&[u8]) -> Option<Vec<u8>>| {
        let budget = api.budget.clone();
        let function = lua.create_function(move |lua, text: LuaString| {
            let bytes = text.as_bytes();
            budget.spend(bytes.len() as u64 / BYTES_PER_INSTRUCTION)?;
            act(&bytes).map(|out| lua.create_string(out)).transpose()
        })?;
        ngx.raw_set(name, function)
    };
    add("decode_base64", |text| STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok())?;
    add("md5", |text| Some(hex(&Md5::digest(text)).into_bytes()))?;
    add("md5_bin", |text| Some(Md5::digest(text).to_vec()))?;
    add("sha1_bin", |text| Some(Sha1::digest(text).to_vec()))?;
    add("unescape_uri", |text| Some(unescape(text)))?;
    let budget = api.budget.clone();
    ngx.raw_set(
        "encode_base64",
        lua.create_function(move |_, (text, unpadded): (LuaString, Option<bool>)| {
            budget.spend(text.as_bytes().len() as u64 / BYTES_PER_INSTRUCTION)?;
            Ok(if unpadded == Some(true) { STANDARD_NO_PAD.encode(text.as_bytes()) } else { STANDARD.encode(text.as_bytes()) })
        })?,
    )?;
    let budget = api.budget.clone();
    ngx.raw_set(
        "escape_uri",
        lua.create_function(move |_, text: LuaString| {
            budget.spend(text.as_bytes().len() as u64 / BYTES_PER_INSTRUCTION)?;
            Ok(escape(&text.as_bytes()))
        })?,
    )?;
    let budget = api.budget.clone();
    ngx.raw_set(
        "hmac_sha1",
        lua.create_function(move |lua, (key, text): (LuaString, LuaString)| {
            budget.spend(text.as_bytes().len() as u64 / BYTES_PER_INSTRUCTION)?;
            let mut mac = Hmac::<Sha1>::new_from_slice(&key.as_bytes()).map_err(|_| mlua::Error::runtime("this key cannot be used"))?;
            mac.update(&text.as_bytes());
            lua.create_string(mac.finalize().into_bytes())
        })?,
    )?;
    ngx.raw_set("encode_args", lua.create_function(|lua, arguments: Table| encode_arguments(lua, &arguments))?)?;
    let budget = api.budget.clone();
    ngx.raw_set(
        "decode_args",
        lua.create_function(move |lua, (text, max): (LuaString, Option<usize>)| {
            // A pair may be no more than a byte or two, and costs more than a byte of other texts.
            budget.spend(text.as_bytes().len() as u64)?;
            decode_arguments(lua, &text.as_bytes(), max.unwrap_or(ARGUMENTS))
        })?,
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Escapes all but RFC 3986's unreserved characters.
fn escape(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => out.push(*byte as char),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let hex = |index: usize| text.get(index).and_then(|byte| (*byte as char).to_digit(16));
        match (text[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn encode_arguments(lua: &Lua, arguments: &Table) -> mlua::Result<LuaString> {
    let mut out = Vec::new();
    let mut add = |key: &Value, value: &Value| -> mlua::Result<()> {
        let mut name = Vec::new();
        append(key, ENCODED, &mut name)?;
        let text = match value {
            Value::Boolean(true) => None,
            Value::Boolean(false) => return Ok(()),
            value => {
                let mut text = Vec::new();
                append(value, ENCODED, &mut text)?;
                Some(escape(&text))
            }
        };
        if !out.is_empty() {
            extend(b"&", ENCODED, &mut out)?;
        }
        extend(escape(&name).as_bytes(), ENCODED, &mut out)?;
        if let Some(text) = text {
            extend(b"=", ENCODED, &mut out)?;
            extend(text.as_bytes(), ENCODED, &mut out)?;
        }
        Ok(())
    };
    for pair in arguments.pairs::<Value, Value>() {
        let (key, value) = pair?;
        match value {
            Value::Table(values) => values.sequence_values::<Value>().try_for_each(|value| add(&key, &value?))?,
            value => add(&key, &value)?,
        }
    }
    lua.create_string(out)
}

/// A table that took no more than it may, and where it left something out the word that ngx_lua says.
pub(super) fn bounded(table: Table, is_truncated: bool) -> Variadic<Either<Table, &'static str>> {
    let mut all = Variadic::new();
    all.push(Either::Left(table));
    if is_truncated {
        all.push(Either::Right("truncated"));
    }
    all
}

/// Arguments as a table: a text each, `true` without `=`, a table where a name comes again.
pub(super) fn decode_arguments(lua: &Lua, text: &[u8], max: usize) -> mlua::Result<Variadic<Either<Table, &'static str>>> {
    let table = lua.create_table()?;
    let most = if max == 0 { usize::MAX } else { max };
    let pairs = || text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    for pair in pairs().take(most) {
        let (name, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], Value::String(lua.create_string(unescape(&pair[at + 1..]))?)),
            None => (pair, Value::Boolean(true)),
        };
        if name.is_empty() {
            continue;
        }
        let name = lua.create_string(unescape(name))?;
        match table.raw_get::<Value>(&name)? {
            Value::Nil => table.raw_set(name, value)?,
            Value::Table(values) => values.raw_push(value)?,
            first => table.raw_set(name, lua.create_sequence_from([first, value])?)?,
        }
    }
    Ok(bounded(table, pairs().nth(most).is_some()))
}
