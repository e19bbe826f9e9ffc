//! A billing server on a real socket that fails in every way a script says.

use super::*;
use crate::engine::money::Credits;
use crate::store::ledger::row::tests::full_row;
use crate::store::ledger::{End, Ledger, Settings};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const KEY: &str = "lago-key-5f1d0c6b7a";

/// What the server does with one call.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Takes the events; the contents decide between 200 and 422.
    Serve,
    /// Answers this and takes nothing.
    Status(u16),
    /// A proxy in front answers this; the billing system sees nothing.
    Front(u16),
    /// Closes before it reads.
    Close,
    /// Takes the events and closes without an answer.
    TakeAndClose,
    /// Takes the events and closes in the middle of the answer's body.
    TakeAndCut,
    /// Quotes the key back.
    QuoteKey,
}

/// A billing system's memory.
#[derive(Debug, Default)]
struct Billing {
    /// Events by id, as they were first taken.
    taken: BTreeMap<String, Value>,
    /// Ids in the order they were taken.
    order: Vec<String>,
    /// Events that came again.
    repeats: usize,
    /// Ids that will never be taken.
    poison: Vec<String>,
    /// A repeat is an error (as Lago's relational pipeline has it) instead of ignored (as its other one).
    strict: bool,
    calls: usize,
    largest_batch: usize,
    /// The keys of the calls, in order.
    keys: Vec<String>,
}

impl Billing {
    fn serve(&mut self, body: &Value) -> (u16, String) {
        let single = [body.clone()];
        let events = body["events"].as_array().or_else(|| body.as_array()).map_or(&single[..], Vec::as_slice);
        self.largest_batch = self.largest_batch.max(events.len());
        let id = |event: &Value| event["transaction_id"].as_str().or(event["id"].as_str()).unwrap().to_owned();
        if events.iter().any(|event| self.poison.contains(&id(event))) {
            return (422, r#"{"status":422,"code":"validation_errors","error_details":{"0":{"code":["value_is_invalid"]}}}"#.into());
        }
        if self.strict && events.iter().any(|event| self.taken.contains_key(&id(event))) {
            return (
                422,
                r#"{"status":422,"code":"validation_errors","error_details":{"0":{"transaction_id":["value_already_exist"]}}}"#.into(),
            );
        }
        for event in events {
            match self.taken.get(&id(event)) {
                Some(before) => {
                    assert_eq!(before, event, "a repeat is the same event");
                    self.repeats += 1;
                }
                None => {
                    self.taken.insert(id(event), event.clone());
                    self.order.push(id(event));
                }
            }
        }
        (200, "{}".into())
    }
}

struct Server {
    url: String,
    billing: Arc<Mutex<Billing>>,
}

async fn server(script: Vec<Act>, billing: Billing) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let billing = Arc::new(Mutex::new(billing));
    let shared = billing.clone();
    tokio::spawn(async move {
        let mut script = script.into_iter();
        while let Ok((socket, _)) = listener.accept().await {
            // One call each connection: the script follows the calls.
            answer(socket, script.next().unwrap_or(Act::Serve), &shared).await;
        }
    });
    Server { url, billing }
}

async fn answer(mut socket: TcpStream, act: Act, billing: &Mutex<Billing>) {
    if matches!(act, Act::Close) {
        return;
    }
    let mut bytes = Vec::new();
    let body = loop {
        let mut chunk = [0; 8192];
        match socket.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
        }
        if let Some(body) = whole_body(&bytes) {
            break body;
        }
    };
    billing.lock().calls += 1;
    let head = String::from_utf8_lossy(&bytes[..200.min(bytes.len())]).into_owned();
    assert!(head.starts_with("POST /api/v1/events"), "{head}");
    let whole_head = String::from_utf8_lossy(&bytes);
    let key = whole_head.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
    billing.lock().keys.push(key.unwrap_or_default().to_owned());
    let (status, text, cut) = match act {
        Act::Serve => {
            let (status, text) = billing.lock().serve(&body);
            (status, text, false)
        }
        Act::Status(status) => (status, "{\"error\":\"on purpose\"}".into(), false),
        Act::Front(status) => {
            (status, format!("<html><title>{status} The plain HTTP request was sent to HTTPS port</title></html>"), false)
        }
        Act::QuoteKey => (500, format!("bad key {KEY}"), false),
        Act::TakeAndCut => {
            let (status, text) = billing.lock().serve(&body);
            (status, text, true)
        }
        Act::TakeAndClose => {
            billing.lock().serve(&body);
            return;
        }
        Act::Close => return,
    };
    let length = text.len() + if cut { 100 } else { 0 };
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nretry-after: 7\r\nconnection: close\r\n\r\n{text}");
    let _ = socket.write_all(answer.as_bytes()).await;
}

fn whole_body(bytes: &[u8]) -> Option<Value> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())?;
    let body = bytes.get(end + 4..end + 4 + length)?;
    serde_json::from_slice(body).ok()
}

/// A store with this many rows in the outbox, of three accounts in turn.
fn store_with(rows: usize, sink: Sink) -> Store {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, Settings { sinks: vec![sink], ..Settings::default() }).unwrap();
    for index in 0..rows {
        let mut row = full_row(&id(index));
        row.facts.started_ms += index as u64;
        row.facts.account = format!("account{}", index % 3).into();
        row.outcome.charge = Credits(index as i64);
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    }
    let mut refused = full_row("refused");
    refused.outcome.end = End::Refused;
    let _ = ledger.record(refused.facts, refused.outcome).unwrap();
    ledger.shutdown();
    store
}

fn id(index: usize) -> String {
    format!("r{index:05}")
}

fn exporter(store: &Store, sink: Sink, url: &str) -> Exporter {
    exporter_with(store, sink, url, Arc::new(|| Ok(Secret::new(KEY.into()))))
}

fn exporter_with(store: &Store, sink: Sink, url: &str, find_key: FindKey) -> Exporter {
    // Ring, as the rest of the program; a second installation is refused and does not matter.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let to = Destination { sink, url: url.to_owned(), event: "llm_request".into(), credit: Usd::parse("0.001").unwrap() };
    // No pooled connections: each call is one of the script's.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    Exporter::new(store, client, to, Some(find_key), Exports::default())
}

/// Steps until the outbox is empty; the pauses it asked for.
async fn drain(exporter: &mut Exporter) -> Vec<Duration> {
    let mut pauses = Vec::new();
    for _ in 0..1000 {
        match exporter.step().await.unwrap() {
            None => {}
            Some(_) if exporter.lag.pending() == 0 => return pauses,
            Some(pause) => pauses.push(pause),
        }
    }
    panic!("the outbox does not drain");
}

fn dead(store: &Store) -> Vec<(String, String)> {
    store
        .read(|connection| {
            let mut query = connection.prepare("SELECT request_id, reason FROM export_dead ORDER BY ledger_id")?;
            Ok(query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap()
}

async fn check(sink: Sink, strict: bool, script: Vec<Act>, poison: &[usize]) {
    const ROWS: usize = 350;
    let store = store_with(ROWS, sink);
    let poison: Vec<String> = poison.iter().map(|index| id(*index)).collect();
    let server = server(script, Billing { poison: poison.clone(), strict, ..Billing::default() }).await;
    let mut exporter = exporter(&store, sink, &server.url);
    drain(&mut exporter).await;
    let billing = server.billing.lock();
    let expected: Vec<String> = (0..ROWS).map(id).filter(|id| !poison.contains(id)).collect();
    assert_eq!(billing.order, expected, "every row once, in order");
    assert!(billing.largest_batch <= BATCH_EVENTS_MAX);
    let dead = dead(&store);
    assert_eq!(dead.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), poison);
    assert!(dead.iter().all(|(_, reason)| reason.starts_with("422: ") && !reason.contains(KEY)), "{dead:?}");
}

#[tokio::test]
async fn a_server_that_works_gets_every_row_in_order() {
    for sink in [Sink::Lago, Sink::OpenMeter] {
        check(sink, false, vec![], &[]).await;
    }
}

#[tokio::test]
async fn every_failure_is_survived_and_repeats_are_harmless() {
    let failures = [
        Act::Status(500),
        Act::Status(503),
        Act::Status(429),
        Act::Status(401),
        Act::Status(404),
        Act::Front(400),
        Act::Front(413),
        Act::Front(422),
        Act::Close,
        Act::TakeAndClose,
        Act::TakeAndCut,
        Act::QuoteKey,
    ];
    for sink in [Sink::Lago, Sink::OpenMeter] {
        // Each failure before each of the first calls, and all of them in a row.
        for failure in failures {
            for after in 0..3 {
                let mut script = vec![Act::Serve; after];
                script.push(failure);
                check(sink, false, script, &[]).await;
            }
        }
        check(sink, false, failures.to_vec(), &[0, 99, 100, 349]).await;
    }
}

#[tokio::test]
async fn an_event_that_is_never_taken_is_dead_and_the_rest_goes_on() {
    for poison in [&[0][..], &[99, 100], &[349], &[5, 6, 7, 240]] {
        check(Sink::Lago, false, vec![], poison).await;
        check(Sink::OpenMeter, false, vec![Act::Serve, Act::Close, Act::Status(500)], poison).await;
    }
}

#[tokio::test]
async fn what_stands_in_front_refuses_nothing_for_good() {
    for sink in [Sink::Lago, Sink::OpenMeter] {
        for status in [400, 413, 415] {
            let store = store_with(1, sink);
            let server = server(vec![Act::Front(status), Act::Status(status)], Billing::default()).await;
            let mut exporter = exporter(&store, sink, &server.url);
            assert!(exporter.step().await.unwrap().is_some(), "held back");
            assert_eq!((exporter.lag.pending(), dead(&store)), (1, vec![]));
            // The billing system's own word is taken.
            assert_eq!(exporter.step().await.unwrap(), None);
            assert_eq!(dead(&store).len(), 1);
        }
        // No proxy says this.
        let store = store_with(1, sink);
        let server = server(vec![Act::Front(422)], Billing::default()).await;
        assert_eq!(exporter(&store, sink, &server.url).step().await.unwrap(), None);
        assert_eq!(dead(&store).len(), 1);
    }
}

#[tokio::test]
async fn what_is_too_large_for_a_proxy_goes_one_by_one() {
    let store = store_with(3, Sink::Lago);
    let server = server(vec![Act::Front(413)], Billing::default()).await;
    let mut exporter = exporter(&store, Sink::Lago, &server.url);
    assert_eq!(exporter.step().await.unwrap(), None);
    let billing = server.billing.lock();
    assert_eq!((billing.order.len(), billing.largest_batch), (3, 1));
}

#[tokio::test]
async fn a_repeat_that_is_refused_as_such_was_delivered() {
    // The first batch is taken, its answer lost; sent again it is refused, and then each event says it is there already.
    check(Sink::Lago, true, vec![Act::TakeAndClose], &[]).await;
    check(Sink::Lago, true, vec![Act::TakeAndClose, Act::Serve, Act::Serve, Act::TakeAndClose, Act::Status(500)], &[3, 120]).await;
}

#[tokio::test]
async fn the_lag_and_the_way_back_of_dead_letters() {
    let store = store_with(5, Sink::Lago);
    let server = server(vec![Act::Status(500)], Billing { poison: vec![id(2)], ..Billing::default() }).await;
    let mut exporter = exporter(&store, Sink::Lago, &server.url);
    assert!(exporter.step().await.unwrap().is_some());
    let (lag, exports) = (exporter.lag.clone(), exporter.exports.clone());
    assert_eq!((lag.pending(), lag.dead(), exports.pending.load(Ordering::Relaxed)), (5, 0, 5));
    assert!(exports.oldest_ms.load(Ordering::Relaxed) > 0);
    assert!(lag.oldest_seconds(now_ms() + 60_000) >= 60);
    drain(&mut exporter).await;
    assert_eq!((lag.pending(), lag.oldest_seconds(now_ms()), lag.dead()), (0, 0, 1));
    assert_eq!((exports.pending.load(Ordering::Relaxed), exports.oldest_ms.load(Ordering::Relaxed)), (0, 0));
    server.billing.lock().poison.clear();
    assert_eq!(revive(&store, Sink::Lago).unwrap(), Revived { waiting: 1, gone: 0 });
    drain(&mut exporter).await;
    assert_eq!((lag.dead(), server.billing.lock().taken.len()), (0, 5));
}

#[tokio::test]
async fn a_key_that_is_not_there_yet_is_waited_for_and_one_that_is_refused_is_found_anew() {
    let store = store_with(150, Sink::Lago);
    let server = server(vec![Act::Serve, Act::Status(401), Act::Status(403)], Billing::default()).await;
    let kept = Arc::new(Mutex::new(Err("not yet".to_owned())));
    let find = kept.clone();
    let find_key: FindKey = Arc::new(move || find.lock().clone().map(|key: &str| Secret::new(key.into())));
    let mut exporter = exporter_with(&store, Sink::Lago, &server.url, find_key);
    for _ in 0..2 {
        assert_eq!(exporter.step().await.unwrap(), Some(KEY_INTERVAL));
        assert_eq!((exporter.lag.pending(), exporter.waits_for_key), (150, true));
    }
    *kept.lock() = Ok("one");
    assert_eq!((exporter.step().await.unwrap(), exporter.waits_for_key), (None, false));
    // Replaced where it is kept: the old one serves until it is refused.
    *kept.lock() = Ok("two");
    assert!(exporter.step().await.unwrap().is_some());
    assert!(exporter.step().await.unwrap().is_some());
    *kept.lock() = Ok("three");
    drain(&mut exporter).await;
    let billing = server.billing.lock();
    assert_eq!((billing.keys.join(" "), billing.order.len()), ("one one two three".to_owned(), 150));
}

#[tokio::test]
async fn what_waits_is_not_counted_for_each_batch() {
    let store = store_with(250, Sink::Lago);
    let server = server(vec![], Billing::default()).await;
    let mut exporter = exporter(&store, Sink::Lago, &server.url);
    let mut pending = Vec::new();
    while exporter.step().await.unwrap().is_none() {
        pending.push(exporter.lag.pending());
    }
    // Unless the machine took ten seconds.
    if exporter.measured.unwrap().elapsed() < MEASURE_INTERVAL {
        assert_eq!(pending, [250, 250, 250]);
    }
    assert_eq!((exporter.lag.pending(), server.billing.lock().order.len()), (0, 250));
}

#[tokio::test]
async fn an_outbox_stays_in_the_ledgers_order_and_what_is_gone_blocks_nothing() {
    let store = store_with(250, Sink::Lago);
    let outbox = || -> Vec<i64> {
        let query = "SELECT ledger_id FROM outbox WHERE sink = 1 ORDER BY seq";
        store.read(|connection| Ok(connection.prepare(query)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)).unwrap()
    };
    let server = server(vec![], Billing { poison: vec![id(3), id(7), id(90)], ..Billing::default() }).await;
    let mut exporter = exporter(&store, Sink::Lago, &server.url);
    let in_order = outbox();
    // A batch is under way while letters that died in it come back; then the rest of them die, and come back before those went.
    let letters = exporter.next_letters().await.unwrap();
    exporter.delivered(letters[..3].to_vec(), None).await.unwrap();
    exporter.delivered(letters[3..8].to_vec(), Some("422".into())).await.unwrap();
    assert_eq!(revive(&store, Sink::Lago).unwrap(), Revived { waiting: 5, gone: 0 });
    exporter.delivered(letters[8..10].to_vec(), Some("422".into())).await.unwrap();
    assert_eq!(revive(&store, Sink::Lago).unwrap(), Revived { waiting: 2, gone: 0 });
    assert_eq!(outbox(), in_order[3..]);
    // More than a batch of rows that nobody has any more.
    store.write(|tx| Ok(tx.execute("DELETE FROM ledger WHERE id NOT IN (?, ?)", [in_order[3], in_order[249]])?)).unwrap();
    drain(&mut exporter).await;
    assert_eq!(server.billing.lock().order, [id(249)]);
    assert_eq!((outbox(), dead(&store).len()), (vec![], 1));
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let store = store_with(1, Sink::Lago);
    let mut exporter = exporter(&store, Sink::Lago, &url);
    let letters = exporter.next_letters().await.unwrap();
    let Answer::Later(reason, None) = exporter.send(&letters).await else { panic!("refused for good") };
    assert!(!reason.contains("127.0.0.1") && !reason.contains(KEY), "{reason}");
    assert!(exporter.step().await.unwrap().is_some());
}

#[tokio::test]
async fn a_reason_is_cut_and_holds_no_key() {
    let store = store_with(1, Sink::Lago);
    let server = server(vec![Act::QuoteKey], Billing::default()).await;
    let mut exporter = exporter(&store, Sink::Lago, &server.url);
    assert!(exporter.has_key().await.unwrap());
    let letters = exporter.next_letters().await.unwrap();
    let expected = Answer::Later("500: bad key ***".into(), Some(Duration::from_secs(7)));
    assert_eq!(exporter.send(&letters).await, expected);
    assert_eq!(exporter.clean(&"x\n".repeat(9999)).len(), REASON_CHARS_MAX);
}

#[test]
fn pauses_grow_to_a_bound_and_follow_what_is_asked() {
    let mut pauses = Pauses::default();
    let longest: Vec<u64> = (0..12).map(|_| pauses.next(None, u32::MAX).as_secs()).collect();
    assert_eq!(longest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(pauses.next(None, 0), BACK_OFF_MAX / 2);
    let asked = |seconds| Pauses::default().next(Some(Duration::from_secs(seconds)), 0);
    assert_eq!((asked(7), asked(86_400)), (Duration::from_secs(7), BACK_OFF_MAX));
}
