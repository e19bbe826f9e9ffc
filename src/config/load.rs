//! The hot files: read, parsed and checked together, or not at all.

use super::pace;
use super::prices::Prices;
use super::problem::Problem;
use crate::engine::catalog::Catalog;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Where `routing.toml` and `prices.toml` are.
#[derive(Debug)]
pub struct Files {
    routing: PathBuf,
    prices: PathBuf,
    /// The prices as they were read last, with their text: half of a load where only the other file changed.
    known: Mutex<Option<(String, Arc<Prices>)>>,
}

/// What tells one version of the files from another without reading them: change times, sizes and inodes. The inode catches
/// a file that was replaced by a rename within the resolution of its time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint {
    hot: [Option<Version>; 2],
    /// The Lua policy that `routing.toml` named when it was read.
    policy: Option<(PathBuf, Option<Version>)>,
}

type Version = (SystemTime, u64, u64);

impl Files {
    /// The two files by their paths.
    pub fn new(routing: PathBuf, prices: PathBuf) -> Files {
        Files { routing, prices, known: Mutex::default() }
    }

    /// `routing.toml`'s path.
    pub fn routing(&self) -> &Path {
        &self.routing
    }

    /// `prices.toml`'s path.
    pub fn prices(&self) -> &Path {
        &self.prices
    }

    /// The present versions of the files that were seen before.
    pub fn fingerprint(&self, seen: &Fingerprint) -> Fingerprint {
        Fingerprint {
            hot: [version(&self.routing), version(&self.prices)],
            policy: seen.policy.as_ref().map(|(path, _)| (path.clone(), version(path))),
        }
    }

    /// Reads, parses and checks both files, and reads the Lua policy that they name, whose version is noted in `seen`. All
    /// problems of both are reported at once.
    pub fn load(&self, seen: &mut Fingerprint) -> Result<Catalog, Vec<Problem>> {
        let (catalog, problems) = self.survey(seen);
        if problems.is_empty() {
            return Ok(catalog);
        }
        pace::free(catalog.models);
        Err(problems)
    }

    /// As [`Files::load`], with the catalog beside the problems: what is wrong is missing from it or has its default. It is good for
    /// finding further problems, and for nothing else where there are any. A file that cannot be read is told and taken for empty, a
    /// policy for none.
    pub fn survey(&self, seen: &mut Fingerprint) -> (Catalog, Vec<Problem>) {
        let mut problems = Vec::new();
        let routing = read(&self.routing, &mut problems).unwrap_or_default();
        let written = read(&self.prices, &mut problems);
        let is_priced = written.is_some();
        let prices = self.read_prices(written.unwrap_or_default(), &mut problems);
        let (mut catalog, mut found) = super::routing::parse(&self.routing.to_string_lossy(), &routing, &prices);
        // Prices that nobody could read are not missing.
        found.retain(|problem| is_priced || !problem.what.starts_with(super::routing::NO_PRICE));
        problems.extend(found);
        seen.policy = None;
        if let Some(policy) = catalog.lua_policy.as_mut().map(Arc::make_mut) {
            let path = PathBuf::from(&*policy.file);
            // Before it is read: a change in between is seen the next time.
            seen.policy = Some((path.clone(), version(&path)));
            match read(&path, &mut problems) {
                Some(text) => policy.text = text.into(),
                None => catalog.lua_policy = None,
            }
        }
        (catalog, problems)
    }

    fn read_prices(&self, text: String, problems: &mut Vec<Problem>) -> Arc<Prices> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, prices)) = known.as_ref().filter(|(before, _)| *before == text) {
            return Arc::clone(prices);
        }
        let (prices, found) = super::prices::parse(&self.prices.to_string_lossy(), &text);
        // Prices with a problem are incomplete.
        *known = found.is_empty().then(|| (text, Arc::clone(&prices)));
        problems.extend(found);
        prices
    }
}

fn version(path: &Path) -> Option<Version> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

fn read(path: &Path, problems: &mut Vec<Problem>) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            problems.push(Problem {
                file: path.to_string_lossy().into_owned(),
                line: 1,
                key: String::new(),
                what: format!("cannot be read: {error}"),
            });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_again_when_their_text_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let put = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let files = Files::new(path("routing.toml"), path("prices.toml"));
        let load = || files.load(&mut Fingerprint::default());
        put("routing.toml", "");
        put("prices.toml", "[price.\"a/m\"]\ninput = \"1\"\n");
        let first = load().unwrap();
        put("routing.toml", "[routing]\ninfer = false\n");
        let second = load().unwrap();
        assert!(!second.routing.infer);
        assert!(Arc::ptr_eq(&first.prices, &second.prices));
        put("prices.toml", "[price.\"b/m\"]\ninput = \"1\"\n");
        assert!(load().unwrap().prices.contains_key("b/m"));
        put("prices.toml", "[price.\"b/m\"]\ninput = 1\n");
        // A problem is told as often as it is met.
        for _ in 0..2 {
            assert_eq!(load().unwrap_err().len(), 1);
        }
        put("prices.toml", "");
        assert!(load().unwrap().prices.is_empty());
    }
}
