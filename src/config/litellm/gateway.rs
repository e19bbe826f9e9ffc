//! A LiteLLM `config.yaml`: deployments become targets, their endpoints providers, fallbacks stay fallbacks.

use super::rates::{Taken, Written};
use super::yaml::{Node, Value};
use super::{Import, Known, provider, quoted};
use crate::config::problem::Problem;
use crate::config::routing::{MAX_NAME_BYTES, RESERVED};
use crate::engine::catalog::is_of_a_name;
use std::collections::BTreeMap;

/// What stands in for something only the operator knows. Reserved by RFC 2606: it never resolves.
const SET_ME: &str = "set-me.invalid";

/// Texts people write where a server wants no key.
const NO_KEY: [&str; 5] = ["", "none", "EMPTY", "dummy", "fake-key"];

/// Keys of `model_info` that only describe; nothing is lost without them.
const DESCRIPTIONS: [&str; 6] = ["id", "mode", "base_model", "max_tokens", "litellm_provider", "description"];

/// What the deployments come to, while they are read.
struct Reader<'f> {
    file: &'f str,
    left: Vec<Problem>,
    providers: Vec<Endpoint>,
    models: Vec<Model>,
    /// Aliases with the models they stand for.
    aliases: Vec<(String, String)>,
    /// `[retry]`, as text.
    settings: String,
    timeouts: Timeouts,
    prices: BTreeMap<String, Written>,
}

/// Every provider's, in milliseconds; `None`: weir's own.
#[derive(Default)]
struct Timeouts {
    total_ms: Option<u64>,
    first_event_ms: Option<u64>,
    /// Line and path of what gave `first_event_ms`.
    first_event_at: (usize, String),
}

/// A provider to be. No `Debug`: a key may be in it.
#[derive(PartialEq)]
struct Endpoint {
    name: String,
    place: Place,
}

/// What makes two deployments share a provider.
#[derive(PartialEq)]
struct Place {
    kind: &'static str,
    base_url: Option<String>,
    api_version: Option<String>,
    key: Key,
}

/// Where a key is. A literal is kept only to tell one from another.
#[derive(PartialEq)]
enum Key {
    None,
    Env(String),
    Literal(String),
}

struct Model {
    name: String,
    targets: Vec<Target>,
    fallback: Vec<String>,
    context_window: Option<u64>,
    max_output: Option<u64>,
}

#[derive(Clone, PartialEq)]
struct Target {
    provider: String,
    model: String,
    weight: Option<u64>,
    priority: Option<u64>,
}

pub(super) fn config(file: &str, root: &Node) -> Result<Import, Problem> {
    let mut reader = Reader {
        file,
        left: Vec::new(),
        providers: Vec::new(),
        models: Vec::new(),
        aliases: Vec::new(),
        settings: String::new(),
        timeouts: Timeouts::default(),
        prices: BTreeMap::new(),
    };
    if root.at("model_list").is_none() {
        let what = "no model_list in it: neither a config.yaml nor a price table".to_owned();
        return Err(Problem { file: file.to_owned(), line: root.line, key: String::new(), what });
    }
    for (key, node) in root.entries() {
        match key.as_str() {
            "model_list" => node.items().iter().for_each(|item| reader.deployment(item)),
            "litellm_settings" | "router_settings" => {}
            _ => reader.not_carried(key, node),
        }
    }
    // Behind the models, whatever the order in the file. Aliases are names that fallbacks use and have their model's fallbacks; the default
    // ones are for models that have none after that.
    let sections = ["litellm_settings", "router_settings"].into_iter();
    let entries = sections.flat_map(|section| {
        let entries = root.at(section).map(Node::entries).unwrap_or_default();
        entries.iter().map(move |(key, node)| (format!("{section}.{key}"), key.as_str(), node))
    });
    let (aliases, rest): (Vec<_>, Vec<_>) = entries.partition(|(_, key, _)| *key == "model_group_alias");
    let (defaults, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, key, _)| *key == "default_fallbacks");
    aliases.iter().for_each(|(path, _, node)| reader.aliases(path, node));
    rest.iter().for_each(|(path, key, node)| reader.setting(path, key, node));
    reader.alias_fallbacks();
    for (index, (path, _, node)) in defaults.iter().enumerate() {
        if index == 0 { reader.default_fallbacks(path, node) } else { reader.not_carried(path, node) }
    }
    reader.order_timeouts();
    let routing = reader.routing();
    let mut prices = String::from("# Dollars per million tokens.\n");
    reader.prices.iter().for_each(|(name, written)| written.print(name, &mut prices));
    Ok(Import { routing: Some(routing), prices, left: reader.left })
}

impl Reader<'_> {
    fn note(&mut self, line: usize, key: &str, what: impl Into<String>) {
        self.left.push(Problem { file: self.file.to_owned(), line, key: key.to_owned(), what: what.into() });
    }

    /// Lists a key and the keys below it; never a value, which may be a secret.
    fn not_carried(&mut self, path: &str, node: &Node) {
        if node.entries().is_empty() {
            let hint = match path {
                "general_settings.master_key" => ": make callers' keys with weir key create, the admin's with [admin] token in weir.toml",
                _ => "",
            };
            self.note(node.line, path, format!("not carried over{hint}"));
        }
        for (key, inner) in node.entries() {
            self.not_carried(&format!("{path}.{key}"), inner);
        }
    }

    fn deployment(&mut self, item: &Node) {
        let Some(name) = item.at("model_name").and_then(Node::text) else {
            return self.note(item.line, "model_list", "a deployment without a model_name");
        };
        let path = format!("model_list.{name}");
        let params = item.at("litellm_params");
        let Some((params, model)) = params.and_then(|params| Some((params, params.at("model")?.text()?))) else {
            return self.note(item.line, &path, "no litellm_params.model");
        };
        if name.contains('*') || model.contains('*') {
            let what = "a pattern is not carried over: names nobody configured go to the provider they suggest ([routing] infer = true)";
            return self.note(item.line, &path, what);
        }
        if let Some(what) = wrong_name(name) {
            return self.note(item.line, &path, what);
        }
        let prefixed =
            params.at("custom_llm_provider").and_then(Node::text).map(|theirs| (theirs, model)).or_else(|| model.split_once('/'));
        let (theirs, upstream) = prefixed.unwrap_or((family(model), model));
        let Some(known) = provider(theirs) else {
            return self.note(params.line, &path, format!("weir does not speak the API of {theirs}: the deployment is not carried over"));
        };
        let endpoint = self.endpoint(&path, known, params);
        let number = |key: &str| {
            [Some(params), item.at("model_info")].into_iter().flatten().find_map(|node| node.at(key)?.text()?.parse::<u64>().ok())
        };
        let share = number("weight").or_else(|| number("rpm")).or_else(|| number("tpm").map(|tpm| tpm.div_ceil(1_000)));
        let target = Target {
            provider: endpoint.clone(),
            model: upstream.to_owned(),
            weight: share.map(|weight| weight.min(1_000_000)),
            priority: number("order"),
        };
        self.rest(&path, &endpoint, upstream, item, params);
        let found = self.models.iter().position(|model| model.name == name);
        let index = found.unwrap_or_else(|| {
            self.models.push(Model { name: name.to_owned(), targets: vec![], fallback: vec![], context_window: None, max_output: None });
            self.models.len() - 1
        });
        let model = &mut self.models[index];
        model.context_window = model.context_window.or(number("max_input_tokens"));
        model.max_output = model.max_output.or(number("max_output_tokens"));
        match model.targets.iter_mut().find(|other| other.provider == target.provider && other.model == target.model) {
            // The same place twice is one target with both shares.
            Some(twin) => twin.weight = Some(twin.weight.unwrap_or(1).saturating_add(target.weight.unwrap_or(1)).min(1_000_000)),
            None => model.targets.push(target),
        }
    }

    /// Prices of a deployment, and what else it says.
    fn rest(&mut self, path: &str, endpoint: &str, upstream: &str, item: &Node, params: &Node) {
        const CARRIED: [&str; 10] = [
            "model",
            "api_base",
            "base_url",
            "api_key",
            "api_version",
            "weight",
            "order",
            "custom_llm_provider",
            "max_input_tokens",
            "max_output_tokens",
        ];
        let mut written = Written::default();
        let info = item.at("model_info").map(Node::entries).unwrap_or_default();
        for (key, node) in params.entries().iter().chain(info) {
            let taken = node.text().map_or(Taken::NoCost, |text| written.take(key, text));
            let describes = DESCRIPTIONS.contains(&key.as_str()) || key.starts_with("supports_");
            if taken == Taken::Carried || CARRIED.contains(&key.as_str()) || describes {
                continue;
            }
            let what = match key.as_str() {
                "rpm" | "tpm" => "became the target's share of requests; weir limits callers instead ([tier.…] limits)",
                _ => "not carried over",
            };
            self.note(node.line, &format!("{path}.{key}"), what);
        }
        for (key, node) in item.entries().iter().filter(|(key, _)| !["model_name", "litellm_params", "model_info"].contains(&key.as_str()))
        {
            self.not_carried(&format!("{path}.{key}"), node);
        }
        if !written.is_empty() {
            self.prices.entry(format!("{endpoint}/{upstream}")).or_insert(written);
        }
    }

    /// The name of the provider a deployment is at; a new one when none is the same place with the same key.
    fn endpoint(&mut self, path: &str, known: &Known, params: &Node) -> String {
        let written = params.at("api_base").or_else(|| params.at("base_url"));
        let base_url =
            written.and_then(Node::text).map(|url| self.base_url(path, params.line, known, url)).or(known.base_url.map(str::to_owned));
        // OpenAI's name with another address is how LiteLLM reaches compatible servers.
        let compatible = known.kind == "openai" && base_url.as_deref().is_some_and(|url| !url.contains("://api.openai.com"));
        let kind = if compatible { "openai-compatible" } else { known.kind };
        let base_url =
            base_url.or_else(|| (kind == "openai-compatible" || kind == "vllm" || kind == "azure").then(|| format!("https://{SET_ME}/v1")));
        let place = Place {
            kind,
            base_url,
            api_version: params.at("api_version").and_then(Node::text).map(str::to_owned),
            key: key(known, params),
        };
        if let Some(same) = self.providers.iter().find(|other| other.place == place) {
            return same.name.clone();
        }
        let first = if compatible { "compatible" } else { known.name };
        let mut name = first.to_owned();
        let mut count = 1;
        while self.providers.iter().any(|other| other.name == name) {
            count += 1;
            name = format!("{first}-{count}");
        }
        if place.base_url.as_deref().is_some_and(|url| url.contains(SET_ME)) {
            self.note(params.line, path, format!("write the base_url of [provider.{name}]: the file does not say it"));
        }
        if kind == "cloudflare" && place.base_url.is_none() {
            self.note(params.line, path, format!("write the account of [provider.{name}]"));
        }
        if matches!(place.key, Key::Literal(_)) {
            let line = params.at("api_key").map_or(params.line, |node| node.line);
            self.note(
                line,
                &format!("{path}.api_key"),
                format!("a key in plain text is not carried over: put it in the vault with weir vault set {name}"),
            );
        }
        self.providers.push(Endpoint { name: name.clone(), place });
        name
    }

    fn base_url(&mut self, path: &str, line: usize, known: &Known, url: &str) -> String {
        if let Some(variable) = url.strip_prefix("os.environ/") {
            self.note(line, path, format!("api_base is in the environment variable {variable}: write it out"));
            return format!("https://{SET_ME}/v1");
        }
        let url = url.trim_end_matches('/');
        let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        if known.kind == "ollama" && !has_path { format!("{url}/v1") } else { url.to_owned() }
    }

    fn setting(&mut self, path: &str, key: &str, node: &Node) {
        let time = || node.text().and_then(milliseconds);
        match key {
            "fallbacks" => self.fallbacks(path, node),
            "context_window_fallbacks" => {
                self.fallbacks(path, node);
                self.note(node.line, path, "became fallbacks like any other: weir takes them whatever failed, not for long prompts alone");
            }
            "num_retries" => match node.text().and_then(|text| text.parse::<u64>().ok()) {
                Some(retries) if !self.settings.contains("max_attempts") => {
                    self.settings.push_str(&format!("max_attempts = {}\n", retries.saturating_add(1).min(20)))
                }
                _ => self.not_carried(path, node),
            },
            "cooldown_time" => match time() {
                Some(time) if !self.settings.contains("cooldown") => {
                    self.settings.push_str(&format!("cooldown = {}\n", written_time(time)))
                }
                _ => self.not_carried(path, node),
            },
            "request_timeout" | "timeout" => match time() {
                Some(time) if self.timeouts.total_ms.is_none() => self.timeouts.total_ms = Some(time),
                _ => self.not_carried(path, node),
            },
            "stream_timeout" => match time() {
                Some(time) if self.timeouts.first_event_ms.is_none() => {
                    self.timeouts.first_event_ms = Some(time);
                    self.timeouts.first_event_at = (node.line, path.to_owned());
                }
                _ => self.not_carried(path, node),
            },
            "routing_strategy" => match node.text() {
                Some("simple-shuffle") => {}
                _ => self.note(
                    node.line,
                    path,
                    "not carried over: choose a strategy per model (weighted, least-latency, least-cost, least-busy)",
                ),
            },
            _ => self.not_carried(path, node),
        }
    }

    /// weir refuses a first event that may take longer than the whole: lowers it to that.
    fn order_timeouts(&mut self) {
        let Timeouts { total_ms: Some(total), first_event_ms: Some(first), .. } = self.timeouts else { return };
        if first > total {
            self.timeouts.first_event_ms = Some(total);
            let (line, path) = std::mem::take(&mut self.timeouts.first_event_at);
            self.note(line, &path, format!("is longer than the whole request may take: lowered to {}", written_time(total)));
        }
    }

    /// `[{name: [other, …]}, …]`
    fn fallbacks(&mut self, path: &str, node: &Node) {
        for item in node.items() {
            for (name, others) in item.entries() {
                self.fall_back(path, others.line, name, others);
            }
        }
    }

    fn fall_back(&mut self, path: &str, line: usize, name: &str, others: &Node) {
        let (known, unknown): (Vec<&str>, Vec<&str>) =
            others.items().iter().filter_map(Node::text).partition(|other| self.models.iter().any(|model| model.name == *other));
        let Some(model) = self.models.iter_mut().find(|model| model.name == name) else {
            return self.note(line, path, format!("{name:?} is no model that was carried over"));
        };
        for other in known {
            if other != name && !model.fallback.iter().any(|there| there == other) {
                model.fallback.push(other.to_owned());
            }
        }
        for other in unknown {
            self.note(line, path, format!("{other:?}, a fallback of {name:?}, is no model that was carried over"));
        }
    }

    /// For the models that have no fallbacks of their own.
    fn default_fallbacks(&mut self, path: &str, node: &Node) {
        let without: Vec<String> = self.models.iter().filter(|model| model.fallback.is_empty()).map(|model| model.name.clone()).collect();
        without.iter().for_each(|name| self.fall_back(path, node.line, name, node));
        self.note(node.line, path, "became the fallbacks of every model without its own: a model that is added later does not get them");
    }

    /// `{alias: name}` or `{alias: {model: name, hidden: …}}`. Their fallbacks come later: [`Reader::alias_fallbacks`].
    fn aliases(&mut self, path: &str, node: &Node) {
        for (alias, target) in node.entries() {
            let path = format!("{path}.{alias}");
            if let Some(what) = wrong_name(alias) {
                self.note(target.line, &path, what);
                continue;
            }
            let name = target.text().or_else(|| target.at("model").and_then(Node::text)).unwrap_or_default();
            let taken = self.models.iter().any(|model| model.name == *alias);
            match self.models.iter().find(|model| model.name == name).filter(|_| !taken) {
                Some(model) => {
                    let copy = Model { name: alias.clone(), targets: model.targets.clone(), fallback: Vec::new(), ..*model };
                    self.models.push(copy);
                    self.aliases.push((alias.clone(), name.to_owned()));
                }
                None => self.note(target.line, &path, "an alias of no model that was carried over, or of another model's name"),
            }
        }
    }

    /// An alias without fallbacks of its own has its model's.
    fn alias_fallbacks(&mut self) {
        for (alias, name) in std::mem::take(&mut self.aliases) {
            let of = self.models.iter().find(|model| model.name == name).map(|model| model.fallback.clone()).unwrap_or_default();
            if let Some(model) = self.models.iter_mut().find(|model| model.name == alias && model.fallback.is_empty()) {
                model.fallback = of.into_iter().filter(|other| *other != alias).collect();
            }
        }
    }

    fn routing(&mut self) -> String {
        let mut out = String::from("# Made from a LiteLLM configuration.\n");
        let timeouts = [("total", self.timeouts.total_ms), ("first_event", self.timeouts.first_event_ms)];
        let timeouts: Vec<String> = timeouts.iter().filter_map(|(key, ms)| Some(format!("{key} = {}", written_time((*ms)?)))).collect();
        for provider in &self.providers {
            let place = &provider.place;
            out.push_str(&format!("\n[provider.{}]\nkind = \"{}\"\n", provider.name, place.kind));
            match &place.key {
                Key::None => {}
                Key::Env(variable) => out.push_str(&format!("key = {}\n", quoted(&format!("env:{variable}")))),
                Key::Literal(_) => out.push_str(&format!("key = \"vault:{}\"\n", provider.name)),
            }
            if let Some(url) = &place.base_url {
                out.push_str(&format!("base_url = {}\n", quoted(url)));
            } else if place.kind == "cloudflare" {
                out.push_str("account = \"set-me\"\n");
            }
            if let Some(version) = &place.api_version {
                out.push_str(&format!("api_version = {}\n", quoted(version)));
            }
            if !timeouts.is_empty() {
                out.push_str(&format!("timeouts = {{ {} }}\n", timeouts.join(", ")));
            }
        }
        let mut unpriced = Vec::new();
        for model in &self.models {
            out.push_str(&format!("\n[model.{}]\n", quoted(&model.name)));
            out.push_str("targets = [\n");
            for target in &model.targets {
                out.push_str(&self.target(target, &mut unpriced));
            }
            out.push_str("]\n");
            if !model.fallback.is_empty() {
                let names: Vec<String> = model.fallback.iter().map(|name| quoted(name)).collect();
                out.push_str(&format!("fallback = [{}]\n", names.join(", ")));
            }
            if let Some(window) = model.context_window {
                out.push_str(&format!("context_window = {window}\n"));
            }
            if let Some(output) = model.max_output.filter(|output| model.context_window.is_none_or(|window| *output <= window)) {
                out.push_str(&format!("max_output = {output}\n"));
            }
        }
        if !self.settings.is_empty() {
            out.push_str(&format!("\n[retry]\n{}", self.settings));
        }
        unpriced.sort();
        unpriced.dedup();
        for name in unpriced {
            self.note(
                1,
                &name,
                "no price in the file: add it to prices.toml (LiteLLM's price table can be imported) and take price = \"unpriced\" out",
            );
        }
        out
    }

    fn target(&self, target: &Target, unpriced: &mut Vec<String>) -> String {
        let mut line = format!("    {{ provider = \"{}\", model = {}", target.provider, quoted(&target.model));
        if let Some(weight) = target.weight {
            line.push_str(&format!(", weight = {weight}"));
        }
        if let Some(priority) = target.priority {
            line.push_str(&format!(", priority = {priority}"));
        }
        let name = format!("{}/{}", target.provider, target.model);
        if !self.prices.contains_key(&name) {
            line.push_str(", price = \"unpriced\"");
            unpriced.push(name);
        }
        line + " },\n"
    }
}

/// LiteLLM's provider for a name without one.
fn family(model: &str) -> &'static str {
    if model.starts_with("claude") { "anthropic" } else { "openai" }
}

fn key(known: &Known, params: &Node) -> Key {
    match params.at("api_key").map(|node| &node.value) {
        Some(Value::Scalar(text, _)) => match text.strip_prefix("os.environ/") {
            Some(variable) => Key::Env(variable.to_owned()),
            None if NO_KEY.contains(&text.as_str()) => Key::None,
            None => Key::Literal(text.clone()),
        },
        _ => known.key_variable.map_or(Key::None, |variable| Key::Env(variable.to_owned())),
    }
}

/// What is wrong with a model's or an alias's name, by the rules of `[model.…]`.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_of_a_name) {
        let what = format!("a model's name has 1 to {MAX_NAME_BYTES} characters, visible ASCII without spaces, quotes and backslashes");
        return Some(what);
    }
    name.starts_with(RESERVED).then(|| "weir/… asks for a power level, so a model cannot be named so".to_owned())
}

/// Seconds, possibly with decimals, as milliseconds: at least one, at most a day.
fn milliseconds(text: &str) -> Option<u64> {
    let (ms, _) = crate::engine::money::number(text, 3)?;
    u64::try_from(ms).ok().filter(|ms| (1..=86_400_000).contains(ms))
}

/// A time as TOML has it.
fn written_time(ms: u64) -> String {
    if ms.is_multiple_of(1_000) { format!("\"{}s\"", ms / 1_000) } else { format!("\"{ms}ms\"") }
}
