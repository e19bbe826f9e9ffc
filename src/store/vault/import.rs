//! Taking keys over from files.
