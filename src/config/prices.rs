//! `prices.toml`: text in, prices or problems out.
