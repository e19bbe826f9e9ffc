//! Usage to billing systems: at least once, in order, with the request id as the key that makes a repeat harmless.
//!
//! A row's place in the outbox is written in the same transaction as the row. An [`Exporter`] reads the outbox from its
//! beginning, sends, and deletes what was acknowledged; so nothing is skipped, and what is sent twice after a crash or a
//! lost answer carries the same id and the same time. What the other side will never take goes to the table of dead
//! letters with its reason, and the rest goes on ([`revive`] brings them back); any other failure holds everything back, so
//! that the order of an account's events stays, and is tried again with growing pauses. Only the billing system itself can
//! refuse for good: it says so in JSON, and what stands in front of it (a proxy, a firewall) does not.

pub mod lago;
pub mod openmeter;
mod start;

pub use start::{Exports, sinks, start, start_with};

use crate::engine::money::Usd;
use crate::store::ledger::store_rows::{ROW_COLUMNS, read_row};
use crate::store::ledger::{Row, Sink};
use crate::store::secret::Secret;
use crate::store::{self, Store, now_ms};
use rusqlite::params;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Events in one call: Lago's bound (`/events/batch`), a fine size for others.
pub const BATCH_EVENTS_MAX: usize = 100;

/// How often an empty outbox is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often is counted what waits, which reads the whole outbox; it is counted as well when the outbox has become empty.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);

/// The first pause after a failure; it doubles with each one in a row.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);

/// The longest pause, also when the other side asks for more.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);

/// How often a key that is not there is looked for.
const KEY_INTERVAL: Duration = Duration::from_secs(10);

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer that are read: enough for a reason.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 500;

/// Where to send and how.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Which system.
    pub sink: Sink,
    /// Its base URL without a trailing slash; a path is kept.
    pub url: String,
    /// Lago's event code, OpenMeter's event type.
    pub event: Box<str>,
    /// What a credit is worth: charges are sent in money too.
    pub credit: Usd,
}

/// How far behind an export is, for metrics.
#[derive(Debug, Default)]
pub struct Lag {
    pending: AtomicU64,
    oldest_ms: AtomicU64,
    dead: AtomicU64,
}

/// Finds an export's key where it is kept; the error says why it is not there. Blocking.
pub type FindKey = Arc<dyn Fn() -> Result<Secret, String> + Send + Sync>;

/// One outbox's way out.
pub struct Exporter {
    store: Store,
    client: reqwest::Client,
    to: Destination,
    /// `None`: the other side wants no key.
    find_key: Option<FindKey>,
    /// The key as it was found last; `None`: it is to be found before the next batch.
    key: Option<Secret>,
    /// The log says that the key is waited for.
    waits_for_key: bool,
    exports: Exports,
    lag: Arc<Lag>,
    /// When the lag was measured.
    measured: Option<Instant>,
    /// The outbox was not empty when it was looked at last.
    had_letters: bool,
    pauses: Pauses,
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// Taken (or had been taken before).
    Taken,
    /// Will never be taken as it is; the reason.
    Rejected(String),
    /// Not now; the reason, and how long the other side asks to wait.
    Later(String, Option<Duration>),
}

/// What became of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revived {
    /// They wait in the outbox again.
    pub waiting: usize,
    /// Their rows are no longer in the ledger.
    pub gone: usize,
}

/// An event and its place in the outbox.
#[derive(Debug, Clone)]
struct Letter {
    seq: i64,
    ledger_id: i64,
    row: Row,
}

/// Growing pauses between 50 % and 100 % of their length, so that several nodes do not come back together.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Lag {
    /// Events that wait (`weir_export_pending`).
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Age of the oldest that waits, in seconds; 0 when none does (`weir_export_oldest_seconds`).
    pub fn oldest_seconds(&self, now_ms: u64) -> u64 {
        match self.oldest_ms.load(Ordering::Relaxed) {
            0 => 0,
            oldest => now_ms.saturating_sub(oldest) / 1000,
        }
    }

    /// Dead letters (`weir_export_dead`).
    pub fn dead(&self) -> u64 {
        self.dead.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Exporter {
    /// An exporter that has not begun. `client` makes the connections; `find_key` finds the key, if the other side wants one:
    /// before the first batch, and again once it was refused; `exports` is told how far behind it is.
    pub fn new(store: &Store, client: reqwest::Client, to: Destination, find_key: Option<FindKey>, exports: Exports) -> Exporter {
        let lag = exports.lag(to.sink).clone();
        Exporter {
            store: store.clone(),
            client,
            to,
            find_key,
            key: None,
            waits_for_key: false,
            exports,
            lag,
            measured: None,
            had_letters: false,
            pauses: Pauses::default(),
        }
    }

    /// Runs for ever. Cancel-safe: an event leaves the outbox only once it was acknowledged; what was sent and not yet
    /// deleted is sent again.
    pub async fn run(mut self) {
        loop {
            let pause = match self.step().await {
                Ok(Some(pause)) => pause,
                Ok(None) => continue,
                Err(error) => {
                    log::error!("export to {}: {error}", self.to.name());
                    self.pauses.next(None, rand::random())
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends the next batch; how long to wait before the next one, `None`: not at all.
    async fn step(&mut self) -> store::Result<Option<Duration>> {
        // First, for it measures as well: without a key one wants to see what waits.
        let letters = self.next_letters().await?;
        if !self.has_key().await? {
            return Ok(Some(KEY_INTERVAL));
        }
        if letters.is_empty() {
            return Ok(Some(POLL_INTERVAL));
        }
        let answer = self.send(&letters).await;
        let later = match answer {
            Answer::Taken => {
                self.delivered(letters, None).await?;
                None
            }
            Answer::Rejected(reason) if letters.len() == 1 => {
                self.delivered(letters, Some(reason)).await?;
                None
            }
            Answer::Rejected(_) => self.send_singly(letters).await?,
            Answer::Later(reason, after) => Some((reason, after)),
        };
        match later {
            None => {
                self.pauses.failures = 0;
                Ok(None)
            }
            Some((reason, after)) => {
                if self.pauses.failures == 0 {
                    log::warn!("export to {}: {reason}; it is tried again", self.to.name());
                }
                Ok(Some(self.pauses.next(after, rand::random())))
            }
        }
    }

    /// Finds the key if it is not known; `false`: it is not there either.
    async fn has_key(&mut self) -> store::Result<bool> {
        let Some(find) = self.find_key.clone().filter(|_| self.key.is_none()) else { return Ok(true) };
        match tokio::task::spawn_blocking(move || find()).await.map_err(|_| store::Error::Task)? {
            Ok(key) => {
                self.key = Some(key);
                self.waits_for_key = false;
            }
            Err(what) => {
                if !std::mem::replace(&mut self.waits_for_key, true) {
                    log::warn!("export to {} waits for its key: {what}", self.to.name());
                }
            }
        }
        Ok(self.key.is_some())
    }

    /// One event in a batch is bad: finds it, in order; stops where the other side fails.
    async fn send_singly(&mut self, letters: Vec<Letter>) -> store::Result<Option<(String, Option<Duration>)>> {
        for letter in letters {
            let reason = match self.send(std::slice::from_ref(&letter)).await {
                Answer::Taken => None,
                Answer::Rejected(reason) => Some(reason),
                Answer::Later(reason, after) => return Ok(Some((reason, after))),
            };
            self.delivered(vec![letter], reason).await?;
        }
        Ok(None)
    }

    async fn send(&mut self, letters: &[Letter]) -> Answer {
        let request = match self.to.sink {
            Sink::Lago => lago::request(&self.client, &self.to, letters),
            Sink::OpenMeter => openmeter::request(&self.client, &self.to, letters),
        };
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        let (status, after, body) = match call(request.timeout(CALL_TIMEOUT)).await {
            Ok(answer) => answer,
            Err(error) => return Answer::Later(self.clean(&error), None),
        };
        let already_there = match self.to.sink {
            Sink::Lago => letters.len() == 1 && lago::is_duplicate(status, &body),
            Sink::OpenMeter => false,
        };
        match status {
            200..=299 => Answer::Taken,
            _ if already_there => Answer::Taken,
            // The event itself: a body they cannot read, too large, or that fails their rules.
            422 => Answer::Rejected(self.clean(&format!("{status}: {body}"))),
            400 | 413 | 415 if is_own_error(&body) => Answer::Rejected(self.clean(&format!("{status}: {body}"))),
            // Too large for a proxy in front: one by one they may pass, and none is given up for that.
            413 if letters.len() > 1 => Answer::Rejected(String::new()),
            // The key may have been replaced where it is kept.
            401 | 403 => {
                let reason = self.clean(&format!("{status}: {body}"));
                self.key = None;
                Answer::Later(reason, after)
            }
            // Everything else may pass: their trouble, a wrong address, a proxy's refusal. An operator mends it; nothing is lost.
            _ => Answer::Later(self.clean(&format!("{status}: {body}")), after),
        }
    }

    /// A text from outside, cut to size and without the key, should it be quoted back.
    fn clean(&self, text: &str) -> String {
        let text = match &self.key {
            Some(key) if !key.expose().is_empty() => text.replace(key.expose(), "***"),
            _ => text.to_owned(),
        };
        text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
    }

    /// The beginning of the outbox; what waits there and is no longer in the ledger goes.
    async fn next_letters(&mut self) -> store::Result<Vec<Letter>> {
        let sink = self.to.sink;
        let mut forgotten = 0;
        let letters = loop {
            let (letters, gone) = self.store.run(move |store| letters(store, sink)).await?;
            if gone.is_empty() {
                break letters;
            }
            forgotten += gone.len();
            self.store.run(move |store| forget(store, &gone)).await?;
        };
        if forgotten > 0 {
            log::warn!("export to {}: {forgotten} rows were deleted before they could be sent", self.to.name());
        }
        let now_empty = letters.is_empty() && self.had_letters;
        self.had_letters = !letters.is_empty();
        if now_empty || self.measured.is_none_or(|at| at.elapsed() >= MEASURE_INTERVAL) {
            let (lag, exports) = (self.lag.clone(), self.exports.clone());
            self.store.run(move |store| measure(store, sink, &lag)).await?;
            exports.sum();
            self.measured = Some(Instant::now());
        }
        Ok(letters)
    }

    /// Takes events out of the outbox; with a reason, they are dead.
    async fn delivered(&self, letters: Vec<Letter>, dead: Option<String>) -> store::Result<()> {
        if let Some(reason) = &dead {
            log::error!("export to {}: an event was refused for good: {reason}", self.to.name());
        }
        let sink = self.to.sink;
        self.store
            .run(move |store| {
                store.write(|tx| {
                    for letter in &letters {
                        if let Some(reason) = &dead {
                            let facts = &letter.row.facts;
                            tx.prepare_cached(
                                "INSERT OR REPLACE INTO export_dead (sink, ledger_id, request_id, account, reason, at_ms)
                                 VALUES (?, ?, ?, ?, ?, ?)",
                            )?
                            .execute(params![
                                sink as i64,
                                letter.ledger_id,
                                facts.request_id,
                                facts.account,
                                reason,
                                i64::try_from(now_ms()).unwrap_or(i64::MAX)
                            ])?;
                        }
                        tx.prepare_cached("DELETE FROM outbox WHERE seq = ?")?.execute([letter.seq])?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

impl Destination {
    fn name(&self) -> &'static str {
        match self.sink {
            Sink::Lago => "Lago",
            Sink::OpenMeter => "OpenMeter",
        }
    }
}

impl Pauses {
    /// The next pause. `draw` is random.
    fn next(&mut self, asked: Option<Duration>, draw: u32) -> Duration {
        let doubled = BACK_OFF_FIRST.saturating_mul(1u32 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = doubled / 2;
        let jittered = half + half.mul_f64(f64::from(draw) / f64::from(u32::MAX));
        jittered.max(asked.unwrap_or_default().min(BACK_OFF_MAX))
    }
}

/// Puts the dead letters of a sink back into its outbox, once what was wrong is mended. Those whose rows retention has
/// deleted cannot be sent any more and are forgotten. Blocking.
///
/// They go before all that has not been tried, in the order of the ledger: so an account's events stay in order, and an outbox
/// begins with its oldest row, which retention relies on. Their places are below zero, where no others are, and follow from the
/// ledger's number and the sink, so that letters that die and come back at different times are in order too.
pub fn revive(store: &Store, sink: Sink) -> store::Result<Revived> {
    store.write(|tx| {
        // The request's id as well: the ledger gives a row's number anew once it is empty.
        let waiting = tx.execute(
            "INSERT OR REPLACE INTO outbox (seq, sink, ledger_id, stored_ms)
             SELECT (ledger_id - (1 << 60)) * 4 + sink, sink, ledger_id, at_ms FROM export_dead AS dead WHERE sink = ?
             AND EXISTS (SELECT 1 FROM ledger WHERE id = dead.ledger_id AND request_id = dead.request_id)",
            [sink as i64],
        )?;
        let dead = tx.execute("DELETE FROM export_dead WHERE sink = ?", [sink as i64])?;
        Ok(Revived { waiting, gone: dead.saturating_sub(waiting) })
    })
}

/// Whether a refusal that a proxy could make as well is a billing system's own: Lago's and OpenMeter's documents (RFC 7807) are JSON objects,
/// those of proxies are pages.
fn is_own_error(body: &str) -> bool {
    body.trim().is_empty() || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
}

/// The first letters of an outbox, and the places among them whose rows are no longer in the ledger.
fn letters(store: &Store, sink: Sink) -> store::Result<(Vec<Letter>, Vec<i64>)> {
    store.read(|connection| {
        let mut query = connection.prepare_cached(&format!(
            "SELECT outbox.seq, ledger.id, {ROW_COLUMNS} FROM outbox LEFT JOIN ledger ON ledger.id = outbox.ledger_id
             WHERE outbox.sink = ? ORDER BY outbox.seq LIMIT {BATCH_EVENTS_MAX}"
        ))?;
        let (mut letters, mut gone) = (Vec::new(), Vec::new());
        let mut rows = query.query([sink as i64])?;
        while let Some(row) = rows.next()? {
            let seq = row.get(0)?;
            match row.get(1)? {
                Some(ledger_id) => letters.push(Letter { seq, ledger_id, row: read_row(row, 2)? }),
                None => gone.push(seq),
            }
        }
        Ok((letters, gone))
    })
}

/// Takes these places out of the outbox.
fn forget(store: &Store, places: &[i64]) -> store::Result<()> {
    store.write(|tx| {
        for seq in places {
            tx.prepare_cached("DELETE FROM outbox WHERE seq = ?")?.execute([seq])?;
        }
        Ok(())
    })
}

fn measure(store: &Store, sink: Sink, lag: &Lag) -> store::Result<()> {
    let (pending, oldest, dead): (i64, Option<i64>, i64) = store.read(|connection| {
        Ok(connection
            .prepare_cached(
                "SELECT (SELECT count(*) FROM outbox WHERE sink = ?1), (SELECT stored_ms FROM outbox WHERE sink = ?1 ORDER BY seq LIMIT 1),
                        (SELECT count(*) FROM export_dead WHERE sink = ?1)",
            )?
            .query_row([sink as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?)
    })?;
    let natural = |number: i64| u64::try_from(number).unwrap_or(0);
    lag.pending.store(natural(pending), Ordering::Relaxed);
    lag.oldest_ms.store(oldest.map_or(0, natural), Ordering::Relaxed);
    lag.dead.store(natural(dead), Ordering::Relaxed);
    Ok(())
}

/// Status, `Retry-After` in seconds, and the beginning of the body. Errors say what failed without the URL, which could
/// hold a secret.
async fn call(request: reqwest::RequestBuilder) -> Result<(u16, Option<Duration>, String), String> {
    let mut response = request.send().await.map_err(|error| describe(error.without_url()))?;
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            // The status was read: an answer that breaks off after a 200 is still an acknowledgement.
            Err(_) if status < 300 => break,
            Err(error) => return Err(describe(error.without_url())),
        }
    }
    body.truncate(ANSWER_BYTES_MAX);
    Ok((status, after, String::from_utf8_lossy(&body).into_owned()))
}

/// An error with its causes: reqwest's own text is only the outermost.
fn describe(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// When a request ended, milliseconds since the Unix epoch: an event's time. It follows from the row alone, so a repeat has
/// the same.
fn ended_ms(row: &Row) -> u64 {
    row.facts.started_ms.saturating_add(row.outcome.duration_ms)
}

#[cfg(test)]
mod tests;
