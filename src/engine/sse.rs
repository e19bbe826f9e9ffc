//! Server-sent events (WHATWG HTML, 9.2): a bounded push decoder that keeps its scan position.
