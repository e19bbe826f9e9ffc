//! Finding keys in files.
