//! `weir vault init | set | list | remove | rotate | check | import | scan`: provider keys, the platform's and the users'.

use super::{Failure, json, operator, table, utc};
use crate::engine::catalog::{BaseUrl, Catalog, SecretRef};
use crate::engine::provider::{Kind, Verdict};
use crate::store::audit::Actor;
use crate::store::scan::{Redact, Scan, scan};
use crate::store::secret::Secret;
use crate::store::vault::check::{Answer, Place, ask_at};
use crate::store::vault::import;
use crate::store::vault::seal::{MasterKey, named};
use crate::store::vault::{self, Entry, MasterRefs, Masters, NewEntry, PLATFORM, Stored};
use crate::store::{Store, now_ms};
use clap::{Args, Subcommand};
use serde_json::json as object;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `weir vault …`
#[derive(Debug, Args)]
pub struct VaultArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: VaultCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Print a new master key and how to set it
    Init {
        /// For a rotation: print one though there is one
        #[arg(long)]
        next: bool,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Store a key; it is read from stdin
    Set {
        /// The provider, as named in routing.toml
        provider: String,
        /// The account it belongs to (default: the platform)
        #[arg(long)]
        account: Option<String>,
        /// Its name; the platform's is used as vault:NAME (default: the provider's)
        #[arg(long)]
        name: Option<String>,
        /// Where it is to be used, when not at the provider's own address
        #[arg(long)]
        base_url: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// List all keys, masked
    List {
        /// Only this account's
        #[arg(long)]
        account: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Remove a key
    Remove {
        /// The platform's key by its name, an account's by its provider
        name: String,
        /// The account it belongs to (default: the platform)
        #[arg(long)]
        account: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Seal every key again under vault.master_key; may be interrupted and run again, while servers run
    Rotate {
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Ask the providers whether keys work
    Check {
        /// Only this one: the platform's by its name, an account's by its provider
        name: Option<String>,
        /// Only this account's (default: the platform's)
        #[arg(long)]
        account: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Take keys over from .env or JSON files
    Import {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The account they belong to (default: the platform)
        #[arg(long)]
        account: Option<String>,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Find keys that lie about in files
    Scan {
        /// Files and folders
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Replace what is found by a placeholder
        #[arg(long)]
        redact: bool,
        /// Keep no copy of the file as it was
        #[arg(long, requires = "redact")]
        no_backup: bool,
        /// Print JSON, for scripts
        #[arg(long)]
        json: bool,
    },
}

/// What the commands work on.
#[derive(Debug)]
pub struct Context<'a> {
    /// The store.
    pub store: &'a Store,
    /// `[vault]`; `None`: there is none yet.
    pub masters: Option<MasterRefs>,
    /// The providers; `None`: no routing file could be loaded, and then a provider's name is taken for its kind.
    pub catalog: Option<&'a Catalog>,
}

/// Runs `weir vault …`. `input` is where `set` reads the key. Blocking; not to be called from an async task.
pub fn run(args: VaultArgs, context: &Context<'_>, input: &mut dyn Read, out: &mut dyn Write) -> Result<(), Failure> {
    let who = operator();
    let actor = Actor { who: &who, from: "local" };
    match args.command {
        VaultCommand::Init { next, json } => init(context, next, json, out),
        VaultCommand::Set { provider, account, name, base_url, json: as_json } => {
            let key = read_key(input)?;
            let account = account.as_deref().unwrap_or(PLATFORM);
            let kind = kind(context, &provider)?;
            let new = NewEntry {
                account,
                provider: &provider,
                kind: Some(kind),
                name: name.as_deref(),
                base_url: base_url.as_deref(),
                key: &key,
            };
            let stored = vault::set(context.store, &masters(context)?, &new, actor, now_ms())?;
            show_stored(&provider, account, &stored, as_json, out)
        }
        VaultCommand::List { account, json } => show_list(&vault::list(context.store, account.as_deref())?, json, out),
        VaultCommand::Remove { name, account, json: as_json } => {
            vault::remove(context.store, account.as_deref().unwrap_or(PLATFORM), &name, actor, now_ms())?;
            if as_json { json(out, &object!({ "removed": name, "account": account })) } else { Ok(writeln!(out, "{name} is removed")?) }
        }
        VaultCommand::Rotate { json } => rotate(context, actor, json, out),
        VaultCommand::Check { name, account, json } => check(context, name.as_deref(), account.as_deref(), actor, json, out),
        VaultCommand::Import { files, account, json } => {
            import_files(context, &files, account.as_deref().unwrap_or(PLATFORM), actor, json, out)
        }
        VaultCommand::Scan { paths, redact, no_backup, json } => {
            let redact = match (redact, no_backup) {
                (false, _) => Redact::No,
                (true, false) => Redact::WithBackup,
                (true, true) => Redact::WithoutBackup,
            };
            show_scan(&scan(&paths, redact), json, out)
        }
    }
}

fn init(context: &Context<'_>, next: bool, as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let in_use = vault::masters_in_use(context.store)?;
    let set = context.masters.as_ref().map(|refs| Masters::resolve(&refs.current, None));
    if !next && (!in_use.is_empty() || matches!(set, Some(Ok(_)))) {
        return Err(Failure::Failed(
            "there is a master key already; to change it, `weir vault init --next` prints a new one and how to go over to it".into(),
        ));
    }
    let key = MasterKey::generate();
    let id = MasterKey::parse(key.expose()).map_err(Failure::Failed)?.id().to_owned();
    if as_json {
        return json(out, &object!({ "master_key": key.expose(), "id": id }));
    }
    let reference = context.masters.as_ref().map(|refs| &refs.current);
    writeln!(out, "{}", key.expose())?;
    writeln!(out)?;
    writeln!(out, "This is a new master key ({id}). It is stored nowhere: without it the vault cannot be opened, so keep a copy.")?;
    if next {
        writeln!(out, "To go over to it:")?;
        writeln!(out, "  1. set [vault] previous_key to where the present key is, and master_key to where this one will be")?;
        writeln!(out, "  2. restart or upgrade the servers, so that they have both")?;
        writeln!(out, "  3. run `weir vault rotate`; it may be interrupted and run again")?;
        writeln!(out, "  4. remove previous_key")?;
        return Ok(());
    }
    match reference {
        Some(SecretRef::File(path)) => writeln!(out, "Write it to {path}, readable by weir alone (chmod 600).")?,
        Some(SecretRef::Env(name)) => writeln!(out, "Set the environment variable {name} to it where weir runs.")?,
        _ => {
            writeln!(out, "Set an environment variable to it where weir runs, and refer to that in weir.toml:")?;
            writeln!(out, "  [vault]")?;
            writeln!(out, "  master_key = \"env:WEIR_MASTER_KEY\"")?;
        }
    }
    Ok(())
}

fn rotate(context: &Context<'_>, actor: Actor<'_>, as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let masters = masters(context)?;
    let done = vault::rotate(context.store, &masters, actor, now_ms())?;
    if as_json {
        json(
            out,
            &object!({ "resealed": done.resealed, "already": done.already, "failed": done.failed, "master_key_id": masters.current.id() }),
        )?;
    } else {
        writeln!(out, "{} sealed again under {}, {} were already", done.resealed, masters.current.id(), done.already)?;
    }
    if done.failed == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} could not be opened: their master key is neither vault.master_key nor vault.previous_key, or they were changed; see `weir vault list`",
        done.failed
    )))
}

fn check(
    context: &Context<'_>,
    name: Option<&str>,
    account: Option<&str>,
    actor: Actor<'_>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let masters = masters(context)?;
    let account = account.unwrap_or(PLATFORM);
    let wanted = |entry: &Entry| name.is_none_or(|name| name == if account == PLATFORM { &entry.name } else { &entry.provider });
    let entries: Vec<Entry> = vault::list(context.store, Some(account))?.into_iter().filter(wanted).collect();
    if entries.is_empty() {
        return Err(Failure::Failed("no such key is stored: see `weir vault list`".into()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = vec![["NAME", "PROVIDER", "KEY", "VERDICT", "DETAIL"].map(str::to_owned).to_vec()];
    let mut answers = Vec::new();
    for entry in &entries {
        let answer = runtime.block_on(ask(context, &masters, entry))?;
        vault::checked(context.store, entry, answer.verdict, actor, now_ms())?;
        let verdict = answer.verdict.name();
        rows.push(vec![entry.name.clone(), entry.provider.clone(), entry.shown.clone(), verdict.into(), answer.detail.clone()]);
        answers.push((entry, answer));
    }
    if as_json {
        let rows: Vec<_> = answers
            .iter()
            .map(|(entry, answer)| {
                object!({
                    "name": entry.name, "provider": entry.provider, "key": entry.shown, "verdict": answer.verdict.name(),
                    "status": answer.status, "detail": answer.detail
                })
            })
            .collect();
        json(out, &rows)?;
    } else {
        table(out, &rows)?;
    }
    let bad = answers.iter().filter(|(_, answer)| !matches!(answer.verdict, Verdict::Valid | Verdict::Unclear)).count();
    if bad == 0 { Ok(()) } else { Err(Failure::Failed(format!("{bad} of {} keys do not work", answers.len()))) }
}

async fn ask(context: &Context<'_>, masters: &Masters, entry: &Entry) -> Result<Answer, Failure> {
    let which = if entry.account == PLATFORM { &entry.name } else { &entry.provider };
    let (_, key) = vault::open(context.store, masters, &entry.account, which)?;
    let own_base = entry.base_url.as_deref().map(BaseUrl::parse).transpose().map_err(|why| Failure::Failed(format!("base_url {why}")))?;
    let configured = context.catalog.and_then(|catalog| catalog.providers.get(entry.provider.as_str()));
    let place = match configured {
        Some(provider) => Some(Place::of(provider, own_base.as_ref())),
        None => Kind::of_name(&entry.provider).and_then(|kind| Place::usual(kind, own_base.as_ref())),
    };
    match place {
        Some(place) => Ok(ask_at(&place, &key).await),
        None => {
            let detail = format!("no provider is named {:?} in routing.toml, so there is nobody to ask", entry.provider);
            Ok(Answer { verdict: Verdict::Unclear, status: None, detail })
        }
    }
}

fn import_files(
    context: &Context<'_>,
    files: &[PathBuf],
    account: &str,
    actor: Actor<'_>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let masters = masters(context)?;
    let (mut rows, mut originals, mut failed) = (Vec::new(), Vec::new(), 0);
    for path in files {
        let entries = import::parse(&read_file(path)?).map_err(|why| Failure::Failed(format!("{}: {why}", path.display())))?;
        let mut taken = false;
        for entry in entries {
            let file = path.display().to_string();
            let (name, kind, key) = match entry {
                import::Entry::Skipped { name, why } => {
                    rows.push((file, name, String::new(), String::new(), format!("skipped: {why}")));
                    continue;
                }
                import::Entry::Key { name, kind, key } => (name, kind, key),
            };
            let provider = provider_of(context, kind);
            let new = NewEntry { account, provider: &provider, kind: Some(kind), name: None, base_url: None, key: &key };
            let told = match vault::set(context.store, &masters, &new, actor, now_ms()) {
                Ok(stored) => {
                    taken = true;
                    if stored.replaced { "stored (replaced another)".to_owned() } else { "stored".to_owned() }
                }
                Err(error) => {
                    failed += 1;
                    format!("refused: {error}")
                }
            };
            rows.push((file, name, provider, key.masked(), told));
        }
        if taken {
            originals.push(path.display().to_string());
        }
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(file, name, provider, key, result)| {
                object!({ "file": file, "entry": name, "provider": provider, "key": key, "result": result })
            })
            .collect();
        json(out, &object!({ "entries": rows, "to_delete": originals }))?;
    } else {
        let mut cells = vec![["FILE", "ENTRY", "PROVIDER", "KEY", "RESULT"].map(str::to_owned).to_vec()];
        cells.extend(rows.into_iter().map(|(file, name, provider, key, result)| vec![file, name, provider, key, result]));
        table(out, &cells)?;
        if !originals.is_empty() {
            writeln!(out, "\nThe originals still hold the keys in clear. Check that weir works, then delete them:")?;
            for original in originals {
                writeln!(out, "  {original}")?;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Failed(format!("{failed} keys were refused"))) }
}

/// The configured provider of a kind when there is just one, else the kind's own name.
fn provider_of(context: &Context<'_>, kind: Kind) -> String {
    let configured = context.catalog.iter().flat_map(|catalog| catalog.providers.values());
    let mut names = configured.filter(|provider| provider.kind == kind).map(|provider| provider.name.to_string());
    match (names.next(), names.next()) {
        (Some(only), None) => only,
        _ => kind.name().to_owned(),
    }
}

/// A file of keys; its text is zeroed.
fn read_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.take(import::FILE_MAX + 1).read_to_string(&mut text).map_err(failed)? as u64 > import::FILE_MAX {
        return Err(Failure::Failed(format!("{}: too long for a file of keys", path.display())));
    }
    Ok(text)
}

/// The key on stdin, without the line end a shell adds.
fn read_key(input: &mut dyn Read) -> Result<Secret, Failure> {
    /// Far above any key; what is longer is a file piped by mistake.
    const MAX: u64 = 64 * 1024;
    let mut text = Zeroizing::new(String::with_capacity(MAX as usize));
    input.take(MAX).read_to_string(&mut text).map_err(|_| Failure::Failed("the key on stdin is not text".into()))?;
    Ok(Secret::copied(text.trim_end_matches(['\r', '\n'])))
}

fn masters(context: &Context<'_>) -> Result<Masters, Failure> {
    let Some(refs) = &context.masters else {
        return Err(Failure::Failed("there is no vault: `weir vault init` makes a master key and says where to put it".into()));
    };
    Masters::resolve(&refs.current, refs.previous.as_ref())
        .map_err(|why| Failure::Failed(format!("{why} ({}); `weir vault init` makes one", named(&refs.current))))
}

/// The kind of a provider's name.
fn kind(context: &Context<'_>, provider: &str) -> Result<Kind, Failure> {
    if let Some(provider) = context.catalog.and_then(|catalog| catalog.providers.get(provider)) {
        return Ok(provider.kind);
    }
    if let Some(kind) = Kind::of_name(provider) {
        return Ok(kind);
    }
    let mut names: Vec<&str> = match context.catalog {
        Some(catalog) => catalog.providers.keys().map(|name| &**name).collect(),
        None => Vec::new(),
    };
    names.sort_unstable();
    let known = if names.is_empty() { "none is configured".to_owned() } else { format!("configured are: {}", names.join(", ")) };
    // What was typed is not repeated: it may be the key itself.
    Err(Failure::Failed(format!("no provider has that name; {known}. The key itself is read from stdin")))
}

fn show_stored(provider: &str, account: &str, stored: &Stored, as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if as_json {
        return json(
            out,
            &object!({
                "provider": provider, "account": owner(account), "name": stored.name, "key": stored.shown, "replaced": stored.replaced,
                "unfamiliar": stored.unfamiliar
            }),
        );
    }
    let replaced = if stored.replaced { " (it replaces another)" } else { "" };
    writeln!(out, "stored {} for {provider}{replaced}", stored.shown)?;
    if stored.unfamiliar {
        writeln!(out, "It does not look like the keys {provider} gives out; `weir vault check` asks {provider} about it.")?;
    }
    if account == PLATFORM {
        writeln!(out, "Use it in routing.toml as key = \"vault:{}\".", stored.name)?;
    }
    Ok(())
}

fn show_list(entries: &[Entry], as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if as_json {
        let rows: Vec<_> = entries.iter().map(entry_json).collect();
        return json(out, &rows);
    }
    let heading = ["NAME", "PROVIDER", "ACCOUNT", "KEY", "BASE URL", "MASTER KEY", "CHANGED", "LAST USED", "LAST CHECK"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let moment = |ms: Option<u64>| ms.map_or("-".to_owned(), utc);
    for entry in entries {
        let check = match (&entry.verdict, entry.checked_ms) {
            (Some(verdict), Some(ms)) => format!("{verdict} {}", utc(ms)),
            _ => "-".to_owned(),
        };
        rows.push(vec![
            entry.name.clone(),
            entry.provider.clone(),
            owner(&entry.account).unwrap_or("(platform)").to_owned(),
            entry.shown.clone(),
            entry.base_url.clone().unwrap_or_else(|| "-".into()),
            entry.master_id.clone(),
            utc(entry.changed_ms),
            moment(entry.last_used_ms),
            check,
        ]);
    }
    Ok(table(out, &rows)?)
}

/// A stored key for scripts.
pub fn entry_json(entry: &Entry) -> serde_json::Value {
    object!({
        "name": entry.name, "provider": entry.provider, "account": owner(&entry.account), "key": entry.shown, "base_url": entry.base_url,
        "master_key_id": entry.master_id, "created_at": utc(entry.created_ms), "changed_at": utc(entry.changed_ms),
        "last_used_at": entry.last_used_ms.map(utc), "checked_at": entry.checked_ms.map(utc), "verdict": entry.verdict
    })
}

/// `None`: the platform.
fn owner(account: &str) -> Option<&str> {
    (account != PLATFORM).then_some(account)
}

fn show_scan(scan: &Scan, as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if as_json {
        let findings: Vec<_> = scan
            .findings
            .iter()
            .map(
                |found| object!({ "file": found.path.display().to_string(), "line": found.line, "owner": found.owner, "key": found.shown }),
            )
            .collect();
        let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let unread: Vec<_> = scan.unread.iter().map(|(path, why)| object!({ "file": path.display().to_string(), "why": why })).collect();
        json(
            out,
            &object!({
                "findings": findings, "files": scan.files, "unread": unread, "redacted": paths(&scan.redacted), "backups": paths(&scan.backups)
            }),
        )?;
    } else {
        for found in &scan.findings {
            writeln!(out, "{}:{}: {} ({})", found.path.display(), found.line, found.shown, found.owner)?;
        }
        for (path, why) in &scan.unread {
            writeln!(out, "{}: {why}", path.display())?;
        }
        for path in &scan.redacted {
            writeln!(out, "redacted {}", path.display())?;
        }
        for path in &scan.backups {
            writeln!(out, "backup {} holds the keys: move it away or delete it", path.display())?;
        }
        writeln!(out, "{} keys in {} files", scan.findings.len(), scan.files)?;
    }
    // A check in a build must fail on a finding, and on a file that could not be looked at.
    let left = scan.findings.iter().filter(|found| !scan.redacted.contains(&found.path)).count();
    match (left, scan.unread.len()) {
        (0, 0) => Ok(()),
        (0, unread) => Err(Failure::Failed(format!("{unread} files were not read or not redacted"))),
        (left, _) => Err(Failure::Failed(format!(
            "{left} keys lie about: replace them at their providers, they are known to whoever read the files"
        ))),
    }
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
