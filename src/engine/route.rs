//! The plan of attempts and what to try after which outcome.
