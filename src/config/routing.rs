//! `routing.toml`: text in, a catalog or problems out.
