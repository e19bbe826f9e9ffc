//! LiteLLM's cost fields (dollars per token, second, image, query, as JSON or YAML numbers) to our price keys, from their text.

use super::{provider, quoted};
use crate::config::problem::Problem;
use crate::engine::money::{Usd, number};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Rates of a price or of one of its service tiers, ready to print.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Written {
    rates: BTreeMap<&'static str, String>,
    above: BTreeMap<u64, BTreeMap<&'static str, String>>,
    tiers: BTreeMap<&'static str, Written>,
}

/// What became of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in the price now (or an equal one was).
    Carried,
    /// It is about money and has no place here.
    NotCarried,
    /// It is not about money.
    NoCost,
}

/// Per token there, per million tokens here.
const PER_TOKEN: [(&str, &str); 12] = [
    ("input_cost_per_token", "input"),
    ("output_cost_per_token", "output"),
    ("cache_read_input_token_cost", "cached_input"),
    ("cache_creation_input_token_cost", "cache_write_5m"),
    ("cache_creation_input_token_cost_above_1hr", "cache_write_1h"),
    ("output_cost_per_reasoning_token", "reasoning"),
    ("input_cost_per_audio_token", "audio_input"),
    ("output_cost_per_audio_token", "audio_output"),
    ("cache_read_input_audio_token_cost", "cached_audio_input"),
    ("cache_read_input_token_cost_per_audio_token", "cached_audio_input"),
    ("input_cost_per_image_token", "image_input"),
    ("output_cost_per_image_token", "image_output"),
];

/// Per unit there and here. Of two for one key the first that is not zero counts.
const PER_UNIT: [(&str, &str); 4] = [
    ("input_cost_per_second", "per_second"),
    ("output_cost_per_second", "per_second"),
    ("output_cost_per_image", "per_image"),
    ("input_cost_per_request", "per_request"),
];

/// The end of a field's name that names a service tier.
const TIERS: [(&str, &str); 3] = [("_flex", "flex"), ("_priority", "priority"), ("_batches", "batch")];

impl Written {
    /// Takes one field with its number's text.
    pub fn take(&mut self, field: &str, text: &str) -> Taken {
        if !field.contains("cost") && !field.contains("price") && !field.contains("pricing") {
            return Taken::NoCost;
        }
        let (base, tier) = match TIERS.iter().find_map(|(end, tier)| field.strip_suffix(end).map(|base| (base, *tier))) {
            Some((base, tier)) => (base, Some(tier)),
            None => (field, None),
        };
        let Some((base, mark)) = step(base) else { return Taken::NotCarried };
        let Some((key, amount)) = rate(base, text) else { return Taken::NotCarried };
        let sheet = match tier {
            Some(tier) => self.tiers.entry(tier).or_default(),
            None => self,
        };
        let rates = match mark {
            Some(mark) => sheet.above.entry(mark).or_default(),
            None => &mut sheet.rates,
        };
        let kept = rates.entry(key).or_insert_with(|| amount.clone());
        if kept == "0" {
            *kept = amount;
        }
        Taken::Carried
    }

    /// The fee for a web search, from LiteLLM's price by size of the search context: the medium size, which is the default.
    pub fn take_search(&mut self, medium: &str) -> Taken {
        match Usd::of_json_number(medium).filter(|amount| amount.0 >= 0) {
            Some(amount) => {
                self.rates.insert("web_search", amount.to_string());
                Taken::Carried
            }
            None => Taken::NotCarried,
        }
    }

    /// Whether it can be a price: one with rates of its own, not of a tier or step alone.
    pub fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }

    /// Appends it as `[price."name"]` and a table per service tier.
    pub fn print(&self, name: &str, out: &mut String) {
        let table = format!("price.{}", quoted(name));
        self.print_sheet(&table, out);
        for (tier, sheet) in &self.tiers {
            sheet.print_sheet(&format!("{table}.{tier}"), out);
        }
    }

    fn print_sheet(&self, table: &str, out: &mut String) {
        out.push_str(&format!("\n[{table}]\n"));
        for (key, amount) in &self.rates {
            out.push_str(&format!("{key} = \"{amount}\"\n"));
        }
        let steps: Vec<String> = self
            .above
            .iter()
            .map(|(mark, rates)| {
                let rates: String = rates.iter().map(|(key, amount)| format!(", {key} = \"{amount}\"")).collect();
                format!("{{ input_tokens = {mark}{rates} }}")
            })
            .collect();
        if !steps.is_empty() {
            out.push_str(&format!("above = [{}]\n", steps.join(", ")));
        }
    }
}

/// A field without its `_above_200k_tokens`, and the mark. `None`: an end of that sort that cannot be read.
fn step(field: &str) -> Option<(&str, Option<u64>)> {
    let Some(rest) = field.strip_suffix("k_tokens") else { return Some((field, None)) };
    let (base, thousands) = rest.rsplit_once("_above_")?;
    Some((base, Some(thousands.parse::<u64>().ok()?.checked_mul(1_000)?)))
}

/// Our key and the amount as we write it.
fn rate(field: &str, text: &str) -> Option<(&'static str, String)> {
    if let Some((_, key)) = PER_TOKEN.iter().find(|(theirs, _)| *theirs == field) {
        // Units of 10⁻¹⁸ dollars per token are units of 10⁻¹² per million. What is lost beyond (2.0000000000000001e-06) is the
        // float it went through.
        let (amount, _) = number(text, 18)?;
        return (amount >= 0).then(|| (*key, Usd(amount).to_string()));
    }
    let (_, key) = PER_UNIT.iter().find(|(theirs, _)| *theirs == field)?;
    let amount = Usd::of_json_number(text).filter(|amount| amount.0 >= 0)?;
    Some((*key, amount.to_string()))
}

/// The price table: prices.toml and what was not carried over, by provider and by field.
pub(super) fn table(file: &str, text: &str) -> Result<(String, Vec<Problem>), Problem> {
    let problem = |line: usize, key: &str, what: String| Problem { file: file.to_owned(), line, key: key.to_owned(), what };
    let models: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| problem(error.line(), "", format!("not a price table: {error}")))?;
    let mut prices: BTreeMap<String, Written> = BTreeMap::new();
    let mut left_providers: BTreeMap<String, usize> = BTreeMap::new();
    let mut left_fields: BTreeMap<String, usize> = BTreeMap::new();
    let mut left_models: Vec<&str> = Vec::new();
    for (name, raw) in models.iter().filter(|(name, _)| *name != "sample_spec") {
        let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(raw.get()) else { continue };
        let theirs = fields.get("litellm_provider").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok()).unwrap_or_default();
        let Some(known) = provider(&theirs) else {
            *left_providers.entry(theirs).or_default() += 1;
            continue;
        };
        let mut written = Written::default();
        for (field, raw) in &fields {
            if take(&mut written, field, raw.get()) == Taken::NotCarried {
                *left_fields.entry(field.clone()).or_default() += 1;
            }
        }
        let model = name.strip_prefix(&format!("{theirs}/")).unwrap_or(name);
        if written.is_empty() {
            left_models.push(name);
        } else {
            prices.entry(format!("{}/{model}", known.name)).or_insert(written);
        }
    }
    let mut out = String::from(
        "# Prices from LiteLLM's table, dollars per million tokens. The part before the slash is the provider as named in routing.toml.\n",
    );
    prices.iter().for_each(|(name, written)| written.print(name, &mut out));
    let mut left = Vec::new();
    left.extend(
        left_providers
            .iter()
            .map(|(name, count)| problem(1, name, format!("{count} models of a provider whose API weir does not speak: not carried over"))),
    );
    left.extend(
        left_fields.iter().map(|(name, count)| problem(1, name, format!("has no place in prices.toml: not carried over, {count} models"))),
    );
    left.extend(left_models.iter().map(|name| problem(1, name, "has no rate that can be carried over".to_owned())));
    Ok((out, left))
}

/// One field of the table's JSON.
fn take(written: &mut Written, field: &str, raw: &str) -> Taken {
    if field == "search_context_cost_per_query" {
        let sizes: BTreeMap<String, &RawValue> = serde_json::from_str(raw).unwrap_or_default();
        return sizes.get("search_context_size_medium").map_or(Taken::NotCarried, |medium| written.take_search(medium.get()));
    }
    match raw {
        "null" => Taken::NoCost,
        raw => written.take(field, raw),
    }
}
