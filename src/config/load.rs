//! The hot files: read, parsed and checked together, or not at all.

use super::problem::Problem;
use crate::engine::catalog::Catalog;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Where `routing.toml` and `prices.toml` are.
#[derive(Debug, Clone)]
pub struct Files {
    /// `routing.toml`.
    pub routing: PathBuf,
    /// `prices.toml`.
    pub prices: PathBuf,
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
        let mut problems = Vec::new();
        let routing = read(&self.routing, &mut problems);
        let prices = read(&self.prices, &mut problems);
        let (Some(routing), Some(prices)) = (routing, prices) else { return Err(problems) };
        let (table, found) = super::prices::parse(&self.prices.to_string_lossy(), &prices);
        problems.extend(found);
        let (mut catalog, found) = super::routing::parse(&self.routing.to_string_lossy(), &routing, &table);
        problems.extend(found);
        seen.policy = None;
        if let Some(policy) = catalog.lua_policy.as_mut().map(Arc::make_mut) {
            let path = PathBuf::from(&*policy.file);
            // Before it is read: a change in between is seen the next time.
            seen.policy = Some((path.clone(), version(&path)));
            policy.text = read(&path, &mut problems).unwrap_or_default().into();
        }
        if problems.is_empty() { Ok(catalog) } else { Err(problems) }
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
