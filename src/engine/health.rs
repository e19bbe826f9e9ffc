//! Failures, cooldowns, single probes and measurements of targets and providers. The clock is passed in.

/// Live state of a target. Atomics only.
#[derive(Debug, Default)]
pub struct TargetState {}

/// Live state of a provider. Atomics only.
#[derive(Debug, Default)]
pub struct ProviderState {}
