//! Finding keys that lie about in files, and taking them out.
//!
//! A file is read whole (bounded), cut into runs of key characters, and each run is asked for a known shape at its start and
//! behind every separator. What follows the prefix must look random, so that `sk-your-key-here` in a manual is not reported.

use super::keys;
use super::secret::mask;
use crate::engine::provider::{Shape, key_shape, spec};
use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Larger files are named, not read.
const FILE_MAX: u64 = 256 << 20;

/// Shortest key that is reported; the shortest known shapes have 32 characters, and some slack is for shapes that change.
const KEY_MIN: usize = 20;

/// Longest run that is looked at; longer ones are encoded data, and their first part is enough.
const RUN_MAX: usize = 512;

/// Different characters the part behind the prefix must have: random text of 16 has about 14, `xxxx…` and words few.
const DISTINCT_MIN: usize = 8;

/// What a redacted key becomes.
const PLACEHOLDER: &str = "REDACTED-BY-WEIR";

/// What a backup's name ends in.
pub const BACKUP_SUFFIX: &str = ".weir-backup";

/// A key in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// Whose key it looks to be.
    pub owner: &'static str,
    /// First and last four characters.
    pub shown: String,
}

/// What a scan came to.
#[derive(Debug, Default)]
pub struct Scan {
    /// The keys, in the order of files and lines.
    pub findings: Vec<Finding>,
    /// Files that were read.
    pub files: u64,
    /// Files and folders that were not, and why.
    pub unread: Vec<(PathBuf, String)>,
    /// Files that were redacted.
    pub redacted: Vec<PathBuf>,
    /// Backups that were made. They hold the keys: move them away or delete them.
    pub backups: Vec<PathBuf>,
}

/// What to do with what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redact {
    /// Only report it.
    No,
    /// Replace it and keep the file as it was beside it.
    WithBackup,
    /// Replace it.
    WithoutBackup,
}

/// Scans files and folders, links not followed.
pub fn scan(paths: &[PathBuf], redact: Redact) -> Scan {
    let mut scan = Scan::default();
    let mut seen = HashSet::new();
    // A stack, not recursion: a tree may be deep.
    let mut waiting: Vec<PathBuf> = paths.iter().rev().cloned().collect();
    while let Some(path) = waiting.pop() {
        let kind = match fs::symlink_metadata(&path) {
            Ok(data) => data,
            Err(error) => {
                scan.unread.push((path, error.to_string()));
                continue;
            }
        };
        if kind.is_dir() {
            // Git's objects are compressed; there is nothing to be seen in them.
            if path.ends_with(".git/objects") {
                continue;
            }
            match children(&path) {
                Ok(children) => waiting.extend(children.into_iter().rev()),
                Err(error) => scan.unread.push((path, error.to_string())),
            }
        } else if kind.is_file() && seen.insert(path.clone()) {
            // Our own backups are what they were asked to be.
            if path.as_os_str().to_string_lossy().ends_with(BACKUP_SUFFIX) {
                continue;
            }
            if kind.len() > FILE_MAX {
                scan.unread.push((path, format!("larger than {} MiB", FILE_MAX >> 20)));
            } else if let Err(error) = file(&path, redact, &mut scan) {
                scan.unread.push((path, error.to_string()));
            }
        }
    }
    scan
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    children.sort();
    Ok(children)
}

fn file(path: &Path, redact: Redact, scan: &mut Scan) -> io::Result<()> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    scan.files += 1;
    let found = keys_in(&bytes);
    if found.is_empty() {
        return Ok(());
    }
    let (mut line, mut counted) = (1, 0);
    for (range, owner) in &found {
        line += memchr::memchr_iter(b'\n', &bytes[counted..range.start]).count();
        counted = range.start;
        let shown = mask(&String::from_utf8_lossy(&bytes[range.clone()]));
        scan.findings.push(Finding { path: path.to_owned(), line, owner, shown });
    }
    if redact == Redact::No {
        return Ok(());
    }
    // A NUL: not a text, and its parts may have lengths that a replacement would break.
    if memchr::memchr(0, &bytes).is_some() {
        scan.unread.push((path.to_owned(), "not a text file: not redacted".into()));
        return Ok(());
    }
    if redact == Redact::WithBackup {
        let backup = sibling(path, BACKUP_SUFFIX);
        // Never over a backup from before: that one has the earlier keys.
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&backup)?.write_all(&bytes)?;
        scan.backups.push(backup);
    }
    replace(path, &redacted(&bytes, &found))?;
    scan.redacted.push(path.to_owned());
    Ok(())
}

/// Every key and whose it looks to be.
fn keys_in(bytes: &[u8]) -> Vec<(Range<usize>, &'static str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_key_byte(bytes[at]) {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|byte| is_key_byte(**byte)).count();
        // Key characters are ASCII, so this is text.
        let run = std::str::from_utf8(&bytes[at..end.min(at + RUN_MAX)]).unwrap_or("");
        if let Some((start, owner)) = key_in(run) {
            found.push((at + start..end, owner));
        }
        at = end;
    }
    found
}

/// Where a key begins in a run: at its start or behind a separator.
fn key_in(run: &str) -> Option<(usize, &'static str)> {
    let bytes = run.as_bytes();
    (0..run.len().checked_sub(KEY_MIN - 1)?).filter(|at| *at == 0 || matches!(bytes[at - 1], b'-' | b'_')).find_map(|at| {
        let text = &run[at..];
        let owner = match key_shape(text) {
            Shape::Of(kind) => spec(kind).title,
            Shape::Weir if text.len() == keys::LENGTH => "weir",
            Shape::Other(name) => name,
            Shape::Weir | Shape::Unclear => return None,
        };
        looks_random(text).then_some((at, owner))
    })
}

/// The part behind the first characters has a digit or capitals among small letters, and many different characters.
fn looks_random(text: &str) -> bool {
    let part = &text.as_bytes()[4..];
    let distinct: HashSet<u8> = part.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    let has = |test: fn(&u8) -> bool| part.iter().any(test);
    distinct.len() >= DISTINCT_MIN && (has(u8::is_ascii_digit) || (has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase)))
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn redacted(bytes: &[u8], found: &[(Range<usize>, &'static str)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for (range, _) in found {
        out.extend_from_slice(&bytes[at..range.start]);
        out.extend_from_slice(PLACEHOLDER.as_bytes());
        at = range.end;
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// Writes beside the file and renames over it, so that a crash leaves one or the other, whole; the mode stays.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = sibling(path, ".weir-new");
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.set_permissions(fs::metadata(path)?.permissions())?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        // Best effort: the error that matters is the first.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENAI: &str = "sk-proj-aB3dE6gH9jK2mN5pQ8sT1vW4";
    const WEIR: &str = "wk_aB3dE6gH9jK2mN5pQ8sT1vW4aB3dE6gH9jK2mN5pQ8s";

    #[test]
    fn keys_are_found_where_they_are() {
        for (text, expected) in [
            (format!("KEY={OPENAI}\n"), vec![(4..4 + OPENAI.len(), "OpenAI")]),
            (format!("\"{OPENAI}\","), vec![(1..1 + OPENAI.len(), "OpenAI")]),
            (
                format!("https://x/?key={OPENAI}&a={WEIR}"),
                vec![(15..15 + OPENAI.len(), "OpenAI"), (18 + OPENAI.len()..18 + OPENAI.len() + WEIR.len(), "weir")],
            ),
            (format!("prefix_{OPENAI}"), vec![(7..7 + OPENAI.len(), "OpenAI")]),
            ("sk-ant-api03-aB3dE6gH9jK2mN5p".into(), vec![(0..29, "Anthropic")]),
            ("sk-your-key-goes-here-please".into(), vec![]),
            ("sk-proj-xxxxxxxxxxxxxxxxxxxxxxxxxx".into(), vec![]),
            ("sk-proj-short1".into(), vec![]),
            ("task-force-0123456789-abcdefgh".into(), vec![]),
            ("wk_tooShort1234567890abc".into(), vec![]),
            ("a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6".into(), vec![]),
            (String::new(), vec![]),
        ] {
            assert_eq!(keys_in(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_tree_is_scanned_and_redacted() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/.git/objects")).unwrap();
        fs::write(at("a/.git/objects/x"), OPENAI).unwrap();
        let text = format!("one\ntwo {OPENAI} {OPENAI}\nthree\nkey: {WEIR}\n");
        fs::write(at("a/b.log"), &text).unwrap();
        fs::set_permissions(at("a/b.log"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(at("c.bin"), format!("\0{OPENAI}")).unwrap();
        fs::write(at("clean"), "nothing").unwrap();
        symlink(at("a"), at("loop")).unwrap();

        let paths = [folder.path().to_owned(), at("a/b.log"), at("none")];
        let found = scan(&paths, Redact::No);
        let told: Vec<_> = found.findings.iter().map(|finding| (finding.path.clone(), finding.line, finding.owner)).collect();
        let log = at("a/b.log");
        assert_eq!(told, [(log.clone(), 2, "OpenAI"), (log.clone(), 2, "OpenAI"), (log.clone(), 4, "weir"), (at("c.bin"), 1, "OpenAI")]);
        assert!(!format!("{found:?}").contains(&OPENAI[4..12]));
        assert_eq!((found.files, found.unread.len()), (3, 1));
        assert_eq!(fs::read_to_string(&log).unwrap(), text);

        let done = scan(&paths, Redact::WithBackup);
        assert_eq!(done.redacted, std::slice::from_ref(&log));
        let expected = format!("one\ntwo {PLACEHOLDER} {PLACEHOLDER}\nthree\nkey: {PLACEHOLDER}\n");
        assert_eq!(fs::read_to_string(&log).unwrap(), expected);
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o640);
        let backup = sibling(&log, BACKUP_SUFFIX);
        assert_eq!(fs::read_to_string(&backup).unwrap(), text);
        assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);

        // A backup is not overwritten, and then nothing is redacted either.
        fs::write(&log, &text).unwrap();
        let refused = scan(std::slice::from_ref(&log), Redact::WithBackup);
        assert!(refused.redacted.is_empty() && refused.unread.len() == 1);
        assert_eq!(fs::read_to_string(&log).unwrap(), text);
        assert_eq!(scan(std::slice::from_ref(&log), Redact::WithoutBackup).redacted, std::slice::from_ref(&log));
        assert!(scan(&[log], Redact::No).findings.is_empty());
    }
}
