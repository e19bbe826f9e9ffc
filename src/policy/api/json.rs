//! `cjson`: the same texts as lua-cjson writes, read by serde_json.

use super::super::vm::Budget;
use super::{Api, BYTES_PER_INSTRUCTION};
use mlua::{Lua, LuaString, Table, Value};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::io::Write;

/// Nesting at most; serde_json reads 128 levels.
const DEPTH_MAX: usize = 128;
/// A text that `encode` writes at most, in bytes.
const TEXT_BYTES_MAX: usize = 16 << 20;
/// What reading or writing a value is worth: a call into the machine.
const INSTRUCTIONS_PER_VALUE: u64 = 20;

pub(super) fn install(api: &Api<'_>, native: &Table) -> mlua::Result<()> {
    let budget = api.budget.clone();
    native.raw_set(
        "decode",
        api.lua.create_function(move |lua, text: LuaString| {
            let bytes = text.as_bytes();
            let mut reader = serde_json::Deserializer::from_slice(&bytes);
            let read = Give { lua, budget: &budget }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
            read.map_err(|error| match budget.check() {
                Err(over) => over,
                Ok(()) if error.is_data() => mlua::Error::runtime(error.to_string()),
                // The text itself stays out of the error: it may be a prompt.
                Ok(()) => mlua::Error::runtime(format!("this is no JSON: line {}, column {}", error.line(), error.column())),
            })
        })?,
    )?;
    let budget = api.budget.clone();
    native.raw_set(
        "encode",
        api.lua.create_function(move |lua, value: Value| {
            let mut writing = Writing { out: Vec::new(), budget: &budget };
            writing.value(&value, DEPTH_MAX)?;
            lua.create_string(writing.out)
        })?,
    )
}

/// Reads JSON straight into the machine, whose limit of memory sees all of it.
#[derive(Clone, Copy)]
struct Give<'a> {
    lua: &'a Lua,
    budget: &'a Budget,
}

impl<'de> DeserializeSeed<'de> for Give<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.budget.spend(INSTRUCTIONS_PER_VALUE).map_err(D::Error::custom)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Give<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.budget.spend(value.len() as u64 / BYTES_PER_INSTRUCTION).map_err(E::custom)?;
        self.lua.create_string(value).map(Value::String).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let table = self.lua.create_table().map_err(A::Error::custom)?;
        let mut index = 0;
        while let Some(value) = values.next_element_seed(self)? {
            index += 1;
            table.raw_set(index, value).map_err(A::Error::custom)?;
        }
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let table = self.lua.create_table().map_err(A::Error::custom)?;
        while let Some((name, value)) = members.next_entry_seed(self, self)? {
            table.raw_set(name, value).map_err(A::Error::custom)?;
        }
        Ok(Value::Table(table))
    }
}

struct Writing<'a> {
    out: Vec<u8>,
    budget: &'a Budget,
}

impl Writing<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> mlua::Result<()> {
        self.budget.spend(INSTRUCTIONS_PER_VALUE)?;
        if self.out.len() > TEXT_BYTES_MAX {
            return Err(mlua::Error::runtime("Cannot serialise: the text is too long"));
        }
        match value {
            Value::Nil => self.out.extend_from_slice(b"null"),
            value if *value == Value::NULL => self.out.extend_from_slice(b"null"),
            Value::Boolean(value) => self.out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Value::Integer(value) => number(*value as f64, &mut self.out)?,
            Value::Number(value) => number(*value, &mut self.out)?,
            Value::String(text) => self.text(&text.as_bytes())?,
            Value::Table(table) => {
                let depth = depth.checked_sub(1).ok_or_else(|| mlua::Error::runtime("Cannot serialise, excessive depth"))?;
                match length(table)? {
                    Some(length) => self.array(table, length, depth)?,
                    None => self.object(table, depth)?,
                }
            }
            other => return Err(mlua::Error::runtime(format!("Cannot serialise {}: type not supported", other.type_name()))),
        }
        Ok(())
    }

    fn text(&mut self, text: &[u8]) -> mlua::Result<()> {
        self.budget.spend(text.len() as u64 / BYTES_PER_INSTRUCTION)?;
        string(text, &mut self.out);
        Ok(())
    }

    fn array(&mut self, table: &Table, length: u64, depth: usize) -> mlua::Result<()> {
        for index in 1..=length {
            self.out.push(if index == 1 { b'[' } else { b',' });
            self.value(&table.raw_get::<Value>(index)?, depth)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn object(&mut self, table: &Table, depth: usize) -> mlua::Result<()> {
        self.out.push(b'{');
        for (index, pair) in table.pairs::<Value, Value>().enumerate() {
            let (key, value) = pair?;
            if index > 0 {
                self.out.push(b',');
            }
            match &key {
                Value::String(name) => self.text(&name.as_bytes())?,
                Value::Integer(_) | Value::Number(_) => {
                    self.out.push(b'"');
                    number(key.as_f64().unwrap_or_default(), &mut self.out)?;
                    self.out.push(b'"');
                }
                _ => return Err(mlua::Error::runtime("Cannot serialise table: table key must be a number or string")),
            }
            self.out.push(b':');
            self.value(&value, depth)?;
        }
        self.out.push(b'}');
        Ok(())
    }
}

/// A table is an array when it has keys and all of them are positive whole numbers; holes are null. One that is mostly holes is
/// an error, as lua-cjson has it (more than 10 long and more than twice its entries).
fn length(table: &Table) -> mlua::Result<Option<u64>> {
    let (mut most, mut count) = (0_u64, 0_u64);
    for pair in table.pairs::<Value, Value>() {
        count += 1;
        match pair?.0 {
            Value::Integer(index) if index > 0 => most = most.max(index as u64),
            Value::Number(index) if index > 0.0 && index.fract() == 0.0 && index < 2f64.powi(53) => most = most.max(index as u64),
            _ => return Ok(None),
        }
    }
    if most > 10 && most > count * 2 {
        return Err(mlua::Error::runtime("Cannot serialise table: excessively sparse array"));
    }
    Ok((count > 0).then_some(most))
}

/// C's `%.14g`, in which lua-cjson writes numbers.
fn number(value: f64, out: &mut Vec<u8>) -> mlua::Result<()> {
    const DIGITS: i32 = 14;
    if !value.is_finite() {
        return Err(mlua::Error::runtime("Cannot serialise number: must not be NaN or Inf"));
    }
    if value == 0.0 {
        out.extend_from_slice(if value.is_sign_negative() { b"-0" } else { b"0" });
        return Ok(());
    }
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    // Rust writes an exponent always.
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim =
        |text: &str| if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text.to_string() };
    let text = if (-4..DIGITS).contains(&exponent) {
        trim(&format!("{value:.*}", (DIGITS - 1 - exponent) as usize))
    } else {
        format!("{}e{}{:02}", trim(mantissa), if exponent < 0 { '-' } else { '+' }, exponent.abs())
    };
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// lua-cjson escapes `/` and DEL besides what it must.
fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'/' => out.extend_from_slice(b"\\/"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            0..32 | 127 => {
                // Writing to a vector does not fail.
                let _ = write!(out, "\\u{byte:04x}");
            }
            byte => out.push(*byte),
        }
    }
    out.push(b'"');
}
