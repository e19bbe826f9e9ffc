use super::*;
use crate::store::ledger::row::tests::full_row;
use crate::store::ledger::{End, Ledger, Settings};

/// 2026-11-22T12:00Z: half of a 30-day month's 22nd day.
const NOW_MS: u64 = 1_795_348_800_000;

/// Rows as `(days before now, account, model, charge)`; every row costs 2 pico-dollars for each nano-credit.
fn store_with(rows: &[(u64, &str, &str, i64)]) -> Store {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, Settings::default()).unwrap();
    for (index, (days, account, model, charge)) in rows.iter().enumerate() {
        let mut row = full_row(&format!("r{index}"));
        row.facts.started_ms = NOW_MS - days * calendar::DAY_MS;
        row.facts.account = (*account).into();
        row.outcome.model = (!model.is_empty()).then(|| (*model).into());
        row.outcome.charge = Credits(*charge);
        row.outcome.cost = Usd(i128::from(*charge) * 2);
        row.outcome.end = if model.is_empty() { End::Failed } else { End::Complete };
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    }
    ledger.shutdown();
    store
}

const ROWS: [(u64, &str, &str, i64); 6] = [
    (0, "acme", "gpt-4o", 100),
    (0, "acme", "llama", 10),
    (1, "acme", "gpt-4o", 50),
    (1, "other", "llama", 700),
    (20, "acme", "llama", 5),
    (40, "acme", "", 3),
];

/// As if nothing had been rolled up yet.
fn unroll(store: &Store) {
    store.write(|tx| Ok(tx.execute_batch("DELETE FROM totals; UPDATE rolling SET through = 0, until = 0")?)).unwrap();
}

fn lines(by: By, account: Option<&str>, since: &str) -> Vec<(String, u64, i128)> {
    let question = Question { account, by, since: calendar::parse_since(since, NOW_MS) };
    let store = store_with(&ROWS);
    let rolled = report(&store, &question, NOW_MS).unwrap();
    unroll(&store);
    // The same answer, down to the last bucket and the projection.
    assert_eq!(report(&store, &question, NOW_MS).unwrap(), rolled);
    let lines: Vec<_> = rolled.lines.into_iter().map(|line| (line.name, line.totals.rows, line.totals.charge)).collect();
    assert_eq!(rolled.total.charge, lines.iter().map(|line| line.2).sum::<i128>());
    lines
}

fn check(by: By, account: Option<&str>, since: &str, expected: &[(&str, u64, i128)]) {
    let expected: Vec<_> = expected.iter().map(|(name, rows, charge)| ((*name).to_owned(), *rows, *charge)).collect();
    assert_eq!(lines(by, account, since), expected, "{by:?} {account:?} {since}");
}

#[test]
fn lines_by_everything() {
    check(By::Day, None, "2026-11-21", &[("2026-11-21", 2, 750), ("2026-11-22", 2, 110)]);
    check(
        By::Day,
        Some("acme"),
        "2026-10-01",
        &[("2026-10-13", 1, 3), ("2026-11-02", 1, 5), ("2026-11-21", 1, 50), ("2026-11-22", 2, 110)],
    );
    check(By::Model, None, "60d", &[("llama", 3, 715), ("gpt-4o", 2, 150), ("", 1, 3)]);
    check(By::Model, Some("other"), "60d", &[("llama", 1, 700)]);
    check(By::Account, None, "60d", &[("other", 1, 700), ("acme", 5, 168)]);
    check(By::Provider, None, "60d", &[("openai", 6, 868)]);
    check(By::Level, Some("nobody"), "60d", &[]);
    // Without `since`: this month.
    check(By::Key, None, "", &[("k1", 5, 865)]);
}

#[test]
fn a_question_from_long_ago_looks_up_no_more_days_than_there_are() {
    let store = store_with(&ROWS);
    let today = calendar::day_of(NOW_MS);
    let days = |since: i64| -> i64 {
        let count = |connection: &Connection| {
            Ok(connection.query_row(&format!("{DAYS} SELECT count(*) FROM days"), [since, today], |row| row.get(0))?)
        };
        store.read(count).unwrap()
    };
    let expected: [i64; 4] = [41, 41, 31, 1];
    assert_eq!([i64::MIN, today - 60, today - 30, today].map(days), expected);
    for by in [By::Day, By::Model] {
        for account in [None, Some("acme"), Some("nobody")] {
            let ask = |since| report(&store, &Question { account, by, since: Some(since) }, NOW_MS).unwrap();
            let (far, near) = (ask(-i64::from(u32::MAX)), ask(today - 60));
            assert_eq!((far.lines, far.total, far.month), (near.lines, near.total, near.month));
        }
    }
    // Rows that are in no roll-up yet are found as well, and there is no day to look up but today.
    unroll(&store);
    assert_eq!(days(i64::MIN), 1);
    assert_eq!(
        report(&store, &Question { account: Some("acme"), since: Some(i64::MIN), ..Question::default() }, NOW_MS).unwrap().total.rows,
        5
    );
}

#[test]
fn a_months_projections() {
    let store = store_with(&ROWS);
    let month = report(&store, &Question { account: Some("acme"), ..Question::default() }, NOW_MS).unwrap().month;
    assert_eq!(month.to_date, Amount { cost: Usd(330), charge: 165 });
    // 8.5 days are left; the seven days before today had 50: 165 + 50 × 8.5 / 7 = 225.7.
    assert_eq!(month.projected_by_week.unwrap().charge, 226);
    // 21.5 of 30 days have gone: 165 × 30 / 21.5 = 230.2.
    assert_eq!(month.projected_by_month.unwrap(), Amount { cost: Usd(460), charge: 230 });
    // An account that began yesterday: one whole day with 700, so 700 + 700 × 8.5.
    let month = report(&store, &Question { account: Some("other"), ..Question::default() }, NOW_MS).unwrap().month;
    assert_eq!(month.projected_by_week.unwrap().charge, 6650);
    // Nothing yet: no rate.
    let month = report(&store, &Question { account: Some("nobody"), ..Question::default() }, NOW_MS).unwrap().month;
    assert_eq!((month.to_date, month.projected_by_week), (Amount::default(), None));
}

#[test]
fn the_success_rate_counts_what_was_tried() {
    let totals = Totals { complete: 3, failed: 1, cancelled: 5, refused: 7, ..Totals::default() };
    assert_eq!(totals.success_rate(), Some(0.75));
    assert_eq!(Totals::default().success_rate(), None);
}

#[test]
fn sums_beyond_64_bits_are_exact() {
    let large = i64::MAX / 2;
    let store = store_with(&[(0, "a", "m", large), (1, "b", "m", large), (2, "c", "m", large)]);
    let report = report(&store, &Question { by: By::Model, ..Question::default() }, NOW_MS).unwrap();
    assert_eq!(report.total.charge, 3 * i128::from(large));
    // 3 × 4,611,686,018.427387903 credits.
    assert_eq!(credits_text(report.total.charge), "13835058055.282163709");
}

#[test]
fn retention_takes_old_rows_and_leaves_the_sums() {
    let store = store_with(&ROWS);
    let before = lines(By::Model, None, "60d");
    let left =
        || store.read(|connection| Ok(connection.query_row("SELECT count(*) FROM ledger", [], |row| row.get::<_, i64>(0))?)).unwrap();
    for (before_ms, gone, expected) in [
        (NOW_MS - 50 * calendar::DAY_MS, 0, 6),
        (NOW_MS - 10 * calendar::DAY_MS, 2, 4),
        (NOW_MS, 2, 2),
        (NOW_MS + 1, 2, 0),
        (NOW_MS + 1, 0, 0),
    ] {
        assert_eq!((retire(&store, before_ms, &[]).unwrap(), left()), (gone, expected));
    }
    let question = Question { by: By::Model, since: calendar::parse_since("60d", NOW_MS), ..Question::default() };
    let rows = |store: &Store| report(store, &question, NOW_MS).unwrap().total.rows;
    assert_eq!((rows(&store), ROWS.len()), (6, before.iter().map(|line| line.1 as usize).sum()));
    // Ids begin anew in an empty ledger; the next row is no older than those before.
    let ledger = Ledger::start(&store, Settings::default()).unwrap();
    let mut row = full_row("after");
    row.facts.started_ms = NOW_MS;
    let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    assert!(ledger.flush());
    assert_eq!(rows(&store), 7);
    ledger.shutdown();
    assert_eq!(rows(&store), 7);
    // What is in no roll-up yet stays, however old.
    unroll(&store);
    assert_eq!((retire(&store, NOW_MS + 1, &[]).unwrap(), left()), (0, 1));
}

#[test]
fn retention_waits_for_the_sinks_that_are_configured() {
    let store = store_with(&ROWS);
    let outbox =
        |rows: &str| store.write(|tx| Ok(tx.execute_batch(&format!("INSERT INTO outbox (sink, ledger_id, stored_ms) VALUES {rows}"))?));
    // OpenMeter was removed with everything waiting; Lago lacks the last two rows.
    outbox("(2, 1, 0), (2, 2, 0), (1, 5, 0), (2, 5, 0), (1, 6, 0), (2, 6, 0)").unwrap();
    let count =
        |table: &str| store.read(|connection| Ok(connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?));
    let left = || -> (i64, i64) { (count("ledger").unwrap(), count("outbox").unwrap()) };
    assert_eq!((retire(&store, NOW_MS + 1, &[Sink::OpenMeter, Sink::Lago]).unwrap(), left()), (0, (6, 6)));
    assert_eq!((retire(&store, NOW_MS + 1, &[Sink::Lago]).unwrap(), left()), (4, (2, 6)));
    // With the last row its number is free for another: nothing may wait under it.
    assert_eq!((retire(&store, NOW_MS + 1, &[]).unwrap(), left()), (2, (0, 0)));
}

#[test]
fn the_first_row_that_waits_is_looked_up() {
    let plan = |connection: &Connection| {
        let query = format!("EXPLAIN QUERY PLAN {FIRST_WAITING}");
        Ok(connection.query_row(&query, [1], |row| row.get::<_, String>(3))?)
    };
    let plan = Store::in_memory().unwrap().read(plan).unwrap();
    assert!(plan.starts_with("SEARCH outbox USING") && plan.contains("outbox_by_sink (sink=?)"), "{plan}");
}

#[test]
fn a_row_is_found_by_its_own_account_alone() {
    let store = store_with(&ROWS);
    let charge = |row: Option<Row>| row.map(|row| row.outcome.charge.0);
    assert_eq!(charge(any_request(&store, "r0").unwrap()), Some(100));
    assert_eq!(charge(request(&store, "r0", "acme").unwrap()), Some(100));
    assert_eq!(charge(request(&store, "r0", "other").unwrap()), None);
    assert_eq!(charge(any_request(&store, "r9").unwrap()), None);
}

#[test]
fn questions_are_parsed_or_explained() {
    let question = Question::parse("model", Some("7d"), Some("acme"), NOW_MS).unwrap();
    assert_eq!((question.by, question.since.map(calendar::iso_day).as_deref()), (By::Model, Some("2026-11-15")));
    assert!(Question::parse("colour", None, None, NOW_MS).unwrap_err().to_string().starts_with("by: "));
    assert!(Question::parse("day", Some("soon"), None, NOW_MS).unwrap_err().to_string().starts_with("since: "));
}

/// Roll-ups as ten million requests of a large installation make them; prints how long answers take.
/// `cargo test --release --lib ten_million -- --ignored --nocapture`
#[test]
#[ignore = "measures; takes a minute"]
fn answers_on_ten_million_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}/weir.db", folder.path().display())).unwrap();
    let today = calendar::day_of(NOW_MS);
    // 400 days × 100 accounts × 5 models × 5 keys: a million cells of ten requests each.
    let fill = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999999)
        INSERT INTO totals SELECT ?1 - i / 2500, 'account' || (i / 25 % 100), 'key' || (i / 5 % 5), 'model' || (i % 5), 'provider', '',
        10, 9, 1, 0, 0, 0, 0, 1234567, 1234, 100, 10, 1000, 500, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 10, 0 FROM n";
    let everyone =
        "INSERT INTO totals SELECT day, '', '', model, provider, level, sum(rows), 9, 1, 0, 0, 0, 0, sum(cost), sum(charge), 0, 0, 0,
        sum(input), 0, 0, 0, 0, 0, 0, sum(output), 0, 0, 0, 0, 0, 10, 0 FROM totals GROUP BY day, model";
    store.write(|tx| Ok(tx.execute(fill, [today])? + tx.execute(everyone, [])?)).unwrap();
    for (account, by, since) in [
        (None, By::Day, today - 30),
        (None, By::Model, today - 400),
        (None, By::Account, today - 400),
        (Some("account7"), By::Day, today - 30),
        (Some("account7"), By::Model, today - 400),
    ] {
        let started = std::time::Instant::now();
        let report = report(&store, &Question { account, by, since: Some(since) }, NOW_MS).unwrap();
        assert!(report.total.rows > 0);
        println!("{by:?} {account:?} {} days: {:?}, {} requests", today - since, started.elapsed(), report.total.rows);
    }
}
