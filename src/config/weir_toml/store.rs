//! `[store]`

use crate::config::routing::from_folder;
use crate::config::walk::{self, Table};
use crate::engine::catalog::SecretRef;
use std::path::{Path, PathBuf};

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// In memory: gone with the process.
    Memory,
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL URL; without a password where it stands in `weir.toml`.
    Postgres(Box<str>),
    /// A URL that holds a password and is therefore kept elsewhere.
    Secret(SecretRef),
}

/// Beside the configuration, as in the contract's example.
const DEFAULT_FILE: &str = "var/weir.db";

impl StoreUrl {
    /// A URL as it is written out, in `weir.toml` or where a reference leads; a relative path is taken from `folder`, that of `weir.toml`.
    /// `Err`: it is none; says what it must be and quotes nothing, for it may hold a password.
    pub fn parse(text: &str, folder: &Path) -> Result<StoreUrl, &'static str> {
        if text == "sqlite::memory:" {
            return Ok(StoreUrl::Memory);
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(StoreUrl::Postgres(text.into()));
        }
        let path = text
            .strip_prefix("sqlite:")
            .ok_or("must be \"sqlite:PATH\" or \"postgres://…\", written out or by reference (env:NAME, file:PATH)")?;
        // sqlite:///absolute and sqlite://relative are written too.
        match path.strip_prefix("//").unwrap_or(path) {
            "" => Err("has no file: write \"sqlite:var/weir.db\""),
            path => Ok(StoreUrl::Sqlite(folder.join(path))),
        }
    }
}

pub(super) fn read(root: &mut Table<'_>, folder: &Path) -> StoreUrl {
    let default = || StoreUrl::Sqlite(folder.join(DEFAULT_FILE));
    let Some(mut table) = root.table("store") else { return default() };
    let url = match table.string("url") {
        None => default(),
        Some(text) => written(text, folder).unwrap_or_else(|what| {
            table.problem("url", what);
            default()
        }),
    };
    table.finish();
    url
}

fn written(text: &str, folder: &Path) -> Result<StoreUrl, &'static str> {
    match walk::secret(text) {
        Some(SecretRef::Vault(_)) => return Err("the vault is in the store, so it cannot hold the store's URL"),
        Some(secret) => return Ok(StoreUrl::Secret(from_folder(secret, folder))),
        None => {}
    }
    let url = StoreUrl::parse(text, folder)?;
    if let StoreUrl::Postgres(text) = &url
        && holds_password(text)
    {
        return Err("a secret is never written here: put the whole URL elsewhere and refer to it as \"env:NAME\" or \"file:PATH\"");
    }
    Ok(url)
}

/// A PostgreSQL URL has a password, before its host or among its parameters.
fn holds_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || rest.contains("password=")
}
