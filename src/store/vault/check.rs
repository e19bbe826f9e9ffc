//! Asking a provider whether a key works.
