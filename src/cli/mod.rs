//! Floor 4: the commands. Each reads its arguments, asks a lower floor, and prints for people or, with `--json`, for scripts.

mod check;
mod commands;
mod demo;
pub mod demo_provider;
mod export;
mod import;
pub mod key;
mod route;
mod serve;
pub mod usage;
pub mod vault;

pub use commands::main;

use std::fmt;
use std::io::{self, Write};

/// Why a command failed. Printed to stderr by `main`, which exits with [`Failure::exit_code`].
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage.
    Usage(String),
    /// It did not work.
    Failed(String),
}

impl Failure {
    /// 2 for wrong usage, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Failed(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(what) | Failure::Failed(what) => f.write_str(what),
        }
    }
}

impl From<crate::store::Error> for Failure {
    fn from(error: crate::store::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}

/// Writes rows as aligned columns, two spaces between them, the first row being the heading.
pub fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A JSON value on one line.
pub fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(writeln!(out, "{text}")?)
}

/// A moment as RFC 3339 in UTC, to the second.
pub fn utc(ms: u64) -> String {
    let exact = crate::store::calendar::rfc3339(ms);
    format!("{}Z", &exact[..exact.len().saturating_sub(".000Z".len())])
}

/// Who runs the command, for the audit log.
pub fn operator() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".into());
    format!("cli:{user}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_767_225_599_000, "2025-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), expected);
        }
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let mut out = Vec::new();
        table(&mut out, &[vec!["ID".into(), "NAME".into()], vec!["key_1".into(), "é".into()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "ID     NAME\nkey_1  é\n");
    }
}
