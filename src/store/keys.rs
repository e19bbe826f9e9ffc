//! Callers' keys.

/// Tables of this part.
pub const TABLES: &str = "";
