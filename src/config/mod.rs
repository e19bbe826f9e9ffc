//! Floor 1: configuration files.
#[cfg(feature = "gateway")]
pub mod litellm;
pub mod load;
pub mod pace;
pub mod prices;
pub mod problem;
pub mod routing;
pub mod walk;
pub mod weir_toml;
