//! `weir usage`: who used what, what it cost, and where the month is heading.

use super::{Failure, json, table};
use crate::engine::usage::Bucket;
use crate::store::usage::{Amount, By, Line, Question, Report, Totals, credits_text, report};
use crate::store::{Store, calendar, now_ms};
use clap::Args;
use std::io::Write;

/// `weir usage …`
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// What the lines are: day, model, provider, key, level or account
    #[arg(long, default_value = "day", value_parser = by)]
    pub by: By,
    /// From this day on: 2026-11-01, or 30d for thirty days back (default: the first of this month, UTC)
    #[arg(long)]
    pub since: Option<String>,
    /// Only this account
    #[arg(long)]
    pub account: Option<String>,
    /// Print JSON, for scripts
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV, for spreadsheets
    #[arg(long)]
    pub csv: bool,
}

fn by(text: &str) -> Result<By, String> {
    By::from_name(text).ok_or_else(|| "expected day, model, provider, key, level or account".into())
}

/// Runs `weir usage …`.
pub fn run(args: UsageArgs, store: &Store, out: &mut dyn Write) -> Result<(), Failure> {
    run_at(args, store, now_ms(), out)
}

fn run_at(args: UsageArgs, store: &Store, now_ms: u64, out: &mut dyn Write) -> Result<(), Failure> {
    let since = match &args.since {
        None => None,
        Some(text) => Some(
            calendar::parse_since(text, now_ms)
                .ok_or_else(|| Failure::Usage(format!("--since {text}: expected a day such as 2026-11-01, or 30d")))?,
        ),
    };
    let report = report(store, &Question { account: args.account.as_deref(), by: args.by, since }, now_ms)?;
    match (args.json, args.csv) {
        (true, _) => json(out, &report),
        (_, true) => show_csv(&report, out),
        _ => show_text(&report, out),
    }
}

fn show_text(report: &Report, out: &mut dyn Write) -> Result<(), Failure> {
    let heading = [report.by.name(), "requests", "success", "input", "cached", "output", "cost USD", "charge credits"];
    let mut rows = vec![heading.map(str::to_uppercase).to_vec()];
    rows.extend(report.lines.iter().map(|line| text_line(name_of(line), &line.totals)));
    rows.push(text_line("total", &report.total));
    table(out, &rows)?;
    writeln!(out)?;
    let amount = |amount: Option<Amount>| match amount {
        Some(amount) => [amount.cost.to_string(), credits_text(amount.charge)],
        None => ["-".into(), "-".into()],
    };
    let month = &report.month;
    let mut rows = vec![["THIS MONTH", "COST USD", "CHARGE CREDITS"].map(str::to_owned).to_vec()];
    for (name, value) in [
        ("to date", Some(month.to_date)),
        ("projected from the last seven days", month.projected_by_week),
        ("projected from the month so far", month.projected_by_month),
    ] {
        let [cost, charge] = amount(value);
        rows.push(vec![name.to_owned(), cost, charge]);
    }
    Ok(table(out, &rows)?)
}

fn name_of(line: &Line) -> &str {
    if line.name.is_empty() { "-" } else { &line.name }
}

fn text_line(name: &str, totals: &Totals) -> Vec<String> {
    let usage = &totals.usage;
    let cached = usage.of(Bucket::CachedInput).saturating_add(usage.of(Bucket::CachedAudioInput));
    vec![
        name.to_owned(),
        totals.rows.to_string(),
        totals.success_rate().map_or("-".into(), |rate| format!("{:.1}%", rate * 100.0)),
        usage.input_tokens().to_string(),
        cached.to_string(),
        usage.output_tokens().to_string(),
        totals.cost.to_string(),
        credits_text(totals.charge),
    ]
}

/// The same keys as in JSON, as columns (RFC 4180).
fn show_csv(report: &Report, out: &mut dyn Write) -> Result<(), Failure> {
    let fields = |totals: &Totals| -> Result<Vec<(String, String)>, Failure> {
        match serde_json::to_value(totals).map_err(|error| Failure::Failed(error.to_string()))? {
            serde_json::Value::Object(map) => Ok(map.into_iter().map(|(key, value)| (key, cell(value))).collect()),
            _ => Ok(Vec::new()),
        }
    };
    let names = fields(&Totals::default())?.into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(",");
    write!(out, "{},{names}\r\n", report.by.name())?;
    for line in &report.lines {
        let cells = fields(&line.totals)?.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(",");
        write!(out, "{},{cells}\r\n", quoted(&line.name))?;
    }
    Ok(())
}

fn cell(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => quoted(&text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    // A name that a spreadsheet would take for a formula gets an apostrophe in front.
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::row::tests::full_row;
    use crate::store::ledger::{Ledger, Settings};

    fn output(by: By, json: bool, csv: bool) -> String {
        let store = Store::in_memory().unwrap();
        let ledger = Ledger::start(&store, Settings::default()).unwrap();
        let mut row = full_row("r");
        row.outcome.model = Some("=a,\"b\"".into());
        let now_ms = row.facts.started_ms;
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
        ledger.shutdown();
        let mut out = Vec::new();
        run_at(UsageArgs { by, since: None, account: None, json, csv }, &store, now_ms, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_for_people() {
        let text = output(By::Day, false, false);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
        assert_eq!(lines[0], ["DAY", "REQUESTS", "SUCCESS", "INPUT", "CACHED", "OUTPUT", "COST USD", "CHARGE CREDITS"]);
        assert_eq!(lines[1], ["2026-11-22", "1", "100.0%", "10521", "3007", "6034", "1.234000000001", "5.500000001"]);
        assert_eq!(lines[5], ["to date", "1.234000000001", "5.500000001"]);
        assert_eq!(lines[6], ["projected from the last seven days", "-", "-"]);
    }

    #[test]
    fn csv_quotes_names() {
        let text = output(By::Model, false, true);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert!(lines[0].starts_with("model,rows,complete,failed,"), "{}", lines[0]);
        assert!(lines[1].starts_with("\"'=a,\"\"b\"\"\",1,1,0,"), "{}", lines[1]);
        assert_eq!(lines[0].split(',').count(), lines[1].replace("\"'=a,\"\"b\"\"\"", "x").split(',').count());
    }

    #[test]
    fn json_for_scripts() {
        let value: serde_json::Value = serde_json::from_str(&output(By::Key, true, false)).unwrap();
        assert_eq!((value["by"].as_str(), value["since"].as_str()), (Some("key"), Some("2026-11-01")));
        assert_eq!(value["lines"][0]["name"], "k1");
        assert_eq!(value["lines"][0]["seconds"], 1.511);
        assert_eq!(value["total"]["charge"], "5.500000001");
        assert_eq!(value["month"]["to_date"]["cost"], "1.234000000001");
        assert!(value["month"]["projected_by_week"].is_null());
    }

    #[test]
    fn a_bad_day_is_wrong_usage() {
        let args = UsageArgs { by: By::Day, since: Some("soon".into()), account: None, json: false, csv: false };
        let failure = run_at(args, &Store::in_memory().unwrap(), 0, &mut Vec::new()).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
    }
}
