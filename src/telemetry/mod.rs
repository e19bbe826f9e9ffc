//! Floor 1: what weir shows of itself. Metrics, the line a request leaves in the log, the clock.

pub mod clock;
pub mod log_lines;
pub mod metrics;
pub mod series;
