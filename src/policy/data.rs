//! Lua values as plain data, to carry them from one machine to another.

use mlua::{Lua, Table, Value};

/// Tables within tables at most; a cycle ends here as well.
const DEPTH_MAX: usize = 16;
/// What one `ngx.ctx` may hold, in bytes of its texts and 16 for every value: it lives as long as the request.
const BYTES_MAX: usize = 256 << 10;

/// A Lua value without its machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Boolean(bool),
    Number(f64),
    Text(Box<[u8]>),
    /// `cjson.null`.
    Null,
    Table(Vec<(Data, Data)>),
}

impl Data {
    /// The data of `value`; `Err` says why it cannot be carried.
    pub(super) fn take(value: &Value) -> Result<Data, &'static str> {
        take(value, DEPTH_MAX, &mut BYTES_MAX.clone())
    }

    /// The value in `lua`.
    pub(super) fn give(&self, lua: &Lua) -> mlua::Result<Value> {
        Ok(match self {
            Data::Boolean(value) => Value::Boolean(*value),
            Data::Number(value) => Value::Number(*value),
            Data::Text(bytes) => Value::String(lua.create_string(bytes)?),
            Data::Null => Value::NULL,
            Data::Table(members) => {
                let table = lua.create_table()?;
                for (key, value) in members {
                    table.raw_set(key.give(lua)?, value.give(lua)?)?;
                }
                Value::Table(table)
            }
        })
    }

    /// The data of a table, which is nothing when it is empty.
    pub(super) fn take_table(table: &Table) -> Result<Option<Data>, &'static str> {
        match Data::take(&Value::Table(table.clone()))? {
            Data::Table(members) if members.is_empty() => Ok(None),
            data => Ok(Some(data)),
        }
    }
}

fn take(value: &Value, depth: usize, left: &mut usize) -> Result<Data, &'static str> {
    const TOO_MUCH: &str = "holds more than 256 KiB";
    *left = left.checked_sub(16).ok_or(TOO_MUCH)?;
    Ok(match value {
        Value::Boolean(value) => Data::Boolean(*value),
        Value::Integer(value) => Data::Number(*value as f64),
        Value::Number(value) => Data::Number(*value),
        Value::String(text) => {
            let bytes = text.as_bytes();
            *left = left.checked_sub(bytes.len()).ok_or(TOO_MUCH)?;
            Data::Text(bytes.as_ref().into())
        }
        value if *value == Value::NULL => Data::Null,
        Value::Table(table) => {
            let depth = depth.checked_sub(1).ok_or("has tables nested too deep, or in a circle")?;
            let mut members = Vec::new();
            for pair in table.pairs::<Value, Value>() {
                let (key, value) = pair.map_err(|_| "cannot be read")?;
                members.push((take(&key, depth, left)?, take(&value, depth, left)?));
            }
            Data::Table(members)
        }
        _ => return Err("holds a function or another thing that is no data; only data is carried from handler to handler"),
    })
}
