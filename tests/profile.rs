//! Cargo calls rustc through `deploy/profile/rustc`: what that adds, and when. The compiler is a script here that prints its arguments.

// A test that cannot set up fails, as it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const RELEASE: &[&str] = &["--crate-name", "weir", "-C", "opt-level=3", "src/main.rs"];

/// The wrapper beside a profile for version 1.2.3, and a compiler of `version`.
fn install(folder: &Path, version: &str) -> (PathBuf, PathBuf) {
    let (wrapper, compiler) = (folder.join("with a space/rustc"), folder.join("compiler"));
    fs::create_dir_all(wrapper.parent().unwrap()).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/profile/rustc"), &wrapper).unwrap();
    fs::write(wrapper.with_file_name("1.2.3.profdata"), "").unwrap();
    fs::write(&compiler, format!("#!/bin/sh\n[ \"$1\" = --version ] && exec echo '{version}'\nprintf '%s\\n' \"$@\"\n")).unwrap();
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755)).unwrap();
    (wrapper, compiler)
}

/// What the compiler is given beyond `arguments`.
fn added(version: &str, mode: Option<&str>, arguments: &[&str]) -> String {
    /// One at a time: a process that starts while another thread writes a program has it open, and it cannot be run ("Text file busy").
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let (wrapper, compiler) = install(folder.path(), version);
    let mut command = Command::new(wrapper);
    command.env_remove("WEIR_PROFILE").arg(compiler).args(arguments);
    if let Some(mode) = mode {
        command.env("WEIR_PROFILE", mode);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (given, more) = text.trim_end().split_at(arguments.join("\n").len());
    assert_eq!(given, arguments.join("\n"));
    more.trim_start().replace(folder.path().to_str().unwrap(), "").replace('\n', " ")
}

#[test]
fn a_release_has_the_profile_of_its_compiler() {
    let with = "-Cllvm-args=-no-pgo-warn-mismatch -Cprofile-use=/with a space/1.2.3.profdata";
    assert_eq!(added("rustc 1.2.3 (0123abcd 2026-01-01)", None, RELEASE), with);
    assert_eq!(added("rustc 1.2.3", None, RELEASE), with);
    // Another compiler, a compiler that is none, and no release.
    for (version, arguments) in [
        ("rustc 1.2.4 (0123abcd 2026-01-01)", RELEASE),
        ("rustc 1.2.3-nightly (0123abcd 2026-01-01)", RELEASE),
        ("clippy 0.1.95 (0123abcd 2026-01-01)", RELEASE),
        ("rustc 1.2.3 (0123abcd 2026-01-01)", &["-C", "opt-level=1", "src/lib.rs"]),
        ("rustc 1.2.3 (0123abcd 2026-01-01)", &["-vV"]),
    ] {
        assert_eq!(added(version, None, arguments), "", "{version} {arguments:?}");
    }
}

#[test]
fn it_can_be_left_out_recorded_anew_and_checked() {
    assert_eq!(added("rustc 1.2.3 (0123abcd 2026-01-01)", Some("off"), RELEASE), "");
    assert_eq!(added("rustc 1.2.3 (0123abcd 2026-01-01)", Some("record:/tmp/raw"), RELEASE), "-Cprofile-generate=/tmp/raw");
    assert_eq!(added("rustc 1.2.3 (0123abcd 2026-01-01)", Some("record:/tmp/raw"), &["build.rs"]), "");
    // The compiler warns of what no longer fits unless it is told not to.
    let check = added("rustc 1.2.3 (0123abcd 2026-01-01)", Some("check"), RELEASE);
    assert_eq!(check, "-Cprofile-use=/with a space/1.2.3.profdata");
}
