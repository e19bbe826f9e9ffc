//! `weir check`: load everything, print every problem.

use super::Failure;
use crate::app;
use crate::engine::catalog::SecretRef;
use crate::store::vault::seal::resolve_plain;
use std::io::Write;
use std::path::Path;

/// Prints every problem as `file:line: key: what`; fails if there is one. Secrets that are not there are told as well, and
/// are no failure: the machine that checks a configuration is often not the one that has them.
pub fn run(config: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = match super::commands::load(config) {
        Ok(settings) => settings,
        Err(problems) => return Err(app::problems(problems)),
    };
    let catalog = app::load_catalog(&settings).map_err(app::problems)?;
    let wrong = app::check_files(&settings, &catalog);
    if !wrong.is_empty() {
        return Err(Failure::Failed(wrong.join("\n")));
    }
    let mut references: Vec<(String, &SecretRef)> = catalog
        .providers
        .values()
        .filter_map(|provider| provider.key.as_ref().map(|key| (format!("provider.{}.key", provider.name), key)))
        .chain(settings.vault.master_key.as_ref().map(|key| ("vault.master_key".to_string(), key)))
        .chain(settings.admin_token.as_ref().map(|key| ("admin.token".to_string(), key)))
        .collect();
    references.sort_by(|one, other| one.0.cmp(&other.0));
    for (key, reference) in references {
        if !matches!(reference, SecretRef::Vault(_))
            && let Err(what) = resolve_plain(reference)
        {
            writeln!(out, "note: {key}: {what}")?;
        }
    }
    writeln!(
        out,
        "ok: {} providers, {} models, {} levels, {} tiers, {} prices",
        catalog.providers.len(),
        catalog.models.len(),
        catalog.levels.len(),
        catalog.tiers.len(),
        catalog.prices.len()
    )?;
    Ok(())
}
