//! Whole counts against tiktoken's, streams against whole counts.

use super::*;

const O200K: Family = Family { encoding: Encoding::O200k, per_mille: 1000 };

#[test]
fn smoke() {
    assert_eq!(count(O200K, "hello world"), 2);
}
