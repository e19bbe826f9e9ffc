//! The audit log: who changed which key, sealed secret or configuration, when, from where, and how it ended.
//!
//! Rows are only ever added: triggers refuse everything else, so a mistake in weir cannot edit history. (Whoever can write
//! the file can still replace it; ship the log elsewhere if that matters.)

use super::{Error, Result, Store};
use crate::engine::refusal::scrub;
use rusqlite::{Transaction, params};
use serde::Serialize;

/// Tables of this part. The insert trigger is there because `INSERT OR REPLACE` deletes without asking the delete trigger.
pub const TABLES: &str = "
CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms      INTEGER NOT NULL,
    who        TEXT NOT NULL,
    from_where TEXT NOT NULL,
    action     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    result     TEXT NOT NULL
);
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

/// Longest text kept of each part of a record, in bytes: a record is a line to read, not a place for payloads.
const FIELD_MAX: usize = 256;

/// Rows a reader gets at most in one page.
pub const PAGE_MAX: usize = 1000;

/// Who does something, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// `cli:USER`, `admin`, `key:ID`, `file` (a reload after an edit), `signal` (a reload by SIGHUP).
    pub who: &'a str,
    /// `local` or a peer's address.
    pub from: &'a str,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its number.
    pub seq: i64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Who.
    pub who: String,
    /// From where.
    pub from: String,
    /// What was done: `key.create`, `vault.set`, `config.reload`, …
    pub action: String,
    /// To what: an id or a name; never a secret.
    pub subject: String,
    /// `ok`, or why not.
    pub result: String,
}

/// Adds a row in the transaction of the change it tells of. No argument may hold a secret.
pub fn record(tx: &Transaction<'_>, actor: Actor<'_>, action: &str, subject: &str, result: &str, now_ms: u64) -> Result<()> {
    tx.prepare_cached("INSERT INTO audit (at_ms, who, from_where, action, subject, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![now_ms as i64, cut(actor.who), cut(actor.from), cut(action), cut(subject), cut(result)])?;
    Ok(())
}

/// Makes a change and records it: `ok` with the change, or the reason by itself when the change was rolled back.
/// `work` returns the value and the subject it turned out to be about.
pub fn audited<T>(
    store: &Store,
    actor: Actor<'_>,
    action: &str,
    subject: &str,
    now_ms: u64,
    work: impl FnOnce(&Transaction<'_>) -> Result<(T, String)>,
) -> Result<T> {
    let done = store.write(|tx| {
        let (value, subject) = work(tx)?;
        record(tx, actor, action, &subject, "ok", now_ms)?;
        Ok(value)
    });
    if let Err(error) = &done {
        let why = match error {
            Error::Invalid(why) => why.clone(),
            // SQLite's text may quote a value.
            _ => "the store failed".to_owned(),
        };
        // A subject that led nowhere is what somebody typed; it may be a key pasted in the wrong place.
        let subject = scrub(subject);
        // When even this fails the store is gone, and the first error says so.
        let _ = store.write(|tx| record(tx, actor, action, &subject, &why, now_ms));
    }
    done
}

/// Rows before `before` (or the newest), newest first, `limit` (up to [`PAGE_MAX`]) of them.
pub fn read(store: &Store, before: Option<i64>, limit: usize) -> Result<Vec<Record>> {
    let limit = i64::try_from(limit.min(PAGE_MAX)).unwrap_or(i64::MAX);
    store.read(|connection| {
        let mut statement = connection.prepare_cached(
            "SELECT seq, at_ms, who, from_where, action, subject, result FROM audit WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
            Ok(Record {
                seq: row.get(0)?,
                at_ms: row.get::<_, i64>(1)?.max(0) as u64,
                who: row.get(2)?,
                from: row.get(3)?,
                action: row.get(4)?,
                subject: row.get(5)?,
                result: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(FIELD_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTOR: Actor<'static> = Actor { who: "cli:root", from: "local" };

    #[test]
    fn success_and_failure_are_both_recorded() {
        let store = Store::in_memory().unwrap();
        audited(&store, ACTOR, "key.create", "", 5, |_| Ok(((), "key_1".into()))).unwrap();
        audited::<()>(&store, ACTOR, "key.revoke", "key_2", 6, |tx| {
            record(tx, ACTOR, "never", "", "kept", 6)?;
            Err(Error::Invalid("no such key".into()))
        })
        .unwrap_err();
        let rows = read(&store, None, 10).unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.action.as_str(), row.subject.as_str(), row.result.as_str(), row.at_ms)).collect();
        assert_eq!(told, [("key.revoke", "key_2", "no such key", 6), ("key.create", "key_1", "ok", 5)]);
        assert_eq!(read(&store, Some(rows[0].seq), 10).unwrap().len(), 1);
    }

    #[test]
    fn a_key_typed_as_an_id_is_not_recorded() {
        let store = Store::in_memory().unwrap();
        let pasted = format!("wk_{}", "q7Zx".repeat(10));
        audited::<()>(&store, ACTOR, "key.revoke", &pasted, 6, |_| Err(Error::Invalid("no such key".into()))).unwrap_err();
        assert_eq!(read(&store, None, 1).unwrap()[0].subject, "***");
    }

    #[test]
    fn history_cannot_be_edited() {
        let store = Store::in_memory().unwrap();
        store.write(|tx| record(tx, ACTOR, "key.create", "key_1", "ok", 5)).unwrap();
        for edit in [
            "UPDATE audit SET who = 'x'",
            "DELETE FROM audit",
            "INSERT OR REPLACE INTO audit VALUES (1, 0, 'x', 'x', 'x', 'x', 'x')",
            "DELETE FROM audit WHERE seq = 1",
        ] {
            let refused = store.write(|tx| Ok(tx.execute(edit, [])?)).unwrap_err().to_string();
            assert!(refused.contains("append-only"), "{edit}: {refused}");
        }
        assert_eq!(read(&store, None, 10).unwrap().len(), 1);
    }

    #[test]
    fn long_fields_are_cut_at_a_character() {
        let store = Store::in_memory().unwrap();
        let long = "é".repeat(FIELD_MAX);
        store.write(|tx| record(tx, ACTOR, "key.create", &long, "ok", 5)).unwrap();
        assert_eq!(read(&store, None, 1).unwrap()[0].subject, "é".repeat(FIELD_MAX / 2));
    }
}
