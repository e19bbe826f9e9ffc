//! How the ledger's tables came to what they are: what each version of the schema changed in those before.

/// What came after [`TABLES`](super::TABLES). The sums have another name than there: a server of the version before, which still
/// runs while this one takes over, would add its rows itself, and they would be added again. So it cannot store them; they stay in
/// its journal, and are stored from there when it has gone.
pub const THROUGH: &str = "
ALTER TABLE rollup RENAME TO totals;
CREATE TABLE rolled (through INTEGER NOT NULL);
INSERT INTO rolled SELECT coalesce(max(id), 0) FROM ledger;
CREATE VIEW unrolled AS SELECT
    started_ms / 86400000 AS day, account, key_id, coalesce(model, '') AS model, coalesce(provider, '') AS provider,
    coalesce(level, '') AS level, 1 AS rows, \"end\" = 0 AS complete, \"end\" = 1 AS failed, \"end\" = 2 AS cancelled,
    \"end\" = 3 AS refused, was_fallback AS fallbacks, byok, cost, charge, coalesce(first_event_ms, 0) AS first_event_ms,
    first_event_ms IS NOT NULL AS first_events, duration_ms, input, image_input, audio_input, cached_input, cached_audio_input,
    cache_write_5m, cache_write_1h, output, reasoning, audio_output, image_output, milliseconds, images, requests, web_searches
    FROM ledger WHERE id > (SELECT through FROM rolled);
";

/// What came after [`THROUGH`]: accounts are charged with the roll-ups, too. What had been charged for rows that are not rolled up
/// is taken back, and charged with them. The months and the mark have other names than before, so that a server of the version before
/// can neither store rows, which it charged at once (they are stored from its journal, as above), nor move the mark past rows without
/// charging them.
pub const CHARGED_LATER: &str = "
ALTER TABLE account_months RENAME TO months_charged;
ALTER TABLE rolled RENAME TO rolled_up;
CREATE TABLE early AS SELECT account,
    strftime('%Y', started_ms / 1000, 'unixepoch') * 12 + strftime('%m', started_ms / 1000, 'unixepoch') - 1 AS month, charge,
    CASE WHEN reserved IS NULL THEN 0 ELSE charge END AS from_balance FROM ledger WHERE id > (SELECT through FROM rolled_up);
UPDATE accounts SET charged = charged - early.charge FROM
    (SELECT account, sum(from_balance) AS charge FROM early GROUP BY account) AS early WHERE id = early.account;
UPDATE months_charged SET charged = charged - early.charge FROM
    (SELECT account, month, sum(charge) AS charge FROM early GROUP BY account, month) AS early
    WHERE months_charged.account = early.account AND months_charged.month = early.month;
DROP TABLE early;
";

/// What came after [`CHARGED_LATER`]: roll-ups in pieces. The mark has another name again, so that a server of the version before can
/// store rows, but not roll up what is half in. The view asks for the mark instead of joining it: joined, SQLite would rather index the
/// whole ledger by account than begin at the mark.
pub const IN_PIECES: &str = "
CREATE TABLE rolling (
    through      INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    at_day       INTEGER NOT NULL,
    at_account   TEXT NOT NULL,
    at_key_id    TEXT NOT NULL,
    at_model     TEXT NOT NULL,
    at_provider  TEXT NOT NULL,
    at_level     TEXT NOT NULL
);
INSERT INTO rolling SELECT through, through, 0, '', '', '', '', '' FROM rolled_up;
DROP VIEW unrolled;
DROP TABLE rolled_up;
CREATE VIEW unrolled_rows AS SELECT * FROM ledger WHERE id > (SELECT through FROM rolling) AND (id > (SELECT until FROM rolling) OR
    (started_ms / 86400000, account, key_id, coalesce(model, ''), coalesce(provider, ''), coalesce(level, '')) >
    (SELECT at_day, at_account, at_key_id, at_model, at_provider, at_level FROM rolling));
CREATE VIEW unrolled AS SELECT
    started_ms / 86400000 AS day, account, key_id, coalesce(model, '') AS model, coalesce(provider, '') AS provider,
    coalesce(level, '') AS level, 1 AS rows, \"end\" = 0 AS complete, \"end\" = 1 AS failed, \"end\" = 2 AS cancelled,
    \"end\" = 3 AS refused, was_fallback AS fallbacks, byok, cost, charge, coalesce(first_event_ms, 0) AS first_event_ms,
    first_event_ms IS NOT NULL AS first_events, duration_ms, input, image_input, audio_input, cached_input, cached_audio_input,
    cache_write_5m, cache_write_1h, output, reasoning, audio_output, image_output, milliseconds, images, requests, web_searches
    FROM unrolled_rows;
";
