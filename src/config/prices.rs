//! `prices.toml`: text in, prices or problems out.
//!
//! ```toml
//! [price."openai/gpt-4o-mini"]
//! input = "0.15"              # dollars per million tokens
//! cached_input = "0.075"
//! output = "0.60"
//! above = [ { input_tokens = 200000, input = "0.30" } ]
//! [price."openai/gpt-4o-mini".flex]
//! input = "0.075"
//! ```

use super::pace;
use super::problem::Problem;
use super::walk::{File, Table};
use crate::engine::money::Usd;
use crate::engine::price::{Basis, Price, Rates, Sheet};
use crate::engine::usage::Bucket;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Prices by `provider/model`.
pub type Prices = FxHashMap<Arc<str>, Arc<Price>>;

/// Service tiers that may have a table of their own: the names answers carry (`service_tier` of OpenAI: flex, priority, scale;
/// Anthropic: priority, batch; Groq: flex, performance). What an answer calls `default`, `standard`, `auto` or `on_demand` is the base.
const SERVICE_TIERS: [&str; 5] = ["flex", "priority", "batch", "scale", "performance"];

/// Keys of rates that are dollars per million tokens or per unit, with their buckets.
const RATES: [(&str, Bucket); 14] = [
    ("input", Bucket::Input),
    ("image_input", Bucket::ImageInput),
    ("audio_input", Bucket::AudioInput),
    ("cached_input", Bucket::CachedInput),
    ("cached_audio_input", Bucket::CachedAudioInput),
    ("cache_write_5m", Bucket::CacheWrite5m),
    ("cache_write_1h", Bucket::CacheWrite1h),
    ("output", Bucket::Output),
    ("reasoning", Bucket::Reasoning),
    ("audio_output", Bucket::AudioOutput),
    ("image_output", Bucket::ImageOutput),
    ("per_image", Bucket::Images),
    ("per_request", Bucket::Requests),
    ("web_search", Bucket::WebSearches),
];

/// Keys of rates by time, with how many of them make an hour, which is the unit a rate is kept in.
/// Providers quote all three, and an hour's price is not always finite in decimals per second.
const TIMES: [(&str, i128); 3] = [("per_second", 3_600), ("per_minute", 60), ("per_hour", 1)];

/// Reads `prices.toml`. `file` is the name problems are reported under. With any problem the prices are incomplete.
pub fn parse(file: &str, text: &str) -> (Arc<Prices>, Vec<Problem>) {
    let file = File::new(file, text);
    let mut prices = Prices::default();
    if let Some(document) = file.parse() {
        let mut root = file.root(&document);
        for (name, table) in root.tables("price") {
            pace::rest();
            prices.insert(name.into(), Arc::new(price(name, table)));
        }
        root.finish();
        File::close(document);
    }
    (Arc::new(prices), file.into_problems())
}

fn price(name: &str, mut table: Table<'_>) -> Price {
    if !name.split_once('/').is_some_and(|(provider, model)| !provider.is_empty() && !model.is_empty()) {
        table.problem("", "a price is named \"provider/model\", the provider as in routing.toml");
    }
    let sheet = sheet(&mut table);
    let basis = if table.flag("reported").unwrap_or(false) { Basis::Reported } else { Basis::Table };
    let mut tiers = Vec::new();
    for tier in SERVICE_TIERS {
        if let Some(mut own) = table.table(tier) {
            let own_sheet = self::sheet(&mut own);
            if !writes_rates(&own) && own_sheet.above.is_empty() {
                own.problem("", "no rate in it; take the table out or write the rates of this service tier");
            }
            tiers.push((tier.into(), own_sheet));
            own.finish();
        }
    }
    if !writes_rates(&table) && basis == Basis::Table {
        table.problem("", "no rate in it; write input = \"…\" and output = \"…\", or say price = \"free\" at the target in routing.toml");
    }
    table.finish();
    Price::new(name, &sheet, &tiers, basis)
}

/// Whether a rate is written, right or wrong: what is wrong has been reported.
fn writes_rates(table: &Table<'_>) -> bool {
    let names = RATES.iter().map(|(key, _)| key).chain(TIMES.iter().map(|(key, _)| key));
    names.into_iter().any(|key| table.type_of(key).is_some())
}

/// Rates and steps: of a price or of one of its service tiers.
fn sheet(table: &mut Table<'_>) -> Sheet {
    let rates = rates(table);
    let mut above: Vec<(u64, Rates)> = Vec::new();
    for mut step in table.array("above").unwrap_or_default() {
        step.require("input_tokens", "200000");
        let mark = step.integer_in("input_tokens", 1..=u64::MAX);
        let own = self::rates(&mut step);
        if !writes_rates(&step) {
            step.problem("", "no rate in it; write the rates of a request above this mark");
        }
        if let Some(mark) = mark {
            if above.iter().any(|(other, _)| *other == mark) {
                step.problem("input_tokens", format!("there is a step at {mark} already"));
            }
            above.push((mark, own));
        }
        step.finish();
    }
    Sheet { rates, above }
}

fn rates(table: &mut Table<'_>) -> Rates {
    let mut rates = Rates::default();
    let mut set = |table: &Table<'_>, key: &str, bucket: Bucket, amount: Usd| {
        if let Err(reason) = rates.set(bucket, amount) {
            table.problem(key, reason.to_string());
        }
    };
    for (key, bucket) in RATES {
        if let Some(amount) = table.usd(key) {
            set(table, key, bucket, amount);
        }
    }
    let mut by_time: Option<&str> = None;
    for (key, in_an_hour) in TIMES {
        let Some(amount) = table.usd(key) else { continue };
        if let Some(other) = by_time.replace(key) {
            table.problem(key, format!("{other} is there as well; write one of them"));
        }
        set(table, key, Bucket::Milliseconds, Usd(amount.0.saturating_mul(in_an_hour)));
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::usage::Usage;

    #[test]
    fn every_key_of_a_price() {
        let text = r#"
            [price."openai/gpt-4o-mini"]
            input = "0.15"
            cached_input = "0.075"
            output = "0.60"
            [price."openai/gpt-4o-mini".flex]
            input = "0.1"
            [price."anthropic/claude-sonnet-4"]
            input = "3"
            cache_write_5m = "3.75"
            cache_write_1h = "6"
            cached_input = "0.30"
            output = "15"
            web_search = "0.01"
            above = [ { input_tokens = 200000, input = "6", output = "22.5" } ]
            [price."openai/whisper-1"]
            per_minute = "0.006"
            [price."openrouter/openai/gpt-4o"]
            reported = true
            [price."x/y"]
            reasoning = "1"
            image_input = "1"
            audio_input = "1"
            cached_audio_input = "1"
            audio_output = "1"
            image_output = "1"
            per_request = "1"
            per_image = "1"
            per_second = "0.0001"
        "#;
        let (prices, problems) = parse("prices.toml", text);
        assert_eq!(problems, []);
        let check = |name: &str, tier: Option<&str>, used: &[(Bucket, u64)], reported: Option<Usd>, cost: &str| {
            let mut usage = Usage::default();
            used.iter().for_each(|(bucket, count)| usage.set(*bucket, *count));
            assert_eq!(prices[name].cost(&usage, tier, reported).to_string(), cost, "{name} {used:?}");
        };
        let mini = [(Bucket::Input, 1_000_000), (Bucket::CachedInput, 1_000_000), (Bucket::Output, 1_000_000)];
        check("openai/gpt-4o-mini", None, &mini, None, "0.825");
        check("openai/gpt-4o-mini", Some("flex"), &mini, None, "0.775");
        check("anthropic/claude-sonnet-4", None, &[(Bucket::Input, 200_001), (Bucket::WebSearches, 2)], None, "1.220006");
        check("openai/whisper-1", None, &[(Bucket::Milliseconds, 90_000)], None, "0.009");
        check("openrouter/openai/gpt-4o", None, &[], Some(Usd(5)), "0.000000000005");
        check("x/y", None, &[(Bucket::Milliseconds, 1_000), (Bucket::Images, 1), (Bucket::Requests, 1)], None, "2.0001");
    }

    #[test]
    fn every_problem_is_reported() {
        let text = "[price.\"a/b\"]\ninput = 0.15\nouput = \"1\"\n[price.c]\ninput = \"1e-6\"\n[price.\"d/e\"]\n[price.\"f/g\"]\ninput = \"1\"\n\
                    per_second = \"1\"\nper_hour = \"1\"\nabove = [ { input = \"2\" }, { input_tokens = 5 }, { input_tokens = 5, input = \"1\" } ]\n\
                    [price.\"f/g\".flex]\n[price.\"f/g\".prority]\ninput = \"1\"\n[price.\"h/i\"]\ninput = \"18446745\"\n[prices]\n";
        let (_, problems) = parse("p", text);
        let found: Vec<String> = problems.iter().map(|problem| problem.to_string().chars().take(72).collect()).collect();
        let expected = [
            "p:2: price.\"a/b\".input: an amount is a decimal string in quotes",
            "p:3: price.\"a/b\".ouput: unknown key; did you mean output?",
            "p:4: price.c: a price is named \"provider/model\"",
            "p:5: price.c.input: an amount is written out, without an exponent",
            "p:6: price.\"d/e\": no rate in it",
            "p:10: price.\"f/g\".per_hour: per_second is there as well",
            "p:11: price.\"f/g\".above[0].input_tokens: missing",
            "p:11: price.\"f/g\".above[1]: no rate in it",
            "p:11: price.\"f/g\".above[2].input_tokens: there is a step at 5 already",
            "p:12: price.\"f/g\".flex: no rate in it",
            "p:13: price.\"f/g\".prority: unknown key; did you mean priority?",
            "p:16: price.\"h/i\".input: the amount is too large",
            "p:17: prices: unknown key; did you mean price?",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&expected[..expected.len().min(72)]), "{found}\nis not\n{expected}");
        }
    }

    #[test]
    fn ten_thousand_prices_load() {
        let mut text = String::new();
        for index in 0..10_000 {
            text.push_str(&format!(
                "[price.\"provider-{}/model-{index}\"]\ninput = \"0.{index:05}\"\ncached_input = \"0.01\"\noutput = \"3\"\n",
                index % 7
            ));
        }
        let (prices, problems) = parse("prices.toml", &text);
        assert_eq!((prices.len(), problems.len()), (10_000, 0));
    }
}
