//! `weir key create | list | revoke | rotate`: callers' keys.

use super::{Failure, json, operator, table, utc};
use crate::config::walk::duration;
use crate::engine::limit::Limits;
use crate::engine::money::Credits;
use crate::store::audit::Actor;
use crate::store::keys::{self, Created, Listed, NewKey, Scopes};
use crate::store::{Store, now_ms};
use clap::{Args, Subcommand};
use serde_json::json as object;
use std::io::Write;

/// `weir key …`
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it: the only time it is shown
    Create(Box<CreateArgs>),
    /// List all keys
    List {
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Stop a key; a running server stops taking it within a second
    Revoke {
        /// The key's id (key_…)
        id: String,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Give a key a new secret and let the old one work a while longer
    Rotate {
        /// The key's id (key_…)
        id: String,
        /// How long the old secret still works, such as 24h (0s: not at all)
        #[arg(long, default_value = "24h", value_parser = time)]
        overlap: u64,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
}

/// `weir key create …`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// A name for people
    #[arg(long)]
    pub name: String,
    /// Who pays (default: an account of its own)
    #[arg(long)]
    pub account: Option<String>,
    /// The tier, as named in routing.toml (default: the default tier)
    #[arg(long)]
    pub tier: Option<String>,
    /// Credits to grant; without them the key has no budget
    #[arg(long, value_parser = credits)]
    pub credits: Option<Credits>,
    /// How long it works, such as 90d (default: for ever)
    #[arg(long, value_parser = time)]
    pub expires: Option<u64>,
    /// Only these paths, separated by commas; a final * stands for any rest
    #[arg(long, value_delimiter = ',')]
    pub paths: Option<Vec<String>>,
    /// Only these models, separated by commas; a final * stands for any rest
    #[arg(long, value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// Only these levels, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub levels: Option<Vec<String>>,
    /// Requests a minute
    #[arg(long)]
    pub rpm: Option<u64>,
    /// Tokens a minute
    #[arg(long)]
    pub tpm: Option<u64>,
    /// Requests a day
    #[arg(long)]
    pub rpd: Option<u64>,
    /// Tokens a day
    #[arg(long)]
    pub tpd: Option<u64>,
    /// Requests at the same time
    #[arg(long)]
    pub concurrent: Option<u64>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

/// Runs `weir key …`. `tiers` are the configured ones; `None` when no routing file is loaded, and then a tier is not checked.
pub fn run(args: KeyArgs, store: &Store, tiers: Option<&[&str]>, out: &mut dyn Write) -> Result<(), Failure> {
    let who = operator();
    let actor = Actor { who: &who, from: "local" };
    let now_ms = now_ms();
    match args.command {
        KeyCommand::Create(args) => {
            let as_json = args.json;
            let new = new_key(*args, tiers, now_ms)?;
            let created = keys::create(store, &new, actor, now_ms)?;
            show_created(&created, Some(&new), as_json, out)
        }
        KeyCommand::List { json: as_json } => show_list(&keys::list(store, now_ms)?, as_json, out),
        KeyCommand::Revoke { id, json: as_json } => {
            keys::revoke(store, &id, actor, now_ms)?;
            if as_json { json(out, &object!({ "id": id, "state": "revoked" })) } else { Ok(writeln!(out, "{id} is revoked")?) }
        }
        KeyCommand::Rotate { id, overlap, json: as_json } => {
            let created = keys::rotate(store, &id, overlap, actor, now_ms)?;
            show_created(&created, None, as_json, out)?;
            if !as_json {
                writeln!(out, "The old secret works until {}.", utc(now_ms.saturating_add(overlap)))?;
            }
            Ok(())
        }
    }
}

fn new_key(args: CreateArgs, tiers: Option<&[&str]>, now_ms: u64) -> Result<NewKey, Failure> {
    if let (Some(tier), Some(tiers)) = (&args.tier, tiers)
        && !tiers.contains(&tier.as_str())
    {
        let known = if tiers.is_empty() { "none is configured".to_owned() } else { format!("configured are: {}", tiers.join(", ")) };
        return Err(Failure::Failed(format!("no tier is named {tier:?}; {known}")));
    }
    let boxed = |list: Option<Vec<String>>| list.map(|list| list.into_iter().map(|entry| entry.trim().into()).collect());
    Ok(NewKey {
        name: args.name,
        account: args.account,
        tier: args.tier,
        scopes: Scopes { paths: boxed(args.paths), models: boxed(args.models), levels: boxed(args.levels) },
        expires_ms: args.expires.map(|length_ms| now_ms.saturating_add(length_ms)),
        limits: Limits { rpm: args.rpm, tpm: args.tpm, rpd: args.rpd, tpd: args.tpd, concurrent: args.concurrent },
        credits: args.credits,
    })
}

/// The one place where a key is printed.
fn show_created(created: &Created, new: Option<&NewKey>, as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if as_json {
        let mut value = object!({ "id": created.id, "key": created.key.expose(), "account": created.account });
        if let Some(new) = new {
            value["name"] = new.name.as_str().into();
            value["tier"] = new.tier.as_deref().into();
            value["expires_at"] = new.expires_ms.map(utc).into();
            value["credits"] = new.credits.map(|credits| credits.to_string()).into();
        }
        return json(out, &value);
    }
    writeln!(out, "key      {}", created.key.expose())?;
    writeln!(out, "id       {}", created.id)?;
    writeln!(out, "account  {}", created.account)?;
    if let Some(expires_ms) = new.and_then(|new| new.expires_ms) {
        writeln!(out, "expires  {}", utc(expires_ms))?;
    }
    Ok(writeln!(out, "Keep the key now: it is not shown again.")?)
}

fn show_list(keys: &[Listed], as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if as_json {
        let rows: Vec<_> = keys.iter().map(listed_json).collect();
        return json(out, &rows);
    }
    let heading = ["ID", "NAME", "KEY", "ACCOUNT", "TIER", "STATE", "CREATED", "EXPIRES", "LAST USED"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let moment = |ms: Option<u64>| ms.map_or("-".to_owned(), utc);
    for key in keys {
        rows.push(vec![
            key.id.clone(),
            key.name.clone(),
            key.shown.clone(),
            key.account.clone(),
            key.tier.clone().unwrap_or_else(|| "-".into()),
            key.state.to_owned(),
            utc(key.created_ms),
            moment(key.expires_ms),
            moment(key.last_used_ms),
        ]);
    }
    Ok(table(out, &rows)?)
}

/// A listed key for scripts; the admin listener shows the same.
pub fn listed_json(key: &Listed) -> serde_json::Value {
    object!({
        "id": key.id, "name": key.name, "key": key.shown, "account": key.account, "tier": key.tier, "scopes": key.scopes,
        "limits": {
            "rpm": key.limits.rpm, "tpm": key.limits.tpm, "rpd": key.limits.rpd, "tpd": key.limits.tpd, "concurrent": key.limits.concurrent
        },
        "state": key.state, "has_budget": key.has_budget, "created_at": utc(key.created_ms), "expires_at": key.expires_ms.map(utc),
        "revoked_at": key.revoked_ms.map(utc), "last_used_at": key.last_used_ms.map(utc)
    })
}

/// Milliseconds of a time with its unit.
fn time(text: &str) -> Result<u64, String> {
    match duration(text) {
        Some(length) => Ok(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        None => Err("a time carries its unit, such as 90d, 24h or 30s".into()),
    }
}

fn credits(text: &str) -> Result<Credits, String> {
    Credits::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: KeyArgs,
    }

    fn output(store: &Store, words: &str) -> Result<String, String> {
        let args = Cli::try_parse_from(std::iter::once("key").chain(words.split(' '))).map_err(|error| error.to_string())?.args;
        let mut out = Vec::new();
        run(args, store, Some(&["pro"]), &mut out).map_err(|failure| failure.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn create_list_rotate_revoke() {
        let store = Store::in_memory().unwrap();
        let created = output(&store, "create --name shop --tier pro --expires 90d --models gpt-4o,claude-* --rpm 5 --json").unwrap();
        let created: serde_json::Value = serde_json::from_str(&created).unwrap();
        let (id, key) = (created["id"].as_str().unwrap(), created["key"].as_str().unwrap());
        assert_eq!((key.len(), &key[..3], created["account"].as_str().unwrap()), (46, "wk_", id));

        let listed = output(&store, "list --json").unwrap();
        assert!(!listed.contains(&key[4..12]), "{listed}");
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed[0]["state"], "active");
        assert_eq!(listed[0]["limits"]["rpm"], 5);
        assert_eq!(listed[0]["scopes"]["models"][1], "claude-*");
        let people = output(&store, "list").unwrap();
        assert!(people.starts_with("ID ") && people.contains("shop") && !people.contains(&key[4..12]), "{people}");

        let rotated = output(&store, &format!("rotate {id} --overlap 1h")).unwrap();
        assert!(rotated.contains("key      wk_") && rotated.contains(id) && !rotated.contains(key), "{rotated}");
        output(&store, &format!("revoke {id}")).unwrap();
        assert!(output(&store, "list").unwrap().contains("revoked"));
    }

    #[test]
    fn wrong_usage_says_what_to_do() {
        let store = Store::in_memory().unwrap();
        for (words, expected) in [
            ("create", "--name"),
            ("create --name a --expires 90", "carries its unit"),
            ("create --name a --tier gold", "configured are: pro"),
            ("create --name a --credits x", "an amount is"),
            ("create --name a --expires 0s", "expired at once"),
            ("revoke key_1", "weir key list"),
            ("revoke wk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "not the key itself"),
        ] {
            let message = output(&store, words).unwrap_err();
            assert!(message.contains(expected), "{words}: {message}");
            assert!(!message.contains("AAAAAAAA"));
        }
    }
}
