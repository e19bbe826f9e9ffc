//! What a reviewer would otherwise have to look for: floors never call up, the engine reads no clock, files stay small, the
//! README's two commands are there, and the tree speaks of nothing but itself.

// A tree that cannot be read fails the test, as it should.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rust files of more lines than this are split by concern.
const MAX_LINES: usize = 800;

/// Each part and the parts it may use. The command line may use all of them.
const MAY_USE: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("config", &["engine"]),
    ("telemetry", &["engine", "config", "store", "auth", "export"]),
    ("store", &["engine", "config", "telemetry", "auth", "export"]),
    ("auth", &["engine", "config", "telemetry", "store", "export"]),
    ("export", &["engine", "config", "telemetry", "store", "auth"]),
    ("policy", &["engine", "config", "telemetry", "store"]),
    ("proxy", &["engine", "config", "telemetry", "store", "auth", "export", "policy"]),
    ("plugin", &["engine", "config", "telemetry", "store", "auth", "export", "policy", "proxy"]),
    ("admin", &["engine", "config", "telemetry", "store", "auth", "export", "policy", "proxy"]),
];

/// What decides and counts asks nobody for the time, chance, files, the network or another thread.
const NOT_IN_ENGINE: &[&str] = &[
    "SystemTime",
    "Instant::now",
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::env",
    "std::process",
    "std::thread",
    "stdin()",
    "stdout()",
    "tokio::",
    "pingora",
    "rand::",
    "async fn",
    "println!",
    "eprintln!",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder`, but not what is made or fetched.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    const LEFT_OUT: &[&str] = &["target", ".git", "node_modules", "var", "__pycache__", ".venv"];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !LEFT_OUT.contains(&name.as_str()) {
                files(&path, found);
            }
        } else if name != ".git" {
            found.push(path);
        }
    }
}

fn tree() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(root(), &mut found);
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    tree().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The lines of code: without comments, and without what stands from the tests on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The parts of the crate that a line names as `crate::part`, also inside `use crate::{a, b::c}` on one line.
fn parts_named(line: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => parts.push(rest.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()),
            Some(inside) => {
                let mut depth = 0;
                let mut word = String::new();
                let mut in_path = false;
                for character in inside.chars() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            parts.push(std::mem::take(&mut word));
                            in_path = false;
                        }
                        ':' => in_path = true,
                        character if depth == 0 && !in_path && (character.is_alphanumeric() || character == '_') => word.push(character),
                        _ => {}
                    }
                }
                parts.push(word);
            }
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn parts_are_found_in_every_way_of_naming_them() {
    for (line, expected) in [
        ("use crate::engine::money::Usd;", &["engine"][..]),
        ("    let a = crate::store::now_ms() + crate::proxy::b();", &["store", "proxy"]),
        ("use crate::{engine, store::{Store, now_ms}, config::walk};", &["engine", "store", "config"]),
        ("pub(crate) use self::a;", &[]),
        ("mycrate::proxy", &[]),
    ] {
        assert_eq!(parts_named(line), expected, "{line}");
    }
}

#[test]
fn floors_never_call_up() {
    let source = root().join("src");
    let mut faults = Vec::new();
    let mut looked_at = 0;
    for path in rust_files().iter().filter(|path| path.starts_with(&source)) {
        let inner = path.strip_prefix(&source).unwrap();
        let first = inner.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let part = first.trim_end_matches(".rs").to_owned();
        let Some((_, may)) = MAY_USE.iter().find(|(name, _)| *name == part) else { continue };
        looked_at += 1;
        for (number, line) in code(&fs::read_to_string(path).unwrap()) {
            for used in parts_named(line) {
                if used != part && !may.contains(&used.as_str()) {
                    faults.push(format!("{}:{number}: {part} may not use {used}", shown(path)));
                }
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} files were found: is this looking in the right place?");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_engine_asks_nobody() {
    let engine = root().join("src/engine");
    let mut faults = Vec::new();
    for path in rust_files().iter().filter(|path| path.starts_with(&engine)) {
        if path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(path).unwrap()) {
            for word in NOT_IN_ENGINE.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{}:{number}: {word}", shown(path)));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_are_small_enough_to_read() {
    let long: Vec<String> = rust_files()
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", shown(path)))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Lines of the README's shell blocks that begin with one of the two commands a newcomer is told.
#[test]
fn the_readme_tells_the_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo run --release -- demo", "tests/run"] {
        let told =
            readme.lines().filter(|line| line.trim().trim_start_matches("$ ").split('#').next().unwrap_or("").trim() == command).count();
        assert_eq!(told, 1, "`{command}` must stand in the README exactly once on a line of its own");
    }
    for script in ["tests/run", ".ci/run"] {
        use std::os::unix::fs::PermissionsExt;
        assert!(fs::metadata(root().join(script)).unwrap().permissions().mode() & 0o111 != 0, "{script} cannot be run");
    }
}

/// The words are put together here so that this file does not hold them.
#[test]
fn the_tree_speaks_of_itself_alone() {
    let words: Vec<String> = [
        "/wo|rk/",
        "/ro|ot/.",
        "/ho|me/",
        "regis|try.npmjs",
        "files.python|hosted",
        "static.crates|.io",
        "Clau|de Code",
        "Co-Authored|-By",
        "TO|DO",
        "FIX|ME",
        "XX|X ",
        "issue| #",
    ]
    .iter()
    .map(|word| word.replace('|', ""))
    .collect();
    let mut faults = Vec::new();
    for path in tree() {
        // Files that are not text, and lists of sources and vocabularies, hold whatever they hold.
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "Cargo.lock" || name.ends_with(".jsonl") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{}: {word}", shown(&path), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A test that is left out never fails. Measurements for people, and children that their parent test runs, say what they are.
#[test]
fn no_test_is_left_out() {
    let mark = ["#[ign", "ore"].concat();
    let python = ["pytest.mark.s", "kip"].concat();
    let mut faults = Vec::new();
    for path in tree() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            let has_reason = [" = \"measures", " = \"run by the parent test"].iter().any(|reason| line.contains(reason));
            if (line.contains(&mark) && !has_reason) || line.contains(&python) {
                faults.push(format!("{}:{}", shown(&path), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
