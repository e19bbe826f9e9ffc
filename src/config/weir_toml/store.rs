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
    /// A PostgreSQL URL without a password.
    Postgres(Box<str>),
    /// A URL that holds a password and is therefore kept elsewhere.
    Secret(SecretRef),
}

/// Beside the configuration, as in the contract's example.
const DEFAULT_FILE: &str = "var/weir.db";

pub(super) fn read(root: &mut Table<'_>, folder: &Path) -> StoreUrl {
    let default = || StoreUrl::Sqlite(folder.join(DEFAULT_FILE));
    let Some(mut table) = root.table("store") else { return default() };
    let url = match table.string("url") {
        None => default(),
        Some("sqlite::memory:") => StoreUrl::Memory,
        Some(text) => match text.strip_prefix("sqlite:") {
            Some("") => {
                table.problem("url", "has no file: write \"sqlite:var/weir.db\"");
                default()
            }
            // sqlite:///absolute and sqlite://relative are written too.
            Some(path) => StoreUrl::Sqlite(folder.join(path.strip_prefix("//").unwrap_or(path))),
            None => elsewhere(&mut table, text, folder).unwrap_or_else(default),
        },
    };
    table.finish();
    url
}

fn elsewhere(table: &mut Table<'_>, text: &str, folder: &Path) -> Option<StoreUrl> {
    if let Some(rest) = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || rest.contains("password=") {
            table.problem(
                "url",
                "a secret is never written here: put the whole URL elsewhere and refer to it as \"env:NAME\" or \"file:PATH\"",
            );
            return None;
        }
        return Some(StoreUrl::Postgres(text.into()));
    }
    match walk::secret(text) {
        Some(SecretRef::Vault(_)) => table.problem("url", "the vault is in the store, so it cannot hold the store's URL"),
        Some(secret) => return Some(StoreUrl::Secret(from_folder(secret, folder))),
        // Not quoted: it may hold a password.
        None => table.problem("url", "must be \"sqlite:PATH\", \"postgres://…\", or a reference to such a URL (env:NAME, file:PATH)"),
    }
    None
}
