//! Prices and what a usage costs by them.

/// The rates of one `provider/model`.
#[derive(Debug)]
pub struct Price {}
