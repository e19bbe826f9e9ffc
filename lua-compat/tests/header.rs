//! The C header and the binding's declarations are made from `src/ffi.rs` and `src/packed.rs`; here they are held against it.
//!
//! After a change of the interface: `WEIR_WRITE_HEADER=1 cargo test -p libweir --test header`.

use std::fs;
use std::path::Path;

const OPENING: &str = "ffi.cdef [[\n";
const CLOSING: &str = "]]\n";

#[test]
fn the_header_and_the_binding_declare_what_the_library_exports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi.rs"))
        .with_src(root.join("src/packed.rs"))
        .with_src(root.join("src/engine.rs"))
        .generate()
        .unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let binding_path = root.join("lib/resty/weir.lua");
    let binding = fs::read_to_string(&binding_path).unwrap();
    let start = binding.find(OPENING).unwrap() + OPENING.len();
    let end = start + binding[start..].find(CLOSING).unwrap();
    let declarations = declarations(&header);

    if std::env::var_os("WEIR_WRITE_HEADER").is_some() {
        fs::write(root.join("include/weir.h"), &header).unwrap();
        fs::write(&binding_path, format!("{}{declarations}{}", &binding[..start], &binding[end..])).unwrap();
        return;
    }
    let kept = fs::read_to_string(root.join("include/weir.h")).unwrap();
    assert!(kept == header, "include/weir.h is not what src/ffi.rs and src/packed.rs say: see the top of this file");
    assert_eq!(&binding[start..end], declarations, "lib/resty/weir.lua declares something else");
}

/// A header without its comments and directives, which LuaJIT's parser does not read; its constants declared instead.
fn declarations(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some(at) = rest.find("/*") {
        text.push_str(&rest[..at]);
        let Some(length) = rest[at..].find("*/") else { break };
        rest = &rest[at + length + 2..];
    }
    text.push_str(rest);
    let lines = text.lines().filter(|line| !line.trim().is_empty()).filter_map(|line| {
        let Some(defined) = line.strip_prefix("#define ") else { return (!line.starts_with('#')).then(|| format!("{line}\n")) };
        let (name, value) = defined.split_once(' ')?;
        Some(format!("static const int {name} = {value};\n"))
    });
    lines.collect()
}
