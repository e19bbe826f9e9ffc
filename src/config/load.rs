//! The two hot files: read, parsed and checked together, or not at all.

use super::problem::Problem;
use crate::engine::catalog::Catalog;
use std::path::{Path, PathBuf};
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
pub struct Fingerprint([Option<(SystemTime, u64, u64)>; 2]);

impl Files {
    /// The files' present versions.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint([fingerprint(&self.routing), fingerprint(&self.prices)])
    }

    /// Reads, parses and checks both files. All problems of both are reported at once.
    pub fn load(&self) -> Result<Catalog, Vec<Problem>> {
        let mut problems = Vec::new();
        let routing = read(&self.routing, &mut problems);
        let prices = read(&self.prices, &mut problems);
        let (Some(routing), Some(prices)) = (routing, prices) else { return Err(problems) };
        let (table, found) = super::prices::parse(&self.prices.to_string_lossy(), &prices);
        problems.extend(found);
        let (catalog, found) = super::routing::parse(&self.routing.to_string_lossy(), &routing, &table);
        problems.extend(found);
        if problems.is_empty() { Ok(catalog) } else { Err(problems) }
    }
}

fn fingerprint(path: &Path) -> Option<(SystemTime, u64, u64)> {
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
