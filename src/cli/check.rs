//! `weir check`: load everything, print every problem.

use super::Failure;
use crate::app;
use crate::config::weir_toml;
use crate::engine::catalog::SecretRef;
use crate::store::vault::seal::resolve_plain;
use std::io::Write;
use std::path::Path;

/// Prints every problem as `file:line: key: what`; fails if there is one. Secrets that are not there are told as well, and
/// are no failure: the machine that checks a configuration is often not the one that has them.
///
/// What is wrong in `weir.toml` does not hide what is wrong in routing and prices, which are then looked for where it says or else
/// beside it. Only a `weir.toml` that cannot be read is told alone: with it, nobody knows where the others are.
pub fn run(config: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let text = super::commands::read(config).map_err(|problem| app::problems(vec![problem]))?;
    let (settings, mut problems) = weir_toml::survey(&config.to_string_lossy(), &text);
    let (catalog, found) = app::check(&settings);
    problems.extend(found);
    if !problems.is_empty() {
        return Err(app::problems(problems));
    }
    let mut references: Vec<(String, &SecretRef)> = catalog
        .providers
        .values()
        .filter_map(|provider| provider.key.as_ref().map(|key| (format!("provider.{}.key", provider.name), key)))
        .chain(settings.vault.master_key.as_ref().map(|key| ("vault.master_key".to_string(), key)))
        .chain(settings.admin_token.as_ref().map(|key| ("admin.token".to_string(), key)))
        .chain(
            [("lago", &settings.lago), ("openmeter", &settings.openmeter)]
                .into_iter()
                .filter_map(|(name, export)| export.as_ref()?.api_key.as_ref().map(|key| (format!("export.{name}.api_key"), key))),
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a folder with these files, the folder's own name taken out; `Err`: as problems.
    fn told(files: &[(&str, &str)]) -> Result<String, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut out = Vec::new();
        let done = run(&folder.path().join("weir.toml"), &mut out);
        let plain = |text: &str| text.replace(&format!("{}/", folder.path().display()), "");
        match done {
            Ok(()) => Ok(plain(std::str::from_utf8(&out).unwrap())),
            Err(failure) => {
                assert_eq!((failure.exit_code(), out.len()), (1, 0));
                Err(plain(&failure.to_string()).lines().map(str::to_owned).collect())
            }
        }
    }

    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let found = told(files).unwrap_err();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }

    const WRONG_ROUTING: &str = "[provider.p]\nkind = \"opanai\"\n";
    const WRONG_PRICES: &str = "[price.\"p/m\"]\ninput = 0.15\n";

    #[test]
    fn a_problem_hides_no_other() {
        let weir = "[limits]\nmax_body = \"64\"\n[files]\nrouting = \"r.toml\"\n[listen.tls]\ncert = \"no.pem\"\nkey = \"no.key\"\n";
        let routing = "[provider.o]\nkind = \"openai\"\nkey = \"env:KEY\"\nca = \"no-ca.pem\"\n[provider.p]\nkind = \"opanai\"\n";
        check(
            &[("weir.toml", weir), ("r.toml", routing), ("prices.toml", WRONG_PRICES)],
            &[
                "weir.toml:2: limits.max_body: ",
                "prices.toml:2: price.\"p/m\".input: ",
                "r.toml:6: provider.p.kind: ",
                "weir.toml:6: listen.tls.cert: no.pem: ",
                "weir.toml:7: listen.tls.key: no.key: ",
                "r.toml:4: provider.o.ca: no-ca.pem: ",
            ],
        );
    }

    #[test]
    fn beside_a_file_that_is_not_toml_the_others_are_looked_for() {
        check(
            &[("weir.toml", "[limits\n"), ("routing.toml", WRONG_ROUTING), ("prices.toml", WRONG_PRICES)],
            &["weir.toml:1: not TOML: ", "prices.toml:2: ", "routing.toml:2: "],
        );
    }

    #[test]
    fn a_file_that_is_not_there_hides_no_problem_of_the_others() {
        check(&[], &["weir.toml:1: cannot be read: "]);
        check(&[("weir.toml", ""), ("prices.toml", WRONG_PRICES)], &["routing.toml:1: cannot be read: ", "prices.toml:2: "]);
        check(&[("weir.toml", ""), ("routing.toml", WRONG_ROUTING)], &["prices.toml:1: cannot be read: ", "routing.toml:2: "]);
        // Nor is it told of each model that it has no price.
        let priced = "[provider.p]\nkind = \"openai\"\nkey = \"env:KEY\"\n[model.m]\ntargets = [{ provider = \"p\" }]\n";
        check(&[("weir.toml", ""), ("routing.toml", priced)], &["prices.toml:1: cannot be read: "]);
        check(&[("weir.toml", ""), ("routing.toml", priced), ("prices.toml", "")], &["routing.toml:5: model.m.targets"]);
    }

    #[test]
    fn an_exports_key_that_is_not_there_is_told() {
        let weir = "[export.lago]\nurl = \"https://lago.example\"\napi_key = \"env:WEIR_TEST_NO_SUCH_KEY\"\n";
        let said = told(&[("weir.toml", weir), ("routing.toml", ""), ("prices.toml", "")]).unwrap();
        assert!(said.starts_with("note: export.lago.api_key: the environment variable WEIR_TEST_NO_SUCH_KEY is not set\nok: "), "{said}");
    }

    #[test]
    fn what_is_right_is_counted() {
        let said = told(&[("weir.toml", ""), ("routing.toml", ""), ("prices.toml", "")]).unwrap();
        assert_eq!(said, "ok: 0 providers, 0 models, 0 levels, 0 tiers, 0 prices\n");
    }
}
